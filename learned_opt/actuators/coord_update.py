"""The update itself, coordinate by coordinate, within a radius that the policy steers."""

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
    dot,
    follow_trajectory,
    init_trajectory,
    observe_trajectory,
)
from learned_opt.trees import Tree

_DECAYS = (0.5, 0.9, 0.99)
_SQUARE_DECAY = 0.95
_MAX_LOG_MULTIPLIER = math.log(1e4)
_SHARED = (2, 3, 5, 6, 10)
"""Positions in `TRAJECTORY_FEATURES` of what every coordinate is told about the whole."""


@final
@register_actuator
class CoordUpdate(Actuator):
    r"""One policy, shared by all coordinates, that writes the step.

    Each coordinate $i$ sees gradient, momenta, an Adam-type ratio and its last step in units of
    their root mean squares over coordinates, and a few numbers about the whole. It answers with
    $(p_i, q_i, u_i) \in [-1, 1]^3$:

    $$ z_i = \left( \tfrac{m_i}{\mathrm{rms}(m)} - 2 p_i \right) e^{\tanh q_i}, \quad
       R' = R\, e^{\kappa \bar u}, \quad x_i' = x_i - R' z_i / \mathrm{rms}(z) $$

    with $\bar u$ the mean of $u$. The answer 0 is momentum, normalised, so training starts from an
    optimizer that works. Permuting coordinates permutes the update.

    Args:
        gain: $\kappa$, the largest change of the radius in one step, in e-folds.

    Raises:
        LearnedOptError: if `gain` is not positive.

    References:
        Li and Malik 2017, "Learning to optimize neural nets" (arXiv:1703.00441), for the policy
        shared over coordinates.
    """

    name: ClassVar[str] = "coord_update"
    per_coordinate: ClassVar[bool] = True

    def __init__(self, *, gain: float = 0.7) -> None:
        require(gain > 0, f"gain must be positive, got {gain}")
        self.gain = gain
        self.actions = ActionSpace(("direction", "weight", "radius"), is_discrete=False)
        rms = "over its root mean square"
        self.features = (
            Feature("gradient", f"gradient {rms}", -5, 5),
            *(
                Feature(f"momentum {d}", f"mean gradient at decay {d} {rms}", -5, 5)
                for d in _DECAYS
            ),
            Feature("adaptive", f"gradient over root mean square of its past, {rms}", -5, 5),
            Feature("last step", f"last step {rms}", -5, 5),
            Feature("agreement", "sign of gradient times sign of momentum 0.9", -1, 1),
            Feature("size", "tanh of log of gradient's size over the root mean square", -1, 1),
            *(TRAJECTORY_FEATURES[i] for i in _SHARED),
            Feature("own radius", "log of radius over the initial one, over 3", -4, 4),
        )

    def config(self) -> dict[str, Any]:
        """The gain."""
        return {"gain": self.gain}

    def init(self, params: Tensor, *, learning_rate: Tensor, num_matrices: int = 0) -> Tree:
        """See `Actuator.init`."""
        del num_matrices
        vector = torch.zeros_like(params)
        return {
            "trajectory": init_trajectory(params),
            "momenta": torch.stack([vector] * len(_DECAYS), dim=1),
            "square": vector,
            "learning_rate": learning_rate.to(params),
            "log_multiplier": params.new_zeros(len(params)),
        }

    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """See `Actuator.observe`."""
        del params
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        old: dict[str, Tensor] = state["trajectory"]  # type: ignore[assignment]
        seen, trajectory = observe_trajectory(
            grads,
            loss,
            s["momenta"][:, 1],
            old,  # type: ignore[arg-type]
            momentum_decay=grads.new_zeros(()),
        )
        decays = grads.new_tensor(_DECAYS)[:, None]
        steps = old["steps"][:, None, None] + 1
        momenta = decays * s["momenta"] + (1 - decays) * grads[:, None]
        square = _SQUARE_DECAY * s["square"] + (1 - _SQUARE_DECAY) * grads.square()
        mean_square = square / (1 - _SQUARE_DECAY ** steps[:, 0])
        tiny = torch.finfo(grads.dtype).tiny
        adaptive = grads / (mean_square.sqrt() + tiny)
        local = torch.stack((grads, *momenta.unbind(1), adaptive, old["update"]), dim=-1)
        local = local / (local.square().mean(1, keepdim=True).sqrt() + tiny)
        agreement = grads.sign() * momenta[:, 1].sign()
        size = (local[..., 0].abs() + tiny).log().tanh()
        shared = torch.stack((*(seen[i] for i in _SHARED), s["log_multiplier"] / 3), dim=-1)
        features = torch.cat(
            (
                local,
                agreement[..., None],
                size[..., None],
                shared[:, None].expand(-1, grads.shape[1], -1),
            ),
            dim=-1,
        )
        new: Tree = {**state, "trajectory": trajectory, "momenta": momenta, "square": square}
        return clip_to(features, self.features), new

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        del params, noise
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        trajectory: dict[str, Tensor] = state["trajectory"]  # type: ignore[assignment]
        tiny = torch.finfo(grads.dtype).tiny
        action = action.clamp(-1, 1)
        log_multiplier = (s["log_multiplier"] + self.gain * action[..., 2].mean(1)).clamp(
            -_MAX_LOG_MULTIPLIER, _MAX_LOG_MULTIPLIER
        )
        momentum = s["momenta"][:, 1]
        base = momentum / (_rms(momentum)[:, None] + tiny)
        direction = (base - 2 * action[..., 0]) * action[..., 1].tanh().exp()
        first_rms = trajectory["first_norm"] * grads.shape[1] ** -0.5
        radius = s["learning_rate"] * first_rms * log_multiplier.exp()
        update = direction * (-radius / (_rms(direction) + tiny))[:, None]
        # The step size that would have made this step of the gradient: the unit of curvature.
        step_size = radius * grads.shape[1] ** 0.5 / (trajectory["norm"] + tiny)
        return Step(
            updates=update,
            state={
                **state,
                "trajectory": follow_trajectory(update, state["trajectory"], step_size=step_size),  # type: ignore[arg-type]
                "log_multiplier": log_multiplier,
            },
        )

    def controls(self, state: Tree) -> dict[str, Tensor]:
        """The radius: root mean square of a step's coordinates."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        trajectory: dict[str, Tensor] = state["trajectory"]  # type: ignore[assignment]
        first_rms = trajectory["first_norm"] * trajectory["grads"].shape[1] ** -0.5
        return {"step size": s["learning_rate"] * first_rms * s["log_multiplier"].exp()}


def _rms(values: Tensor) -> Tensor:
    """Root mean square of rows, ``[N]``."""
    return (dot(values, values) / values.shape[1]).sqrt()
