"""Small learning problems that each come with a data set of their own, after Li and Malik 2016."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import Facts, Problems, Task, register_task
from learned_opt.trees import Params, Tree, batched_product

_NUM_CLUSTERS = 4


@final
@register_task
class RobustRegression(Task):
    r"""Linear regression with outliers: a nonconvex loss that forgives, and a data set per problem.

    $$ f(w, b) = \frac1n \sum_i \frac{r_i^2}{1 + r_i^2}, \qquad r_i = y_i - w^\top x_i - b $$

    Points come from four Gaussians with random means; each Gaussian has a linear law of its own, so
    no one line fits them all. The infimum is only known to be positive.

    Args:
        dim: number of features.
        num_points: points in a data set, a multiple of 4.

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Li and Malik 2016, "Learning to optimize" (arXiv:1606.01885), section 4.2; the loss is that
        of Geman and McClure.
    """

    name = "robust_regression"
    kind = "plateau"
    family = "robust_regression"
    budget = 500

    def __init__(self, *, dim: int = 3, num_points: int = 100) -> None:
        require(dim >= 1, f"{self.name}: dim must be positive, got {dim}")
        _require_clusters(self.name, num_points)
        self.num_points = num_points
        self.shapes = {"w": (dim,), "b": (1,)}
        self.smoothness = 2.0 * (dim + 1)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Mean saturated residual, ``[N]``."""
        del batch
        inputs, labels = problems.constants["inputs"], problems.constants["labels"]
        assert isinstance(inputs, Tensor) and isinstance(labels, Tensor)
        fitted = batched_product(inputs, params["w"]) + params["b"]
        squares = (labels - fitted).square()
        return (squares / (1 + squares)).mean(1)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        dim = self.shapes["w"][0]
        inputs = _clusters(num_problems, self.num_points, dim, rng)
        laws = torch.randn(num_problems, _NUM_CLUSTERS, dim + 1, generator=rng, dtype=torch.float64)
        law = laws.repeat_interleave(self.num_points // _NUM_CLUSTERS, dim=1)
        noise = torch.randn(num_problems, self.num_points, generator=rng, dtype=torch.float64)
        labels = (inputs * law[..., :dim]).sum(-1) + law[..., dim] + noise
        params = {
            name: torch.randn(num_problems, *shape, generator=rng, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        return _problems(self, params, {"inputs": inputs, "labels": labels})


@final
@register_task
class GaussianMLP(Task):
    r"""A tiny ReLU network that tells four Gaussians into two classes, a data set per problem.

    Cross-entropy plus $\lambda/2$ times the squared norm of all parameters.

    Args:
        dim: number of features, hidden units and classes' inputs.
        num_points: points in a data set, a multiple of 4.
        weight_decay: $\lambda$.

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Li and Malik 2016, "Learning to optimize" (arXiv:1606.01885), section 4.3.
    """

    name = "gaussian_mlp"
    kind = "net"
    family = "gaussian_mlp"
    budget = 500

    def __init__(self, *, dim: int = 2, num_points: int = 100, weight_decay: float = 5e-4) -> None:
        require(dim >= 1, f"{self.name}: dim must be positive, got {dim}")
        _require_clusters(self.name, num_points)
        require(
            weight_decay >= 0, f"{self.name}: weight_decay must not be negative, got {weight_decay}"
        )
        self.num_points, self.weight_decay = num_points, weight_decay
        self.shapes = {"w0": (dim, dim), "b0": (dim,), "w1": (dim, 2), "b1": (2,)}

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Cross-entropy with weight decay, ``[N]``."""
        del batch
        inputs, labels = problems.constants["inputs"], problems.constants["labels"]
        assert isinstance(inputs, Tensor) and isinstance(labels, Tensor)
        hidden = torch.baddbmm(params["b0"].unsqueeze(1), inputs, params["w0"]).relu()
        logits = torch.baddbmm(params["b1"].unsqueeze(1), hidden, params["w1"])
        chosen = logits.log_softmax(-1).gather(2, labels.unsqueeze(2)).squeeze(2)
        size = sum(p.flatten(1).square().sum(1) for p in params.values())
        return self.weight_decay / 2 * size - chosen.mean(1)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        dim = self.shapes["b0"][0]
        inputs = _clusters(num_problems, self.num_points, dim, rng)
        # Two clusters of each class, in random order.
        order = torch.rand(num_problems, _NUM_CLUSTERS, generator=rng).argsort(1)
        labels = (order % 2).repeat_interleave(self.num_points // _NUM_CLUSTERS, dim=1)
        params = {
            name: torch.randn(num_problems, *shape, generator=rng, dtype=torch.float64)
            for name, shape in self.shapes.items()
        }
        return _problems(self, params, {"inputs": inputs, "labels": labels})


def _require_clusters(name: str, num_points: int) -> None:
    require(
        num_points >= _NUM_CLUSTERS and num_points % _NUM_CLUSTERS == 0,
        f"{name}: num_points must be a positive multiple of {_NUM_CLUSTERS}, got {num_points}",
    )


def _clusters(num_problems: int, num_points: int, dim: int, rng: torch.Generator) -> Tensor:
    """Points ``[N, n, dim]`` of four Gaussians with random means and random shapes."""
    shape = (num_problems, _NUM_CLUSTERS, dim)
    means = torch.randn(shape, generator=rng, dtype=torch.float64)
    mixing = torch.randn(*shape, dim, generator=rng, dtype=torch.float64) / dim**0.5
    points = torch.randn(
        num_problems,
        _NUM_CLUSTERS,
        num_points // _NUM_CLUSTERS,
        dim,
        generator=rng,
        dtype=torch.float64,
    )
    spread: Tensor = points @ mixing
    return (spread + means.unsqueeze(2)).flatten(1, 2)


def _problems(task: Task, params: Params, constants: Tree) -> Problems:
    """Problems whose losses are positive and whose minimum is not known."""
    zeros = next(iter(params.values())).new_zeros(len(next(iter(params.values()))))
    facts = Facts(
        minimum=zeros,
        reference=zeros,
        next_level=zeros,
        levels=zeros.unsqueeze(1)[:, :0],
        is_lower_bound=True,
    )
    problems = Problems(params=params, constants=constants, facts=facts)
    start = task.loss(params, problems)
    return Problems(
        params=params,
        constants=constants,
        facts=Facts(
            minimum=zeros,
            reference=start,
            next_level=zeros,
            levels=facts.levels,
            is_lower_bound=True,
        ),
    )
