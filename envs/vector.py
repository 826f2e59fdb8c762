"""The vector shell: thousands of lanes stepped as one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from envs.core import OptimizationCore, Playable, episode_keys
from envs.rendering import Recorder
from envs.spaces import action_space, observation_space
from envs.state import State, copy_state, write_lanes
from learned_opt.errors import require


class OptimizationVectorEnv(Playable, VectorEnv):
    """Lanes of one decision process behind `gymnasium.vector.VectorEnv`.

    Each lane is a function of its own seed alone: lane ``i`` after ``reset(seed=s)`` goes through
    what a single environment goes through after ``reset(seed=s + i)``.

    Args:
        num_envs: number of lanes.
        max_episode_steps: steps after which an episode is truncated.
        autoreset_mode: when a finished lane starts anew; a `gymnasium.vector.AutoresetMode` or its
            value, ``NextStep``, ``SameStep`` or ``Disabled``.
        render_mode: ``rgb_array`` or None.
        actuator: keyword arguments of the actuator.
        settings: entries of `envs.core.Settings`.

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (gymnasium's own attribute)
        "render_modes": ["rgb_array"],
        "render_fps": 15,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int = 64,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        actuator: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        require(num_envs >= 1, f"num_envs must be positive, got {num_envs}")
        require(
            max_episode_steps >= 1, f"max_episode_steps must be positive, got {max_episode_steps}"
        )
        require(
            render_mode in {None, "rgb_array"},
            f"render_mode must be 'rgb_array' or None, got '{render_mode}'",
        )
        modes = {mode.value for mode in AutoresetMode}
        require(
            isinstance(autoreset_mode, AutoresetMode) or autoreset_mode in modes,
            f"autoreset_mode must be one of {', '.join(sorted(modes))}, got '{autoreset_mode}'",
        )
        self.core = core = self.build_core(actuator, settings)
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.single_observation_space = observation_space(core)
        self.single_action_space = action_space(core)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seeds: NDArray[np.uint64] | None = None
        self._episodes = np.zeros(num_envs, np.int64)
        self._is_done = np.zeros(num_envs, bool)
        self._state: State | None = None
        self._next: State | None = None
        self._is_ready = np.zeros(num_envs, bool)
        self._recorder = Recorder(core, num_envs) if render_mode else None

    @property
    def state(self) -> State:
        """Where the lanes stand."""
        if self._state is None:
            raise gym.error.ResetNeeded("call reset before step, render or state")
        return self._state

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start episodes: all lanes, or those of ``options["reset_mask"]``.

        Args:
            seed: lane ``i`` gets ``seed + i``, or its entry of a sequence; None goes on with the
                next episode of each lane.
            options: ``reset_mask``, ``[N]`` bool; left as it was.

        Returns:
            Observations and infos.

        Raises:
            LearnedOptError: if a shape or a seed is wrong, or the mask leaves out a lane never
                started.
        """
        wanted, mask = self._wanted_seeds(seed), self._reset_mask(options)
        super().reset(seed=seed if isinstance(seed, int) else None)
        self._seed_lanes(wanted, mask)
        index = np.flatnonzero(mask)
        fresh = self.core.initial(episode_keys(self._seeds[index], self._episodes[index]))  # type: ignore[index]
        if len(index) == self.num_envs:
            self._state = fresh
        else:
            write_lanes(self.state, index, fresh, np.arange(len(index)))
        self._is_ready &= ~mask
        self._is_done = self._is_done & ~mask
        if self._recorder is not None:
            self._recorder.start(self.state, mask)
        return self._observation(), self._info(self.state)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One decision in every lane.

        Args:
            actions: ``[N, ...]`` as `action_space` says.

        Returns:
            Observations, rewards (float64), terminations, truncations and infos.

        Raises:
            LearnedOptError: if the actions have another shape or name a choice that is not there.
        """
        before = self.state
        with torch.no_grad():
            after = self.core.transition(before, decisions(self.core, actions, self.num_envs))
        rewards = self.core.reward(before, after).numpy()
        terminations = self.core.terminal(after).numpy()
        truncations = (after.steps.numpy() >= self.max_episode_steps) & ~terminations
        is_done = terminations | truncations
        final: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            if self._is_done.any():
                ended = self._is_done
                after = self._restart(after, ended)
                rewards = np.where(ended, 0.0, rewards)
                terminations, truncations = terminations & ~ended, truncations & ~ended
                is_done = is_done & ~ended
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and is_done.any():
            final = self._final(after, is_done)
            after = self._restart(after, is_done)
        self._state, self._is_done = after, is_done
        if self._recorder is not None:
            self._recorder.follow(before, after, restarted=after.steps.numpy() == 0)
        return (
            self._observation(),
            rewards,
            terminations,
            truncations,
            {**self._info(after), **final},
        )

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """A frame of every lane; None without a render mode."""
        if self._recorder is None:
            return None
        return tuple(self._recorder.frame(self.state, lane) for lane in range(self.num_envs))

    def get_state(self) -> dict[str, Any]:
        """Everything that is needed to go on from here; see `set_state`."""
        return {
            # All of it is changed in place later on: what is saved must be apart from that.
            "seeds": None if self._seeds is None else self._seeds.copy(),
            "episodes": self._episodes.copy(),
            "is_done": self._is_done.copy(),
            "state": None if self._state is None else copy_state(self._state),
            "np_random": self.np_random.bit_generator.state,
        }

    def set_state(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        seeds = saved["seeds"]
        self._seeds = None if seeds is None else seeds.copy()
        self._episodes, self._is_done = saved["episodes"].copy(), saved["is_done"].copy()
        self._state = None if saved["state"] is None else copy_state(saved["state"])
        self._next, self._is_ready[:] = None, False
        self.np_random.bit_generator.state = saved["np_random"]

    def _reset_mask(self, options: Mapping[str, Any] | None) -> NDArray[np.bool_]:
        given = (options or {}).get("reset_mask")
        if given is None:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(given)
        require(
            mask.shape == (self.num_envs,) and mask.dtype == bool,
            f"reset_mask must be {self.num_envs} booleans, got {mask.dtype} of {mask.shape}",
        )
        require(bool(mask.any()), "reset_mask must name at least one lane, got none")
        require(
            self._state is not None or bool(mask.all()),
            "the first reset must start every lane, got a reset_mask that leaves some out",
        )
        return mask

    def _wanted_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """One for each lane; None where its next episode is wanted."""
        if isinstance(seed, (Sequence, np.ndarray)):
            require(
                len(seed) == self.num_envs,
                f"seed must be one number or {self.num_envs}, got {len(seed)}",
            )
            wanted = list(seed)
        else:
            wanted = [None if seed is None else seed + i for i in range(self.num_envs)]
        for one in wanted:
            require(
                one is None or (isinstance(one, (int, np.integer)) and 0 <= one < 2**64),
                f"a seed must be a whole number from 0 to 2**64 - 1, got {one!r}",
            )
        return wanted

    def _seed_lanes(self, wanted: list[int | None], mask: NDArray[np.bool_]) -> None:
        """Give lanes new seeds, or count their episodes on."""
        if self._seeds is None:
            self._seeds = self.np_random.integers(2**63, size=self.num_envs).astype(np.uint64)
            self._episodes[:] = -1
        for lane in np.flatnonzero(mask):
            if (new := wanted[lane]) is None:
                self._episodes[lane] += 1
            else:
                self._seeds[lane], self._episodes[lane] = new, 0

    def _restart(self, state: State, mask: NDArray[np.bool_]) -> State:
        """The next episodes of the lanes in `mask`."""
        assert self._seeds is not None
        index = np.flatnonzero(mask)
        following = self._prepare(index)
        self._episodes[index] += 1
        if len(index) == self.num_envs:
            self._next, self._is_ready[:] = None, False
            return following
        write_lanes(state, index, following, index)
        self._is_ready[index] = False
        return state

    def _prepare(self, index: NDArray[np.int64]) -> State:
        """The start of every lane's next episode; those that `index` names are up to date.

        Starts cost about as much for all lanes as for one, and lanes end a few at a time: so they
        are made in advance, for all lanes whose last one was used.
        """
        assert self._seeds is not None
        if self._next is None:
            self._next = self.core.initial(episode_keys(self._seeds, self._episodes + 1))
            self._is_ready[:] = True
        elif not self._is_ready[index].all():
            stale = np.flatnonzero(~self._is_ready)
            keys = episode_keys(self._seeds[stale], self._episodes[stale] + 1)
            write_lanes(self._next, stale, self.core.initial(keys), np.arange(len(stale)))
            self._is_ready[:] = True
        return self._next

    def _observation(self) -> NDArray[Any]:
        return self.state.observation.numpy().copy()

    def _info(self, state: State) -> dict[str, Any]:
        """Dense arrays, for metrics and plots; policies do not see them."""
        everywhere = np.ones(self.num_envs, bool)
        info: dict[str, Any] = {
            "opt": {key: _array(value) for key, value in self.core.metrics(state).items()},
            "_opt": everywhere,
        }
        mask = self.core.actuator.mask(state.actuator)
        if mask is not None:
            info |= {"action_mask": _array(mask), "_action_mask": everywhere}
        return info

    def _final(self, state: State, is_done: NDArray[np.bool_]) -> dict[str, Any]:
        """What the finished lanes ended with, as gymnasium's same-step mode hands it over."""
        observations = np.full(self.num_envs, None, dtype=object)
        all_observations = state.observation.numpy()
        for lane in np.flatnonzero(is_done):
            observations[lane] = all_observations[lane].copy()
        return {
            "final_obs": observations,
            "_final_obs": is_done.copy(),
            "final_info": self._info(state),
            "_final_info": is_done.copy(),
        }


def _array(values: Tensor) -> NDArray[Any]:
    return values.numpy().copy()


def decisions(core: OptimizationCore, actions: Any, num_lanes: int) -> Tensor:
    """A policy's actions as the core takes them: copied, and in its own number format.

    Args:
        core: the decision process.
        actions: ``[N, ...]`` numbers or choices, an array or what numpy makes one of.
        num_lanes: ``N``.

    Returns:
        A tensor that shares no memory with `actions`.

    Raises:
        LearnedOptError: if the shape is wrong, or a choice is not there.
    """
    kind, given = core.actuator.actions, np.asarray(actions)
    shape = (num_lanes,) if kind.is_discrete else (num_lanes, *core.action_shape)
    require(given.shape == shape, f"actions must have the shape {shape}, got {given.shape}")
    if not kind.is_discrete:
        return torch.from_numpy(given.astype(core.settings.dtype))
    require(
        given.dtype.kind in "iu" and bool(((given >= 0) & (given < kind.size)).all()),
        f"actions must be whole numbers from 0 to {kind.size - 1}, got {given.dtype} from "
        f"{given.min()} to {given.max()}",
    )
    return torch.from_numpy(given.astype(np.int64))
