"""Where problems start: at a saddle, beside it, on its stable manifold, or at an ordinary place.

`Start` is the choice; `FixedFunction` is the abstract task whose problems share one function and
differ in their starting point alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor

from learned_opt.errors import require, unknown_name
from learned_opt.tasks.base import ClosedFormTask, Facts, Problems
from learned_opt.trees import Params, Tree, flatten, unflatten

Draw: TypeAlias = Callable[[int, torch.Generator], Tensor]
"""``(num_problems, rng) -> [N, d]`` points, float64."""

_KINDS = ("natural", "ball", "exact", "manifold")


@final
@dataclass(frozen=True, kw_only=True)
class Start:
    """How starting points relate to a task's canonical saddle.

    Attributes:
        kind: ``exact`` (the saddle itself), ``ball`` (at distance `radius`, uniform direction),
            ``manifold`` (a point of the stable manifold, moved along a random unstable direction
            by a distance log-uniform within half a decade of `radius`) or ``natural`` (the task's
            usual initialisation).
        radius: the distance, positive; only ``ball``, ``manifold`` and some natural starts use it.

    Raises:
        LearnedOptError: if `kind` is unknown or `radius` is not positive and finite.
    """

    kind: str
    radius: float

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise unknown_name("start", self.kind, _KINDS)
        require(
            0 < self.radius < float("inf"),
            f"start_radius must be positive and finite, got {self.radius}",
        )

    def draw(
        self,
        num_problems: int,
        rng: torch.Generator,
        *,
        saddle: Tensor,
        escape: Tensor,
        stable: Draw,
        natural: Draw,
    ) -> Tensor:
        """Draw starting points.

        Args:
            num_problems: how many.
            rng: CPU generator, advanced.
            saddle: ``[d]`` the canonical saddle.
            escape: ``[k, d]`` orthonormal directions that leave it.
            stable: draws points that gradient flow carries into the saddle.
            natural: draws ordinary starting points.

        Returns:
            ``[N, d]`` float64 points.
        """
        if self.kind == "natural":
            return natural(num_problems, rng)
        if self.kind == "manifold":
            points = stable(num_problems, rng)
            # Fixed distances would make the instances of a small task nearly the same problem.
            exponents = torch.rand(num_problems, 1, generator=rng, dtype=torch.float64) - 0.5
            distances = self.radius * 10**exponents
            return points + distances * unit_vectors(num_problems, len(escape), rng) @ escape
        points = saddle.expand(num_problems, -1).clone()
        if self.kind == "ball":
            points += self.radius * unit_vectors(num_problems, len(saddle), rng)
        return points


def unit_vectors(num_vectors: int, dim: int, rng: torch.Generator) -> Tensor:
    """Uniform points on the unit sphere, ``[num_vectors, dim]`` float64."""
    gaussian = torch.randn(num_vectors, dim, generator=rng, dtype=torch.float64)
    return gaussian / gaussian.square().sum(1, keepdim=True).sqrt()


def gaussian_off(
    saddle: Tensor, escape: Tensor, spread: float, num_problems: int, rng: torch.Generator
) -> Tensor:
    """Gaussian points about `saddle` without any component along `escape`, ``[N, d]``."""
    noise = torch.randn(num_problems, len(saddle), generator=rng, dtype=torch.float64)
    return saddle + spread * (noise - noise @ escape.T @ escape)


def same_facts(num_problems: int, levels: Sequence[float]) -> Facts:
    """Facts of problems that share these critical values, the start's first, the minimum last."""
    row = torch.tensor(levels, dtype=torch.float64).repeat(num_problems, 1)
    return Facts(minimum=row[:, -1], reference=row[:, 0], next_level=row[:, 1], levels=row)


class FixedFunction(ClosedFormTask):
    """A closed-form task whose problems are the canonical function seen from different starts.

    Attributes:
        start: where problems start.
        saddle: ``[d]`` the canonical saddle, float64.
        escape: ``[k, d]`` orthonormal directions along which the function falls from it.
        levels: critical values, descending: the canonical saddle's first, the minimum last, and
            between them those that a run passes on its way.
    """

    kind = "saddle"
    start: Start
    saddle: Tensor
    escape: Tensor
    levels: tuple[float, ...]

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The canonical function at each problem's point, ``[N]``."""
        del problems, batch
        return self.function(flatten(params))

    @abstractmethod
    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        """Points on the canonical saddle's stable manifold, ``[N, d]``."""

    @abstractmethod
    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        """Ordinary starting points, ``[N, d]``."""

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        points = self.start.draw(
            num_problems,
            rng,
            saddle=self.saddle,
            escape=self.escape,
            stable=self._stable,
            natural=self._natural,
        )
        like = {name: torch.empty(1, *shape) for name, shape in self.shapes.items()}
        return Problems(
            params=unflatten(points, like),
            constants={},
            facts=same_facts(num_problems, self.levels),
        )
