"""Rules in environments: how well a policy plays, and how much of that is due to looking."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learned_opt.actuators import Actuator
from learned_opt.errors import require
from learned_opt.rl.environments import make_lanes
from learned_opt.rl.episodes import Decide, Episodes, play
from learned_opt.rules.base import Rule
from learned_opt.rules.policy import PolicyRule
from learned_opt.trees import Tree


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
        How the episodes ended.

    Raises:
        LearnedOptError: if the rule is no policy or steers something else than the environment.
    """
    lanes = _lanes(env, env_settings, num_lanes, num_steps)
    return play_rule(rule, lanes, seed=seed).episodes


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
    policy = play_rule(rule, lanes, seed=seed)
    nothing = lanes.unwrapped.core.actuator.neutral()[None]
    return {
        "policy": policy.episodes,
        "state-blind": play_rule(rule, lanes, seed=seed, blind=policy.mean_observation).episodes,
        "replay": play(lanes, _open_loop(lanes, policy.schedule), seed=seed),
        "nothing": play(lanes, _open_loop(lanes, nothing), seed=seed),
    }


def summarize(episodes: Episodes) -> dict[str, float]:
    """The numbers that one looks at.

    Args:
        episodes: what `evaluate_rule_in_env` returned.

    Returns:
        Median and mean of the log10 gap, share solved, share diverged, mean return, mean length and
        mean number of kicks.
    """
    return {
        "median_log10_gap": float(np.median(episodes.log10_gaps)),
        "mean_log10_gap": float(episodes.log10_gaps.mean()),
        "solved": float(episodes.solved.mean()),
        "diverged": float(episodes.diverged.mean()),
        "return": float(episodes.returns.mean()),
        "length": float(episodes.lengths.mean()),
        "kicks": float(episodes.kicks.mean()),
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


def play_rule(
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
        The episodes, and what was seen and decided in them.

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
    policy = _RulePolicy(rule, actuator, lanes.num_envs, blind=blind)
    episodes = play(lanes, policy, seed=seed, look=look)
    return Played(
        episodes=episodes,
        mean_observation=policy.mean_observation,
        schedule=torch.stack(policy.schedule),
    )


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
    play_rule(rule, lanes, seed=seed, look=lambda: frames.append(lanes.render()[0]))
    return frames


def _lanes(
    env: str, env_settings: Mapping[str, Any] | None, num_lanes: int, num_steps: int | None
) -> Any:
    settings = dict(env_settings or {})
    if num_steps is not None:
        require(num_steps >= 1, f"num_steps must be positive, got {num_steps}")
        settings["max_episode_steps"] = num_steps
    return make_lanes(env, settings, num_lanes=num_lanes, autoreset="Disabled")


def _open_loop(lanes: Any, schedule: Tensor) -> Decide:
    """Decisions that do not look: those of `schedule`, and then its last one again and again."""
    shape = lanes.action_space.shape
    decisions = itertools.chain(schedule, itertools.repeat(schedule[-1]))
    return lambda observation, info: next(decisions).expand(shape).numpy()


@final
class _RulePolicy:
    """A rule that decides in lanes, and a record of what it saw and did in their first episodes.

    Its memory starts empty and is never emptied again: one object for one call of `play`.

    Attributes:
        schedule: a row for each step, see `Played`.
    """

    def __init__(
        self, rule: PolicyRule, actuator: Actuator, num_lanes: int, *, blind: Tensor | None
    ) -> None:
        self._rule, self._actions, self._blind = rule, actuator.actions, blind
        self._num_begun = np.zeros(num_lanes, np.int64)
        self._memory: Tree = {}
        self._total = torch.zeros(len(actuator.features), dtype=torch.float64)
        self._count = 0
        self.schedule: list[Tensor] = []

    @property
    def mean_observation(self) -> Tensor:
        """``[F]`` over lanes, coordinates and time."""
        return self._total / self._count

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Count the episodes of the lanes in `mask`, which begin new ones."""
        self._num_begun += mask

    @torch.no_grad()
    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """Decide in every lane."""
        seen, mask = torch.from_numpy(observation), info.get("action_mask")
        decided = self._decide(seen, None if mask is None else torch.from_numpy(mask))
        is_first = torch.from_numpy(self._num_begun == 1)
        rows = seen[is_first].reshape(-1, seen.shape[-1])
        self._total, self._count = self._total + rows.double().sum(0), self._count + len(rows)
        taken, size = decided[is_first], self._actions.size
        self.schedule.append(
            torch.bincount(taken.reshape(-1), minlength=size).argmax()
            if self._actions.is_discrete
            else taken.reshape(-1, size).mean(0)
        )
        return decided.numpy()

    def _decide(self, observation: Tensor, mask: Tensor | None) -> Tensor:
        if not self._memory and self._rule.lstm_units:
            empty = observation.new_zeros(*observation.shape[:-1], self._rule.lstm_units)
            self._memory = {"hidden": empty, "cell": empty}
        if self._blind is not None:
            # The mask tells something of the state, too; a choice that it forbids is no choice.
            mask = None
            observation = self._blind.to(observation).expand_as(observation)
        decision, self._memory = self._rule.decide(observation, self._memory, mask=mask)
        return decision
