"""The Styblinski-Tang function: separable, with critical points of every index."""

from __future__ import annotations

from itertools import product
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import FixedFunction, Start, gaussian_off
from learned_opt.tasks.base import CriticalPoint, register_task

_MAX_DIM_LISTED = 4
_MAX_LEVELS = 16


def _roots() -> tuple[float, float, float]:
    """Zeros of ``2 x^3 - 16 x + 5/2``: the local maximum, the shallow and the deep minimum."""
    roots = torch.tensor([0.15, 2.75, -2.9], dtype=torch.float64)
    for _ in range(8):  # Newton's method
        roots = roots - (2 * roots**3 - 16 * roots + 2.5) / (6 * roots**2 - 16)
    top, shallow, deep = roots.tolist()
    return top, shallow, deep


_TOP, _SHALLOW, _DEEP = _roots()


def _well(x: float) -> float:
    return (x**4 - 16 * x**2 + 5 * x) / 2


@final
@register_task
class StyblinskiTang(FixedFunction):
    """The Styblinski-Tang function, which has ``3^d`` critical points of every index.

    ``f = 1/2 sum_i (x_i^4 - 16 x_i^2 + 5 x_i)``. Each coordinate has a maximum at 0.157, a shallow
    minimum at 2.747 and a deep one at -2.904. The canonical saddle has its first `index`
    coordinates on top and the others in the deep minimum.

    Args:
        dim: number of coordinates.
        index: index of the canonical saddle, ``1 <= index <= dim``; None takes half of `dim`.
        start: ``ball`` about that saddle, ``manifold`` (its other coordinates are Gaussian about
            their minima), ``exact``, or ``natural`` (uniform in the cube ``[-4, 4]^d``).
        start_radius: distance of ``ball`` or ``manifold`` starts.

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "styblinski_tang"
    family = "styblinski_tang"
    budget = 300
    smoothness = 35.0
    radius = 3.0

    def __init__(
        self,
        *,
        dim: int = 10,
        index: int | None = None,
        start: str = "ball",
        start_radius: float = 1e-3,
    ) -> None:
        require(dim >= 1, f"dim must be positive, got {dim}")
        index = (dim + 1) // 2 if index is None else index
        require(1 <= index <= dim, f"index must lie in 1..dim={dim}, got {index}")
        self.start = Start(kind=start, radius=start_radius)
        self.shapes = {"x": (dim,)}
        self.saddle = torch.full((dim,), _DEEP, dtype=torch.float64)
        self.saddle[:index] = _TOP
        self.escape = torch.eye(dim, dtype=torch.float64)[:index]
        staircase = [
            (index - j) * _well(_TOP) + (dim - index + j) * _well(_DEEP) for j in range(index + 1)
        ]
        self.levels = tuple(
            staircase if len(staircase) <= _MAX_LEVELS else (*staircase[:2], staircase[-1])
        )
        self.minimum = self.levels[-1]

    def function(self, x: Tensor) -> Tensor:
        """The function, ``[..., d] -> [...]``."""
        squared = x.square()
        return (squared.square() - 16 * squared + 5 * x).sum(-1) / 2

    def critical_points(self) -> list[CriticalPoint]:
        """All ``3^d`` up to ``d = 4``, else those on a staircase to the bottom; lowest last."""
        if self.dim <= _MAX_DIM_LISTED:
            choices = list(product((_TOP, _SHALLOW, _DEEP), repeat=self.dim))
        else:
            choices = [(_DEEP,) * j + (_TOP,) * (self.dim - j) for j in range(self.dim + 1)]
        points = []
        for choice in choices:
            x = torch.tensor(choice, dtype=torch.float64)
            points.append(
                CriticalPoint(
                    x=x,
                    value=sum(map(_well, choice)),
                    eigenvalues=(6 * x.square() - 16).sort().values,
                )
            )
        return sorted(points, key=lambda p: -p.value)

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return gaussian_off(self.saddle, self.escape, 0.1, num_problems, rng)

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        return 8 * torch.rand(num_problems, self.dim, generator=rng, dtype=torch.float64) - 4
