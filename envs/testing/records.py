"""What happens when a vector environment is played: events of each lane, and calls as they came."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from envs.testing.comparing import demand, is_equal, leaves

AnyVectorEnv: TypeAlias = VectorEnv[Any, Any, Any]
"""A vector environment, whatever its spaces."""

Actions: TypeAlias = list[list[Any]]
"""For each lane, the actions of its real steps."""


class Event(NamedTuple):
    """A step of one lane, or the start of an episode (then without a reward)."""

    observation: Any
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False


class Call(NamedTuple):
    """What one call of reset or step was given and gave back, uncopied."""

    source: str
    observations: Any
    infos: dict[str, Any]
    rewards: Any = None
    terminations: Any = None
    truncations: Any = None
    actions: Any = None
    intended: Any = None


def record_lanes(
    env: AnyVectorEnv,
    actions: Actions,
    *,
    seed: int | list[int],
    inspect: Callable[[Call], None] = lambda _: None,
) -> list[list[Event]]:
    """Step through episodes in any autoreset mode and tell what happened in each lane.

    Args:
        env: a vector environment; reset here.
        actions: for each lane; steps that only restart a lane use up none.
        seed: of the lanes, as `reset` takes it.
        inspect: called with each call of reset or step.

    Returns:
        For each lane its events, equal in all modes.
    """
    mode = AutoresetMode(env.metadata["autoreset_mode"])
    observations, infos = env.reset(seed=seed)  # type: ignore[arg-type]
    events = [[Event(row)] for row in rows_of(env, observations)]
    inspect(Call("reset", observations, infos))
    num_steps = len(actions[0])
    taken, ended = np.zeros(env.num_envs, int), np.zeros(env.num_envs, bool)
    for number in range(1, num_steps + 1):
        intended = batch(env, [lane[k] for lane, k in zip(actions, taken, strict=True)])
        given = copy.deepcopy(intended)
        returned = env.step(given)
        observations, rewards, terminations, truncations, infos = returned
        rows, done = rows_of(env, observations), np.array(terminations) | np.array(truncations)
        for lane in range(env.num_envs):
            if mode is AutoresetMode.NEXT_STEP and ended[lane]:
                events[lane].append(Event(rows[lane]))
                continue
            flags = bool(terminations[lane]), bool(truncations[lane])
            step = Event(rows[lane], float(rewards[lane]), *flags)
            taken[lane] += 1
            if mode is AutoresetMode.SAME_STEP and done[lane]:
                last = copy.deepcopy(infos["final_obs"][lane]) if "final_obs" in infos else None
                events[lane] += [step._replace(observation=last), Event(rows[lane])]
            else:
                events[lane].append(step)
        inspect(Call(f"step {number}", *reorder(returned), given, intended))
        if mode is AutoresetMode.DISABLED and done.any():
            observations, infos = env.reset(options={"reset_mask": done.copy()})
            rows = rows_of(env, observations)
            for lane in np.flatnonzero(done).tolist():
                events[lane].append(Event(rows[lane]))
            inspect(Call(f"the reset after step {number}", observations, infos))
        ended = done
    return events


def record_single(
    env: gym.Env[Any, Any], actions: list[Any], *, seed: int, num_events: int
) -> list[Event]:
    """The events of one single environment, as `record_lanes` tells them.

    Args:
        env: a single environment; reset here.
        actions: of its steps.
        seed: of its first episode; the others follow by resets without one.
        num_events: where to end.

    Returns:
        Its events.
    """
    events = [Event(copy.deepcopy(env.reset(seed=seed)[0]))]
    remaining = iter(actions)
    while len(events) < num_events:
        if events[-1].terminated or events[-1].truncated:
            events.append(Event(copy.deepcopy(env.reset()[0])))
            continue
        observation, reward, terminated, truncated, _ = env.step(next(remaining))
        events.append(
            Event(copy.deepcopy(observation), float(reward), bool(terminated), bool(truncated))
        )
    return events


def demand_equal(
    found: list[Event], expected: list[Event], *, what: str, tolerance: float = 0.0
) -> None:
    """Demand that two lanes went through the same, as far as both go.

    Args:
        found: events of one lane.
        expected: events of the other.
        what: names the pair in the message.
        tolerance: see `is_equal`.

    Raises:
        Violation: if an event differs.
    """
    for number, (a, b) in enumerate(zip(found, expected, strict=False)):
        for field in Event._fields:
            ours, theirs = getattr(a, field), getattr(b, field)
            shown = "" if field == "observation" else f" ({ours} instead of {theirs})"
            demand(
                is_equal(ours, theirs, tolerance),
                f"{what}: the {field} of its event {number} differs{shown}",
            )


def rows_of(env: AnyVectorEnv, observations: Any) -> list[Any]:
    """One observation per lane, copied."""
    rows = [copy.deepcopy(row) for row in iterate(env.observation_space, observations)]
    demand(
        len(rows) == env.num_envs, f"observations hold {len(rows)} rows for {env.num_envs} lanes"
    )
    return rows


def batch(env: AnyVectorEnv, actions: list[Any]) -> Any:
    """Actions of single lanes as one batch."""
    space = env.single_action_space
    empty: Any = create_empty_array(space, n=len(actions))
    return concatenate(space, actions, empty)


def reorder(returned: tuple[Any, Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
    """What step returned, in the order of `Call`."""
    observations, rewards, terminations, truncations, infos = returned
    return observations, infos, rewards, terminations, truncations


def overwrite(call: Call) -> None:
    """Spoil everything that was handed out or in."""
    for array in (*returned_arrays(call).values(), *(a for _, a in leaves(call.actions))):
        if not array.flags.writeable:
            continue
        if array.dtype == object:
            array[:] = None
        elif array.dtype == bool:
            array[:] = ~array
        else:
            array[...] = 113


def returned_arrays(call: Call) -> dict[str, NDArray[Any]]:
    """All arrays that a call gave back."""
    names = ("observations", "rewards", "terminations", "truncations", "infos")
    return dict(leaves({name: getattr(call, name) for name in names}))
