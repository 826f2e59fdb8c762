"""Step size, momentum and noise of a heavy ball, turned up and down while it rolls."""

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
_LOGIT_LOW, _LOGIT_HIGH = math.log(0.01 / 0.99), math.log(0.999 / 0.001)
_NORM_DECAY = 0.9


@final
@register_actuator
class HyperControl(Actuator):
    r"""Multiplicative control of a heavy ball's step size, momentum and noise.

    With a decision $u \in [-1, 1]^3$ the controls move, then the ball does:

    $$ \ell' = \mathrm{clip}(\rho \ell + \kappa u_1, \pm\ln 10^4), \quad
       \mathrm{logit}\,\beta' = \mathrm{logit}\,\beta + \kappa u_2, \quad
       \sigma = e^{5 u_3 - 5} $$

    $$ m' = \beta' m + g, \qquad
       x' = x - \eta_0 e^{\ell'} \left( m' - \sigma \bar g\, \xi / \sqrt P \right) $$

    where $\bar g$ is a running mean of the gradient's norm and $\xi$ standard normal. The anchor
    $\rho < 1$ lets the step size forget its way back to $\eta_0$.

    Args:
        gain: $\kappa$, the largest change of a control in one step, in e-folds.
        anchor: $\rho$, in [0, 1].
        momentum: $\beta$ at the start, in [0.01, 0.999].
        noise: whether there is a third control.

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    name: ClassVar[str] = "hyper_control"

    def __init__(
        self,
        *,
        gain: float = 0.7,
        anchor: float = 0.98,
        momentum: float = 0.9,
        noise: bool = True,
    ) -> None:
        require(gain > 0, f"gain must be positive, got {gain}")
        require(0 <= anchor <= 1, f"anchor must lie in [0, 1], got {anchor}")
        require(0.01 <= momentum <= 0.999, f"momentum must lie in [0.01, 0.999], got {momentum}")
        self.gain, self.anchor, self.momentum, self.noise = gain, anchor, momentum, noise
        names = ("step size", "momentum", "noise")
        self.actions = ActionSpace(names if noise else names[:2], is_discrete=False)
        own = (
            Feature("own step size", "log of step size over the initial one, over 3", -4, 4),
            Feature("own momentum", "logit of momentum, over 3", -2, 3),
            Feature("own noise", "last decision on noise", -1, 1),
        )
        self.features = TRAJECTORY_FEATURES + (own if noise else own[:2])

    def config(self) -> dict[str, Any]:
        """Gain, anchor, first momentum, and whether noise is a control."""
        return {
            "gain": self.gain,
            "anchor": self.anchor,
            "momentum": self.momentum,
            "noise": self.noise,
        }

    def init(self, params: Tensor, *, learning_rate: Tensor, num_matrices: int = 0) -> Tree:
        """See `Actuator.init`."""
        del num_matrices
        scalar = params.new_zeros(len(params))
        return {
            "trajectory": init_trajectory(params),
            "momentum": torch.zeros_like(params),
            "learning_rate": learning_rate.to(params),
            "log_multiplier": scalar,
            "logit_momentum": scalar + math.log(self.momentum / (1 - self.momentum)),
            "noise": scalar - 1,
            "mean_norm": scalar,
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
            momentum_decay=s["logit_momentum"].sigmoid(),
        )
        own = [s["log_multiplier"] / 3, s["logit_momentum"] / 3]
        own += [s["noise"]] if self.noise else []
        features = torch.stack((*seen, *own), dim=-1)
        return clip_to(features, self.features), {**state, "trajectory": trajectory}

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        del params
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        trajectory: dict[str, Tensor] = state["trajectory"]  # type: ignore[assignment]
        turn = self.gain * action[:, :2].clamp(-1, 1)
        log_multiplier = (self.anchor * s["log_multiplier"] + turn[:, 0]).clamp(
            -_MAX_LOG_MULTIPLIER, _MAX_LOG_MULTIPLIER
        )
        logit = (s["logit_momentum"] + turn[:, 1]).clamp(_LOGIT_LOW, _LOGIT_HIGH)
        step_size = s["learning_rate"] * log_multiplier.exp()
        momentum = torch.addcmul(grads, s["momentum"], logit.sigmoid()[:, None])
        update = momentum * -step_size[:, None]
        new: Tree = {}
        if self.noise:
            level = action[:, 2].clamp(-1, 1)
            norm = trajectory["norm"]
            mean_norm = torch.where(
                trajectory["steps"] == 0,
                norm,
                _NORM_DECAY * s["mean_norm"] + (1 - _NORM_DECAY) * norm,
            )
            size = step_size * mean_norm * (5 * level - 5).exp() * grads.shape[1] ** -0.5
            update = torch.addcmul(update, noise(grads.shape[1]), size[:, None])
            new = {"noise": level, "mean_norm": mean_norm}
        return Step(
            updates=update,
            state={
                **state,
                **new,
                "trajectory": follow_trajectory(update, state["trajectory"], step_size=step_size),  # type: ignore[arg-type]
                "momentum": momentum,
                "log_multiplier": log_multiplier,
                "logit_momentum": logit,
            },
        )

    def neutral(self) -> Tensor:
        """See `Actuator.neutral`; noise is off at its lower end."""
        return torch.tensor([0.0, 0.0, -1.0][: self.actions.size])

    def controls(self, state: Tree) -> dict[str, Tensor]:
        """Step size, momentum and, if controlled, the noise's share of the gradient norm."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        shown = {
            "step size": s["learning_rate"] * s["log_multiplier"].exp(),
            "momentum": s["logit_momentum"].sigmoid(),
        }
        return shown | ({"noise": (5 * s["noise"] - 5).exp()} if self.noise else {})
