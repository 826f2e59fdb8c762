"""The one interface of wrappers: a Task around a Task.

The instance's own randomness lies beside the inner task's constants, as ``{"inner": ..., ...}``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Params, Tree


class TransformedTask(Task):
    """A task around another one, from which it takes family, kind, budget and units.

    Attributes:
        inner: the task inside.
    """

    name: ClassVar[str] = "transformed"

    def __init__(self, inner: Task, *, name: str) -> None:
        self.inner = inner
        self.name = f"{name}({inner.name})"  # type: ignore[misc]
        self.family, self.kind = inner.family, inner.kind
        self.shapes = dict(inner.shapes)
        self.budget, self.smoothness, self.radius = inner.budget, inner.smoothness, inner.radius

    @property
    def is_stochastic(self) -> bool:
        """Whether the inner task is."""
        return self.inner.is_stochastic

    @abstractmethod
    def inner_params(self, params: Params, constants: Tree) -> Params:
        """From the outer variables to those of the inner task.

        Args:
            params: outer parameters, each ``[N, *shape]``.
            constants: the outer instances' constants.

        Returns:
            Inner parameters.
        """

    def used(self, problems: Problems) -> Tensor | None:
        """The coordinates that the inner task uses, which stay where they are."""
        return self.inner.used(inner_problems(problems))

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree | None:
        """What the inner task draws."""
        return self.inner.batch(inner_problems(problems), rng)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The inner loss at the inner variables."""
        return self.inner.loss(
            self.inner_params(params, problems.constants), inner_problems(problems), batch
        )


def inner_problems(problems: Problems) -> Problems:
    """The problems as the inner task knows them; it reads their constants alone."""
    return replace(problems, constants=as_tree(problems.constants["inner"]))


def as_tree(node: Tensor | Tree) -> Tree:
    """A node of the constants that is not a leaf."""
    assert not isinstance(node, Tensor)
    return node


def as_params(node: Tensor | Tree) -> Params:
    """A node of the constants that is keyed like the parameters."""
    return node  # type: ignore[return-value]


def log_uniform(shape: Sequence[int], low: float, high: float, *, rng: torch.Generator) -> Tensor:
    """Numbers between `low` and `high` whose logarithms are uniform, float64 on the CPU."""
    uniform = torch.rand(*shape, generator=rng, dtype=torch.float64)
    return torch.exp(math.log(low) + math.log(high / low) * uniform)


def require_range(name: str, values: Sequence[float]) -> None:
    """Refuse anything but a range that `log_uniform` can draw from.

    Args:
        name: of the argument, for the message.
        values: what it holds.

    Raises:
        LearnedOptError: unless these are two positive, finite numbers, the smaller one first.
    """
    require(
        len(values) == 2 and 0 < values[0] <= values[1] < math.inf,
        f"{name} must be two positive, finite numbers, the smaller one first, got {values}",
    )
