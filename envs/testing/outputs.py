"""Checks of what an environment hands out: spaces, arrays, infos."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array

from envs.testing.comparing import demand, leaves
from envs.testing.records import AnyVectorEnv, Call, record_lanes
from envs.testing.subject import Subject


def check_spaces(subject: Subject) -> None:
    """The batch spaces are those of single ones, and the autoreset mode is told."""
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:
            n = subject.num_envs
            demand(isinstance(env, VectorEnv), f"{type(env).__name__} is not a VectorEnv")
            demand(env.num_envs == n, f"num_envs is {env.num_envs} where {n} were asked for")
            for kind in ("observation", "action"):
                single = getattr(env, f"single_{kind}_space")
                batched = getattr(env, f"{kind}_space")
                demand(
                    batched == batch_space(single, n),
                    f"{kind}_space is not single_{kind}_space batched {n} times",
                )
            told = env.metadata.get("autoreset_mode")
            demand(
                isinstance(told, AutoresetMode) and told.value == mode,
                f"metadata['autoreset_mode'] is {told} where {mode} was asked for",
            )


def check_outputs(subject: Subject) -> None:
    """Types, dtypes and shapes are right, all lies in its space, rewards are finite."""
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:

            def inspect(call: Call, env: AnyVectorEnv = env) -> None:
                _demand_observations(env, call)
                if call.rewards is None:
                    return
                for name in ("rewards", "terminations", "truncations"):
                    value = getattr(call, name)
                    kind = np.floating if name == "rewards" else np.bool_
                    demand(
                        isinstance(value, np.ndarray)
                        and value.shape == (env.num_envs,)
                        and np.issubdtype(value.dtype, kind),
                        f"{name} of {call.source} are not {env.num_envs} numbers of type "
                        f"{kind.__name__}",
                    )
                demand(
                    np.isfinite(call.rewards).all(), f"rewards of {call.source} are not all finite"
                )

            record_lanes(env, subject.actions(env), seed=subject.seed, inspect=inspect)


def check_infos(subject: Subject) -> None:
    """Every entry has its mask, and every array one row for each lane."""
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:

            def inspect(call: Call, n: int = env.num_envs) -> None:
                demand(isinstance(call.infos, dict), f"infos of {call.source} are not a dict")
                _demand_masks(call.infos, n, call.source)

            record_lanes(env, subject.actions(env), seed=subject.seed, inspect=inspect)


def _demand_observations(env: AnyVectorEnv, call: Call) -> None:
    like = create_empty_array(env.single_observation_space, n=env.num_envs)
    found, expected = dict(leaves(call.observations)), dict(leaves(like))
    demand(
        found.keys() == expected.keys(),
        f"observations of {call.source} hold arrays {sorted(found)} instead of {sorted(expected)}",
    )
    for name, array in expected.items():
        demand(
            found[name].dtype == array.dtype and found[name].shape == array.shape,
            f"observations{name} of {call.source} are {found[name].dtype} of {found[name].shape}, "
            f"not {array.dtype} of {array.shape}",
        )
    demand(
        call.observations in env.observation_space,
        f"observations of {call.source} lie outside the observation space",
    )


def _demand_masks(infos: Mapping[str, Any], num_envs: int, source: str) -> None:
    for key, value in infos.items():
        if key.startswith("_"):
            demand(key[1:] in infos, f"infos of {source} hold a mask {key} without {key[1:]}")
            continue
        mask = infos.get(f"_{key}")
        demand(mask is not None, f"infos of {source} hold {key} without its mask _{key}")
        demand(
            isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (num_envs,),
            f"the mask _{key} in the infos of {source} is not {num_envs} booleans",
        )
        if isinstance(value, np.ndarray) and value.dtype == object:
            demand(
                value.shape == (num_envs,)
                and [row is not None for row in value] == np.asarray(mask).tolist(),
                f"{key} in the infos of {source} is not there exactly where its mask says",
            )
            continue
        for name, array in leaves(value):
            demand(
                len(array.shape) >= 1 and len(array) == num_envs,
                f"{key}{name} in the infos of {source} has the shape {array.shape} and not one "
                f"row for each of {num_envs} lanes",
            )
