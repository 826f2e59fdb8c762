"""Scripted policies, fixed settings and their hindsight best: what a trained policy has to beat.

A policy is called with a vector environment's observations and infos and answers with a batch of
actions; `play` lets it play one episode in every lane::

    env = gym.make_vec("LearnedOpt/SaddleEscape-v0", num_envs=256)
    played = play(env, PerturbedGD(env, gradient_threshold=0.1, waiting=20), seed=1)
    np.median(played.log_gaps)

`sweep` runs gradient descent with momentum at fixed settings on the instances, from the starts and
with the minibatches of the same lanes, so that its numbers stand beside those of `play`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from envs.core import OptimizationCore, episode_keys
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import ActionSpace, Actuator
from learned_opt.actuators.base import Noise, Step
from learned_opt.actuators.saddle_escape import KICK_MEDIUM, KICKS
from learned_opt.errors import require
from learned_opt.trees import Tree

_LANES_AT_ONCE = 8192


class Policy(ABC):
    """A rule written by hand that plays a vector environment.

    Args:
        env: what will be played; a wrapped environment will do if observations and actions stay.

    Raises:
        LearnedOptError: if it is not one of this package's environments.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        inner = env.unwrapped
        require(
            isinstance(inner, OptimizationVectorEnv),
            f"env must be a vector environment of this package, got {type(inner).__name__}",
        )
        assert isinstance(inner, OptimizationVectorEnv)
        self._num_envs, self._actuator = inner.num_envs, inner.core.actuator
        self._space = inner.single_action_space
        self.reset(np.ones(inner.num_envs, bool))

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Forget the lanes in `mask`, which begin new episodes.

        Args:
            mask: ``[N]`` lanes.
        """
        del mask

    @abstractmethod
    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """Decide in every lane.

        Args:
            observation: ``[N, ...]`` what the environment returned last.
            info: the infos that came with it.

        Returns:
            ``[N, ...]`` actions.
        """

    def _everywhere(self, action: Any) -> NDArray[Any]:
        shape = (self._num_envs, *(self._space.shape or ()))
        return np.broadcast_to(np.asarray(action, self._space.dtype), shape).copy()

    def _require_kicks(self, choice: int) -> None:
        require(
            self._actuator.name == "saddle_escape",
            f"kicks are choices of the actuator 'saddle_escape', got '{self._actuator.name}'",
        )
        require(choice in KICKS, f"choice must be a kick, one of {KICKS}, got {choice}")


@final
class DoNothing(Policy):
    """Leave every control as it is, and noise off."""

    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """See `Policy.__call__`."""
        del observation, info
        return self._everywhere(self._actuator.neutral().numpy())


@final
class Constant(Policy):
    """The same decision always.

    Args:
        env: what will be played.
        action: one lane's action.

    Raises:
        LearnedOptError: if it is not in the action space.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], action: Any) -> None:
        super().__init__(env)
        value = np.asarray(action, self._space.dtype)
        require(
            self._space.contains(value if value.shape else value[()]),
            f"action must lie in {self._space}, got {action}",
        )
        self._action = value

    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """See `Policy.__call__`."""
        del observation, info
        return self._everywhere(self._action)


@final
class NoiseEveryStep(Policy):
    r"""Noise in every step, step size and momentum left alone; for ``HyperControl``.

    Args:
        env: what will be played.
        level: the third control, in [-1, 1]; noise has $e^{5 (level - 1)}$ of the gradient's norm.

    Raises:
        LearnedOptError: if the environment has no such control or `level` is out of range.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], level: float) -> None:
        super().__init__(env)
        names = self._actuator.actions.names
        require(
            "noise" in names and not self._actuator.actions.is_discrete,
            f"noise must be a control of the environment, got {', '.join(names)}",
        )
        require(-1 <= level <= 1, f"level must lie in [-1, 1], got {level}")
        self._action = [level * (name == "noise") for name in names]

    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """See `Policy.__call__`."""
        del observation, info
        return self._everywhere(self._action)


@final
class KickEvery(Policy):
    """A kick every `interval` steps, the first after `interval` steps; for ``SaddleEscape``.

    A kick that is not allowed yet waits until it is.

    Args:
        env: what will be played.
        interval: steps between kicks, positive.
        choice: which kick, one of `learned_opt.actuators.saddle_escape.KICKS`.

    Raises:
        LearnedOptError: if the environment has no kicks or a value is out of range.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], interval: int, *, choice: int = KICK_MEDIUM
    ) -> None:
        require(interval >= 1, f"interval must be positive, got {interval}")
        super().__init__(env)
        self._require_kicks(choice)
        self.interval, self.choice = interval, choice

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """See `Policy.reset`."""
        self._since = np.where(mask, 0, getattr(self, "_since", 0))

    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """See `Policy.__call__`."""
        del observation
        kicks = (self._since >= self.interval) & info["action_mask"][:, self.choice]
        self._since = np.where(kicks, 1, self._since + 1)
        return np.where(kicks, self.choice, 0)


@final
class PerturbedGD(Policy):
    """Kick where the gradient is small, at most every `waiting` steps; for ``SaddleEscape``.

    The rule of Jin et al. 2017 (arXiv:1703.00887, algorithm 1): kick if the gradient's norm is at
    most a threshold and more than `waiting` steps have passed since the last kick. As observations
    have no units, the threshold is a share of the largest norm so far. Between kicks the
    environment's heavy ball goes on with the step size and momentum it was given; the theorem's
    final return to the point before a kick that did not help is left to ``best_so_far``.

    Args:
        env: what will be played.
        gradient_threshold: share of the largest gradient norm so far, in (0, 1].
        waiting: steps without a kick after each, not negative.
        choice: which kick, one of `learned_opt.actuators.saddle_escape.KICKS`.

    Raises:
        LearnedOptError: if the environment has no kicks or a value is out of range.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        gradient_threshold: float = 0.1,
        waiting: int = 50,
        choice: int = KICK_MEDIUM,
    ) -> None:
        require(
            0 < gradient_threshold <= 1,
            f"gradient_threshold must lie in (0, 1], got {gradient_threshold}",
        )
        require(waiting >= 0, f"waiting must not be negative, got {waiting}")
        super().__init__(env)
        self._require_kicks(choice)
        self.gradient_threshold, self.waiting, self.choice = gradient_threshold, waiting, choice
        self._index = [f.name for f in self._actuator.features].index("gradient at most")

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """See `Policy.reset`."""
        self._since = np.where(mask, np.inf, getattr(self, "_since", np.inf))

    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """See `Policy.__call__`."""
        # The feature is a fifth of the logarithm; the slack is for its rounding.
        is_small = 5 * observation[:, self._index] <= math.log(self.gradient_threshold) + 1e-6
        kicks = is_small & (self._since > self.waiting) & info["action_mask"][:, self.choice]
        self._since = np.where(kicks, 1, self._since + 1)
        return np.where(kicks, self.choice, 0)


@dataclass(frozen=True, kw_only=True)
class Played:
    """One episode in each lane.

    Attributes:
        log_gaps: ``[N]`` what rewards measure, at the end: log10 of the relative gap plus target
            (the best one with ``best_so_far``), and for a diverged lane one e-fold above the
            largest gap that is allowed.
        returns: ``[N]`` sums of rewards.
        lengths: ``[N]`` steps: gradients paid for.
        kicks: ``[N]`` kicks.
    """

    log_gaps: NDArray[np.float64]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    kicks: NDArray[np.int64]


def play(env: VectorEnv[Any, Any, Any], policy: Policy, *, seed: int = 0) -> Played:
    """Play the first episode of every lane.

    Args:
        env: an environment of this package, in any autoreset mode.
        policy: what decides.
        seed: of the lanes, ``seed + i``.

    Returns:
        How the episodes ended.
    """
    inner = env.unwrapped
    assert isinstance(inner, OptimizationVectorEnv)
    n = inner.num_envs
    is_open = np.ones(n, bool)
    log_gaps, returns = np.zeros(n), np.zeros(n)
    lengths, kicks = np.zeros(n, np.int64), np.zeros(n, np.int64)
    observation, info = env.reset(seed=seed)
    policy.reset(is_open)
    while is_open.any():
        observation, rewards, terminations, truncations, info = env.step(policy(observation, info))
        returns += np.where(is_open, rewards, 0.0)
        ended = (terminations | truncations) & is_open
        if not ended.any():
            continue
        last = info["final_info"]["opt"] if "final_info" in info else info["opt"]
        log_gaps[ended] = last["log10_gap"][ended]
        lengths[ended] = last["num_gradients"][ended]
        kicks[ended] = last["kicks"][ended]
        is_open &= ~ended
        policy.reset(ended)
    return Played(log_gaps=log_gaps, returns=returns, lengths=lengths, kicks=kicks)


class FixedSetting(NamedTuple):
    """Gradient descent with momentum that nobody steers.

    Attributes:
        multiplier: step size, in units of the episode's initial one.
        momentum: decay of the running sum of gradients.
    """

    multiplier: float
    momentum: float


GRID = tuple(
    FixedSetting(10 ** (half_decades / 2), momentum)
    for half_decades in range(-3, 7)
    for momentum in (0.0, 0.5, 0.7, 0.8, 0.9)
)
"""Fifty settings: multipliers from 0.03 to 1000 in half decades times five momenta."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How fixed settings fared.

    Attributes:
        settings: what was tried, ``S`` of them.
        log_gaps: ``[S, N]`` final gaps of each setting on each instance, as `Played.log_gaps`.
    """

    settings: tuple[FixedSetting, ...]
    log_gaps: NDArray[np.float64]

    @property
    def best_index(self) -> int:
        """Position of the setting with the lowest median over instances."""
        return int(np.median(self.log_gaps, axis=1).argmin())

    @property
    def best_constant(self) -> FixedSetting:
        """The setting with the lowest median over instances."""
        return self.settings[self.best_index]


def sweep(
    make_env: Callable[[], VectorEnv[Any, Any, Any]],
    settings: Sequence[FixedSetting] = GRID,
    *,
    seed: int = 0,
) -> Sweep:
    r"""Run fixed settings on the first episode of every lane.

    $$ m' = \beta m + g, \qquad x' = x - \eta_0 c\, m' $$

    with multiplier $c$ and momentum $\beta$ constant for the whole episode. Everything else is the
    environment's own: instances, starts, initial step sizes $\eta_0$, minibatches, the ends of
    episodes by target, divergence or budget, and the score. The environment's actuator and its
    limits on controls play no part.

    Args:
        make_env: makes the vector environment, whose lanes are the instances.
        settings: what to try.
        seed: of the lanes, ``seed + i``.

    Returns:
        Gaps of every setting on every instance.

    Raises:
        LearnedOptError: if there are no settings, one is out of range, or the environment is not
            one of this package's.
    """
    require(len(settings) >= 1, "settings must name at least one setting, got none")
    for setting in settings:
        require(
            0 <= setting.multiplier < math.inf and 0 <= setting.momentum < 1,
            f"settings must have a finite multiplier and a momentum in [0, 1), got {setting}",
        )
    env = make_env()
    inner = env.unwrapped
    require(
        isinstance(inner, OptimizationVectorEnv),
        f"make_env must make a vector environment of this package, got {type(inner).__name__}",
    )
    assert isinstance(inner, OptimizationVectorEnv)
    core = OptimizationCore(inner.core.settings, _FixedHeavyBall())
    n, num_steps = inner.num_envs, inner.max_episode_steps
    env.close()
    seeds = np.arange(seed, seed + n).astype(np.uint64)
    grid = torch.tensor(settings, dtype=core.dtype)
    at_once = max(1, _LANES_AT_ONCE // n)
    rows = [
        _final_potentials(core, seeds, chunk, num_steps=num_steps) for chunk in grid.split(at_once)
    ]
    potentials = np.concatenate(rows)
    return Sweep(settings=tuple(settings), log_gaps=-potentials / math.log(10))


def best_constant(
    make_env: Callable[[], VectorEnv[Any, Any, Any]],
    settings: Sequence[FixedSetting] = GRID,
    *,
    seed: int = 0,
) -> tuple[FixedSetting, NDArray[np.float64]]:
    """The one setting, shared by all instances, with the lowest median gap.

    It is chosen on the instances it is reported on; for a fair figure choose with one `seed` and
    look up `Sweep.best_index` in the sweep of another.

    Args:
        make_env: see `sweep`.
        settings: what to try.
        seed: of the lanes.

    Returns:
        The setting and its ``[N]`` log gaps.
    """
    swept = sweep(make_env, settings, seed=seed)
    return swept.best_constant, swept.log_gaps[swept.best_index]


def hindsight_oracle(
    make_env: Callable[[], VectorEnv[Any, Any, Any]],
    settings: Sequence[FixedSetting] = GRID,
    *,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The best setting of every single instance, which nobody can know beforehand.

    Args:
        make_env: see `sweep`.
        settings: what to try.
        seed: of the lanes.

    Returns:
        ``[N]`` log gaps.
    """
    lowest: NDArray[np.float64] = sweep(make_env, settings, seed=seed).log_gaps.min(0)
    return lowest


@final
class _FixedHeavyBall(Actuator):
    """A heavy ball whose action is its setting: step-size multiplier and momentum, unbounded."""

    name: ClassVar[str] = "fixed_heavy_ball"

    def __init__(self) -> None:
        self.features = ()
        self.actions = ActionSpace(("multiplier", "momentum"), is_discrete=False)

    def init(self, params: Tensor, *, learning_rate: Tensor) -> Tree:
        """See `Actuator.init`."""
        return {"learning_rate": learning_rate.to(params), "momentum": torch.zeros_like(params)}

    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """Nothing is looked at."""
        del loss, params
        return grads.new_zeros(len(grads), 0), state

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        del params, noise
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        momentum = torch.addcmul(grads, s["momentum"], action[:, 1:])
        step_size = s["learning_rate"] * action[:, 0]
        return Step(updates=momentum * -step_size[:, None], state={**state, "momentum": momentum})


def _final_potentials(
    core: OptimizationCore, seeds: NDArray[np.uint64], settings: Tensor, *, num_steps: int
) -> NDArray[np.float64]:
    """``[S, N]`` potentials at the ends of the first episodes."""
    n, s = len(seeds), len(settings)
    keys = np.tile(episode_keys(seeds, np.zeros(n, np.int64)), s)
    action = settings.repeat_interleave(n, dim=0)
    state = core.initial(keys)
    potential, is_open = state.potential.clone(), torch.ones(len(keys), dtype=torch.bool)
    for _ in range(num_steps):
        state = core.transition(state, action)
        potential = torch.where(is_open, state.potential, potential)
        is_open = is_open & ~core.terminal(state)
        if not is_open.any():
            break
    return potential.reshape(s, n).numpy()
