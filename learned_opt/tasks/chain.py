"""A ring of coupled double wells."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import FixedFunction, Start, gaussian_off
from learned_opt.tasks.base import CriticalPoint, register_task


@final
@register_task
class Phi4Chain(FixedFunction):
    """A ring of double wells with springs between neighbours: saddles of all indices, and kinks.

    ``f = sum_i (x_i^4/4 - x_i^2/2) + k/2 sum_i (x_i - x_{i+1})^2``, periodic. Domains of opposite
    sign are parted by kinks, which for weak coupling are local minima; so the first event, leaving
    the origin, is set against the ground state ``-n/4`` directly.

    Args:
        dim: number ``n`` of sites, at least 3.
        coupling: spring constant ``k``, not negative.
        start: ``ball`` about the origin, ``manifold`` (its unstable modes are small), ``exact`` or
            ``natural`` (standard normal).
        start_radius: distance of ``ball`` or ``manifold`` starts.

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "phi4_chain"
    family = "phi4_chain"
    budget = 500
    radius = 1.0

    def __init__(
        self,
        *,
        dim: int = 16,
        coupling: float = 0.2,
        start: str = "ball",
        start_radius: float = 1e-3,
    ) -> None:
        require(dim >= 3, f"dim must be at least 3, got {dim}")
        require(
            0 <= coupling < math.inf, f"coupling must be finite and not negative, got {coupling}"
        )
        self.coupling = coupling
        self.start = Start(kind=start, radius=start_radius)
        self.shapes = {"x": (dim,)}
        self.smoothness = 2 + 4 * coupling
        self.minimum = -dim / 4
        self.levels = (0.0, self.minimum)
        self.saddle = torch.zeros(dim, dtype=torch.float64)
        angles = 2 * math.pi * torch.arange(dim, dtype=torch.float64) / dim
        self._springs = 2 * coupling * (1 - angles.cos())
        eye = torch.eye(dim, dtype=torch.float64)
        springs = coupling * (2 * eye - eye.roll(1, 0) - eye.roll(-1, 0))
        values, vectors = torch.linalg.eigh(springs - eye)
        self.escape = vectors.T[values < -1e-12]

    def function(self, x: Tensor) -> Tensor:
        """The energy, ``[..., n] -> [...]``."""
        squared = x.square()
        wells = squared.square() / 4 - squared / 2
        springs = self.coupling / 2 * (x - x.roll(-1, -1)).square()
        return (wells + springs).sum(-1)

    def critical_points(self) -> list[CriticalPoint]:
        """The periodic ones of period 1, 2 and 4, where they exist; lowest last.

        With signs that repeat as ``+``, ``+-`` or ``++--`` every site feels the same spring force
        ``q k x`` with ``q`` = 0, 4, 2. So ``|x_i| = a`` with ``a^2 = 1 - q k``, the value is
        ``-n a^4 / 4`` and the eigenvalues are ``3 a^2 - 1 + 2 k (1 - cos 2 pi m / n)``.
        """
        points = [self._periodic([0.0], 0.0)]
        for signs, q in (([1, -1], 4), ([1, 1, -1, -1], 2)):
            squared = 1 - q * self.coupling
            if self.dim % len(signs) == 0 and squared > 0:
                points.append(self._periodic([s * math.sqrt(squared) for s in signs], squared))
        return [*points, self._periodic([1.0], 1.0), self._periodic([-1.0], 1.0)]

    def _periodic(self, pattern: list[float], squared: float) -> CriticalPoint:
        return CriticalPoint(
            x=torch.tensor(pattern, dtype=torch.float64).repeat(self.dim // len(pattern)),
            value=-self.dim * squared**2 / 4,
            eigenvalues=(3 * squared - 1 + self._springs).sort().values,
        )

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return gaussian_off(self.saddle, self.escape, 0.1, num_problems, rng)

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
