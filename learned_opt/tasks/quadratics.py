"""The random least-squares problems on which Andrychowicz et al. 2016 train their LSTM."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import Facts, Problems, Task, register_task
from learned_opt.trees import Params, Tree, batched_product


@final
@register_task
class RandomQuadratic(Task):
    """Random least squares, ``f(x) = |W x - y|^2`` with Gaussian ``W`` and ``y``.

    The synthetic task of Andrychowicz et al. 2016 (arXiv:1606.04474, section 3.1). ``W`` is square
    and almost surely invertible, so the minimum is 0.

    Args:
        dim: number of coordinates.

    Raises:
        LearnedOptError: if `dim` is not positive.
    """

    name = "random_quadratic"
    kind = "quadratic"
    family = "random_quadratic"
    budget = 1000
    radius = 1.0

    def __init__(self, *, dim: int = 10) -> None:
        require(dim >= 1, f"{self.name}: dim must be positive, got {dim}")
        self.shapes = {"x": (dim,)}
        # Largest eigenvalue of 2 W^T W, at the edge of the Marchenko-Pastur law.
        self.smoothness = 8.0 * dim

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Squared residual of each instance."""
        del batch
        matrix, target = problems.constants["matrix"], problems.constants["target"]
        assert isinstance(matrix, Tensor)
        assert isinstance(target, Tensor)
        return _squared_residual(matrix, params["x"], target)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        dim = self.dim
        matrix = torch.randn(num_problems, dim, dim, generator=rng, dtype=torch.float64)
        target = torch.randn(num_problems, dim, generator=rng, dtype=torch.float64)
        start = torch.randn(num_problems, dim, generator=rng, dtype=torch.float64)
        reference = _squared_residual(matrix, start, target)
        zeros = torch.zeros_like(reference)
        return Problems(
            params={"x": start},
            constants={"matrix": matrix, "target": target},
            facts=Facts(
                minimum=zeros, reference=reference, next_level=zeros, levels=zeros.unsqueeze(1)
            ),
        )


def _squared_residual(matrix: Tensor, x: Tensor, target: Tensor) -> Tensor:
    return (batched_product(matrix, x) - target).square().sum(1)
