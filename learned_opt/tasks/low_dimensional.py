"""Four saddles in the plane that are easily confused, and Himmelblau's function.

Two of the four are degenerate at the origin (no negative curvature, yet no minimum), two strict.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import FixedFunction, Start, gaussian_off
from learned_opt.tasks.base import CriticalPoint, register_task


class _Planar(FixedFunction):
    """A function of the plane with a saddle at the origin that falls along the y axis."""

    def __init__(self, *, start: str, start_radius: float) -> None:
        self.start = Start(kind=start, radius=start_radius)
        self.shapes = {"x": (2,)}
        self.saddle = torch.zeros(2, dtype=torch.float64)
        self.escape = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        self.levels = (0.0, self.minimum)

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return gaussian_off(self.saddle, self.escape, 1.0, num_problems, rng)

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return torch.randn(num_problems, 2, generator=rng, dtype=torch.float64)


def _critical(x: list[float], value: float, eigenvalues: list[float]) -> CriticalPoint:
    return CriticalPoint(
        x=torch.tensor(x, dtype=torch.float64),
        value=value,
        eigenvalues=torch.tensor(eigenvalues, dtype=torch.float64),
    )


@final
@register_task
class CubicValley(_Planar):
    """The half-stable saddle ``x^2 + y^3 + y^4/4``: degenerate, with one way out.

    From ``y0 < 0`` gradient descent escapes in about ``1 / (3 eta |y0|)`` steps; from ``y0 > 0`` it
    converges to the saddle as ``1 / (3 eta t)`` and never crosses without noise or momentum.

    Args:
        start: ``manifold`` (the x axis, left to a random side), ``ball``, ``exact`` or ``natural``.
        start_radius: distance from the x axis (``manifold``) or the origin (``ball``).

    Raises:
        LearnedOptError: if `start` is unknown or `start_radius` not positive.
    """

    name = "x2_y3"
    family = "x2_y3"
    budget = 1000
    smoothness = 9.0
    radius = 3.0
    minimum = -27 / 4

    def __init__(self, *, start: str = "manifold", start_radius: float = 1e-2) -> None:
        super().__init__(start=start, start_radius=start_radius)

    def function(self, x: Tensor) -> Tensor:
        """``x^2 + y^3 + y^4/4``, ``[..., 2] -> [...]``."""
        a, b = x[..., 0], x[..., 1]
        return a * a + b**3 + b**4 / 4

    def critical_points(self) -> list[CriticalPoint]:
        """Both points: the degenerate origin and the minimum ``(0, -3)``."""
        return [
            _critical([0, 0], 0.0, [0, 2]),
            _critical([0, -3], self.minimum, [2, 9]),
        ]


@final
@register_task
class QuarticDoubleWell(_Planar):
    """The strict saddle ``x^2 + y^4 - y^2`` between two minima.

    Args:
        start: ``manifold`` (the x axis), ``ball``, ``exact`` or ``natural``.
        start_radius: distance from the x axis (``manifold``) or the origin (``ball``).

    Raises:
        LearnedOptError: if `start` is unknown or `start_radius` not positive.
    """

    name = "x2_y4_y2"
    family = "x2_y4_y2"
    budget = 300
    smoothness = 4.0
    radius = 0.5**0.5
    minimum = -0.25

    def __init__(self, *, start: str = "manifold", start_radius: float = 1e-6) -> None:
        super().__init__(start=start, start_radius=start_radius)

    def function(self, x: Tensor) -> Tensor:
        """``x^2 + y^4 - y^2``, ``[..., 2] -> [...]``."""
        a, b = x[..., 0].square(), x[..., 1].square()
        return a + b * b - b

    def critical_points(self) -> list[CriticalPoint]:
        """All three: the strict saddle at the origin and the minima ``(0, +-1/sqrt 2)``."""
        return [
            _critical([0, 0], 0.0, [-2, 2]),
            _critical([0, self.radius], self.minimum, [2, 4]),
            _critical([0, -self.radius], self.minimum, [2, 4]),
        ]


@final
@register_task
class SexticDoubleWell(_Planar):
    """The degenerate saddle ``x^2 + y^6 - y^4`` between two minima.

    The bounded degenerate partner of `QuarticDoubleWell`: the Hessian at the origin has no negative
    eigenvalue, and gradient flow takes ``1 / (8 y0^2)`` to leave.

    Args:
        start: ``manifold`` (the x axis), ``ball``, ``exact`` or ``natural``.
        start_radius: distance from the x axis (``manifold``) or the origin (``ball``).

    Raises:
        LearnedOptError: if `start` is unknown or `start_radius` not positive.
    """

    name = "x2_y6_y4"
    family = "x2_y6_y4"
    budget = 1000
    smoothness = 16 / 3
    radius = (2 / 3) ** 0.5
    minimum = -4 / 27

    def __init__(self, *, start: str = "manifold", start_radius: float = 5e-2) -> None:
        super().__init__(start=start, start_radius=start_radius)

    def function(self, x: Tensor) -> Tensor:
        """``x^2 + y^6 - y^4``, ``[..., 2] -> [...]``."""
        a, b = x[..., 0].square(), x[..., 1].square()
        return a + b * b * (b - 1)

    def critical_points(self) -> list[CriticalPoint]:
        """All three: the degenerate origin and the minima ``y^2 = 2/3``."""
        return [
            _critical([0, 0], 0.0, [0, 2]),
            _critical([0, self.radius], self.minimum, [2, 16 / 3]),
            _critical([0, -self.radius], self.minimum, [2, 16 / 3]),
        ]


@final
@register_task
class ProductSaddle(FixedFunction):
    """The product ``x y + c/4 (x^2 + y^2)^2``: a strict saddle that is not aligned with the axes.

    It rises along ``x = y`` and falls along ``x = -y``.

    Args:
        confinement: ``c``; the minima are ``+-(s, -s)`` with ``s^2 = 1 / (2c)``.
        start: ``manifold`` (the line ``x = y``), ``ball``, ``exact`` or ``natural``.
        start_radius: distance from that line (``manifold``) or the origin (``ball``).

    Raises:
        LearnedOptError: if `confinement` or `start_radius` is not positive or `start` unknown.
    """

    name = "xy_saddle"
    family = "xy_saddle"
    budget = 300
    smoothness = 2.0

    def __init__(
        self, *, confinement: float = 1.0, start: str = "manifold", start_radius: float = 1e-6
    ) -> None:
        require(confinement > 0, f"confinement must be positive, got {confinement}")
        self.start = Start(kind=start, radius=start_radius)
        self.confinement = confinement
        self.shapes = {"x": (2,)}
        self.saddle = torch.zeros(2, dtype=torch.float64)
        self.escape = torch.tensor([[0.5**0.5, -(0.5**0.5)]], dtype=torch.float64)
        self.radius = confinement**-0.5
        self.minimum = -1 / (4 * confinement)
        self.levels = (0.0, self.minimum)

    def function(self, x: Tensor) -> Tensor:
        """``x y + c/4 (x^2 + y^2)^2``, ``[..., 2] -> [...]``."""
        a, b = x[..., 0], x[..., 1]
        return a * b + self.confinement / 4 * (a * a + b * b).square()

    def critical_points(self) -> list[CriticalPoint]:
        """All three: the strict saddle at the origin and the minima ``+-(s, -s)``."""
        s = (0.5 / self.confinement) ** 0.5
        return [
            _critical([0, 0], 0.0, [-1, 1]),
            _critical([s, -s], self.minimum, [2, 2]),
            _critical([-s, s], self.minimum, [2, 2]),
        ]

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return gaussian_off(self.saddle, self.escape, self.radius, num_problems, rng)

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(num_problems, 2, generator=rng, dtype=torch.float64)
        return self.radius * noise


# To two decimals, near enough for Newton's method: maximum, saddles by falling value, minima.
_HIMMELBLAU_NEAR = (
    (-0.27, -0.92),
    (-0.13, -1.95),
    (-3.07, -0.08),
    (0.09, 2.88),
    (3.39, 0.07),
    (-2.81, 3.13),
    (-3.78, -3.28),
    (3.58, -1.85),
    (3.00, 2.00),
)


@final
@register_task
class Himmelblau(FixedFunction):
    """Himmelblau's function, whose four minima of value 0 are parted by four saddles.

    The canonical saddle is the lowest, at ``(3.385, 0.074)`` with value 13.31 and eigenvalues
    -14.14 and 97.54.

    Args:
        start: ``ball`` about that saddle, ``manifold`` (near its stable line), ``exact``, or
            ``natural`` (uniform in the square ``[-5, 5]^2``).
        start_radius: distance from the saddle (``ball``) or the line (``manifold``).

    Raises:
        LearnedOptError: if `start` is unknown or `start_radius` not positive.
    """

    name = "himmelblau"
    family = "himmelblau"
    budget = 300
    smoothness = 100.0
    radius = 2.0
    minimum = 0.0

    def __init__(self, *, start: str = "ball", start_radius: float = 1e-3) -> None:
        self.start = Start(kind=start, radius=start_radius)
        self.shapes = {"x": (2,)}
        self._points = [_polished(torch.tensor(p, dtype=torch.float64)) for p in _HIMMELBLAU_NEAR]
        lowest = self.critical_points()[4]
        self.saddle = lowest.x
        self.escape = torch.linalg.eigh(_himmelblau_hessian(lowest.x)).eigenvectors[:, :1].T
        self.levels = (lowest.value, 0.0)

    def function(self, x: Tensor) -> Tensor:
        """``(x^2 + y - 11)^2 + (x + y^2 - 7)^2``, ``[..., 2] -> [...]``."""
        a, b = x[..., 0], x[..., 1]
        return (a * a + b - 11).square() + (a + b * b - 7).square()

    def critical_points(self) -> list[CriticalPoint]:
        """All nine: one maximum, four saddles and four minima, to rounding error."""
        return [
            CriticalPoint(
                x=x.clone(),
                value=float(self.function(x)),
                eigenvalues=torch.linalg.eigvalsh(_himmelblau_hessian(x)),
            )
            for x in self._points
        ]

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return gaussian_off(self.saddle, self.escape, 0.1, num_problems, rng)

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return 10 * torch.rand(num_problems, 2, generator=rng, dtype=torch.float64) - 5


def _polished(x: Tensor) -> Tensor:
    """Newton's method on Himmelblau's gradient; converges in five steps from two decimals."""
    for _ in range(8):
        a, b = x
        first, second = a * a + b - 11, a + b * b - 7
        gradient = torch.stack([4 * a * first + 2 * second, 2 * first + 4 * b * second])
        x = x - torch.linalg.solve(_himmelblau_hessian(x), gradient)
    return x


def _himmelblau_hessian(x: Tensor) -> Tensor:
    a, b = x
    off = 4 * a + 4 * b
    return torch.stack([12 * a * a + 4 * b - 42, off, off, 12 * b * b + 4 * a - 26]).reshape(2, 2)
