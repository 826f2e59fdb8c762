"""The octopus of Du et al. 2017: saddles in a row that cost gradient descent exponential time."""

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
class Octopus(FixedFunction):
    """A chain of ``d`` strict saddles, each one multiplying gradient descent's escape time.

    On the tubes of the paper this is its function exactly (Du et al. 2017, arXiv:1705.10412,
    section 4). With ``phi(x)`` equal to ``-gamma x^2`` below ``tau``, to the paper's ``g_1`` up to
    ``2 tau`` and to ``L (x - 4 tau)^2 - nu`` beyond, and with the smooth step
    ``S(x) = 10 u^3 - 15 u^4 + 6 u^5``, ``u = clip(x / tau - 1, 0, 1)``, the paper's ``g_2`` is
    ``-gamma + (L + gamma) (1 - S)``, so that

    ``f(x) = sum_i [ (1 - S(|x_{i-1}|)) L x_i^2 + S(|x_{i-1}|) phi(|x_i|) ]``,  ``S(|x_0|) := 1``,

    which is twice continuously differentiable everywhere and needs no extension theorem.

    Coordinates that wait for their turn halve at ``eta = 1 / (4 L)``, so after about 149 steps in
    float32 (1075 in float64) they underflow: gradient descent is then absorbed, not just slow.

    Args:
        dim: number of coordinates and of saddles in a row.
        tau: half the width of a tube; the paper takes e.
        L: half the curvature across the tubes, at least `gamma`; the paper takes e.
        gamma: half the negative curvature along a tube; the paper takes 1.
        start: ``natural`` (uniform in the cube ``[-1, 1]^d``), ``ball``, ``exact`` or ``manifold``
            (the first coordinate is small, the others Gaussian).
        start_radius: distance of ``ball`` or ``manifold`` starts.

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.

    Examples:
        >>> task = Octopus(dim=3)
        >>> [point.kind for point in task.critical_points()]
        ['strict saddle', 'strict saddle', 'strict saddle', 'minimum']
    """

    name = "octopus"
    family = "octopus"
    budget = 2000

    def __init__(
        self,
        *,
        dim: int = 10,
        tau: float = math.e,
        L: float = math.e,
        gamma: float = 1.0,
        start: str = "natural",
        start_radius: float = 1e-3,
    ) -> None:
        require(dim >= 1, f"dim must be positive, got {dim}")
        require(tau > 0, f"tau must be positive, got {tau}")
        require(0 < gamma <= L < math.inf, f"gamma must lie in (0, L], got gamma={gamma} and L={L}")
        self.tau, self.L, self.gamma = tau, L, gamma
        self.start = Start(kind=start, radius=start_radius)
        self.shapes = {"x": (dim,)}
        self.saddle = torch.zeros(dim, dtype=torch.float64)
        self.escape = torch.eye(dim, dtype=torch.float64)[:1]
        self.nu = (13 * gamma + 37 * L) * tau**2 / 6
        self.levels = tuple(-k * self.nu for k in range(dim + 1))
        self.minimum = self.levels[-1]
        self.smoothness = 4 * L
        self.radius = 4 * tau

    def function(self, x: Tensor) -> Tensor:
        """The octopus, ``[..., d] -> [...]``."""
        distance = x.abs()
        squared = self.L * x.square()
        path = self._path(x, distance)
        gate = _smooth_step((distance[..., :-1] / self.tau - 1).clamp(0, 1))
        rest = squared[..., 1:] + gate * (path[..., 1:] - squared[..., 1:])
        return path[..., 0] + rest.sum(-1)

    def critical_points(self) -> list[CriticalPoint]:
        """The ``d + 1`` points ``(4 tau, ..., 4 tau, 0, ..., 0)``, lowest last; signs are free."""
        points = []
        for k, value in enumerate(self.levels):
            x = torch.zeros_like(self.saddle)
            x[:k] = 4 * self.tau
            spectrum = torch.full_like(x, 2 * self.L)
            if k < self.dim:
                spectrum[0] = -2 * self.gamma
            points.append(CriticalPoint(x=x, value=value, eigenvalues=spectrum))
        return points

    def _path(self, x: Tensor, distance: Tensor) -> Tensor:
        """``phi``, the descent along one tube, elementwise."""
        tau, big, gamma = self.tau, self.L, self.gamma
        # x itself, not |x|: the second derivative of |x| is lost at 0.
        inner = -gamma * x.square()
        beyond = (distance - tau) / tau
        bend = (
            tau**2 * beyond**3 * ((10 * gamma - 14 * big) / 3 + (5 * big - 3 * gamma) / 2 * beyond)
        )
        outer = big * (distance - 4 * tau).square() - self.nu
        return torch.where(
            distance < tau, inner, torch.where(distance < 2 * tau, inner + bend, outer)
        )

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return gaussian_off(self.saddle, self.escape, self.tau / 4, num_problems, rng)

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return 2 * torch.rand(num_problems, self.dim, generator=rng, dtype=torch.float64) - 1


def _smooth_step(u: Tensor) -> Tensor:
    return u**3 * (10 - 15 * u + 6 * u * u)
