"""Hand-made rules that see one gradient a step and use no random numbers."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.rules.base import HandMade, register_rule
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
