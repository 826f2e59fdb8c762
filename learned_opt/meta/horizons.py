"""How long an inner loop lasts before fresh problems are drawn.

Short horizons make greedy rules (Wu et al. 2018, arXiv:1803.02021); long ones are costly and
chaotic. A schedule says what is drawn when.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, final

import torch

from learned_opt.errors import require


class Horizon(ABC):
    """A distribution of episode lengths that may change while training proceeds."""

    @abstractmethod
    def draw(self, progress: float, rng: torch.Generator) -> int:
        """Draw the length of one episode.

        Args:
            progress: the fraction of outer steps done, in ``[0, 1]``.
            rng: CPU generator, advanced.

        Returns:
            A positive number of inner steps.
        """

    @property
    @abstractmethod
    def longest(self) -> int:
        """The longest episode that can be drawn."""

    def config(self) -> dict[str, Any]:
        """Kind and settings, JSON-able."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **settings}


@final
@dataclass(frozen=True)
class Fixed(Horizon):
    """Always `steps`.

    Attributes:
        steps: inner steps, positive.
    """

    steps: int

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps must be positive, got {self.steps}")

    def draw(self, progress: float, rng: torch.Generator) -> int:
        """The one length."""
        del progress, rng
        return self.steps

    @property
    def longest(self) -> int:
        """The one length."""
        return self.steps


@final
@dataclass(frozen=True)
class LogUniform(Horizon):
    """Log-uniform between two lengths, both possible, as Metz et al. 2022 (arXiv:2211.09760) train.

    Attributes:
        low: shortest, positive.
        high: longest, not below `low`.

    Examples:
        >>> rng = torch.Generator().manual_seed(0)
        >>> horizon = LogUniform(20, 500)
        >>> draws = [horizon.draw(0.0, rng) for _ in range(1000)]
        >>> 20 <= min(draws) < 22 and 450 < max(draws) <= 500
        True
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        require(self.low >= 1, f"low must be positive, got {self.low}")
        require(self.high >= self.low, f"high must be at least low={self.low}, got {self.high}")

    def draw(self, progress: float, rng: torch.Generator) -> int:
        """A length whose logarithm is uniform."""
        del progress
        u = torch.rand((), generator=rng, dtype=torch.float64).item()
        return min(self.high, int(self.low * math.exp(u * math.log((self.high + 1) / self.low))))

    @property
    def longest(self) -> int:
        """The upper end."""
        return self.high


@final
@dataclass(frozen=True)
class Curriculum(Horizon):
    """One horizon after the other, easy first, as Chen et al. 2020 (arXiv:2010.09089).

    Attributes:
        stages: the horizons in order.
        starts: the progress at which each stage begins: 0 first, increasing, below 1. Empty gives
            every stage an equal share.

    Examples:
        >>> horizon = Curriculum((Fixed(20), LogUniform(20, 100)), starts=(0.0, 0.25))
        >>> horizon.stage_at(0.2), horizon.stage_at(0.25)
        (Fixed(steps=20), LogUniform(low=20, high=100))
    """

    stages: tuple[Horizon, ...]
    starts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.stages) >= 1, "stages must hold at least one horizon, got none")
        if not self.starts:
            shares = tuple(i / len(self.stages) for i in range(len(self.stages)))
            object.__setattr__(self, "starts", shares)
        require(
            len(self.starts) == len(self.stages),
            f"starts must have one entry per stage ({len(self.stages)}), got {len(self.starts)}",
        )
        rising = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        require(
            self.starts[0] == 0 and rising and self.starts[-1] < 1,
            f"starts must begin with 0, increase and stay below 1, got {self.starts}",
        )

    def stage_at(self, progress: float) -> Horizon:
        """The stage in force at `progress`."""
        return self.stages[sum(start <= progress for start in self.starts) - 1]

    def draw(self, progress: float, rng: torch.Generator) -> int:
        """A length from the stage in force."""
        return self.stage_at(progress).draw(progress, rng)

    @property
    def longest(self) -> int:
        """The longest of all stages."""
        return max(stage.longest for stage in self.stages)

    def config(self) -> dict[str, Any]:
        """Kind, stages and starts, JSON-able."""
        return {
            "kind": "Curriculum",
            "stages": [stage.config() for stage in self.stages],
            "starts": list(self.starts),
        }
