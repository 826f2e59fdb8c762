"""Saturated sigmoids: gradients too small for every absolute epsilon."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import (
    ClosedFormTask,
    CriticalPoint,
    Facts,
    Problems,
    Task,
    register_task,
)
from learned_opt.trees import Params, Tree, batched_product


@final
@register_task
class SaturatedUnit(ClosedFormTask):
    """One sigmoid unit with squared error, started far in its saturation.

    ``(1/2) mean_j (sigmoid(w u_j + b) - y_j)^2`` over the inputs ``u = (1, 2)`` with the targets of
    the teacher ``w = -2, b = 3``. At the default start ``w = b = 10`` the gradient is about
    ``exp(-20)``: below the epsilon of Adam, where it loses its invariance to scale.

    Args:
        start: typical start of both the weight and the bias.
        spread: standard deviation of the start.

    Raises:
        LearnedOptError: if `start` is not positive or `spread` is negative.
    """

    name = "saturated_unit"
    kind = "plateau"
    family = "saturated_unit"
    budget = 1000
    smoothness = 0.4
    minimum = 0.0

    def __init__(self, *, start: float = 10.0, spread: float = 0.5) -> None:
        require(start > 0, f"{self.name}: start must be positive, got {start}")
        require(spread >= 0, f"{self.name}: spread must not be negative, got {spread}")
        self.start, self.spread = start, spread
        self.radius = start
        self.shapes = {"x": (2,)}
        self._inputs = (1.0, 2.0)
        self._teacher = (-2.0, 3.0)

    def function(self, x: Tensor) -> Tensor:
        """The squared error at ``x = (w, b)``, ``[..., 2]`` to ``[...]``."""
        inputs = torch.tensor(self._inputs, dtype=x.dtype, device=x.device)
        weight, bias = self._teacher
        # Computed from both tails, or float32 would round the gradient of a saturated unit to 0.
        activation = x[..., :1] * inputs + x[..., 1:]
        below = torch.sigmoid(activation) - torch.sigmoid(weight * inputs + bias)
        above = torch.sigmoid(-(weight * inputs + bias)) - torch.sigmoid(-activation)
        return 0.5 * torch.where(activation > 0, above, below).square().mean(-1)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The function itself; instances differ in their start alone."""
        del problems, batch
        return self.function(params["x"])

    def critical_points(self) -> list[CriticalPoint]:
        """The minimum: the teacher, whose Hessian is that of Gauss and Newton."""
        teacher = torch.tensor(self._teacher, dtype=torch.float64)
        inputs = torch.tensor(self._inputs, dtype=torch.float64)
        design = torch.stack([inputs, torch.ones_like(inputs)], dim=1)
        output = torch.sigmoid(design @ teacher)
        jacobian = (output * (1 - output)).unsqueeze(1) * design
        spectrum = torch.linalg.eigvalsh(jacobian.T @ jacobian / len(inputs))
        return [CriticalPoint(x=teacher, value=0.0, eigenvalues=spectrum)]

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        noise = torch.randn(num_problems, 2, generator=rng, dtype=torch.float64)
        # The plateau's value: every output is 1.
        plateau = self.function(torch.tensor([0.0, 1e3], dtype=torch.float64))
        reference = plateau.expand(num_problems).clone()
        zeros = torch.zeros_like(reference)
        return Problems(
            params={"x": self.start + self.spread * noise},
            constants={},
            facts=Facts(
                minimum=zeros,
                reference=reference,
                next_level=zeros,
                levels=torch.stack([reference, zeros], dim=1),
            ),
        )


@final
@register_task
class SigmoidRegression(Task):
    """A sigmoid unit fitted to a teacher by least squares, started in its saturation.

    ``mean_j (sigmoid(a_j . x) - sigmoid(a_j . w))^2`` with ``a_j`` and the teacher ``w`` standard
    normal: realizable, so the minimum is 0.

    Args:
        dim: number of weights.
        num_samples: number of inputs of each instance.
        start_std: standard deviation of the starting weights.

    Raises:
        LearnedOptError: if a setting is not positive.
    """

    name = "sigmoid_regression"
    kind = "plateau"
    family = "sigmoid_regression"
    budget = 1000
    smoothness = 0.1

    def __init__(self, *, dim: int = 8, num_samples: int = 64, start_std: float = 6.0) -> None:
        require(dim >= 1, f"{self.name}: dim must be positive, got {dim}")
        require(num_samples >= 1, f"{self.name}: num_samples must be positive, got {num_samples}")
        require(start_std > 0, f"{self.name}: start_std must be positive, got {start_std}")
        self.num_samples, self.start_std = num_samples, start_std
        self.radius = start_std
        self.shapes = {"x": (dim,)}

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Mean squared error over the instance's inputs."""
        del batch
        inputs, targets = problems.constants["inputs"], problems.constants["targets"]
        assert isinstance(inputs, Tensor)
        assert isinstance(targets, Tensor)
        return (_outputs(inputs, params["x"]) - targets).square().mean(1)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        inputs = torch.randn(
            num_problems, self.num_samples, self.dim, generator=rng, dtype=torch.float64
        )
        teacher = torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
        noise = torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
        start, targets = self.start_std * noise, _outputs(inputs, teacher)
        reference = (_outputs(inputs, start) - targets).square().mean(1)
        zeros = torch.zeros_like(reference)
        return Problems(
            params={"x": start},
            constants={"inputs": inputs, "targets": targets},
            facts=Facts(
                minimum=zeros, reference=reference, next_level=zeros, levels=zeros.unsqueeze(1)
            ),
        )


def _outputs(inputs: Tensor, weights: Tensor) -> Tensor:
    """Outputs ``[N, m]`` of one sigmoid unit per problem."""
    return torch.sigmoid(batched_product(inputs, weights))
