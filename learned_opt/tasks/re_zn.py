"""Degenerate saddles ``Re z^n`` with confinement: monkey saddle, four-fold saddle, any degree."""

from __future__ import annotations

import math
from itertools import product
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import FixedFunction, Start
from learned_opt.tasks.base import CriticalPoint, register_task

_MAX_POINTS_LISTED = 128


class _ComplexPower(FixedFunction):
    """Sum over planes of ``Re z^n + c |z|^{2n}``, plus half the squares of the remaining ``x``."""

    family = "re_zn"
    budget = 1000

    def __init__(
        self,
        *,
        degree: int,
        num_planes: int,
        num_stable: int,
        confinement: float,
        start: str,
        start_radius: float,
    ) -> None:
        require(degree >= 3, f"degree must be at least 3, got {degree}")
        require(num_planes >= 1, f"num_planes must be positive, got {num_planes}")
        require(num_stable >= 0, f"num_stable must not be negative, got {num_stable}")
        require(
            0 < confinement < math.inf,
            f"confinement must be positive and finite, got {confinement}",
        )
        self.degree, self.num_planes, self.confinement = degree, num_planes, confinement
        self.start = Start(kind=start, radius=start_radius)
        dim = 2 * num_planes + num_stable
        self.shapes = {"x": (dim,)}
        self.radius = (1 / (2 * confinement)) ** (1 / degree)
        self._curvature = degree**2 * self.radius ** (degree - 2)
        self.smoothness = max(self._curvature, float(num_stable > 0))
        self.saddle = torch.zeros(dim, dtype=torch.float64)
        # The real axis of each plane is an ascent ray; its imaginary axis leaves that ray.
        self.escape = torch.eye(dim, dtype=torch.float64)[1 : 2 * num_planes : 2]
        self.levels = tuple(-j / (4 * confinement) for j in range(num_planes + 1))
        self.minimum = self.levels[-1]

    def function(self, x: Tensor) -> Tensor:
        """The canonical saddle, ``[..., d] -> [...]``; coordinates 0 and 1 are the first plane."""
        real, imaginary = x[..., 0 : 2 * self.num_planes : 2], x[..., 1 : 2 * self.num_planes : 2]
        # Repeated multiplication needs no angle, so every derivative is exact at z = 0.
        power_real, power_imaginary = real, imaginary
        for _ in range(self.degree - 1):
            power_real, power_imaginary = (
                power_real * real - power_imaginary * imaginary,
                power_real * imaginary + power_imaginary * real,
            )
        squared_modulus = power_real.square() + power_imaginary.square()  # of z^n
        planes = (power_real + self.confinement * squared_modulus).sum(-1)
        return planes + x[..., 2 * self.num_planes :].square().sum(-1) / 2

    def critical_points(self) -> list[CriticalPoint]:
        """All ``(n + 1)^planes`` points if at most 128, else one for each level; lowest last.

        In each plane: the origin, with zero Hessian, and ``n`` minima with ``r^n = 1 / (2c)`` at
        the angles ``pi (2j + 1) / n``, both eigenvalues ``n^2 r^{n-2}`` and value ``-1 / (4c)``.
        """
        n, planes = self.degree, self.num_planes
        if (n + 1) ** planes <= _MAX_POINTS_LISTED:
            choices = list(product((None, *range(n)), repeat=planes))
        else:
            choices = [(0,) * j + (None,) * (planes - j) for j in range(planes + 1)]
        return sorted((self._critical_point(choice) for choice in choices), key=lambda p: -p.value)

    def _critical_point(self, choice: tuple[int | None, ...]) -> CriticalPoint:
        """The point that sits at minimum ``choice[i]`` of plane ``i``, or at its origin if None."""
        x, spectrum = torch.zeros_like(self.saddle), torch.ones_like(self.saddle)
        for plane, j in enumerate(choice):
            here = slice(2 * plane, 2 * plane + 2)
            spectrum[here] = 0.0 if j is None else self._curvature
            if j is not None:
                angle = math.pi * (2 * j + 1) / self.degree
                x[here] = self.radius * x.new_tensor([math.cos(angle), math.sin(angle)])
        num_settled = sum(j is not None for j in choice)
        return CriticalPoint(
            x=x, value=self.levels[num_settled], eigenvalues=spectrum.sort().values
        )

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        """Points of an ascent ray, between half the radius of the minima and all of it."""
        x = torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
        planes = 2 * self.num_planes
        uniform = torch.rand(num_problems, self.num_planes, generator=rng, dtype=torch.float64)
        x[:, 0:planes:2], x[:, 1:planes:2] = self.radius * (1 + uniform) / 2, 0.0
        return x

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
        return self.radius / 2 * noise


@final
@register_task
class ReZn(_ComplexPower):
    """The degenerate saddle ``Re z^n`` in one or more planes, confined.

    ``f = sum_planes (Re z^n + c |z|^{2n}) + 1/2 sum_rest x^2``. All derivatives below order ``n``
    vanish at the origin, and gradient flow along a descent ray takes
    ``(r0^{2-n} - R^{2-n}) / (n (n - 2))``: polynomial, not logarithmic, in the start.

    Args:
        degree: ``n``, at least 3.
        num_planes: number of planes.
        num_stable: number of further coordinates with curvature 1.
        confinement: ``c``; minima lie at ``r^n = 1 / (2c)``.
        start: ``ball``, ``manifold`` (an ascent ray), ``exact`` or ``natural`` (Gaussian).
        start_radius: distance from the origin (``ball``) or from the ray (``manifold``).

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "re_zn"

    def __init__(
        self,
        *,
        degree: int = 3,
        num_planes: int = 1,
        num_stable: int = 0,
        confinement: float = 0.5,
        start: str = "ball",
        start_radius: float = 1e-2,
    ) -> None:
        super().__init__(
            degree=degree,
            num_planes=num_planes,
            num_stable=num_stable,
            confinement=confinement,
            start=start,
            start_radius=start_radius,
        )


@final
@register_task
class MonkeySaddle(_ComplexPower):
    """The monkey saddle ``x^3 - 3 x y^2``, confined: a third-order degenerate saddle in the plane.

    Args:
        confinement: ``c`` of ``c |z|^6``.
        start: ``ball``, ``manifold`` (an ascent ray), ``exact`` or ``natural`` (Gaussian).
        start_radius: distance from the origin (``ball``) or from the ray (``manifold``).

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "monkey_saddle"

    def __init__(
        self, *, confinement: float = 0.5, start: str = "ball", start_radius: float = 1e-2
    ) -> None:
        super().__init__(
            degree=3,
            num_planes=1,
            num_stable=0,
            confinement=confinement,
            start=start,
            start_radius=start_radius,
        )


@final
@register_task
class FourFoldSaddle(_ComplexPower):
    """The four-fold saddle ``x^4 + y^4 - 6 x^2 y^2``, confined: it rises along both axes.

    The gradient near the origin is ``4 r^3``. From a ``manifold`` start close to an axis, gradient
    descent slides down the axis and stalls.

    Args:
        confinement: ``c`` of ``c |z|^8``.
        start: ``ball``, ``manifold`` (an axis), ``exact`` or ``natural`` (Gaussian).
        start_radius: distance from the origin (``ball``) or from the axis (``manifold``).

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "four_fold_saddle"

    def __init__(
        self, *, confinement: float = 0.5, start: str = "ball", start_radius: float = 0.1
    ) -> None:
        super().__init__(
            degree=4,
            num_planes=1,
            num_stable=0,
            confinement=confinement,
            start=start,
            start_radius=start_radius,
        )
