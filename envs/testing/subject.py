"""The environment under test, and how hard it is tested."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from envs.testing.records import Actions, AnyVectorEnv, Event, record_lanes


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is checked, and how hard; the attributes are arguments of `check_vector_env`."""

    make_vector: Callable[..., AnyVectorEnv]
    make_single: Callable[[], gym.Env[Any, Any]] | None
    num_envs: int
    num_steps: int
    seed: int
    tolerance: float
    modes: tuple[str, ...]

    def vector(self, num_envs: int | None = None, mode: str | None = None) -> AnyVectorEnv:
        """Make the vector environment, in the first mode unless told otherwise."""
        return self.make_vector(
            num_envs=num_envs or self.num_envs, autoreset_mode=mode or self.modes[0]
        )

    def actions(self, env: AnyVectorEnv, *, variant: int = 0) -> Actions:
        """Lane ``i`` gets the same actions whatever the number of lanes."""
        lanes = []
        for lane in range(env.num_envs):
            space = copy.deepcopy(env.single_action_space)
            space.seed(self.seed + 1000 * variant + lane)
            lanes.append([space.sample() for _ in range(self.num_steps)])
        return lanes

    def events(self, env: AnyVectorEnv, *, variant: int = 0) -> list[list[Event]]:
        """A plain trajectory; closes the environment."""
        with closing(env):
            return record_lanes(env, self.actions(env, variant=variant), seed=self.seed)
