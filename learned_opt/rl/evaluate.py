"""Rules in environments: how well a policy plays, and how much of that is due to looking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learned_opt.errors import require
from learned_opt.rl.environments import make_lanes
from learned_opt.rules.base import Rule
from learned_opt.rules.policy import PolicyRule
from learned_opt.trees import Tree

Episodes = dict[str, NDArray[Any]]
"""One array ``[N]`` for each thing known of the episodes; see `evaluate_rule_in_env`."""

_Decide = Callable[[int, Tensor, Tensor | None], Tensor]


def evaluate_rule_in_env(
    rule: Rule,
    env: str,
    env_settings: Mapping[str, Any] | None = None,
    *,
    num_lanes: int = 512,
    seed: int = 0,
    num_steps: int | None = None,
) -> Episodes:
    """Play one episode in every lane, without exploration.

    Args:
        rule: an exported policy.
        env: name of the environment, see `resolve_environment`.
        env_settings: its keyword arguments.
        num_lanes: number of episodes.
        seed: lane ``i`` plays the first episode of seed ``seed + i``.
        num_steps: longest episode; None takes the environment's own limit.

    Returns:
        ``return`` (the environment's units), ``length``, ``log10_gap`` (what the environment
        scores at the end, see `OptimizationCore.metrics`), ``loss`` at the end, ``solved``,
        ``diverged`` and ``kicks``, each ``[N]``.

    Raises:
        LearnedOptError: if the rule is no policy or steers something else than the environment.
    """
    lanes = _lanes(env, env_settings, num_lanes, num_steps)
    return play(rule, lanes, seed=seed).episodes


def evaluate_with_controls(
    rule: Rule,
    env: str,
    env_settings: Mapping[str, Any] | None = None,
    *,
    num_lanes: int = 512,
    seed: int = 0,
    num_steps: int | None = None,
) -> dict[str, Episodes]:
    """The same episodes played by the policy and by three that look away.

    Args:
        rule: an exported policy.
        env: name of the environment, see `resolve_environment`.
        env_settings: its keyword arguments.
        num_lanes: number of episodes.
        seed: lane ``i`` plays the first episode of seed ``seed + i``.
        num_steps: longest episode; None takes the environment's own limit.

    Returns:
        What `evaluate_rule_in_env` returns for ``policy``; for ``state-blind``, which sees the mean
        observation over lanes and time in place of its own; for ``replay``, which replays the
        policy's mean decision at each step (the most frequent choice) in every lane; and for
        ``nothing``, which leaves all controls alone.

    Raises:
        LearnedOptError: if the rule is no policy or steers something else than the environment.
    """
    lanes = _lanes(env, env_settings, num_lanes, num_steps)
    policy = play(rule, lanes, seed=seed)
    nothing = lanes.unwrapped.core.actuator.neutral()[None]
    return {
        "policy": policy.episodes,
        "state-blind": play(rule, lanes, seed=seed, blind=policy.mean_observation).episodes,
        "replay": _play(lanes, _open_loop(lanes, policy.schedule), seed=seed).episodes,
        "nothing": _play(lanes, _open_loop(lanes, nothing), seed=seed).episodes,
    }


def summarize(episodes: Episodes) -> dict[str, float]:
    """The numbers that one looks at.

    Args:
        episodes: what `evaluate_rule_in_env` returned.

    Returns:
        Median and mean of the log10 gap, share solved, share diverged, mean return, mean length and
        mean number of kicks.
    """
    gap = episodes["log10_gap"]
    return {
        "median_log10_gap": float(np.median(gap)),
        "mean_log10_gap": float(gap.mean()),
        "solved": float(episodes["solved"].mean()),
        "diverged": float(episodes["diverged"].mean()),
        "return": float(episodes["return"].mean()),
        "length": float(episodes["length"].mean()),
        "kicks": float(episodes["kicks"].mean()),
    }


@dataclass(frozen=True, kw_only=True)
class Played:
    """Episodes and what the controls are made of.

    Attributes:
        episodes: see `evaluate_rule_in_env`.
        mean_observation: ``[F]`` over lanes, coordinates and time.
        schedule: ``[T, A]`` mean decision of each step, or ``[T]`` most frequent choice.
    """

    episodes: Episodes
    mean_observation: Tensor
    schedule: Tensor


def play(
    rule: Rule,
    lanes: Any,
    *,
    seed: int,
    blind: Tensor | None = None,
    look: Callable[[], None] | None = None,
) -> Played:
    """Let a policy play in an environment that is already there.

    Args:
        rule: an exported policy.
        lanes: made with ``autoreset="Disabled"``; reset here.
        seed: lane ``i`` plays the first episode of seed ``seed + i``.
        blind: ``[F]`` observation that every lane gets instead of its own.
        look: called at the start and after each step.

    Returns:
        The episodes.

    Raises:
        LearnedOptError: if the rule is no policy or steers something else than the environment.
    """
    require(
        isinstance(rule, PolicyRule),
        f"only policies can play in an environment, got rule '{rule.name}'",
    )
    assert isinstance(rule, PolicyRule)
    actuator = lanes.unwrapped.core.actuator
    require(
        rule.actuator.name == actuator.name and rule.actuator.config() == actuator.config(),
        f"the rule steers '{rule.actuator.name}' with {rule.actuator.config()}, "
        f"the environment '{actuator.name}' with {actuator.config()}",
    )
    memory: Tree = {}

    def decide(step: int, observation: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal memory
        if step == 0 and rule.lstm_units:
            empty = observation.new_zeros(*observation.shape[:-1], rule.lstm_units)
            memory = {"hidden": empty, "cell": empty}
        if blind is not None:
            # The mask tells something of the state, too; a choice that it forbids is no choice.
            mask = None
            observation = blind.to(observation).expand_as(observation)
        decision, memory = rule.decide(observation, memory, mask=mask)
        return decision

    return _play(lanes, decide, seed=seed, look=look)


def film(rule: Rule, lanes: Any, *, seed: int) -> list[NDArray[np.uint8]]:
    """The pictures of one episode.

    Args:
        rule: an exported policy.
        lanes: one lane, made with ``autoreset="Disabled"`` and ``render_mode="rgb_array"``.
        seed: whose first episode is played.

    Returns:
        A frame ``[H, W, 3]`` for the start and for each step.

    Raises:
        LearnedOptError: if the rule is no policy or steers something else than the environment, or
            the environment does not draw.
    """
    require(lanes.unwrapped.render_mode == "rgb_array", "lanes must be made to draw 'rgb_array'")
    frames: list[NDArray[np.uint8]] = []
    play(rule, lanes, seed=seed, look=lambda: frames.append(lanes.render()[0]))
    return frames


def _lanes(
    env: str, env_settings: Mapping[str, Any] | None, num_lanes: int, num_steps: int | None
) -> Any:
    settings = dict(env_settings or {})
    if num_steps is not None:
        require(num_steps >= 1, f"num_steps must be positive, got {num_steps}")
        settings["max_episode_steps"] = num_steps
    return make_lanes(env, settings, num_lanes=num_lanes, autoreset="Disabled")


def _open_loop(lanes: Any, schedule: Tensor) -> _Decide:
    """Decisions that do not look: those of `schedule`, and then its last one again and again."""
    actuator = lanes.unwrapped.core.actuator

    def decide(step: int, observation: Tensor, mask: Tensor | None) -> Tensor:
        del mask
        decision = schedule[min(step, len(schedule) - 1)]
        shape = observation.shape[:-1]
        return decision.expand(
            *(shape if actuator.actions.is_discrete else (*shape, actuator.actions.size))
        )

    return decide


@torch.no_grad()
def _play(
    lanes: Any, decide: _Decide, *, seed: int, look: Callable[[], None] | None = None
) -> Played:
    env = lanes.unwrapped
    core, num_lanes = env.core, env.num_envs
    is_discrete, size = core.actuator.actions.is_discrete, core.actuator.actions.size
    first, info = lanes.reset(seed=seed)
    observation = torch.from_numpy(first)
    is_playing = np.ones(num_lanes, bool)
    returns, lengths = np.zeros(num_lanes), np.zeros(num_lanes, np.int64)
    loss = env.state.loss.numpy().copy()
    log_gap, kicks = np.zeros(num_lanes), np.zeros(num_lanes, np.int64)
    diverged = np.zeros(num_lanes, bool)
    solved = np.zeros(num_lanes, bool)
    total = torch.zeros(observation.shape[-1], dtype=torch.float64)
    count = 0
    schedule: list[Tensor] = []
    if look is not None:
        look()
    for step in range(env.max_episode_steps):
        mask = info.get("action_mask")
        action = decide(step, observation, None if mask is None else torch.from_numpy(mask))
        playing = torch.from_numpy(is_playing)
        seen = observation[playing].reshape(-1, observation.shape[-1])
        total, count = total + seen.double().sum(0), count + len(seen)
        taken = action[playing]
        schedule.append(
            torch.bincount(taken.reshape(-1), minlength=size).argmax()
            if is_discrete
            else taken.reshape(-1, size).mean(0)
        )
        following, rewards, terminated, truncated, info = lanes.step(action.numpy())
        observation = torch.from_numpy(following)
        metrics = info["opt"]
        returns += np.where(is_playing, rewards, 0.0)
        lengths += is_playing
        log_gap = np.where(is_playing, metrics["log10_gap"], log_gap)
        loss = np.where(is_playing, env.state.loss.numpy(), loss)
        kicks = np.where(is_playing, metrics["kicks"], kicks)
        diverged |= is_playing & metrics["diverged"]
        solved |= is_playing & terminated & ~metrics["diverged"]
        if look is not None:
            look()
        is_playing &= ~(terminated | truncated)
        if not is_playing.any():
            break
    return Played(
        episodes={
            "return": returns,
            "length": lengths,
            "log10_gap": log_gap,
            "loss": loss,
            "solved": solved,
            "diverged": diverged,
            "kicks": kicks,
        },
        mean_observation=total / count,
        schedule=torch.stack(schedule),
    )
