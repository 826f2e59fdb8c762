"""Symmetric matrix factorisation: strict saddles at every subset of modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import FixedFunction, Start
from learned_opt.tasks.base import CriticalPoint, register_task

_MAX_MODES_LISTED = 6


@final
@register_task
class MatrixFactorization(FixedFunction):
    """The symmetric factorisation ``1/4 ||U U^T - M||^2`` of a positive semidefinite matrix.

    ``M`` is diagonal with the given eigenvalues ``l_1 >= l_2 >= ...``. All saddles are strict. From
    a small start of scale ``s0`` mode ``i`` is learned after ``ln(sqrt(l_i) / s0) / (eta l_i)``
    steps, so the loss is a staircase with plateaus ``1/4 sum_{i>r} l_i^2``.

    Args:
        size: number ``n`` of rows.
        rank: number ``k`` of columns of ``U``, positive.
        eigenvalues: the non-zero eigenvalues of ``M``, positive, at most `size`.
        start: ``ball`` about ``U = 0``, ``exact``, ``natural`` (Gaussian with variance ``1 / n``)
            or ``manifold`` (rows of zero modes are Gaussian, all others small).
        start_radius: distance of ``ball`` or ``manifold`` starts.

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "matrix_factorization"
    family = "matrix_factorization"
    budget = 500

    def __init__(
        self,
        *,
        size: int = 10,
        rank: int = 4,
        eigenvalues: Sequence[float] = (3.0, 2.0, 1.0, 0.5),
        start: str = "ball",
        start_radius: float = 1e-2,
    ) -> None:
        modes = sorted(map(float, eigenvalues), reverse=True)
        require(rank >= 1, f"rank must be positive, got {rank}")
        require(
            1 <= len(modes) <= size and modes[-1] > 0,
            f"eigenvalues must be 1..size={size} positive numbers, got {tuple(eigenvalues)}",
        )
        self.start = Start(kind=start, radius=start_radius)
        self.size, self.rank, self._num_modes = size, rank, len(modes)
        self.shapes = {"u": (size, rank)}
        self._modes = torch.tensor(modes + [0.0] * (size - len(modes)), dtype=torch.float64)
        dim = size * rank
        self.saddle = torch.zeros(dim, dtype=torch.float64)
        self.escape = torch.eye(dim, dtype=torch.float64)[: len(modes) * rank]
        learnable = min(rank, len(modes))
        self.levels = tuple(float(self._modes[r:].square().sum()) / 4 for r in range(learnable + 1))
        self.minimum = self.levels[-1]
        self.smoothness = 2 * modes[0]
        self.radius = math.sqrt(modes[0])

    def function(self, x: Tensor) -> Tensor:
        """The loss at the row-major ``U``, ``[..., n k] -> [...]``."""
        u = x.reshape(*x.shape[:-1], self.size, self.rank)
        residual = u @ u.mT - torch.diag(self._modes).to(x)
        return residual.square().sum((-2, -1)) / 4

    def critical_points(self) -> list[CriticalPoint]:
        """One for each set of at most `rank` learned modes, lowest last.

        Right-multiplication by an orthogonal matrix gives all others. A set ``S`` has the value
        ``1/4 sum_{i not in S} l_i^2``. Beyond six modes only the greedy sets are listed.
        """
        learnable = min(self.rank, self._num_modes)
        if self._num_modes <= _MAX_MODES_LISTED:
            subsets = [
                s for r in range(learnable + 1) for s in combinations(range(self._num_modes), r)
            ]
        else:
            subsets = [tuple(range(r)) for r in range(learnable + 1)]
        return sorted((self._critical_point(s) for s in subsets), key=lambda p: -p.value)

    def _critical_point(self, subset: tuple[int, ...]) -> CriticalPoint:
        """The point that has learned the modes in `subset`, one in each of the first columns."""
        modes = self._modes.tolist()
        missing = [modes[j] for j in range(self.size) if j not in subset]
        learned = [modes[i] for i in subset]
        num_free_columns = self.rank - len(subset)
        u = torch.zeros(self.size, self.rank, dtype=torch.float64)
        for column, i in enumerate(subset):
            u[i, column] = math.sqrt(modes[i])
        spectrum = [2 * a for a in learned]
        for a, b in combinations(learned, 2):  # rotations within the learned modes are flat
            spectrum += [a + b, 0.0]
        spectrum += [a - b for a in learned for b in missing]
        spectrum += [-b for b in missing] * num_free_columns
        spectrum += [0.0] * (len(learned) * num_free_columns)
        return CriticalPoint(
            x=u.flatten(),
            value=sum(b * b for b in missing) / 4,
            eigenvalues=torch.tensor(sorted(spectrum), dtype=torch.float64),
        )

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        """Rows of zero modes only: they shrink, as a cube, while all other rows stay 0."""
        x = self._natural(num_problems, rng)
        x[:, : len(self.escape)] = 0
        return x

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
        return noise / math.sqrt(self.size)
