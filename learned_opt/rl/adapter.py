"""Lanes for stable-baselines3: our vector environments behind its `VecEnv`.

Importing this module needs the extra ``rl``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, final

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from learned_opt.errors import LearnedOptError, require

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise LearnedOptError(
        "training agents needs stable_baselines3: install learned_opt[rl]"
    ) from error

Floats = NDArray[np.float32]
Indices = int | Iterable[int] | None


@final
class LaneAdapter(VecEnv):
    r"""A native vector environment of this library as a `VecEnv` of stable-baselines3.

    What is handed out are copies, so that the algorithm may change rewards in place. Rewards are
    $\mathrm{clip}(r / s, -c, c)$; episode returns in ``info["episode"]`` stay in the environment's
    own units. Where the policy is shared by coordinates, each coordinate of a lane is shown as one
    agent, with the lane's reward and end; the ``P`` agents of lane ``i`` are ``i P`` to
    ``i P + P - 1``, and the first of them carries the metrics.

    Dictionaries are filled for agents whose episode ended, and shared and empty for all others:
    ``terminal_observation``, ``TimeLimit.truncated``, ``episode`` (``r`` and ``l``) and ``final``,
    the environment's metrics.

    Args:
        lanes: the environment, made with ``autoreset_mode="SameStep"``.
        reward_scale: $s$.
        reward_clip: $c$.
        stagger: let the lanes' first episodes end at different times, so that a rollout holds all
            parts of an episode. They are then shorter than the others.
        marks_truncation: set ``TimeLimit.truncated``, upon which the on-policy algorithms value
            terminal observations one by one. A trainer that reads `cut` and adds those values
            itself, in one batch, switches it off; off-policy algorithms need it.

    Attributes:
        cut: agents whose episode the last step truncated, and their last observations ``[M, F]``.

    Raises:
        LearnedOptError: if a number is not positive or the environment resets in another way.
    """

    def __init__(
        self,
        lanes: gym.vector.VectorEnv[Any, Any, Any],
        *,
        reward_scale: float = 3.0,
        reward_clip: float = 3.0,
        stagger: bool = False,
        marks_truncation: bool = True,
    ) -> None:
        require(reward_scale > 0, f"reward_scale must be positive, got {reward_scale}")
        require(reward_clip > 0, f"reward_clip must be positive, got {reward_clip}")
        mode = gym.vector.AutoresetMode.SAME_STEP
        require(
            lanes.metadata.get("autoreset_mode") is mode,
            "lanes must be made with autoreset_mode='SameStep', "
            f"got '{lanes.metadata.get('autoreset_mode')}'",
        )
        self.lanes: Any = lanes.unwrapped
        self.reward_scale, self.reward_clip = reward_scale, reward_clip
        self.stagger, self.marks_truncation = stagger, marks_truncation
        self.num_lanes = self.lanes.num_envs
        space: Any = self.lanes.single_observation_space
        self.agents_per_lane = 1 if len(space.shape) == 1 else int(np.prod(space.shape[:-1]))
        low, high = (bound.reshape(-1, space.shape[-1])[0] for bound in (space.low, space.high))
        super().__init__(
            self.num_lanes * self.agents_per_lane,
            gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32),
            self._single_action_space(),
        )
        self._actions: NDArray[Any] | None = None
        self._returns = np.zeros(self.num_lanes)
        self._lengths = np.zeros(self.num_lanes, np.int64)
        self._num_episodes, self._total_return = 0, 0.0
        self._nothing: dict[str, Any] = {}
        self._infos: list[dict[str, Any]] = [self._nothing] * self.num_envs
        self._masks: NDArray[np.bool_] | None = None
        self._uncut = np.zeros(0, np.int64), np.zeros((0, space.shape[-1]), np.float32)
        self.cut: tuple[NDArray[np.int64], Floats] = self._uncut

    def _single_action_space(self) -> gym.Space[Any]:
        space = self.lanes.single_action_space
        if isinstance(space, gym.spaces.Discrete):
            return gym.spaces.Discrete(int(space.n))
        return gym.spaces.Box(-1.0, 1.0, space.shape[-1:], np.float32)

    def reset(self) -> Floats:
        """Start all lanes.

        Returns:
            Observations of all agents.
        """
        # `VecEnv.seed` numbers agents consecutively from here; lanes do so themselves.
        observations, info = self.lanes.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        self.cut = self._uncut
        if self.stagger:
            self._spread()
        return self._seen(observations, info)

    def _spread(self) -> None:
        """Make the lanes believe that they have played a part of their first episode."""
        saved = self.lanes.get_state()
        longest = self.lanes.max_episode_steps
        played = (torch.arange(self.num_lanes) * longest // self.num_lanes).to(torch.int64)
        saved["state"] = replace(saved["state"], steps=played)
        self.lanes.set_state(saved)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take note of the agents' actions."""
        self._actions = actions

    def step_wait(self) -> tuple[Floats, Floats, NDArray[np.bool_], list[dict[str, Any]]]:
        """Carry the actions out.

        Returns:
            Observations, rewards and ends of all agents, and their dictionaries.
        """
        assert self._actions is not None
        actions = self._actions
        if self.agents_per_lane > 1:
            actions = actions.reshape(self.num_lanes, self.agents_per_lane, -1)
        observations, raw, terminated, truncated, info = self.lanes.step(actions)
        self._returns += raw
        self._lengths += 1
        rewards = np.clip(raw / self.reward_scale, -self.reward_clip, self.reward_clip)
        rewards = rewards.astype(np.float32)
        ended = terminated | truncated
        infos = self._infos.copy()
        self.cut = self._uncut
        if ended.any():
            self._end(infos, np.flatnonzero(ended), truncated, info)
            self._returns[ended], self._lengths[ended] = 0, 0
        if self.agents_per_lane > 1:
            rewards, ended = (np.repeat(x, self.agents_per_lane) for x in (rewards, ended))
        return self._seen(observations, info), rewards, ended, infos

    def _end(
        self,
        infos: list[dict[str, Any]],
        ended: NDArray[np.int64],
        truncated: NDArray[np.bool_],
        info: Mapping[str, Any],
    ) -> None:
        """Fill the dictionaries of the agents in the lanes that `ended` names."""
        per_lane = self.agents_per_lane
        last = np.stack([info["final_obs"][lane] for lane in ended]).astype(np.float32)
        last = last.reshape(len(ended), per_lane, -1)
        self._num_episodes += len(ended)
        self._total_return += float(self._returns[ended].sum())
        metrics = {
            name: values[ended].tolist() for name, values in info["final_info"]["opt"].items()
        }
        for position, lane in enumerate(ended.tolist()):
            for agent in range(per_lane):
                entry: dict[str, Any] = {"terminal_observation": last[position, agent]}
                if self.marks_truncation:
                    entry["TimeLimit.truncated"] = bool(truncated[lane])
                infos[lane * per_lane + agent] = entry
            infos[lane * per_lane] |= {
                "episode": {
                    "r": float(self._returns[lane]),
                    "l": int(self._lengths[lane]),
                },
                "final": {name: values[position] for name, values in metrics.items()},
            }
        is_cut = truncated[ended]
        if is_cut.any():
            agents = ended[is_cut, None] * per_lane + np.arange(per_lane)
            self.cut = agents.reshape(-1), last[is_cut].reshape(-1, last.shape[-1])

    def _seen(self, observations: NDArray[Any], info: Mapping[str, Any]) -> Floats:
        """One row of float32 for each agent, newly made; takes note of the masks."""
        self._masks = info.get("action_mask")
        return np.array(observations, np.float32).reshape(self.num_envs, -1)

    def action_masks(self) -> NDArray[np.bool_]:
        """``[N, A]`` which choices are allowed.

        Raises:
            AttributeError: if the environment allows every choice at any time.
        """
        if self._masks is None:
            raise AttributeError("this environment has no action masks")
        return self._masks

    def take_tally(self) -> dict[str, float]:
        """Number and mean return of the episodes that ended since the last call."""
        count, total = self._num_episodes, self._total_return
        self._num_episodes, self._total_return = 0, 0.0
        return {"episodes": count, "return": total / count} if count else {"episodes": 0}

    def get_state(self) -> dict[str, Any]:
        """Everything that is needed to go on from here; see `set_state`."""
        return {
            "lanes": self.lanes.get_state(),
            "returns": self._returns,
            "lengths": self._lengths,
            "num_episodes": self._num_episodes,
            "total_return": self._total_return,
        }

    def set_state(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        self.lanes.set_state(saved["lanes"])
        self._returns, self._lengths = saved["returns"].copy(), saved["lengths"].copy()
        self._num_episodes = saved["num_episodes"]
        self._total_return = saved["total_return"]
        self.cut = self._uncut
        mask = self.lanes.core.actuator.mask(self.lanes.state.actuator)
        self._masks = None if mask is None else mask.numpy().copy()

    def close(self) -> None:
        """Close the environment."""
        self.lanes.close()

    def _chosen(self, indices: Indices) -> list[int]:
        return list(self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the environment, once for each agent asked for."""
        if attr_name == "action_masks":
            self.action_masks()
        value = getattr(self if attr_name == "action_masks" else self.lanes, attr_name)
        return [value] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the environment, which is one for all agents."""
        del indices
        setattr(self.lanes, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method: ``action_masks`` gives each agent its row, any other all the same."""
        chosen = self._chosen(indices)
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[agent] for agent in chosen]
        return [getattr(self.lanes, method_name)(*method_args, **method_kwargs)] * len(chosen)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """Nothing is wrapped."""
        del wrapper_class
        return [False] * len(self._chosen(indices))
