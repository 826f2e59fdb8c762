"""Up, down, keep: the learning rate of a training run, one notch at a time."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from learned_opt.actuators.base import (
    ActionSpace,
    Actuator,
    Noise,
    Step,
    clip_to,
    register_actuator,
)
from learned_opt.errors import require
from learned_opt.features import (
    TRAJECTORY_FEATURES,
    Feature,
    follow_trajectory,
    init_trajectory,
    observe_trajectory,
)
from learned_opt.trees import Tree

_MAX_LOG_MULTIPLIER = math.log(1e4)
_KEEP, _UP, _DOWN = range(3)


@final
@register_actuator
class LearningRate(Actuator):
    """Discrete control of the learning rate of SGD with momentum: keep, up, down.

    Fu et al. 2016 add or subtract 0.005; here a notch is a factor, which fits any scale.

    Args:
        factor: by how much a notch multiplies or divides the rate, above 1.
        momentum: decay of the running sum of gradients, in [0, 1).

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Fu et al. 2016, "Deep Q-networks for accelerating the training of deep neural networks"
        (arXiv:1606.01467).
    """

    name: ClassVar[str] = "learning_rate"

    def __init__(self, *, factor: float = 1.3, momentum: float = 0.0) -> None:
        require(factor > 1, f"factor must be above 1, got {factor}")
        require(0 <= momentum < 1, f"momentum must lie in [0, 1), got {momentum}")
        self.factor, self.momentum = factor, momentum
        self.actions = ActionSpace(("keep", "up", "down"), is_discrete=True)
        own = Feature("own step size", "log of learning rate over the initial one, over 3", -4, 4)
        self.features = (*TRAJECTORY_FEATURES, own)

    def config(self) -> dict[str, Any]:
        """Factor and momentum."""
        return {"factor": self.factor, "momentum": self.momentum}

    def init(self, params: Tensor, *, learning_rate: Tensor, num_matrices: int = 0) -> Tree:
        """See `Actuator.init`."""
        del num_matrices
        return {
            "trajectory": init_trajectory(params),
            "momentum": torch.zeros_like(params),
            "learning_rate": learning_rate.to(params),
            "log_multiplier": params.new_zeros(len(params)),
        }

    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """See `Actuator.observe`."""
        del params
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        seen, trajectory = observe_trajectory(
            grads,
            loss,
            s["momentum"],
            state["trajectory"],  # type: ignore[arg-type]
            momentum_decay=grads.new_tensor(self.momentum),
        )
        features = torch.stack((*seen, s["log_multiplier"] / 3), dim=-1)
        return clip_to(features, self.features), {**state, "trajectory": trajectory}

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        del params, noise
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        notches = (action == _UP).to(grads.dtype) - (action == _DOWN).to(grads.dtype)
        log_multiplier = (s["log_multiplier"] + math.log(self.factor) * notches).clamp(
            -_MAX_LOG_MULTIPLIER, _MAX_LOG_MULTIPLIER
        )
        step_size = s["learning_rate"] * log_multiplier.exp()
        momentum = self.momentum * s["momentum"] + grads
        update = momentum * -step_size[:, None]
        return Step(
            updates=update,
            state={
                **state,
                "trajectory": follow_trajectory(update, state["trajectory"], step_size=step_size),  # type: ignore[arg-type]
                "momentum": momentum,
                "log_multiplier": log_multiplier,
            },
        )

    def controls(self, state: Tree) -> dict[str, Tensor]:
        """The learning rate."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        return {"step size": s["learning_rate"] * s["log_multiplier"].exp()}
