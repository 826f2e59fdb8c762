"""Hand-made rules that use the gradient and at most a running sum of it; no random numbers.

Every `forward` follows the contract of `Rule.forward`; its docstring here only says what it does.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.rules.base import HandMade, register_rule
from learned_opt.rules.norms import nonzero, problem_norm
from learned_opt.trees import Params, Tree, per_problem


@final
@register_rule
class SGD(HandMade):
    """Gradient descent, ``x <- x - learning_rate g``.

    Examples:
        >>> import torch
        >>> rule = SGD(learning_rate=0.5)
        >>> updates, _ = rule({"x": torch.tensor([[2.0]])}, {}, {"x": torch.tensor([[1.0]])})
        >>> updates["x"].item()
        -1.0
    """

    name = "sgd"
    learning_rate: Tensor

    def __init__(self, *, learning_rate: float | Tensor = 1e-2) -> None:
        super().__init__(learning_rate=learning_rate)

    def init(self, params: Params) -> Tree:
        """No state."""
        del params
        return {}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of gradient descent."""
        del params, loss, rng
        return {k: -per_problem(self.learning_rate, g) * g for k, g in grads.items()}, state


@final
@register_rule
class Momentum(HandMade):
    """Heavy ball, ``v <- momentum v + g; x <- x - learning_rate v`` (Polyak 1964)."""

    name = "momentum"
    learning_rate: Tensor
    momentum: Tensor

    def __init__(
        self, *, learning_rate: float | Tensor = 1e-2, momentum: float | Tensor = 0.9
    ) -> None:
        super().__init__(learning_rate=learning_rate, momentum=momentum)

    def init(self, params: Params) -> Tree:
        """A zero velocity."""
        return {"velocity": {k: torch.zeros_like(p) for k, p in params.items()}}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of heavy ball."""
        del params, loss, rng
        velocity = _accelerate(self.momentum, grads, state["velocity"])  # type: ignore[arg-type]
        updates = {k: -per_problem(self.learning_rate, v) * v for k, v in velocity.items()}
        return updates, {"velocity": velocity}  # type: ignore[dict-item]


@final
@register_rule
class Nesterov(HandMade):
    """Nesterov momentum, ``v <- momentum v + g; x <- x - learning_rate (g + momentum v)``.

    The form of Sutskever et al. 2013 as torch has it: the gradient is taken at the current point.
    """

    name = "nesterov"
    learning_rate: Tensor
    momentum: Tensor

    def __init__(
        self, *, learning_rate: float | Tensor = 1e-2, momentum: float | Tensor = 0.9
    ) -> None:
        super().__init__(learning_rate=learning_rate, momentum=momentum)

    def init(self, params: Params) -> Tree:
        """A zero velocity."""
        return {"velocity": {k: torch.zeros_like(p) for k, p in params.items()}}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of Nesterov momentum."""
        del params, loss, rng
        velocity = _accelerate(self.momentum, grads, state["velocity"])  # type: ignore[arg-type]
        updates = {
            k: -per_problem(self.learning_rate, g)
            * torch.addcmul(g, velocity[k], per_problem(self.momentum, g))
            for k, g in grads.items()
        }
        return updates, {"velocity": velocity}  # type: ignore[dict-item]


@final
@register_rule
class NormalizedGD(HandMade):
    """Normalised gradient descent, ``x <- x - learning_rate g / |g|``, the norm over all tensors.

    Where the gradient is exactly zero it stays (Levy 2016, arXiv:1611.04831, without noise).
    """

    name = "normalized_gd"
    learning_rate: Tensor

    def __init__(self, *, learning_rate: float | Tensor = 1e-2) -> None:
        super().__init__(learning_rate=learning_rate)

    def init(self, params: Params) -> Tree:
        """No state."""
        del params
        return {}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of fixed length."""
        del params, loss, rng
        factor = -self.learning_rate / nonzero(problem_norm(grads))
        updates = {k: per_problem(factor, g) * g for k, g in grads.items()}
        return updates, state


@final
@register_rule
class ClippedGD(HandMade):
    """Clipped gradient descent, ``x <- x - learning_rate g min(1, threshold / |g|)``.

    The norm is over all tensors of a problem, as in ``torch.nn.utils.clip_grad_norm_``.
    """

    name = "clipped_gd"
    learning_rate: Tensor
    threshold: Tensor

    def __init__(
        self, *, learning_rate: float | Tensor = 1e-2, threshold: float | Tensor = 1.0
    ) -> None:
        super().__init__(learning_rate=learning_rate, threshold=threshold)

    def init(self, params: Params) -> Tree:
        """No state."""
        del params
        return {}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step, no longer than ``learning_rate * threshold``."""
        del params, loss, rng
        norm = problem_norm(grads)
        # threshold / max(norm, threshold), not min(1, threshold / norm): the latter's discarded
        # branch has an infinite derivative at a vanishing gradient.
        share = self.threshold / nonzero(torch.maximum(norm, self.threshold))
        factor = -self.learning_rate * share
        return {k: per_problem(factor, g) * g for k, g in grads.items()}, state


def _accelerate(momentum: Tensor, grads: Params, velocity: Params) -> Params:
    """``momentum v + g`` for each tensor."""
    return {k: torch.addcmul(g, velocity[k], per_problem(momentum, g)) for k, g in grads.items()}
