"""Checks of whose an array is: neither side may write into what the other one keeps."""

from __future__ import annotations

import copy
from contextlib import closing
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from envs.testing.comparing import demand, is_equal
from envs.testing.records import Call, demand_equal, overwrite, record_lanes, returned_arrays
from envs.testing.subject import Subject


def check_actions(subject: Subject) -> None:
    """Actions are left as they were given."""

    def inspect(call: Call) -> None:
        demand(
            is_equal(call.actions, call.intended, 0.0), f"{call.source} modified the actions given"
        )

    with closing(subject.vector()) as env:
        record_lanes(env, subject.actions(env), seed=subject.seed, inspect=inspect)


def check_options(subject: Subject) -> None:
    """Options are left as they were given."""
    masked = AutoresetMode.DISABLED.value
    mode = masked if masked in subject.modes else subject.modes[0]
    with closing(subject.vector(mode=mode)) as env:
        given: list[dict[str, Any]] = [{}]
        if mode == masked:
            given.append({"reset_mask": np.arange(subject.num_envs) % 2 == 0})
        for options in given:
            before = copy.deepcopy(options)
            env.reset(seed=subject.seed)
            env.reset(options=options)
            demand(is_equal(options, before, 0.0), f"reset modified the options {sorted(before)}")


def check_aliasing(subject: Subject) -> None:
    """Arrays share no memory with those of other calls or with the environment's own."""
    for mode in subject.modes:
        clean = subject.events(subject.vector(mode=mode))
        with closing(subject.vector(mode=mode)) as env:
            calls: list[Call] = []
            record_lanes(
                env, [a[:6] for a in subject.actions(env)], seed=subject.seed, inspect=calls.append
            )
            for number, late in enumerate(calls):
                for early in calls[:number]:
                    _demand_apart(early, late)
        with closing(subject.vector(mode=mode)) as env:
            actions = subject.actions(env)
            spoiled = record_lanes(env, actions, seed=subject.seed, inspect=overwrite)
        for lane in range(subject.num_envs):
            demand_equal(
                spoiled[lane],
                clean[lane],
                what=f"overwriting returned arrays and given actions changed lane {lane}",
            )


def _demand_apart(early: Call, late: Call) -> None:
    for name_a, a in returned_arrays(early).items():
        for name_b, b in returned_arrays(late).items():
            demand(
                not np.shares_memory(a, b),
                f"{name_a} of {early.source} and {name_b} of {late.source} share memory",
            )
