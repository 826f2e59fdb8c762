"""Wrappers for meta-training alone: what a rule should not be able to memorise, drawn at random.

Minimum, reference and all other known levels of a problem stay exact: a level of the inner loss is
one of the outer loss.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require, unknown_name
from learned_opt.tasks.base import Problems, Task
from learned_opt.tasks.transformed_task import (
    TransformedTask,
    as_params,
    inner_problems,
    log_uniform,
    require_range,
)
from learned_opt.trees import Params, Tree, flatten, unflatten

REPARAMETRISATIONS = ("global", "tensor", "parameter")
"""What has a scale of its own in `Reparametrised`."""

_CONVEX = "convex"
"""The parameter tensor that `ConvexTerm` adds."""


@final
class Reparametrised(TransformedTask):
    """Each instance in other units of its parameters, ``z = s x``, with ``s`` log-uniform.

    The start is divided by ``s``, so its loss is unchanged; learning rates that suit are not.

    Args:
        inner: the task to rescale.
        level: what has a scale of its own: the whole instance (``global``), each of its tensors
            (``tensor``), or each coordinate (``parameter``, which with a range ``exp(-r)`` to
            ``exp(r)`` is `RandomlyScaled`).
        scale_range: smallest and largest scale.

    Raises:
        LearnedOptError: if `level` is unknown or `scale_range` does not rise from a positive
            number.

    References:
        ``ReparamWeightsFamily`` of google/learned_optimization. The default range is that of
        Moudgil et al. 2025 (arXiv:2501.12670), who take ``global``.
    """

    def __init__(
        self,
        inner: Task,
        *,
        level: str = "global",
        scale_range: tuple[float, float] = (1e-3, 1e3),
    ) -> None:
        if level not in REPARAMETRISATIONS:
            raise unknown_name("reparametrisation", level, REPARAMETRISATIONS)
        require_range("scale_range", scale_range)
        super().__init__(inner, name="reparametrised")
        self.level, self.scale_range = level, scale_range

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """``s x``."""
        scale = as_params(constants["scale"])
        return {name: scale[name] * p for name, p in params.items()}

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        drawn: Tensor | None = None
        scale: Params = {}
        for name, p in problems.params.items():
            one_each = (num_problems, *[1] * (p.dim() - 1))
            if self.level == "parameter":
                scale[name] = log_uniform(p.shape, *self.scale_range, rng=rng)
            elif self.level == "tensor":
                scale[name] = log_uniform(one_each, *self.scale_range, rng=rng)
            else:
                if drawn is None:
                    drawn = log_uniform((num_problems,), *self.scale_range, rng=rng)
                scale[name] = drawn.reshape(one_each)
        return replace(
            problems,
            params={name: p / scale[name] for name, p in problems.params.items()},
            constants={"scale": dict(scale), "inner": problems.constants},
        )


@final
class ConvexTerm(TransformedTask):
    r"""A convex bowl beside the task, on coordinates of its own: $f(x) + w g(y)$.

    $$ g(y) = \frac{1}{n} \sum_{i=1}^n (y_i - a_i)^2, \qquad a_i \sim U(-1, 1), \quad y_0 = 0 $$

    A rule that does well on both parts has to be quick where that is easy, whatever the rest does.
    The infimum of $g$ is 0, so every level of $f$ is one of the sum.

    Args:
        inner: the task, $f$.
        weight: $w$, positive; 1 in the paper.
        num_coordinates: $n$, 20 in the paper.

    Raises:
        LearnedOptError: if a setting is not positive and finite, or `inner` has such a term.

    References:
        Lv, Jiang, Li 2017 (arXiv:1703.03633), "combination with convex functions", with the start
        and the numbers of their code. That also cuts squares off at 10, which no descent from
        the start meets, and which would not be convex.
    """

    def __init__(self, inner: Task, *, weight: float = 1.0, num_coordinates: int = 20) -> None:
        require(0 < weight < math.inf, f"weight must be positive and finite, got {weight}")
        require(num_coordinates >= 1, f"num_coordinates must be positive, got {num_coordinates}")
        require(
            _CONVEX not in inner.shapes,
            f"inner must have no parameter called '{_CONVEX}', got '{inner.name}'",
        )
        super().__init__(inner, name="convex_term")
        self.weight = weight
        self.shapes[_CONVEX] = (num_coordinates,)
        self.smoothness = max(inner.smoothness, 2 * weight / num_coordinates)
        # E |a|^2 = n / 3
        self.radius = math.hypot(inner.radius, math.sqrt(num_coordinates / 3))

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """All but the term's own coordinates."""
        del constants
        return {name: p for name, p in params.items() if name != _CONVEX}

    def used(self, problems: Problems) -> Tensor | None:
        """What the inner task uses, and all of the term's coordinates."""
        used = super().used(problems)
        if used is None:
            return None
        return torch.cat((used, used.new_ones(len(used), *self.shapes[_CONVEX])), dim=1)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The inner loss and the bowl."""
        centre = problems.constants["centre"]
        assert isinstance(centre, Tensor)
        bowl = (params[_CONVEX] - centre).square().mean(1)
        return super().loss(params, problems, batch) + self.weight * bowl

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        shape = (num_problems, *self.shapes[_CONVEX])
        centre = 2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1
        return replace(
            problems,
            params={**problems.params, _CONVEX: torch.zeros_like(centre)},
            constants={"centre": centre, "inner": problems.constants},
        )


@final
class RandomDimension(TransformedTask):
    r"""Each instance with a number of coordinates of its own.

    An inner coordinate is the scaled sum of one or more outer ones, drawn at random,

    $$ z_i = \frac{1}{\sqrt{m_i}} \sum_{j : c(j) = i} x_j, $$

    a linear map with orthonormal rows: levels, curvatures and the length of the gradient stay
    exactly what they were, and all that descent along the gradient could see of it. Rules that look
    at single coordinates or at their number see another problem. An instance of $d$ coordinates
    gets between $d$ and `factor` times $d$, log-uniformly; the tensors have room for the most, and
    what an instance does not use has no effect and no gradient (`used` tells).

    There is no canonical form of this augmentation. Leaving coordinates out instead would change
    minimum and saddles to what nobody knows; adding idle ones alone, nothing but the zeros.

    Args:
        inner: the task.
        factor: largest number of coordinates, relative to that of `inner`; 1 or more.

    Raises:
        LearnedOptError: if `factor` is below 1 or not finite.
    """

    def __init__(self, inner: Task, *, factor: float = 4.0) -> None:
        require(1 <= factor < math.inf, f"factor must be at least 1 and finite, got {factor}")
        super().__init__(inner, name="random_dimension")
        self.factor = factor
        self.shapes = {"x": (round(factor * inner.dim),)}

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """``z``, split into the inner tensors."""
        owner, weight = constants["owner"], constants["weight"]
        assert isinstance(owner, Tensor) and isinstance(weight, Tensor)
        x = params["x"]
        z = x.new_zeros(len(x), self.inner.dim).scatter_add(1, owner, weight * x)
        like = {name: x.new_empty(1, *shape) for name, shape in self.inner.shapes.items()}
        return unflatten(z, like)

    def used(self, problems: Problems) -> Tensor:
        """The coordinates that belong to one which the inner task uses."""
        owner, weight = problems.constants["owner"], problems.constants["weight"]
        assert isinstance(owner, Tensor) and isinstance(weight, Tensor)
        inner = self.inner.used(inner_problems(problems))
        return weight > 0 if inner is None else (weight > 0) & inner.gather(1, owner)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        least, most = self.inner.dim, self.dim
        drawn = log_uniform((num_problems,), least, most + 1, rng=rng)
        dims = drawn.floor().clamp(least, most)
        # The first `least` coordinates have an owner each, so that none is without.
        own = torch.arange(least).expand(num_problems, least)
        more = torch.randint(least, (num_problems, most - least), generator=rng)
        owner = torch.cat((own, more), dim=1)
        in_use = (torch.arange(most) < dims[:, None]).double()
        shares = torch.zeros(num_problems, least, dtype=torch.float64)
        shares = shares.scatter_add(1, owner, in_use)
        weight = in_use / shares.gather(1, owner).sqrt()
        # Where a coordinate lies, and whether it is in use, should say nothing about it.
        order = torch.rand(num_problems, most, generator=rng, dtype=torch.float64).argsort(1)
        owner, weight = owner.gather(1, order), weight.gather(1, order)
        return replace(
            problems,
            params={"x": weight * flatten(problems.params).gather(1, owner)},
            constants={"owner": owner, "weight": weight, "inner": problems.constants},
        )
