"""The controller: a recurrent net that steers a trust region in the span of the last steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.rules.base import register_rule
from learned_opt.rules.policy import PolicyRule, Recurrent
from learned_opt.trees import Tree

_OUTPUT_SCALE = 0.01
_JUDGE_UNITS = 8
_AMID_NOISE_FACTOR, _WITHOUT_MEMORY = 0.05, 0.25
_SMALL, _LARGE = math.log(100) / 10, math.log(1000) / 10  # as the actuator says a size


@final
@register_rule
class Controller(PolicyRule):
    r"""A trust region in the span of the last steps, steered by a small recurrent net.

    The actuator `TrustRegion` knows the Hessian in the span of the last steps from changes of the
    gradient alone, so at a saddle it leaves along negative curvature. An LSTM sees its observation,
    numbers without units, and decides how far to go, how curved the unknown is taken to be, how
    much of Adam's direction to mix in, how boldly to go along flat directions, when to add noise
    and when to undo a step. An untrained net is a plain trust region.

    What pays amid the noise of minibatches is wrong without noise, so there are two such nets, and
    a third, small one that tells from the same observation how likely noise is: their decisions are
    averaged with that weight. It needs some steps to be sure, and the other net's first leaps may
    ruin a large network for good, so from a hundred parameters to a thousand the log odds of noise
    rise by four: large problems without noise pay some careful steps for that.

    The loss is optional. Nothing has a unit: $f \to a f + b$ changes nothing, nor does $x \to c x$
    if the start does not lie at the origin, so there is no step size to tune.

    Args:
        memory: steps remembered, ``m``; the state holds ``2 m + 3`` numbers a parameter, of very
            many parameters ``m + 2``.
        lstm_units: units of each of the two nets.
        hidden: units of layers between them and the decisions.
        noise_remembers: whether the net for noise is an LSTM, too; else it has a layer as wide and
            decides by what it sees alone, and so at once.
        prior: log odds of noise that a thousand parameters and more add to the judge's, a hundred
            and fewer nothing.
        scope: ``problem`` decides once for all parameters, ``tensor`` for each tensor by itself,
            with the same net.
        seed: seed of the initial theta.

    Raises:
        LearnedOptError: if a size is not positive, the prior not finite or the scope unknown.

    References:
        Nocedal and Wright 2006, chapter 4 (trust regions); Dauphin et al. 2014 (arXiv:1406.2572),
        saddle-free steps in a subspace; Wichrowska et al. 2017 (arXiv:1703.04813), recurrent nets
        on scale-free features; Jacobs et al. 1991 (Neural Computation 3:79), experts and a gate.

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
        noise_remembers: bool = True,
        prior: float = 4.0,
        scope: str = "problem",
        seed: int = 0,
    ) -> None:
        require(math.isfinite(prior), f"prior must be finite, got {prior}")
        super().__init__(
            actuator="trust_region",
            actuator_config={"memory": memory},
            lstm_units=lstm_units,
            hidden=hidden,
            output_scale=_OUTPUT_SCALE,
            scope=scope,
            seed=seed,
        )
        self.memory, self.prior = memory, prior
        features, decisions = len(self.actuator.features), self.actuator.actions.size
        self.noise_remembers = noise_remembers
        first, units = ((), lstm_units) if noise_remembers else ((lstm_units,), 0)
        self.amid_noise = Recurrent().build(
            (features, *first, *hidden, decisions), lstm_units=units, seed=seed + 1
        )
        # A change is kept up there, and what remembers long moves its decisions the farther.
        self.amid_noise.learning_rate_factor = (
            _AMID_NOISE_FACTOR if noise_remembers else _WITHOUT_MEMORY
        )
        # What is best on average belongs into the bias: there from the first step, and whatever the
        # memory does.
        back = 1 / self.amid_noise.learning_rate_factor
        self.amid_noise.layers[-1].bias_learning_rate_factor = back  # type: ignore[assignment]
        # Not by the size: most problems with noise that it is trained on are the largest of all.
        assert self.actuator.features[-1].name == "size"
        self.judge = Recurrent().build((features - 1, 1), lstm_units=_JUDGE_UNITS, seed=seed + 2)
        with torch.no_grad():
            for parameter in self.amid_noise.layers[-1].parameters():
                parameter.mul_(_OUTPUT_SCALE)

    def init_memory(self, lanes: Sequence[int]) -> Tree:
        """The memories of all three nets."""
        return {
            **super().init_memory(lanes),
            "amid_noise": self.amid_noise.init_memory(lanes),
            "judge": self.judge.init_memory(lanes),
        }

    def outputs(self, observation: Tensor, state: Tree) -> tuple[Tensor, Tree]:
        """Decisions of both nets, averaged by the judge.

        Args:
            observation: ``[..., F]`` features.
            state: holds the memories.

        Returns:
            ``[..., A]`` numbers, and the new memories.
        """
        calm, noisy, odds, memory = self._opinions(observation, state)
        # Cut off before they are averaged, or the one that is not meant would shift the other.
        return torch.lerp(calm.clamp(-1, 1), noisy.clamp(-1, 1), odds.sigmoid()), memory

    def outputs_told(
        self, observation: Tensor, state: Tree, is_noisy: Tensor
    ) -> tuple[Tensor, Tree]:
        """Decisions by which each net learns its own trade, see `PolicyRule.outputs_told`.

        Where there is noise, that net's alone. Elsewhere they are averaged as ever, since in use
        the first steps are, but only the net for no noise learns from what comes of them.
        """
        calm, noisy, odds, memory = self._opinions(observation, state)
        told = is_noisy[:, None]
        # What is taught is not cut off: it is pulled back by its slope.
        others = torch.where(told, noisy, noisy.detach().clamp(-1, 1))
        share = torch.where(told, 1.0, odds.sigmoid().detach())
        return torch.lerp(calm, others, share), memory

    def _opinions(self, observation: Tensor, state: Tree) -> tuple[Tensor, Tensor, Tensor, Tree]:
        """Decisions without and amid noise, the log odds of noise, and the new memories."""
        calm, memory = super().outputs(observation, state)
        noisy, memory["amid_noise"] = self.amid_noise.outputs(observation, state["amid_noise"])  # type: ignore[arg-type]
        belief, memory["judge"] = self.judge.outputs(observation[..., :-1], state["judge"])  # type: ignore[arg-type]
        size = observation[..., -1:].to(belief)
        share = ((size - _SMALL) / (_LARGE - _SMALL)).clamp(0, 1)
        return calm, noisy, belief + self.prior * share, memory

    def belief(self, memory: Tree) -> Tensor:
        """How likely the judge takes it that there is noise, ``[...]`` logits.

        Proximal policy optimization teaches it that and nothing else; to other estimators it is a
        gate like any other. What is added for the size is not in it.
        """
        hidden = memory["judge"]["hidden"]  # type: ignore[index,call-overload]
        belief: Tensor = self.judge.layers[-1](hidden)[..., 0]
        return belief

    def config(self) -> dict[str, Any]:
        """Sizes, prior and scope."""
        return {
            "memory": self.memory,
            "lstm_units": self.lstm_units,
            "hidden": list(self.hidden),
            "noise_remembers": self.noise_remembers,
            "prior": self.prior,
            "scope": self.scope,
        }
