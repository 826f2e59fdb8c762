"""Checks of how an environment is made and closed."""

from __future__ import annotations

import copy
from contextlib import closing

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from envs.testing.comparing import demand
from envs.testing.records import demand_equal, record_single
from envs.testing.subject import Subject


def check_spec(subject: Subject) -> None:
    """Specs make the same environments again after a round trip through JSON."""
    with closing(subject.vector()) as env:
        # Wrappers are not part of a vector environment's spec.
        spec = env.unwrapped.spec
    if spec is not None:
        text = spec.to_json()
        demand(EnvSpec.from_json(text).to_json() == text, "the vector spec changes in a round trip")
        first = subject.events(subject.vector().unwrapped)
        again = subject.events(gym.make_vec(EnvSpec.from_json(text)))
        for lane in range(subject.num_envs):
            demand_equal(again[lane], first[lane], what=f"lane {lane} made from JSON")
    if subject.make_single is None:
        return
    with closing(subject.make_single()) as single:
        if single.spec is None:
            return
        text, seed, n = single.spec.to_json(), subject.seed, subject.num_steps
        space = copy.deepcopy(single.action_space)
        space.seed(seed)
        actions = [space.sample() for _ in range(n)]
        first_single = record_single(single, actions, seed=seed, num_events=n)
        with closing(gym.make(EnvSpec.from_json(text))) as made:
            demand_equal(
                record_single(made, actions, seed=seed, num_events=n),
                first_single,
                what="the single environment made from JSON",
            )


def check_close(subject: Subject) -> None:
    """Closing twice is allowed."""
    env = subject.vector()
    env.reset(seed=subject.seed)
    env.close()
    env.close()
