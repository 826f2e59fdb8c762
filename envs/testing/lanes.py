"""Checks of lanes: each is a function of its own seed and actions alone."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from envs.testing.comparing import demand
from envs.testing.records import demand_equal, record_lanes, record_single
from envs.testing.subject import Subject


def check_determinism(subject: Subject) -> None:
    """A seed names a trajectory."""
    first, second = (subject.events(subject.vector()) for _ in range(2))
    with closing(subject.vector()) as env:
        record_lanes(env, subject.actions(env, variant=1), seed=subject.seed + 17)
        again = record_lanes(env, subject.actions(env), seed=subject.seed)
    for lane in range(subject.num_envs):
        demand_equal(second[lane], first[lane], what=f"lane {lane} of another copy, same seed")
        demand_equal(again[lane], first[lane], what=f"lane {lane} after other use, same seed")


def check_lane_independence(subject: Subject) -> None:
    """A lane notices neither the actions of others nor its place among them."""
    reference = subject.events(subject.vector())
    for lane in range(subject.num_envs):
        with closing(subject.vector()) as env:
            actions = subject.actions(env, variant=1)
            actions[lane] = subject.actions(env)[lane]
            found = record_lanes(env, actions, seed=subject.seed)
        demand_equal(found[lane], reference[lane], what=f"lane {lane} noticed others' actions")
    order = np.roll(np.arange(subject.num_envs), 1).tolist()
    with closing(subject.vector()) as env:
        actions = subject.actions(env)
        seeds = [subject.seed + lane for lane in order]
        found = record_lanes(env, [actions[lane] for lane in order], seed=seeds)
    for place, lane in enumerate(order):
        demand_equal(
            found[place],
            reference[lane],
            what=f"seed and actions of lane {lane} gave something else in lane {place}",
            tolerance=subject.tolerance,
        )


def check_num_envs(subject: Subject) -> None:
    """A lane does not notice how many others there are."""
    reference = subject.events(subject.vector())
    for n in (1, subject.num_envs + 2):
        found = subject.events(subject.vector(num_envs=n))
        for lane in range(min(n, subject.num_envs)):
            demand_equal(
                found[lane],
                reference[lane],
                what=f"lane {lane} of {n} is not lane {lane} of {subject.num_envs}",
                tolerance=subject.tolerance,
            )


def check_single(subject: Subject) -> None:
    """Lanes are the single environments of their seeds, in all their episodes."""
    if subject.make_single is None:
        return
    with closing(subject.vector()) as env, closing(subject.make_single()) as one:
        for kind in ("observation", "action"):
            demand(
                getattr(env, f"single_{kind}_space") == getattr(one, f"{kind}_space"),
                f"single_{kind}_space is not the single environment's {kind}_space",
            )
        actions = subject.actions(env)
        lanes = record_lanes(env, actions, seed=subject.seed)
        for lane, found in enumerate(lanes):
            expected = record_single(
                one, actions[lane], seed=subject.seed + lane, num_events=len(found)
            )
            demand_equal(
                found,
                expected,
                what=f"lane {lane} is not the single environment of seed {subject.seed + lane}",
                tolerance=subject.tolerance,
            )
