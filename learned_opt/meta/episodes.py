"""What the outer loop trains on: a task, a batch of its problems and a horizon, drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.meta.horizons import Horizon
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.unroll import Carry


def pack_problems(problems: Problems) -> dict[str, Any]:
    """Problems as plain containers of tensors and numbers, as a checkpoint holds them."""
    return {
        "params": problems.params,
        "constants": problems.constants,
        "facts": dict(vars(problems.facts)),
    }


def unpack_problems(packed: Mapping[str, Any]) -> Problems:
    """Undo `pack_problems`."""
    return Problems(
        params=packed["params"],
        constants=packed["constants"],
        facts=Facts(**packed["facts"]),
    )


@final
@dataclass(frozen=True, kw_only=True)
class Episode:
    """``N`` inner loops under way.

    Attributes:
        task: position of the task in the sampler's list.
        problems: the instances.
        horizon: inner steps after which the episode ends.
        carry: where the loops stand, detached; None before the first step.
        initial: ``[N]`` losses before the first step; None until they are known.
    """

    task: int
    problems: Problems
    horizon: int
    carry: Carry | None = None
    initial: Tensor | None = None

    @property
    def step(self) -> int:
        """Inner steps taken so far."""
        return 0 if self.carry is None else self.carry.step

    def pack(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers, as a checkpoint holds them."""
        carry = self.carry
        return {
            "task": self.task,
            "horizon": self.horizon,
            **pack_problems(self.problems),
            "carry": None if carry is None else dict(vars(carry)),
            "initial": self.initial,
        }

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Episode:
        """Undo `pack`."""
        carry = packed["carry"]
        return cls(
            task=packed["task"],
            problems=unpack_problems(packed),
            horizon=packed["horizon"],
            carry=None if carry is None else Carry(**carry),
            initial=packed["initial"],
        )


@final
@dataclass(frozen=True, kw_only=True)
class EpisodeSampler:
    """Draws episodes.

    Attributes:
        tasks: distributions of problems.
        weights: relative probability of each task; None makes them equal.
        num_problems: problems an episode.
        horizon: how long episodes last.
        dtype: floating-point type of the problems.
        device: where the problems live.
    """

    tasks: Sequence[Task]
    weights: tuple[float, ...] | None = None
    num_problems: int
    horizon: Horizon
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        require(len(self.tasks) >= 1, "tasks must hold at least one task, got none")
        require(self.num_problems >= 1, f"num_problems must be positive, got {self.num_problems}")
        if self.weights is not None:
            require(
                len(self.weights) == len(self.tasks),
                f"task_weights must have one entry per task ({len(self.tasks)}), "
                f"got {len(self.weights)}",
            )
            require(
                all(weight >= 0 for weight in self.weights) and sum(self.weights) > 0,
                f"task_weights must be non-negative and not all zero, got {self.weights}",
            )

    def draw(self, progress: float, rng: torch.Generator) -> Episode:
        """Draw a task, its problems and a horizon.

        Args:
            progress: the fraction of outer steps done, in ``[0, 1]``.
            rng: CPU generator, advanced.

        Returns:
            An episode before its first step.
        """
        task = 0
        if len(self.tasks) > 1:
            weights = self.weights or (1.0,) * len(self.tasks)
            probabilities = torch.tensor(weights, dtype=torch.float64)
            task = int(torch.multinomial(probabilities, 1, generator=rng))
        problems = self.tasks[task].sample(
            self.num_problems, seed=rng, dtype=self.dtype, device=self.device
        )
        return Episode(task=task, problems=problems, horizon=self.horizon.draw(progress, rng))
