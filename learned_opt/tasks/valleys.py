"""Classic test functions: Rosenbrock's curved valley and Rastrigin's egg box."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
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

# Saddle and second minimum, found by Newton's method from 4000 starts in each dimension; refined
# again whenever they are asked for.
_ROSENBROCK_GUESSES: dict[int, tuple[tuple[float, ...], ...]] = {
    4: ((-0.6561, 0.4431, 0.2043, 0.0417), (-0.7757, 0.6131, 0.3821, 0.1460)),
    5: ((-0.5575, 0.3247, 0.1166, 0.0233, 0.0005), (-0.9620, 0.9357, 0.8807, 0.7779, 0.6051)),
    6: (
        (-0.5554, 0.3225, 0.1152, 0.0235, 0.0105, 0.0001),
        (-0.9866, 0.9834, 0.9721, 0.9474, 0.8987, 0.8076),
    ),
    7: (
        (-0.5554, 0.3225, 0.1152, 0.0235, 0.0107, 0.0100, 0.0001),
        (-0.9917, 0.9936, 0.9922, 0.9869, 0.9752, 0.9514, 0.9052),
    ),
    8: (
        (-0.5554, 0.3225, 0.1152, 0.0235, 0.0107, 0.0102, 0.0100, 0.0001),
        (-0.9929, 0.9959, 0.9968, 0.9962, 0.9937, 0.9879, 0.9762, 0.9531),
    ),
}


@final
@register_task
class Rosenbrock(ClosedFormTask):
    """Rosenbrock's narrow curved valley, ``sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2``.

    From 4 dimensions on there is one more minimum, near ``x_1 = -1``, behind one saddle.
    Levels are told from the valley floor at the origin, ``d - 1``, rather than from the start,
    whose value only says how far up the wall it lies.

    Args:
        dim: number of coordinates, at least 2.
        start: start of every coordinate before its noise.
        spread: standard deviation of the starting coordinates.

    Raises:
        LearnedOptError: if `dim` is below 2 or `spread` is negative.
    """

    name = "rosenbrock"
    kind = "valley"
    family = "rosenbrock"
    budget = 2000
    radius = 1.0
    minimum = 0.0

    def __init__(self, *, dim: int = 8, start: float = 0.0, spread: float = 0.5) -> None:
        require(dim >= 2, f"{self.name}: dim must be at least 2, got {dim}")
        require(spread >= 0, f"{self.name}: spread must not be negative, got {spread}")
        self.start, self.spread = start, spread
        self.shapes = {"x": (dim,)}
        self.smoothness = float(self._spectrum(torch.ones(dim, dtype=torch.float64))[-1])

    def function(self, x: Tensor) -> Tensor:
        """Rosenbrock's function, ``[..., d]`` to ``[...]``."""
        head, tail = x[..., :-1], x[..., 1:]
        return (100 * (tail - head.square()).square() + (1 - head).square()).sum(-1)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The function itself; instances differ in their start alone."""
        del problems, batch
        return self.function(params["x"])

    def critical_points(self) -> list[CriticalPoint]:
        """Saddle, minimum behind it and global minimum; beyond 8 dimensions the last alone."""
        ones = torch.ones(self.dim, dtype=torch.float64)
        known = [
            _newton(self.function, _rosenbrock_hessian, torch.tensor(guess, dtype=torch.float64))
            for guess in _ROSENBROCK_GUESSES.get(self.dim, ())
        ]
        return [
            CriticalPoint(x=x, value=float(self.function(x)), eigenvalues=self._spectrum(x))
            for x in (*known, ones)
        ]

    @cached_property
    def _levels(self) -> Tensor:
        return torch.tensor([p.value for p in self.critical_points()], dtype=torch.float64)

    def _spectrum(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.linalg.eigvalsh(_rosenbrock_hessian(x))
        return spectrum

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        noise = torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
        levels = self._levels
        floor = self.dim - 1
        below = levels[levels < floor].max()
        ones = torch.ones(num_problems, dtype=torch.float64)
        return Problems(
            params={"x": self.start + self.spread * noise},
            constants={},
            facts=Facts(
                minimum=0 * ones,
                reference=floor * ones,
                next_level=below * ones,
                levels=levels.repeat(num_problems, 1),
            ),
        )


@final
@register_task
class Rastrigin(ClosedFormTask):
    """Rastrigin's egg box, ``10 d + sum x_i^2 - 10 cos(2 pi x_i)``: many minima, no plateau.

    For the comparison of restarts and noise; it says nothing about saddles.

    Args:
        dim: number of coordinates.
        half_width: starts are uniform in ``[-half_width, half_width]^d``.

    Raises:
        LearnedOptError: if a setting is not positive.
    """

    name = "rastrigin"
    kind = "multimodal"
    family = "rastrigin"
    budget = 1000
    smoothness = 2 + 40 * math.pi**2
    minimum = 0.0

    def __init__(self, *, dim: int = 4, half_width: float = 5.12) -> None:
        require(dim >= 1, f"{self.name}: dim must be positive, got {dim}")
        require(half_width > 0, f"{self.name}: half_width must be positive, got {half_width}")
        self.half_width = half_width
        self.radius = half_width
        self.shapes = {"x": (dim,)}

    def function(self, x: Tensor) -> Tensor:
        """Rastrigin's function, ``[..., d]`` to ``[...]``."""
        return (x.square() + 20 * torch.sin(math.pi * x).square()).sum(-1)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The function itself; instances differ in their start alone."""
        del problems, batch
        return self.function(params["x"])

    def critical_points(self) -> list[CriticalPoint]:
        """Along the first axis: the barrier next to the minimum, the next minimum, the minimum."""
        points = []
        for guess in (0.5, 1.0, 0.0):
            start = torch.zeros(self.dim, dtype=torch.float64)
            start[0] = guess
            x = _newton(self.function, lambda x: _rastrigin_curvature(x).diag(), start)
            curvature = _rastrigin_curvature(x)
            points.append(
                CriticalPoint(
                    x=x, value=float(self.function(x)), eigenvalues=curvature.sort().values
                )
            )
        return points

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        uniform = torch.rand(num_problems, self.dim, generator=rng, dtype=torch.float64)
        start = self.half_width * (2 * uniform - 1)
        reference = self.function(start)
        zeros = torch.zeros_like(reference)
        return Problems(
            params={"x": start},
            constants={},
            facts=Facts(
                minimum=zeros, reference=reference, next_level=zeros, levels=zeros.unsqueeze(1)
            ),
        )


def _rosenbrock_hessian(x: Tensor) -> Tensor:
    """The tridiagonal Hessian at ``[d]``, dense ``[d, d]``."""
    head, tail = x[:-1], x[1:]
    diagonal = torch.zeros_like(x)
    diagonal[:-1] += 1200 * head.square() - 400 * tail + 2
    diagonal[1:] += 200
    return diagonal.diag() + (-400 * head).diag(1) + (-400 * head).diag(-1)


def _rastrigin_curvature(x: Tensor) -> Tensor:
    """The Hessian's diagonal, which is all there is of it."""
    return 2 + 40 * math.pi**2 * torch.cos(2 * math.pi * x)


def _newton(
    function: Callable[[Tensor], Tensor], hessian: Callable[[Tensor], Tensor], start: Tensor
) -> Tensor:
    """Refine a critical point ``[d]`` by Newton's method in float64."""
    x = start
    for _ in range(8):
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(function(point), point)
        x = x - torch.linalg.solve(hessian(x), gradient)
    return x
