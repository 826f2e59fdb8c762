"""The checker: all checks by name, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from envs.testing.comparing import Violation
from envs.testing.lanes import (
    check_determinism,
    check_lane_independence,
    check_num_envs,
    check_single,
)
from envs.testing.lifecycle import check_close, check_spec
from envs.testing.outputs import check_infos, check_outputs, check_spaces
from envs.testing.ownership import check_actions, check_aliasing, check_options
from envs.testing.records import AnyVectorEnv
from envs.testing.restarts import check_autoreset, check_reset_mask
from envs.testing.subject import Subject
from learned_opt.errors import require, unknown_name


def check_vector_env(
    make_vector: Callable[..., AnyVectorEnv],
    make_single: Callable[[], gym.Env[Any, Any]] | None = None,
    *,
    num_envs: int = 5,
    num_steps: int = 50,
    seed: int = 0,
    tolerance: float = 0.0,
    autoreset_modes: Sequence[str] = ("NextStep", "SameStep", "Disabled"),
    skip: Collection[str] = (),
) -> None:
    """Check a vector environment, of this package or any other, against what gymnasium promises.

    What is checked, under the names that `skip` takes:

    - ``spaces``: the batch spaces are those of `num_envs` single ones; the autoreset mode is told.
    - ``outputs``: types, dtypes, shapes; everything in its space; rewards finite.
    - ``infos``: every entry has a boolean mask ``_key``, every array one row per lane.
    - ``determinism``: a seed names a trajectory.
    - ``actions``: actions are not modified; ``options``: nor are options.
    - ``aliasing``: returned arrays share no memory with those of other calls or with the
      environment's own, so that callers may keep or overwrite them, and their actions too.
    - ``autoreset``: all modes go through the same episodes, ``final_obs`` and its mask are right;
      rows that only reset have reward 0 and no flags.
    - ``lane_independence``: a lane does not notice the actions of others, and permuting the lanes'
      seeds and actions permutes what comes back.
    - ``num_envs``: a lane does not notice how many others there are.
    - ``single``: lane ``i`` is the single environment with seed ``seed + i``, in all its episodes.
    - ``reset_mask``: a partial reset starts the next episode of the lanes in the mask alone.
    - ``spec``: the `EnvSpec`, if there is one, makes the same environment again after a round trip
      through JSON.
    - ``close``: closing twice is allowed.

    Actions are sampled from the action space, equal for equal lanes. Some episode should end within
    `num_steps`: make environments with a small ``max_episode_steps``.

    Args:
        make_vector: called with the keywords ``num_envs`` and ``autoreset_mode`` (the value of a
            `gymnasium.vector.AutoresetMode`, a string, so that specs stay JSON-able).
        make_single: makes the single environment, its time limit included; None leaves out
            ``single``.
        num_envs: number of lanes, at least 2.
        num_steps: steps of a trajectory.
        seed: of environments and actions.
        tolerance: largest absolute and relative difference of observations and rewards where
            batches of different shape are compared; 0 asks for equal bits.
        autoreset_modes: what the environment supports.
        skip: names of checks to leave out.

    Raises:
        AssertionError: if a check fails; one sentence that starts with its name.
        LearnedOptError: if an argument of this function is out of range.

    Examples:
        >>> from functools import partial
        >>> make = {"id": "LearnedOpt/HyperControl-v0", "max_episode_steps": 4, "num_instances": 8}
        >>> check_vector_env(
        ...     partial(gym.make_vec, **make), partial(gym.make, **make), num_steps=9
        ... )
    """
    require(num_envs >= 2, f"num_envs must be at least 2, got {num_envs}")
    require(num_steps >= 1, f"num_steps must be positive, got {num_steps}")
    require(tolerance >= 0, f"tolerance must not be negative, got {tolerance}")
    known = [mode.value for mode in AutoresetMode]
    for mode in autoreset_modes:
        if mode not in known:
            raise unknown_name("autoreset mode", mode, known)
    require(len(autoreset_modes) >= 1, "autoreset_modes must name at least one mode, got none")
    for name in skip:
        if name not in _CHECKS:
            raise unknown_name("check", name, _CHECKS)
    subject = Subject(
        make_vector=make_vector,
        make_single=make_single,
        num_envs=num_envs,
        num_steps=num_steps,
        seed=seed,
        tolerance=tolerance,
        modes=tuple(autoreset_modes),
    )
    for name, check in _CHECKS.items():
        if name in skip:
            continue
        try:
            check(subject)
        except Violation as violation:
            raise AssertionError(f"{name}: {violation}") from None
        except Exception as error:
            raise AssertionError(f"{name}: raised {type(error).__name__}: {error}") from error


_CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "spaces": check_spaces,
    "outputs": check_outputs,
    "infos": check_infos,
    "determinism": check_determinism,
    "actions": check_actions,
    "options": check_options,
    "aliasing": check_aliasing,
    "autoreset": check_autoreset,
    "lane_independence": check_lane_independence,
    "num_envs": check_num_envs,
    "single": check_single,
    "reset_mask": check_reset_mask,
    "spec": check_spec,
    "close": check_close,
}
