"""The controller: a recurrent net that steers a trust region in the span of the last steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from learned_opt.rules.base import register_rule
from learned_opt.rules.policy import PolicyRule


@final
@register_rule
class Controller(PolicyRule):
    r"""A trust region in the span of the last steps, steered by a small recurrent net.

    The actuator `TrustRegion` knows the Hessian in the span of the last steps from changes of the
    gradient alone, so at a saddle it leaves along negative curvature. An LSTM sees its observation,
    numbers without units, and decides how far to go, how curved the unknown is taken to be, how
    much of Adam's direction to mix in, how boldly to go along flat directions, when to add noise
    and when to undo a step. An untrained net is a plain trust region.

    The loss is optional. Nothing has a unit: $f \to a f + b$ changes nothing, nor does $x \to c x$
    if the start does not lie at the origin, so there is no step size to tune.

    Args:
        memory: steps remembered, ``m``; the state holds ``2 m + 3`` numbers a parameter, of very
            many parameters ``m + 2``.
        lstm_units: units of the recurrent net.
        hidden: units of layers between it and the decisions.
        scope: ``problem`` decides once for all parameters, ``tensor`` for each tensor by itself,
            with the same net.
        seed: seed of the initial theta.

    Raises:
        LearnedOptError: if a size is not positive or the scope unknown.

    References:
        Nocedal and Wright 2006, chapter 4 (trust regions); Dauphin et al. 2014 (arXiv:1406.2572),
        saddle-free steps in a subspace; Wichrowska et al. 2017 (arXiv:1703.04813), recurrent nets
        on scale-free features.

    Examples:
        >>> import torch
        >>> rule = Controller(lstm_units=8)
        >>> params = {"x": torch.ones(3, 10)}
        >>> rng = torch.Generator().manual_seed(0)
        >>> updates, state = rule({"x": torch.ones(3, 10)}, rule.init(params), params, rng=rng)
        >>> updates["x"].shape
        torch.Size([3, 10])
    """

    name = "controller"

    def __init__(
        self,
        *,
        memory: int = 4,
        lstm_units: int = 32,
        hidden: Sequence[int] = (),
        scope: str = "problem",
        seed: int = 0,
    ) -> None:
        super().__init__(
            actuator="trust_region",
            actuator_config={"memory": memory},
            lstm_units=lstm_units,
            hidden=hidden,
            output_scale=0.01,
            scope=scope,
            seed=seed,
        )
        self.memory = memory

    def config(self) -> dict[str, Any]:
        """Sizes and scope."""
        return {
            "memory": self.memory,
            "lstm_units": self.lstm_units,
            "hidden": list(self.hidden),
            "scope": self.scope,
        }
