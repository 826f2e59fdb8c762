"""Quadratic bowls with ripples: the practice ground of step-size control."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import (
    ClosedFormTask,
    CriticalPoint,
    Facts,
    Problems,
    register_task,
)
from learned_opt.trees import Params, Tree

_FREQUENCY = 3.0


@final
@register_task
class RippledQuadratic(ClosedFormTask):
    r"""Ill-conditioned bowls with ripples, ``sum h_i (x_i^2 / 2 + r (1 - cos 3 x_i))``.

    The curvature along a coordinate swings between $h_i (1 - 9 r)$ and $h_i (1 + 9 r)$, so no one
    step size is right for long; with the default ripple it is negative now and then. Up to
    $r = 0.5$ the origin is the only critical point: $x + 3 r \sin 3 x$ has no other root. Each
    instance has a condition number of its own, ``10^U(a, b)``, and curvatures log-uniform below 1.

    Args:
        dim: number of coordinates.
        condition_decades: $a$ and $b$, the range of the condition number's logarithm.
        ripple: $r$, in [0, 0.5].

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    name = "rippled_quadratic"
    kind = "quadratic"
    family = "rippled_quadratic"
    budget = 1000
    radius = 2.0
    minimum = 0.0

    def __init__(
        self,
        *,
        dim: int = 16,
        condition_decades: tuple[float, float] = (1.0, 3.0),
        ripple: float = 0.2,
    ) -> None:
        require(dim >= 1, f"{self.name}: dim must be positive, got {dim}")
        low, high = condition_decades
        require(
            0 <= low <= high,
            f"{self.name}: condition_decades must not be negative nor fall, "
            f"got {condition_decades}",
        )
        require(0 <= ripple <= 0.5, f"{self.name}: ripple must lie in [0, 0.5], got {ripple}")
        self.shapes = {"x": (dim,)}
        self.condition_decades, self.ripple = (low, high), ripple
        self.smoothness = 1 + _FREQUENCY**2 * ripple

    def function(self, x: Tensor) -> Tensor:
        """With curvatures log-spaced over the mean condition number, ``[..., d] -> [...]``."""
        return self._value(x, self._canonical().to(x))

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Each problem's own bowl, ``[N]``."""
        del batch
        curvature = problems.constants["curvature"]
        assert isinstance(curvature, Tensor)
        return self._value(params["x"], curvature)

    def critical_points(self) -> list[CriticalPoint]:
        """The minimum at the origin."""
        spectrum = self._canonical() * (1 + _FREQUENCY**2 * self.ripple)
        return [
            CriticalPoint(
                x=torch.zeros(self.dim, dtype=torch.float64),
                value=0.0,
                eigenvalues=spectrum.sort().values,
            )
        ]

    def _value(self, x: Tensor, curvature: Tensor) -> Tensor:
        # 1 - cos 2a = 2 sin^2 a keeps its digits near the minimum, where cos is all but 1.
        ripples = 2 * self.ripple * (x * (_FREQUENCY / 2)).sin().square()
        return (curvature * (x.square() / 2 + ripples)).sum(-1)

    def _canonical(self) -> Tensor:
        decades = sum(self.condition_decades) / 2
        return torch.logspace(-decades, 0, self.dim, dtype=torch.float64)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        low, high = self.condition_decades
        shape = (num_problems, self.dim)
        decades = low + (high - low) * torch.rand(
            num_problems, 1, generator=rng, dtype=torch.float64
        )
        exponents = torch.rand(shape, generator=rng, dtype=torch.float64)
        # The ends of the spectrum are always there, so that the condition number is what it says.
        exponents[:, 0] = 0.0
        exponents[:, -1] = 1.0 if self.dim > 1 else 0.0
        curvature = torch.exp(-math.log(10) * decades * exponents)
        start = self.radius * torch.randn(shape, generator=rng, dtype=torch.float64)
        reference = self._value(start, curvature)
        zeros = torch.zeros_like(reference)
        return Problems(
            params={"x": start},
            constants={"curvature": curvature},
            facts=Facts(
                minimum=zeros, reference=reference, next_level=zeros, levels=zeros.unsqueeze(1)
            ),
        )
