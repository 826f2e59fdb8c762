"""Checks of how lanes start anew: by themselves in the autoreset modes, or where a mask says so."""

from __future__ import annotations

import copy
from contextlib import closing

import numpy as np
from gymnasium.vector import AutoresetMode

from envs.testing.comparing import demand, is_equal
from envs.testing.records import (
    Call,
    batch,
    demand_equal,
    overwrite,
    record_lanes,
    reorder,
    rows_of,
)
from envs.testing.subject import Subject


def check_autoreset(subject: Subject) -> None:
    """All modes go through the same episodes and restart as gymnasium says."""
    lanes = {}
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:
            inspect = _RestartRules(AutoresetMode(mode), subject.num_envs)
            lanes[mode] = record_lanes(
                env, subject.actions(env), seed=subject.seed, inspect=inspect
            )
    reference = lanes[subject.modes[0]]
    starts = sum(event.reward is None for lane in reference for event in lane)
    demand(
        starts > subject.num_envs,
        f"no episode ended within {subject.num_steps} steps, so nothing was restarted",
    )
    for mode, found in lanes.items():
        for lane in range(subject.num_envs):
            demand_equal(
                found[lane],
                reference[lane],
                what=f"lane {lane} in mode {mode} differs from mode {subject.modes[0]}",
                tolerance=subject.tolerance,
            )


def check_reset_mask(subject: Subject) -> None:
    """A partial reset starts the next episodes of the lanes in the mask alone."""
    mode = AutoresetMode.DISABLED.value
    if mode not in subject.modes:
        return
    mask = np.arange(subject.num_envs) % 2 == 0
    with (
        closing(subject.vector(mode=mode)) as env,
        closing(subject.vector(mode=mode)) as untouched,
        closing(subject.vector(mode=mode)) as restarted,
    ):
        actions = subject.actions(env)
        first = batch(env, [lane[0] for lane in actions])
        second = batch(env, [lane[-1] for lane in actions])
        seen, done = [], np.zeros(subject.num_envs, bool)
        for copied in (env, untouched, restarted):
            copied.reset(seed=subject.seed)
            given = copy.deepcopy(first)
            returned = copied.step(given)
            seen.append(rows_of(env, returned[0]))
            done = np.array(returned[2]) | np.array(returned[3])
            # Untouched lanes are told once more below: not from the arrays handed out here.
            overwrite(Call("step 1", *reorder(returned), given))
        for seed in (None, subject.seed + 100):
            found = rows_of(env, env.reset(seed=seed, options={"reset_mask": mask.copy()})[0])
            fresh = rows_of(env, restarted.reset(seed=seed)[0])
            for lane in range(subject.num_envs):
                expected, rule = (
                    (fresh, "did not start its next episode")
                    if mask[lane]
                    else (seen[0], "was touched by a reset of others")
                )
                demand(
                    is_equal(found[lane], expected[lane], subject.tolerance), f"lane {lane} {rule}"
                )
        after = [
            rows_of(env, each.step(copy.deepcopy(second))[0])
            for each in (env, untouched, restarted)
        ]
        for lane in range(subject.num_envs):
            if done[lane] and not mask[lane]:
                continue
            demand(
                is_equal(after[0][lane], after[2 if mask[lane] else 1][lane], subject.tolerance),
                f"lane {lane} went on differently after a partial reset",
            )


class _RestartRules:
    """Looks at the rows of lanes that ended, call by call."""

    def __init__(self, mode: AutoresetMode, num_envs: int) -> None:
        self.mode, self.num_envs = mode, num_envs
        self.ended = np.zeros(num_envs, bool)

    def __call__(self, call: Call) -> None:
        if call.rewards is None:
            return
        done = call.terminations | call.truncations
        if self.mode is AutoresetMode.NEXT_STEP:
            for lane in np.flatnonzero(self.ended):
                demand(
                    call.rewards[lane] == 0 and not done[lane],
                    f"lane {lane} restarted in {call.source} with reward {call.rewards[lane]} and "
                    f"{'a' if done[lane] else 'no'} flag instead of 0 and none",
                )
        elif self.mode is AutoresetMode.SAME_STEP:
            none = np.zeros(self.num_envs, bool)
            demand(
                np.array_equal(call.infos.get("_final_obs", none), done),
                f"_final_obs of {call.source} is not where lanes ended",
            )
        self.ended = done
