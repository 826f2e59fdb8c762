"""The interface of the outer gradient: how to estimate d(meta-objective) / d(theta).

Truncated back-propagation and evolution strategies differ in nothing else, so the trainer knows
this interface alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from learned_opt.rules.base import Rule

State = TypeVar("State")
"""Whatever an estimator carries from one outer step to the next."""


@final
@dataclass(frozen=True, kw_only=True)
class Estimate(Generic[State]):
    """What one outer step learns about theta.

    Attributes:
        meta_loss: 0-d meta-objective of the steps taken, detached.
        grads: estimated gradient of each trainable parameter of the rule, in `trainable` order.
        state: where the estimator stands now; None asks for a fresh start.
        diagnostics: where the estimate was made, for the sentence that reports a bad one; tensors
            are 0-d.
        metrics: how good the estimate is, for the history.
    """

    meta_loss: Tensor
    grads: tuple[Tensor, ...]
    state: State | None
    diagnostics: Mapping[str, float | Tensor]
    metrics: Mapping[str, float] = field(default_factory=dict)


class MetaGradient(ABC, Generic[State]):
    """An estimator of the meta-gradient; pure apart from the generator it is handed."""

    @abstractmethod
    def estimate(
        self, rule: Rule, state: State | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[State]:
        """Run the inner loops a little further and estimate the gradient.

        Args:
            rule: the rule whose theta is trained; not modified.
            state: what the last estimate returned; None starts anew.
            progress: the fraction of outer steps done, in ``[0, 1]``.
            rng: CPU generator, advanced.

        Returns:
            Meta-loss, gradient and new state.
        """

    def check(self, rule: Rule) -> None:
        """See whether `rule` can be trained this way, before anything is written.

        Args:
            rule: the rule.

        Raises:
            LearnedOptError: if it cannot.
        """

    @abstractmethod
    def pack(self, state: State) -> dict[str, Any]:
        """`state` as plain containers of tensors, numbers and strings, for a checkpoint."""

    @abstractmethod
    def unpack(self, packed: Mapping[str, Any]) -> State:
        """Undo `pack`."""


def trainable(rule: Rule) -> list[Tensor]:
    """The parameters of `rule` that meta-training moves, in the order that gradients come in."""
    return [parameter for parameter in rule.parameters() if parameter.requires_grad]


def flat_theta(rule: Rule) -> Tensor:
    """The trainable parameters of `rule` as one detached vector ``[D]``."""
    return torch.cat([parameter.detach().flatten() for parameter in trainable(rule)])


def like_theta(flat: Tensor, rule: Rule) -> tuple[Tensor, ...]:
    """A vector ``[D]`` cut and shaped as the trainable parameters of `rule`."""
    parameters = trainable(rule)
    parts = flat.split([parameter.numel() for parameter in parameters])
    return tuple(part.view_as(p) for part, p in zip(parts, parameters, strict=True))
