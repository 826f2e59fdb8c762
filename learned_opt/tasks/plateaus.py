"""Separable plateaus whose dwell under gradient descent is known in advance.

Each task sums one law over its coordinates, and every coordinate of an instance starts equally far
out. All coordinates therefore leave a plateau together, and the one-dimensional dwell law holds in
any dimension.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import final

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
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


class SeparablePlateau(ClosedFormTask):
    """A sum of one and the same scalar law over the coordinates.

    Attributes:
        minimiser: where the law has its only minimum.
        plateau_levels: the law's values on its plateaus, descending, the minimum left out.
    """

    kind = "plateau"
    minimiser: float
    plateau_levels: tuple[float, ...]

    def __init__(self, *, dim: int, start: tuple[float, float]) -> None:
        low, high = start
        require(dim >= 1, f"{self.name}: dim must be positive, got {dim}")
        require(
            0 < low <= high < math.inf,
            f"{self.name}: start must be a range 0 < low <= high, got {start}",
        )
        self.family = self.name
        self.shapes = {"x": (dim,)}
        self.start = start

    @abstractmethod
    def law(self, x: Tensor) -> Tensor:
        """The scalar law, elementwise.

        Args:
            x: coordinates, any shape.

        Returns:
            Values, same shape.
        """

    @property
    def minimum(self) -> float:  # type: ignore[override]
        """The smallest value of `function`."""
        return self.dim * self._derivatives(self.minimiser)[0]

    def function(self, x: Tensor) -> Tensor:
        """Sum of the law over the last axis, ``[..., d]`` to ``[...]``."""
        return self.law(x).sum(-1)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The function itself; instances differ in their start alone."""
        del problems, batch
        return self.function(params["x"])

    def critical_points(self) -> list[CriticalPoint]:
        """The minimum, the only critical point: the plateaus slope towards it everywhere."""
        value, _, curvature = self._derivatives(self.minimiser)
        return [
            CriticalPoint(
                x=torch.full((self.dim,), self.minimiser, dtype=torch.float64),
                value=self.dim * value,
                eigenvalues=torch.full((self.dim,), curvature, dtype=torch.float64),
            )
        ]

    def gradient_flow_steps(self, start: float, end: float, *, learning_rate: float) -> float:
        """How long gradient descent needs from one point of the law to another.

        The time of the gradient flow, ``(1 / learning_rate) * integral dx / |f'(x)|``; gradient
        descent with a step that is small against the law's width takes as many steps.

        Args:
            start: coordinate to start from.
            end: coordinate to reach, downhill from `start` with no critical point between.
            learning_rate: step length of gradient descent, positive.

        Returns:
            Number of steps, not rounded.

        Raises:
            LearnedOptError: if `learning_rate` is not positive, or `end` is not downhill.
        """
        require(learning_rate > 0, f"learning_rate must be positive, got {learning_rate}")
        low, high = min(start, end), max(start, end)
        towards = 1.0 if start > end else -1.0
        require(
            start != end and all(towards * self._derivatives(x)[1] > 0 for x in (start, end)),
            f"end must lie downhill from start={start}, got {end}",
        )
        steps, _ = quad(lambda x: 1 / abs(self._derivatives(x)[1]), low, high, limit=500)
        return float(steps) / learning_rate

    def _derivatives(self, x: float) -> tuple[float, float, float]:
        """Value, slope and curvature of the law at one point, float64."""
        with torch.enable_grad():
            point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            value = self.law(point)
            (slope,) = torch.autograd.grad(value, point, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, point)
        return value.item(), slope.item(), curvature.item()

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        low, high = self.start
        distance = low + (high - low) * torch.rand(
            num_problems, 1, generator=rng, dtype=torch.float64
        )
        levels = torch.tensor([*self.plateau_levels, self.minimum / self.dim], dtype=torch.float64)
        levels = (self.dim * levels).repeat(num_problems, 1)
        return Problems(
            params={"x": self._start_points(distance, rng)},
            constants={},
            facts=Facts(
                minimum=levels[:, -1],
                reference=levels[:, 0],
                next_level=levels[:, 1],
                levels=levels,
            ),
        )

    def _start_points(self, distance: Tensor, rng: torch.Generator) -> Tensor:
        """Points ``[N, d]`` at `distance` ``[N, 1]`` with random signs; the laws here are even."""
        signs = torch.randint(0, 2, (len(distance), self.dim), generator=rng) * 2 - 1
        return distance * signs


@final
@register_task
class Welsch(SeparablePlateau):
    """Welsch plateau, ``sum 1 - exp(-x_i^2 / 2)``: the gradient dies off like a Gaussian.

    Gradient descent needs about ``exp(x0^2 / 2)`` steps; a method that ignores the gradient's
    length needs about ``x0``.

    Args:
        dim: number of coordinates.
        start: range of the distance from which every coordinate of an instance starts.

    Examples:
        >>> round(Welsch().gradient_flow_steps(4.0, 1.0, learning_rate=0.5))
        440
    """

    name = "welsch"
    budget = 1000
    smoothness = 1.0
    minimiser = 0.0
    plateau_levels = (1.0,)

    def __init__(self, *, dim: int = 8, start: tuple[float, float] = (3.0, 4.0)) -> None:
        super().__init__(dim=dim, start=start)
        self.radius = start[1]

    def law(self, x: Tensor) -> Tensor:
        """``1 - exp(-x^2 / 2)``, exact near 0 too."""
        return -torch.expm1(-0.5 * x.square())


@final
@register_task
class GemanMcClure(SeparablePlateau):
    """Geman-McClure plateau, ``sum x_i^2 / (1 + x_i^2)``: the gradient dies off as ``2 / x^3``.

    The polynomial contrast to `Welsch`: gradient descent needs about ``x0^4 / (8 learning_rate)``
    steps.

    Args:
        dim: number of coordinates.
        start: range of the distance from which every coordinate of an instance starts.
    """

    name = "geman_mcclure"
    budget = 1000
    smoothness = 2.0
    minimiser = 0.0
    plateau_levels = (1.0,)

    def __init__(self, *, dim: int = 8, start: tuple[float, float] = (5.0, 10.0)) -> None:
        super().__init__(dim=dim, start=start)
        self.radius = start[1]

    def law(self, x: Tensor) -> Tensor:
        """``x^2 / (1 + x^2)``."""
        square = x.square()
        return square / (1 + square)


@final
@register_task
class LogisticStaircase(SeparablePlateau):
    """Descending stairs of logistic steps: several exponential plateaus in series.

    ``sum_i sum_k height * sigmoid((x_i - k spacing) / width) + (floor / 2) x_i^2``. Halfway between
    two steps the slope is ``2 (height / width) exp(-spacing / (2 width))``, so gradient descent
    stays on each stair for about ``pi width^2 exp(spacing / (2 width)) / (2 height learning_rate)``
    steps.

    Args:
        dim: number of coordinates.
        num_steps: number of stairs to come down.
        spacing: distance between two steps.
        width: width of a step.
        height: height of a step.
        floor: curvature of the quadratic that gives the lowest floor a minimum; small against the
            slope of the stairs.
        start: range of the starting distance above the highest step, in units of `spacing`.

    Raises:
        LearnedOptError: if a setting is not positive.
    """

    name = "logistic_staircase"
    budget = 1000

    def __init__(
        self,
        *,
        dim: int = 8,
        num_steps: int = 3,
        spacing: float = 8.0,
        width: float = 0.5,
        height: float = 1.0,
        floor: float = 1e-6,
        start: tuple[float, float] = (0.4, 0.6),
    ) -> None:
        super().__init__(dim=dim, start=start)
        require(num_steps >= 1, f"{self.name}: num_steps must be positive, got {num_steps}")
        for setting, value in {
            "spacing": spacing,
            "width": width,
            "height": height,
            "floor": floor,
        }.items():
            require(value > 0, f"{self.name}: {setting} must be positive, got {value}")
        self.num_steps, self.spacing = num_steps, spacing
        self.width, self.height, self.floor = width, height, floor
        # max |sigmoid''| = 1 / (6 sqrt 3)
        self.smoothness = height / width**2 / (6 * math.sqrt(3)) + floor
        self.radius = num_steps * spacing
        self.plateau_levels = tuple(height * k for k in range(num_steps, 0, -1))
        self.minimiser = self._find_minimiser()

    def law(self, x: Tensor) -> Tensor:
        """The stairs and the quadratic that gives them a floor."""
        total = 0.5 * self.floor * x.square()
        for k in range(self.num_steps):
            total = total + self.height * torch.sigmoid((x - k * self.spacing) / self.width)
        return total

    def _find_minimiser(self) -> float:
        """Where the lowest step's tail balances the quadratic: left of 0, and only there."""
        low = -self.width
        while self._derivatives(low)[1] > 0:
            low *= 2
        return float(brentq(lambda x: self._derivatives(x)[1], low, 0.0, xtol=1e-14, rtol=1e-14))

    def _start_points(self, distance: Tensor, rng: torch.Generator) -> Tensor:
        """Points ``[N, d]`` on the highest stair."""
        del rng
        top = (self.num_steps - 1) * self.spacing
        return (top + distance * self.spacing).repeat(1, self.dim)
