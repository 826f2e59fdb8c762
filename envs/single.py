"""The single shell: one lane behind `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.core import Playable, episode_keys
from envs.rendering import Recorder
from envs.spaces import action_space, observation_space
from envs.state import State
from envs.vector import decisions
from learned_opt.errors import require


class OptimizationEnv(Playable, gym.Env[Any, Any]):
    """One lane of a decision process.

    Convenient for looking, stepping by hand and small agents; for training, the vector shell is
    hundreds of times faster.

    Args:
        render_mode: ``rgb_array`` or None.
        actuator: keyword arguments of the actuator.
        settings: entries of `envs.core.Settings`.

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (gymnasium's own attribute)
        "render_modes": ["rgb_array"],
        "render_fps": 15,
    }

    def __init__(
        self,
        *,
        render_mode: str | None = None,
        actuator: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        require(
            render_mode in {None, "rgb_array"},
            f"render_mode must be 'rgb_array' or None, got '{render_mode}'",
        )
        self.core = core = self.build_core(actuator, settings)
        self.render_mode = render_mode
        self.observation_space = observation_space(core)
        self.action_space = action_space(core)
        self._seed: int | None = None
        self._episode = 0
        self._state: State | None = None
        self._recorder = Recorder(core, 1) if render_mode else None

    @property
    def state(self) -> State:
        """Where the lane stands."""
        if self._state is None:
            raise gym.error.ResetNeeded("call reset before step, render or state")
        return self._state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode: the seed's first, or the next one.

        Args:
            seed: names a stream of episodes.
            options: none are known; ignored.

        Returns:
            Observation and info.

        Raises:
            LearnedOptError: if the seed is too large.
        """
        require(
            seed is None or seed < 2**64,
            f"a seed must be a whole number from 0 to 2**64 - 1, got {seed!r}",
        )
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._episode = seed, 0
        elif self._seed is None:
            self._seed, self._episode = int(self.np_random.integers(2**63)), 0
        else:
            self._episode += 1
        keys = episode_keys(np.array([self._seed], np.uint64), np.array([self._episode]))
        self._state = self.core.initial(keys)
        if self._recorder is not None:
            self._recorder.start(self._state, np.ones(1, bool))
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """One decision.

        Args:
            action: as `action_space` says.

        Returns:
            Observation, reward, termination, truncation (always False; `gymnasium.make` adds the
            time limit) and info.

        Raises:
            LearnedOptError: if the action has another shape or names a choice that is not there.
        """
        before = self.state
        decided = decisions(self.core, np.asarray(action)[None], 1)
        after = self.core.transition(before, decided)
        self._state = after
        if self._recorder is not None:
            self._recorder.follow(before, after, restarted=np.zeros(1, bool))
        return (
            self._observation(),
            float(self.core.reward(before, after)),
            bool(self.core.terminal(after)),
            False,
            self._info(),
        )

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """A frame; None without a render mode."""
        return None if self._recorder is None else self._recorder.frame(self.state, 0)

    def _observation(self) -> NDArray[Any]:
        return self.state.observation[0].numpy().copy()

    def _info(self) -> dict[str, Any]:
        """Metrics of the lane, see the vector shell."""
        state = self.state
        info: dict[str, Any] = {
            "opt": {key: value[0].item() for key, value in self.core.metrics(state).items()}
        }
        mask = self.core.actuator.mask(state.actuator)
        if mask is not None:
            info["action_mask"] = mask[0].numpy().copy()
        return info
