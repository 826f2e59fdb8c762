"""When to kick, how hard, when to speed up, and when to go back: escape as a game of choices."""

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

CONTINUE, ACCELERATE, BRAKE, RESET, KICK_SMALL, KICK_MEDIUM, KICK_LARGE, KICK_CURVATURE, RETURN = (
    range(9)
)
KICKS = (KICK_SMALL, KICK_MEDIUM, KICK_LARGE, KICK_CURVATURE)
KICK_SIZES = (0.001, 0.01, 0.1, 0.1)
"""Length of each of `KICKS`, in units of the longest step so far."""

_SPEED_UP, _SLOW_DOWN, _MOMENTUM_NOTCH = math.log(1.41), math.log(0.5), 0.35
_MAX_LOG_MULTIPLIER = math.log(1e4)
_LOGIT_LOW, _LOGIT_HIGH = math.log(0.01 / 0.99), math.log(0.99 / 0.01)
_MEMORY = 8


@final
@register_actuator
class SaddleEscape(Actuator):
    """A heavy ball with nine buttons.

    0 continue; 1 accelerate (step size x 1.41, momentum one notch up); 2 brake (step size halved,
    momentum one notch down); 3 reset momentum; 4, 5, 6 kick in a random direction by 0.001, 0.01 or
    0.1 times the longest step so far; 7 kick by 0.1 of it, downhill along the direction in which
    the steps have seen the most negative curvature; 8 go back to the best point. Every choice costs
    the one gradient of its step: curvature comes from the steps themselves, not from extra
    evaluations, so a trained policy runs inside any training loop.

    Kicks are masked during a cooldown and once the budget is spent, the curvature kick until
    negative curvature was seen, the return while the best point is the current one. A masked choice
    counts as 0.

    Args:
        cooldown: steps between two kicks.
        kick_budget: kicks of an episode.
        momentum: decay at the start, in [0.01, 0.99].

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    name: ClassVar[str] = "saddle_escape"

    def __init__(self, *, cooldown: int = 8, kick_budget: int = 16, momentum: float = 0.9) -> None:
        require(cooldown >= 1, f"cooldown must be positive, got {cooldown}")
        require(kick_budget >= 0, f"kick_budget must not be negative, got {kick_budget}")
        require(0.01 <= momentum <= 0.99, f"momentum must lie in [0.01, 0.99], got {momentum}")
        self.cooldown, self.kick_budget, self.momentum = cooldown, kick_budget, momentum
        self.actions = ActionSpace(
            (
                "continue",
                "accelerate",
                "brake",
                "reset momentum",
                "kick 0.001",
                "kick 0.01",
                "kick 0.1",
                "kick along negative curvature",
                "return to best",
            ),
            is_discrete=True,
        )
        self.features = (
            *TRAJECTORY_FEATURES,
            Feature("own step size", "log of step size over the initial one, over 3", -4, 4),
            Feature("own momentum", "logit of momentum, over 3", -2, 2),
            Feature(
                "gradient at most", "log of gradient norm over the largest so far, over 5", -4, 0
            ),
            Feature("gradient trend", "log of gradient norm over that 8 steps ago", -3, 3),
            Feature("lowest curvature", "least curvature feature of the last 8 steps", -5, 5),
            Feature("mean curvature", "mean curvature feature of the last 8 steps", -5, 5),
            Feature("since kick", "steps since the last kick over the cooldown, over 8", 0, 1),
            Feature(
                "gain of kick", "tanh of decrease since the kick in units of recent change", -1, 1
            ),
            Feature("kicks left", "share of the budget", 0, 1),
            Feature("escape seen", "1 if negative curvature was seen", 0, 1),
        )

    def config(self) -> dict[str, Any]:
        """Cooldown, budget and first momentum."""
        return {
            "cooldown": self.cooldown,
            "kick_budget": self.kick_budget,
            "momentum": self.momentum,
        }

    def init(self, params: Tensor, *, learning_rate: Tensor, num_matrices: int = 0) -> Tree:
        """See `Actuator.init`."""
        del num_matrices
        vector, scalar = torch.zeros_like(params), params.new_zeros(len(params))
        return {
            "trajectory": init_trajectory(params),
            "momentum": vector,
            "learning_rate": learning_rate.to(params),
            "log_multiplier": scalar,
            "logit_momentum": scalar + math.log(self.momentum / (1 - self.momentum)),
            "best_params": params,
            "longest": scalar,
            "largest_norm": scalar,
            "log_norms": params.new_zeros(len(params), _MEMORY),
            "curvatures": params.new_zeros(len(params), _MEMORY),
            "escape": vector,
            "escape_curvature": scalar,
            "since_kick": scalar + self.cooldown,
            "loss_at_kick": scalar,
            "kicks_left": scalar + self.kick_budget,
        }

    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """See `Actuator.observe`."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        old: dict[str, Tensor] = state["trajectory"]  # type: ignore[assignment]
        seen, new_trajectory = observe_trajectory(
            grads,
            loss,
            s["momentum"],
            old,  # type: ignore[arg-type]
            momentum_decay=s["logit_momentum"].sigmoid(),
        )
        trajectory: dict[str, Tensor] = new_trajectory  # type: ignore[assignment]
        tiny = torch.finfo(grads.dtype).tiny
        is_first = old["steps"] == 0
        norm, curvature = trajectory["norm"], seen[6]
        largest_norm = torch.maximum(s["largest_norm"], norm)
        log_norm = (norm + tiny).log()
        past = torch.where(is_first[:, None], log_norm[:, None], s["log_norms"])
        curvatures = torch.cat((s["curvatures"][:, 1:], curvature[:, None]), dim=1)
        # The steepest way out seen so far; forgotten slowly, since the surface changes on the way.
        update_norm = dot(old["update"], old["update"]).sqrt()
        faded = 0.9 * s["escape_curvature"]
        is_steeper = curvature < torch.minimum(faded, torch.zeros_like(faded))
        escape = torch.where(
            is_steeper[:, None], old["update"] / (update_norm + tiny)[:, None], s["escape"]
        )
        escape_curvature = torch.where(is_steeper, curvature, faded)
        loss_at_kick = torch.where(is_first, loss, s["loss_at_kick"])
        is_best = trajectory["waiting"] == 0
        features = torch.stack(
            (
                *seen,
                s["log_multiplier"] / 3,
                s["logit_momentum"] / 3,
                (log_norm - (largest_norm + tiny).log()) / 5,
                log_norm - past[:, 0],
                curvatures.amin(1),
                curvatures.mean(1),
                s["since_kick"] / (8 * self.cooldown),
                ((loss_at_kick - loss) / (trajectory["change"] + tiny)).tanh(),
                s["kicks_left"] / max(1, self.kick_budget),
                (escape_curvature < -1e-3).to(grads.dtype),
            ),
            dim=-1,
        )
        new: Tree = {
            **state,
            "trajectory": new_trajectory,
            "best_params": torch.where(is_best[:, None], params, s["best_params"]),
            "longest": torch.maximum(s["longest"], update_norm),
            "largest_norm": largest_norm,
            "log_norms": torch.cat((past[:, 1:], log_norm[:, None]), dim=1),
            "curvatures": curvatures,
            "escape": escape,
            "escape_curvature": escape_curvature,
            "loss_at_kick": loss_at_kick,
        }
        return clip_to(features, self.features), new

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        trajectory: dict[str, Tensor] = state["trajectory"]  # type: ignore[assignment]
        action = action.long()
        allowed = self.mask(state).gather(1, action[:, None])[:, 0]
        action = torch.where(allowed, action, CONTINUE)
        speed = (action == ACCELERATE).to(grads.dtype), (action == BRAKE).to(grads.dtype)
        log_multiplier = (s["log_multiplier"] + _SPEED_UP * speed[0] + _SLOW_DOWN * speed[1]).clamp(
            -_MAX_LOG_MULTIPLIER, _MAX_LOG_MULTIPLIER
        )
        logit = (s["logit_momentum"] + _MOMENTUM_NOTCH * (speed[0] - speed[1])).clamp(
            _LOGIT_LOW, _LOGIT_HIGH
        )
        step_size = s["learning_rate"] * log_multiplier.exp()
        is_return, is_reset = action == RETURN, action == RESET
        kept = torch.where(is_return | is_reset, torch.zeros_like(logit), logit.sigmoid())
        momentum = torch.addcmul(grads, s["momentum"], kept[:, None])
        stride = momentum * -step_size[:, None]
        # Nothing has been stepped yet at the first point: the step about to be made is the unit.
        longest = torch.maximum(s["longest"], dot(stride, stride).sqrt())
        is_kick = (action >= KICK_SMALL) & (action <= KICK_CURVATURE)
        sizes = grads.new_tensor(KICK_SIZES)
        size = sizes[(action - KICK_SMALL).clamp(0, len(KICKS) - 1)] * longest * is_kick
        downhill = torch.where(dot(s["escape"], grads) > 0, -1.0, 1.0).to(grads.dtype)
        direction = torch.where(
            (action == KICK_CURVATURE)[:, None],
            s["escape"] * downhill[:, None],
            noise(grads.shape[1]) * grads.shape[1] ** -0.5,
        )
        update = torch.where(
            is_return[:, None], s["best_params"] - params, stride + size[:, None] * direction
        )
        followed: dict[str, Tensor] = follow_trajectory(  # type: ignore[assignment]
            update,
            state["trajectory"],  # type: ignore[arg-type]
            step_size=step_size,
        )
        # x + (best - x) is the best point but for rounding, which must not decide whether it counts
        # as such: whatever loss is found there is the best.
        followed["best_loss"] = followed["best_loss"].masked_fill(is_return, torch.inf)
        return Step(
            updates=update,
            state={
                **state,
                "trajectory": dict(followed),
                "momentum": torch.where(is_return[:, None], torch.zeros_like(momentum), momentum),
                "log_multiplier": log_multiplier,
                "logit_momentum": logit,
                "since_kick": torch.where(is_kick, torch.zeros_like(size), s["since_kick"] + 1),
                "loss_at_kick": torch.where(is_kick, trajectory["loss"], s["loss_at_kick"]),
                "kicks_left": s["kicks_left"] - is_kick.to(grads.dtype),
            },
            kicked=is_kick,
        )

    def mask(self, state: Tree) -> Tensor:
        """See `Actuator.mask`."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        trajectory: dict[str, Tensor] = state["trajectory"]  # type: ignore[assignment]
        is_ready = (s["since_kick"] >= self.cooldown) & (s["kicks_left"] > 0)
        allowed = is_ready.new_ones(len(is_ready), self.actions.size)
        allowed[:, KICK_SMALL:KICK_CURVATURE] = is_ready[:, None]
        allowed[:, KICK_CURVATURE] = is_ready & (s["escape_curvature"] < -1e-3)
        allowed[:, RETURN] = trajectory["waiting"] > 0
        return allowed

    def controls(self, state: Tree) -> dict[str, Tensor]:
        """Step size and momentum."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        return {
            "step size": s["learning_rate"] * s["log_multiplier"].exp(),
            "momentum": s["logit_momentum"].sigmoid(),
        }
