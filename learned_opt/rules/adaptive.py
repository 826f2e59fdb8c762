"""Hand-made rules that give each coordinate its own step length.

Every `forward` follows the contract of `Rule.forward`; its docstring here only says what it does.
"""

from __future__ import annotations

from functools import partial
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.rules.base import HandMade, register_rule
from learned_opt.rules.norms import root
from learned_opt.trees import Params, Tree, flatten, num_problems, per_problem, unflatten
from learned_opt.workspace import in_pieces, is_long, workspace


@final
@register_rule
class Adagrad(HandMade):
    """AdaGrad, ``s <- s + g^2; x <- x - learning_rate g / (sqrt(s) + eps)`` (Duchi et al. 2011)."""

    name = "adagrad"
    learning_rate: Tensor
    eps: Tensor

    def __init__(
        self, *, learning_rate: float | Tensor = 1e-2, eps: float | Tensor = 1e-10
    ) -> None:
        super().__init__(learning_rate=learning_rate, eps=eps)

    def init(self, params: Params) -> Tree:
        """Zero sums of squares."""
        return {"sum_of_squares": {k: torch.zeros_like(p) for k, p in params.items()}}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of AdaGrad."""
        del params, loss, rng
        old: Params = state["sum_of_squares"]  # type: ignore[assignment]
        total = {k: torch.addcmul(old[k], g, g) for k, g in grads.items()}
        updates = {
            k: _step(g, total[k], scale=self.learning_rate, eps=self.eps) for k, g in grads.items()
        }
        return updates, {"sum_of_squares": total}  # type: ignore[dict-item]


@final
@register_rule
class RMSprop(HandMade):
    """RMSProp, ``s <- decay s + (1 - decay) g^2; x <- x - learning_rate g / (sqrt(s) + eps)``.

    Tieleman & Hinton 2012, without momentum and without centring; `decay` is torch's ``alpha``.

    Raises:
        LearnedOptError: if a value is negative or not finite, or `decay` is not below 1.
    """

    name = "rmsprop"
    learning_rate: Tensor
    decay: Tensor
    eps: Tensor

    def __init__(
        self,
        *,
        learning_rate: float | Tensor = 1e-2,
        decay: float | Tensor = 0.99,
        eps: float | Tensor = 1e-8,
    ) -> None:
        super().__init__(learning_rate=learning_rate, decay=decay, eps=eps)
        _require_decays(self, "decay")

    def init(self, params: Params) -> Tree:
        """Zero mean squares."""
        return {"second_moment": {k: torch.zeros_like(p) for k, p in params.items()}}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of RMSProp."""
        del params, loss, rng
        second = _second_moment(self.decay, grads, state["second_moment"])  # type: ignore[arg-type]
        updates = {
            k: _step(g, second[k], scale=self.learning_rate, eps=self.eps) for k, g in grads.items()
        }
        return updates, {"second_moment": second}  # type: ignore[dict-item]


@final
@register_rule
class Adam(HandMade):
    """Adam with bias correction (Kingma & Ba 2015, arXiv:1412.6980).

    Raises:
        LearnedOptError: if a value is negative or not finite, or a beta is not below 1.

    Examples:
        The first step has length ``learning_rate`` whatever the gradient's scale:

        >>> rule, x = Adam(learning_rate=0.1), {"x": torch.tensor([[0.0]])}
        >>> updates, _ = rule({"x": torch.tensor([[123.0]])}, rule.init(x), x)
        >>> round(updates["x"].item(), 6)
        -0.1
    """

    name = "adam"
    learning_rate: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor

    def __init__(
        self,
        *,
        learning_rate: float | Tensor = 1e-3,
        beta1: float | Tensor = 0.9,
        beta2: float | Tensor = 0.999,
        eps: float | Tensor = 1e-8,
    ) -> None:
        super().__init__(learning_rate=learning_rate, beta1=beta1, beta2=beta2, eps=eps)
        _require_decays(self, "beta1", "beta2")

    def init(self, params: Params) -> Tree:
        """Zero moments, step 0."""
        return zero_moments(params)

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of Adam."""
        del params, loss, rng
        return adam_step(
            grads,
            state,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
        )


@final
@register_rule
class AdamW(HandMade):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Adam's update, and ``- learning_rate weight_decay x`` besides.

    Raises:
        LearnedOptError: if a value is negative or not finite, or a beta is not below 1.
    """

    name = "adamw"
    learning_rate: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor

    def __init__(
        self,
        *,
        learning_rate: float | Tensor = 1e-3,
        beta1: float | Tensor = 0.9,
        beta2: float | Tensor = 0.999,
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
        )
        _require_decays(self, "beta1", "beta2")

    def init(self, params: Params) -> Tree:
        """Zero moments, step 0."""
        return zero_moments(params)

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of AdamW."""
        del loss, rng
        updates, state = adam_step(
            grads,
            state,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
        )
        shrinkage = -self.learning_rate * self.weight_decay
        updates = {
            k: torch.addcmul(update, params[k], per_problem(shrinkage, update))
            for k, update in updates.items()
        }
        return updates, state


@final
@register_rule
class Lion(HandMade):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    ``x <- x - learning_rate (sign(beta1 m + (1 - beta1) g) + weight_decay x)``, then
    ``m <- beta2 m + (1 - beta2) g``; the sign of zero is zero.

    Raises:
        LearnedOptError: if a value is negative or not finite, or a beta is not below 1.
    """

    name = "lion"
    learning_rate: Tensor
    beta1: Tensor
    beta2: Tensor
    weight_decay: Tensor

    def __init__(
        self,
        *,
        learning_rate: float | Tensor = 1e-4,
        beta1: float | Tensor = 0.9,
        beta2: float | Tensor = 0.99,
        weight_decay: float | Tensor = 0.0,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate, beta1=beta1, beta2=beta2, weight_decay=weight_decay
        )
        _require_decays(self, "beta1", "beta2")

    def init(self, params: Params) -> Tree:
        """A zero momentum."""
        return {"first_moment": {k: torch.zeros_like(p) for k, p in params.items()}}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of Lion."""
        del loss, rng
        moment: Params = state["first_moment"]  # type: ignore[assignment]
        updates = {}
        for k, g in grads.items():
            direction = torch.lerp(moment[k], g, 1 - per_problem(self.beta1, g)).sign()
            decayed = torch.addcmul(direction, params[k], per_problem(self.weight_decay, g))
            updates[k] = -per_problem(self.learning_rate, g) * decayed
        first = _first_moment(self.beta2, grads, moment)
        return updates, {"first_moment": first}  # type: ignore[dict-item]


def _require_decays(rule: HandMade, *names: str) -> None:
    """Refuse decay factors of one and more: their averages never forget, nor can be debiased."""
    for name in names:
        value = getattr(rule, name).detach()
        require(
            bool((value < 1).all()), f"{rule.name}: {name} must be below 1, got {value.tolist()}"
        )


def zero_moments(params: Params) -> Tree:
    """Adam's state before the first step."""
    device = next(iter(params.values())).device
    return {
        "first_moment": {k: torch.zeros_like(p) for k, p in params.items()},
        "second_moment": {k: torch.zeros_like(p) for k, p in params.items()},
        "step": torch.zeros(num_problems(params), dtype=torch.int64, device=device),
    }


def _first_moment(decay: Tensor, grads: Params, moment: Params) -> Params:
    """``decay m + (1 - decay) g`` for each tensor."""
    return {k: torch.lerp(moment[k], g, per_problem(1 - decay, g)) for k, g in grads.items()}


def _second_moment(decay: Tensor, grads: Params, moment: Params) -> Params:
    """``decay v + (1 - decay) g^2`` for each tensor."""
    return {
        k: torch.lerp(moment[k], g.square(), per_problem(1 - decay, g)) for k, g in grads.items()
    }


def _step(direction: Tensor, second: Tensor, *, scale: Tensor, eps: Tensor) -> Tensor:
    """``- scale direction / (sqrt(second) + eps)``."""
    denominator = root(second) + per_problem(eps, second)
    return direction * -per_problem(scale, direction) / denominator


def adam_step(
    grads: Params,
    state: Tree,
    *,
    learning_rate: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
) -> tuple[Params, Tree]:
    """Adam's update and next state.

    Args:
        grads: gradients, each ``[N, *shape]``.
        state: what `zero_moments` or the last call returned.
        learning_rate: 0-d or ``[N]``, float64, as are the others.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: floor of the root of the second moment.

    Returns:
        ``(updates, state)``, as of `Rule.forward`.
    """
    step: Tensor = state["step"] + 1  # type: ignore[operator,assignment]
    # lr (m / c1) / (sqrt(v / c2) + eps) with both corrections moved to the [N] scalars, in float64.
    correction1 = 1 - beta1**step
    correction2 = (1 - beta2**step).sqrt()
    scale, eps = learning_rate * correction2 / correction1, eps * correction2
    old_first: Params = state["first_moment"]  # type: ignore[assignment]
    old_second: Params = state["second_moment"]  # type: ignore[assignment]
    if workspace() is not None and is_long(flat := flatten(grads)):
        vectors = flat, flatten(old_first), flatten(old_second)
        work = partial(_adam_piece, beta1=beta1, beta2=beta2, scale=scale, eps=eps)
        _, results = in_pieces(work, *vectors, out=3)
        updates, first, second = (unflatten(result, grads) for result in results)
    else:
        first = _first_moment(beta1, grads, old_first)
        second = _second_moment(beta2, grads, old_second)
        updates = {k: _step(m, second[k], scale=scale, eps=eps) for k, m in first.items()}
    return updates, {"first_moment": first, "second_moment": second, "step": step}  # type: ignore[dict-item]


def _adam_piece(
    g: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    beta1: Tensor,
    beta2: Tensor,
    scale: Tensor,
    eps: Tensor,
    out: tuple[Tensor | None, ...],
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Adam's update and moments of a piece, without temporaries."""
    update, first_out, second_out = out
    first = torch.lerp(first, g, per_problem(1 - beta1, g), out=first_out)
    square = torch.square(g, out=update)
    second = torch.lerp(second, square, per_problem(1 - beta2, g), out=second_out)
    denominator = torch.sqrt(second, out=update).add_(per_problem(eps, g))
    update = torch.div(first, denominator, out=update).mul_(-per_problem(scale, g))
    return [], (update, first, second)
