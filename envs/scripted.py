"""Scripted policies: rules written by hand, which a trained policy has to beat.

A policy is called with a vector environment's observations and infos and answers with a batch of
actions; `learned_opt.rl.episodes.play` lets it play one episode in every lane::

    env = gym.make_vec("LearnedOpt/SaddleEscape-v0", num_envs=256)
    episodes = play(env, PerturbedGD(env, gradient_threshold=0.1, waiting=20), seed=1)
    np.median(episodes.log10_gaps)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from envs.vector import OptimizationVectorEnv
from learned_opt.actuators.saddle_escape import KICK_LARGE, KICKS
from learned_opt.errors import require


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
        self, env: VectorEnv[Any, Any, Any], interval: int, *, choice: int = KICK_LARGE
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
        choice: int = KICK_LARGE,
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
