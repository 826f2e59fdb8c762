"""Wrappers: a Task around a Task, seen through a change of variables, of units, or through noise.

They compose in any order. Those that only make sense in training are in `augmentations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError, require, unknown_name
from learned_opt.tasks.augmentations import ConvexTerm, RandomDimension, Reparametrised
from learned_opt.tasks.base import Problems, Task
from learned_opt.tasks.transformed_task import (
    TransformedTask,
    as_params,
    inner_problems,
    log_uniform,
    require_range,
)
from learned_opt.trees import Params, Tree, batched_product, flatten, per_problem


@final
class Rotated(TransformedTask):
    """Each instance seen in a randomly rotated frame: no coordinate means anything any more.

    All parameters become one vector ``x`` with ``z = Q x``, where ``Q`` is uniform (Haar) over the
    orthogonal group.

    Args:
        inner: the task to rotate.

    Examples:
        >>> from learned_opt.tasks.valleys import Rosenbrock
        >>> Rotated(Rosenbrock(dim=3)).name
        'rotated(rosenbrock)'
    """

    def __init__(self, inner: Task) -> None:
        super().__init__(inner, name="rotated")
        self.shapes = {"x": (inner.dim,)}

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """``Q x``, split into the inner tensors."""
        rotation = constants["rotation"]
        assert isinstance(rotation, Tensor)
        flat = batched_product(rotation, params["x"])
        shapes = self.inner.shapes
        parts = flat.split([math.prod(shape) for shape in shapes.values()], dim=1)
        return {
            name: part.reshape(-1, *shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def used(self, problems: Problems) -> None:
        """All: every one has a part in those that the inner task uses."""

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        gaussian = torch.randn(num_problems, self.dim, self.dim, generator=rng, dtype=torch.float64)
        orthogonal, triangular = torch.linalg.qr(gaussian)
        # Without the signs QR's convention would bias the distribution (arXiv:math-ph/0609050).
        rotation = orthogonal * triangular.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
        flat = flatten(problems.params).unsqueeze(2)
        return replace(
            problems,
            params={"x": torch.bmm(rotation.mT, flat).squeeze(2)},
            constants={"rotation": rotation, "inner": problems.constants},
        )


@final
class Shifted(TransformedTask):
    """Each instance moved by ``x* ~ N(0, scale^2)`` per coordinate: the origin means nothing.

    Args:
        inner: the task to move.
        scale: standard deviation of the shift.

    Raises:
        LearnedOptError: if `scale` is negative or not finite.
    """

    def __init__(self, inner: Task, *, scale: float = 1.0) -> None:
        require(0 <= scale < math.inf, f"scale must be finite and not negative, got {scale}")
        super().__init__(inner, name="shifted")
        self.scale = scale

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """``x - x*``."""
        shift = as_params(constants["shift"])
        return {name: p - shift[name] for name, p in params.items()}

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        shift: Tree = {
            name: self.scale * torch.randn(p.shape, generator=rng, dtype=torch.float64)
            for name, p in problems.params.items()
        }
        return replace(
            problems,
            params={name: p + as_params(shift)[name] for name, p in problems.params.items()},
            constants={"shift": shift, "inner": problems.constants},
        )


@final
class Scaled(TransformedTask):
    """Other units of value and length, ``value_scale f(x / coordinate_scale) + value_shift``.

    Args:
        inner: the task to rescale.
        value_scale: factor of the loss, positive.
        value_shift: what is added to the loss.
        coordinate_scale: factor of every coordinate, positive.

    Raises:
        LearnedOptError: if a scale is not positive and finite, or the shift is not finite.
    """

    def __init__(
        self,
        inner: Task,
        *,
        value_scale: float = 1.0,
        value_shift: float = 0.0,
        coordinate_scale: float = 1.0,
    ) -> None:
        require(
            0 < value_scale < math.inf,
            f"value_scale must be positive and finite, got {value_scale}",
        )
        require(math.isfinite(value_shift), f"value_shift must be finite, got {value_shift}")
        require(
            0 < coordinate_scale < math.inf,
            f"coordinate_scale must be positive and finite, got {coordinate_scale}",
        )
        super().__init__(inner, name="scaled")
        self.value_scale, self.value_shift = value_scale, value_shift
        self.coordinate_scale = coordinate_scale
        self.smoothness = inner.smoothness * value_scale / coordinate_scale**2
        self.radius = inner.radius * coordinate_scale

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """``x / coordinate_scale``."""
        del constants
        return {name: p / self.coordinate_scale for name, p in params.items()}

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The inner loss in the new unit."""
        return self._value(super().loss(params, problems, batch))

    def _value(self, inner: Tensor) -> Tensor:
        return self.value_scale * inner + self.value_shift

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        facts = problems.facts
        return Problems(
            params={name: p * self.coordinate_scale for name, p in problems.params.items()},
            constants={"inner": problems.constants},
            facts=replace(
                facts,
                minimum=self._value(facts.minimum),
                reference=self._value(facts.reference),
                next_level=self._value(facts.next_level),
                levels=self._value(facts.levels),
            ),
        )


@final
class NoisyGradient(TransformedTask):
    """Gradients with additive Gaussian noise; the loss itself stays exact.

    Each evaluation draws ``n ~ N(0, noise^2 / d)`` per coordinate, so that the noise vector has
    norm ``noise`` in any dimension ``d``, and adds ``<n, x - stop_gradient(x)>`` to the loss.

    Args:
        inner: the task whose gradients become noisy.
        noise: root mean square norm of the noise on the whole gradient. Of two numbers each problem
            draws its own level between them, log-uniformly.

    Raises:
        LearnedOptError: if `noise` is negative or not finite, or a range does not rise from a
            positive number.
    """

    def __init__(self, inner: Task, *, noise: float | Sequence[float]) -> None:
        if isinstance(noise, Sequence):
            require_range("noise", noise)
        else:
            require(0 <= noise < math.inf, f"noise must be finite and not negative, got {noise}")
        super().__init__(inner, name="noisy")
        self.noise = noise

    @property
    def is_stochastic(self) -> bool:
        """Always."""
        return True

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """The variables themselves."""
        del constants
        return params

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree | None:
        """Draw ``{"noise": {name: [N, *shape]}}``, with the inner batch, if any, as ``"inner"``."""
        std = self._level(problems) / math.sqrt(self.dim)
        like = problems.facts.minimum
        noise: Tree = {}
        for name, shape in self.shapes.items():
            drawn = torch.randn(like.shape[0], *shape, generator=rng, dtype=torch.float64)
            noise[name] = (per_problem(std, drawn) * drawn).to(like.device, like.dtype)
        inner = self.inner.batch(inner_problems(problems), rng)
        return {"noise": noise} if inner is None else {"noise": noise, "inner": inner}

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The inner loss, with noise in its gradient alone."""
        if batch is None:
            return self.inner.loss(params, inner_problems(problems))
        inner = batch.get("inner")
        assert not isinstance(inner, Tensor)
        exact = self.inner.loss(params, inner_problems(problems), inner)
        noise = as_params(batch["noise"])
        tilt = flatten({name: noise[name] * (p - p.detach()) for name, p in params.items()})
        return exact + tilt.sum(1)

    def _level(self, problems: Problems) -> Tensor:
        """The norm of the noise, ``[N]`` or one for all, on the CPU, where noise is drawn."""
        if isinstance(self.noise, Sequence):
            level = problems.constants["noise"]
            assert isinstance(level, Tensor)
            return level.cpu()
        return torch.tensor(self.noise, dtype=torch.float64)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        constants: Tree = {"inner": problems.constants}
        if isinstance(self.noise, Sequence):
            constants["noise"] = log_uniform((num_problems,), *self.noise, rng=rng)
        return replace(problems, constants=constants)


@final
class RandomlyScaled(TransformedTask):
    """Random scaling of RNNProp: each coordinate in a unit of its own, ``z = s x``.

    ``s = exp(U(-log_range, log_range))`` is drawn per instance and coordinate, and the start is
    divided by it, so the initial loss is unchanged. An augmentation of meta-training that keeps a
    learned rule from memorising the size of a good step (Lv, Jiang, Li 2017, arXiv:1703.03633,
    section 4.2).

    Args:
        inner: the task to rescale.
        log_range: half-width of the scale's logarithm.

    Raises:
        LearnedOptError: if `log_range` is negative or not finite.
    """

    def __init__(self, inner: Task, *, log_range: float = 3.0) -> None:
        require(
            0 <= log_range < math.inf, f"log_range must be finite and not negative, got {log_range}"
        )
        super().__init__(inner, name="randomly_scaled")
        self.log_range = log_range

    def inner_params(self, params: Params, constants: Tree) -> Params:
        """``s x``."""
        scale = as_params(constants["scale"])
        return {name: scale[name] * p for name, p in params.items()}

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        problems = self.inner._sample(num_problems, rng)
        scale: Tree = {
            name: torch.exp(
                self.log_range * (2 * torch.rand(p.shape, generator=rng, dtype=torch.float64) - 1)
            )
            for name, p in problems.params.items()
        }
        return replace(
            problems,
            params={name: p / as_params(scale)[name] for name, p in problems.params.items()},
            constants={"scale": scale, "inner": problems.constants},
        )


TRANSFORMS: dict[str, Callable[..., TransformedTask]] = {
    "rotated": Rotated,
    "shifted": Shifted,
    "scaled": Scaled,
    "noisy": NoisyGradient,
    "randomly_scaled": RandomlyScaled,
    "reparametrised": Reparametrised,
    "convex_term": ConvexTerm,
    "random_dimension": RandomDimension,
}
"""Transforms by name."""


def transformed(task: Task, transforms: Sequence[Mapping[str, Any]]) -> Task:
    """`task` seen through transforms that are given as plain data.

    Args:
        task: the innermost task.
        transforms: inside first; each holds ``name`` and the keyword arguments of that transform.

    Returns:
        The outermost task.

    Raises:
        LearnedOptError: if a name or a setting is unknown.

    Examples:
        >>> from learned_opt.tasks import get_task
        >>> transformed(get_task("monkey_saddle"), [{"name": "noisy", "noise": 0.1}]).name
        'noisy(monkey_saddle)'
    """
    for transform in transforms:
        settings = dict(transform)
        name = settings.pop("name", "")
        if name not in TRANSFORMS:
            raise unknown_name("transform", name, TRANSFORMS)
        try:
            task = TRANSFORMS[name](task, **settings)
        except TypeError as error:
            raise LearnedOptError(f"transform '{name}': {error}") from error
    return task
