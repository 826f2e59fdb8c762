"""A checker for vector environments, what `gymnasium.utils.env_checker` is for single ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from learned_opt.errors import require, unknown_name

AnyVectorEnv: TypeAlias = VectorEnv[Any, Any, Any]
"""A vector environment, whatever its spaces."""


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
    subject = _Subject(
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
        except _Violation as violation:
            raise AssertionError(f"{name}: {violation}") from None
        except Exception as error:
            raise AssertionError(f"{name}: raised {type(error).__name__}: {error}") from error


class _Violation(Exception):
    """What a check found."""


def _demand(condition: object, message: str) -> None:
    if not condition:
        raise _Violation(message)


Seeds: TypeAlias = "int | list[int]"
Actions: TypeAlias = list[list[Any]]
"""For each lane, the actions of its real steps."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is checked, and how hard."""

    make_vector: Callable[..., AnyVectorEnv]
    make_single: Callable[[], gym.Env[Any, Any]] | None
    num_envs: int
    num_steps: int
    seed: int
    tolerance: float
    modes: tuple[str, ...]

    def vector(self, num_envs: int | None = None, mode: str | None = None) -> AnyVectorEnv:
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

    def events(self, env: AnyVectorEnv, *, variant: int = 0) -> list[list[_Event]]:
        """A plain trajectory; closes the environment."""
        with closing(env):
            return _play(env, self.actions(env, variant=variant), seed=self.seed)


class _Event(NamedTuple):
    """A step of one lane, or the start of an episode (then without a reward)."""

    observation: Any
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False


class _Call(NamedTuple):
    """What one call of reset or step was given and gave back, uncopied."""

    source: str
    observations: Any
    infos: dict[str, Any]
    rewards: Any = None
    terminations: Any = None
    truncations: Any = None
    actions: Any = None
    intended: Any = None


def _play(
    env: AnyVectorEnv,
    actions: Actions,
    *,
    seed: Seeds,
    inspect: Callable[[_Call], None] = lambda _: None,
) -> list[list[_Event]]:
    """Step through episodes in any autoreset mode and tell what happened in each lane."""
    mode = AutoresetMode(env.metadata["autoreset_mode"])
    observations, infos = env.reset(seed=seed)  # type: ignore[arg-type]
    events = [[_Event(row)] for row in _rows(env, observations)]
    inspect(_Call("reset", observations, infos))
    num_steps = len(actions[0])
    taken, ended = np.zeros(env.num_envs, int), np.zeros(env.num_envs, bool)
    for number in range(1, num_steps + 1):
        intended = _batch(env, [lane[k] for lane, k in zip(actions, taken, strict=True)])
        given = copy.deepcopy(intended)
        returned = env.step(given)
        observations, rewards, terminations, truncations, infos = returned
        rows, done = _rows(env, observations), np.array(terminations) | np.array(truncations)
        for lane in range(env.num_envs):
            if mode is AutoresetMode.NEXT_STEP and ended[lane]:
                events[lane].append(_Event(rows[lane]))
                continue
            flags = bool(terminations[lane]), bool(truncations[lane])
            step = _Event(rows[lane], float(rewards[lane]), *flags)
            taken[lane] += 1
            if mode is AutoresetMode.SAME_STEP and done[lane]:
                last = copy.deepcopy(infos["final_obs"][lane]) if "final_obs" in infos else None
                events[lane] += [step._replace(observation=last), _Event(rows[lane])]
            else:
                events[lane].append(step)
        inspect(_Call(f"step {number}", *_reorder(returned), given, intended))
        if mode is AutoresetMode.DISABLED and done.any():
            observations, infos = env.reset(options={"reset_mask": done.copy()})
            rows = _rows(env, observations)
            for lane in np.flatnonzero(done).tolist():
                events[lane].append(_Event(rows[lane]))
            inspect(_Call(f"the reset after step {number}", observations, infos))
        ended = done
    return events


def _reorder(returned: tuple[Any, Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
    observations, rewards, terminations, truncations, infos = returned
    return observations, infos, rewards, terminations, truncations


def _play_single(
    env: gym.Env[Any, Any], actions: list[Any], *, seed: int, num_events: int
) -> list[_Event]:
    """The events of one single environment, as `_play` tells them."""
    events = [_Event(copy.deepcopy(env.reset(seed=seed)[0]))]
    remaining = iter(actions)
    while len(events) < num_events:
        if events[-1].terminated or events[-1].truncated:
            events.append(_Event(copy.deepcopy(env.reset()[0])))
            continue
        observation, reward, terminated, truncated, _ = env.step(next(remaining))
        events.append(
            _Event(copy.deepcopy(observation), float(reward), bool(terminated), bool(truncated))
        )
    return events


def _rows(env: AnyVectorEnv, observations: Any) -> list[Any]:
    """One observation per lane, copied."""
    rows = [copy.deepcopy(row) for row in iterate(env.observation_space, observations)]
    _demand(
        len(rows) == env.num_envs, f"observations hold {len(rows)} rows for {env.num_envs} lanes"
    )
    return rows


def _batch(env: AnyVectorEnv, actions: list[Any]) -> Any:
    space = env.single_action_space
    empty: Any = create_empty_array(space, n=len(actions))
    return concatenate(space, actions, empty)


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """All arrays in nested dictionaries, tuples and object arrays."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(value, f"{name}[{key!r}]")
    elif isinstance(data, (tuple, list)) or (isinstance(data, np.ndarray) and data.dtype == object):
        if isinstance(data, np.ndarray):
            yield name, data
        for position, value in enumerate(data):
            yield from _leaves(value, f"{name}[{position}]")
    elif isinstance(data, np.ndarray):
        yield name, data


def _equal(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(
            _equal(found[key], expected[key], tolerance) for key in expected
        )
    if isinstance(expected, (tuple, list)):
        return len(found) == len(expected) and all(
            _equal(a, b, tolerance) for a, b in zip(found, expected, strict=True)
        )
    if expected is None or isinstance(expected, (str, bool)):
        return type(found) is type(expected) and bool(found == expected)
    a, b = np.asarray(found), np.asarray(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if tolerance and np.issubdtype(b.dtype, np.inexact):
        return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))
    return bool(np.array_equal(a, b, equal_nan=np.issubdtype(b.dtype, np.inexact)))


def _demand_equal(
    found: list[_Event], expected: list[_Event], *, what: str, tolerance: float = 0.0
) -> None:
    """Equal as far as both go."""
    for number, (a, b) in enumerate(zip(found, expected, strict=False)):
        for field in _Event._fields:
            ours, theirs = getattr(a, field), getattr(b, field)
            shown = "" if field == "observation" else f" ({ours} instead of {theirs})"
            _demand(
                _equal(ours, theirs, tolerance),
                f"{what}: the {field} of its event {number} differs{shown}",
            )


def _spaces(subject: _Subject) -> None:
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:
            n = subject.num_envs
            _demand(isinstance(env, VectorEnv), f"{type(env).__name__} is not a VectorEnv")
            _demand(env.num_envs == n, f"num_envs is {env.num_envs} where {n} were asked for")
            for kind in ("observation", "action"):
                single = getattr(env, f"single_{kind}_space")
                batched = getattr(env, f"{kind}_space")
                _demand(
                    batched == batch_space(single, n),
                    f"{kind}_space is not single_{kind}_space batched {n} times",
                )
            told = env.metadata.get("autoreset_mode")
            _demand(
                isinstance(told, AutoresetMode) and told.value == mode,
                f"metadata['autoreset_mode'] is {told} where {mode} was asked for",
            )


def _outputs(subject: _Subject) -> None:
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:

            def inspect(call: _Call, env: AnyVectorEnv = env) -> None:
                _demand_observations(env, call)
                if call.rewards is None:
                    return
                for name in ("rewards", "terminations", "truncations"):
                    value = getattr(call, name)
                    kind = np.floating if name == "rewards" else np.bool_
                    _demand(
                        isinstance(value, np.ndarray)
                        and value.shape == (env.num_envs,)
                        and np.issubdtype(value.dtype, kind),
                        f"{name} of {call.source} are not {env.num_envs} numbers of type "
                        f"{kind.__name__}",
                    )
                _demand(
                    np.isfinite(call.rewards).all(), f"rewards of {call.source} are not all finite"
                )

            _play(env, subject.actions(env), seed=subject.seed, inspect=inspect)


def _demand_observations(env: AnyVectorEnv, call: _Call) -> None:
    like = create_empty_array(env.single_observation_space, n=env.num_envs)
    found, expected = dict(_leaves(call.observations)), dict(_leaves(like))
    _demand(
        found.keys() == expected.keys(),
        f"observations of {call.source} hold arrays {sorted(found)} instead of {sorted(expected)}",
    )
    for name, array in expected.items():
        _demand(
            found[name].dtype == array.dtype and found[name].shape == array.shape,
            f"observations{name} of {call.source} are {found[name].dtype} of {found[name].shape}, "
            f"not {array.dtype} of {array.shape}",
        )
    _demand(
        call.observations in env.observation_space,
        f"observations of {call.source} lie outside the observation space",
    )


def _infos(subject: _Subject) -> None:
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:

            def inspect(call: _Call, n: int = env.num_envs) -> None:
                _demand(isinstance(call.infos, dict), f"infos of {call.source} are not a dict")
                _demand_masks(call.infos, n, call.source)

            _play(env, subject.actions(env), seed=subject.seed, inspect=inspect)


def _demand_masks(infos: Mapping[str, Any], num_envs: int, source: str) -> None:
    for key, value in infos.items():
        if key.startswith("_"):
            _demand(key[1:] in infos, f"infos of {source} hold a mask {key} without {key[1:]}")
            continue
        mask = infos.get(f"_{key}")
        _demand(mask is not None, f"infos of {source} hold {key} without its mask _{key}")
        _demand(
            isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (num_envs,),
            f"the mask _{key} in the infos of {source} is not {num_envs} booleans",
        )
        if isinstance(value, np.ndarray) and value.dtype == object:
            _demand(
                value.shape == (num_envs,)
                and [row is not None for row in value] == np.asarray(mask).tolist(),
                f"{key} in the infos of {source} is not there exactly where its mask says",
            )
            continue
        for name, array in _leaves(value):
            _demand(
                len(array.shape) >= 1 and len(array) == num_envs,
                f"{key}{name} in the infos of {source} has the shape {array.shape} and not one "
                f"row for each of {num_envs} lanes",
            )


def _determinism(subject: _Subject) -> None:
    first, second = (subject.events(subject.vector()) for _ in range(2))
    with closing(subject.vector()) as env:
        _play(env, subject.actions(env, variant=1), seed=subject.seed + 17)
        again = _play(env, subject.actions(env), seed=subject.seed)
    for lane in range(subject.num_envs):
        _demand_equal(second[lane], first[lane], what=f"lane {lane} of another copy, same seed")
        _demand_equal(again[lane], first[lane], what=f"lane {lane} after other use, same seed")


def _actions(subject: _Subject) -> None:
    def inspect(call: _Call) -> None:
        _demand(
            _equal(call.actions, call.intended, 0.0), f"{call.source} modified the actions given"
        )

    with closing(subject.vector()) as env:
        _play(env, subject.actions(env), seed=subject.seed, inspect=inspect)


def _options(subject: _Subject) -> None:
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
            _demand(_equal(options, before, 0.0), f"reset modified the options {sorted(before)}")


def _aliasing(subject: _Subject) -> None:
    for mode in subject.modes:
        clean = subject.events(subject.vector(mode=mode))
        with closing(subject.vector(mode=mode)) as env:
            calls: list[_Call] = []
            _play(
                env, [a[:6] for a in subject.actions(env)], seed=subject.seed, inspect=calls.append
            )
            for number, late in enumerate(calls):
                for early in calls[:number]:
                    _demand_apart(early, late)
        with closing(subject.vector(mode=mode)) as env:
            actions = subject.actions(env)
            spoiled = _play(env, actions, seed=subject.seed, inspect=_overwrite)
        for lane in range(subject.num_envs):
            _demand_equal(
                spoiled[lane],
                clean[lane],
                what=f"overwriting returned arrays and given actions changed lane {lane}",
            )


def _returned(call: _Call) -> dict[str, NDArray[Any]]:
    names = ("observations", "rewards", "terminations", "truncations", "infos")
    return dict(_leaves({name: getattr(call, name) for name in names}))


def _demand_apart(early: _Call, late: _Call) -> None:
    for name_a, a in _returned(early).items():
        for name_b, b in _returned(late).items():
            _demand(
                not np.shares_memory(a, b),
                f"{name_a} of {early.source} and {name_b} of {late.source} share memory",
            )


def _overwrite(call: _Call) -> None:
    """Spoil everything that was handed out or in."""
    for array in (*_returned(call).values(), *(a for _, a in _leaves(call.actions))):
        if not array.flags.writeable:
            continue
        if array.dtype == object:
            array[:] = None
        elif array.dtype == bool:
            array[:] = ~array
        else:
            array[...] = 113


def _lane_independence(subject: _Subject) -> None:
    reference = subject.events(subject.vector())
    for lane in range(subject.num_envs):
        with closing(subject.vector()) as env:
            actions = subject.actions(env, variant=1)
            actions[lane] = subject.actions(env)[lane]
            found = _play(env, actions, seed=subject.seed)
        _demand_equal(found[lane], reference[lane], what=f"lane {lane} noticed others' actions")
    order = np.roll(np.arange(subject.num_envs), 1).tolist()
    with closing(subject.vector()) as env:
        actions = subject.actions(env)
        seeds = [subject.seed + lane for lane in order]
        found = _play(env, [actions[lane] for lane in order], seed=seeds)
    for place, lane in enumerate(order):
        _demand_equal(
            found[place],
            reference[lane],
            what=f"seed and actions of lane {lane} gave something else in lane {place}",
            tolerance=subject.tolerance,
        )


def _num_envs(subject: _Subject) -> None:
    reference = subject.events(subject.vector())
    for n in (1, subject.num_envs + 2):
        found = subject.events(subject.vector(num_envs=n))
        for lane in range(min(n, subject.num_envs)):
            _demand_equal(
                found[lane],
                reference[lane],
                what=f"lane {lane} of {n} is not lane {lane} of {subject.num_envs}",
                tolerance=subject.tolerance,
            )


def _single(subject: _Subject) -> None:
    if subject.make_single is None:
        return
    with closing(subject.vector()) as env, closing(subject.make_single()) as one:
        for kind in ("observation", "action"):
            _demand(
                getattr(env, f"single_{kind}_space") == getattr(one, f"{kind}_space"),
                f"single_{kind}_space is not the single environment's {kind}_space",
            )
        actions = subject.actions(env)
        lanes = _play(env, actions, seed=subject.seed)
        for lane, found in enumerate(lanes):
            expected = _play_single(
                one, actions[lane], seed=subject.seed + lane, num_events=len(found)
            )
            _demand_equal(
                found,
                expected,
                what=f"lane {lane} is not the single environment of seed {subject.seed + lane}",
                tolerance=subject.tolerance,
            )


def _autoreset(subject: _Subject) -> None:
    lanes = {}
    for mode in subject.modes:
        with closing(subject.vector(mode=mode)) as env:
            inspect = _RestartRules(AutoresetMode(mode), subject.num_envs)
            lanes[mode] = _play(env, subject.actions(env), seed=subject.seed, inspect=inspect)
    reference = lanes[subject.modes[0]]
    starts = sum(event.reward is None for lane in reference for event in lane)
    _demand(
        starts > subject.num_envs,
        f"no episode ended within {subject.num_steps} steps, so nothing was restarted",
    )
    for mode, found in lanes.items():
        for lane in range(subject.num_envs):
            _demand_equal(
                found[lane],
                reference[lane],
                what=f"lane {lane} in mode {mode} differs from mode {subject.modes[0]}",
                tolerance=subject.tolerance,
            )


class _RestartRules:
    """Looks at the rows of lanes that ended, call by call."""

    def __init__(self, mode: AutoresetMode, num_envs: int) -> None:
        self.mode, self.num_envs = mode, num_envs
        self.ended = np.zeros(num_envs, bool)

    def __call__(self, call: _Call) -> None:
        if call.rewards is None:
            return
        done = call.terminations | call.truncations
        if self.mode is AutoresetMode.NEXT_STEP:
            for lane in np.flatnonzero(self.ended):
                _demand(
                    call.rewards[lane] == 0 and not done[lane],
                    f"lane {lane} restarted in {call.source} with reward {call.rewards[lane]} and "
                    f"{'a' if done[lane] else 'no'} flag instead of 0 and none",
                )
        elif self.mode is AutoresetMode.SAME_STEP:
            none = np.zeros(self.num_envs, bool)
            _demand(
                np.array_equal(call.infos.get("_final_obs", none), done),
                f"_final_obs of {call.source} is not where lanes ended",
            )
        self.ended = done


def _reset_mask(subject: _Subject) -> None:
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
        first = _batch(env, [lane[0] for lane in actions])
        second = _batch(env, [lane[-1] for lane in actions])
        seen, done = [], np.zeros(subject.num_envs, bool)
        for copied in (env, untouched, restarted):
            copied.reset(seed=subject.seed)
            given = copy.deepcopy(first)
            returned = copied.step(given)
            seen.append(_rows(env, returned[0]))
            done = np.array(returned[2]) | np.array(returned[3])
            # Untouched lanes are told once more below: not from the arrays handed out here.
            _overwrite(_Call("step 1", *_reorder(returned), given))
        for seed in (None, subject.seed + 100):
            found = _rows(env, env.reset(seed=seed, options={"reset_mask": mask.copy()})[0])
            fresh = _rows(env, restarted.reset(seed=seed)[0])
            for lane in range(subject.num_envs):
                expected, rule = (
                    (fresh, "did not start its next episode")
                    if mask[lane]
                    else (seen[0], "was touched by a reset of others")
                )
                _demand(
                    _equal(found[lane], expected[lane], subject.tolerance), f"lane {lane} {rule}"
                )
        after = [
            _rows(env, each.step(copy.deepcopy(second))[0]) for each in (env, untouched, restarted)
        ]
        for lane in range(subject.num_envs):
            if done[lane] and not mask[lane]:
                continue
            _demand(
                _equal(after[0][lane], after[2 if mask[lane] else 1][lane], subject.tolerance),
                f"lane {lane} went on differently after a partial reset",
            )


def _spec(subject: _Subject) -> None:
    with closing(subject.vector()) as env:
        # Wrappers are not part of a vector environment's spec.
        spec = env.unwrapped.spec
    if spec is not None:
        text = spec.to_json()
        _demand(
            EnvSpec.from_json(text).to_json() == text, "the vector spec changes in a round trip"
        )
        first = subject.events(subject.vector().unwrapped)
        again = subject.events(gym.make_vec(EnvSpec.from_json(text)))
        for lane in range(subject.num_envs):
            _demand_equal(again[lane], first[lane], what=f"lane {lane} made from JSON")
    if subject.make_single is None:
        return
    with closing(subject.make_single()) as single:
        if single.spec is None:
            return
        text, seed, n = single.spec.to_json(), subject.seed, subject.num_steps
        space = copy.deepcopy(single.action_space)
        space.seed(seed)
        actions = [space.sample() for _ in range(n)]
        first_single = _play_single(single, actions, seed=seed, num_events=n)
        with closing(gym.make(EnvSpec.from_json(text))) as made:
            _demand_equal(
                _play_single(made, actions, seed=seed, num_events=n),
                first_single,
                what="the single environment made from JSON",
            )


def _close(subject: _Subject) -> None:
    env = subject.vector()
    env.reset(seed=subject.seed)
    env.close()
    env.close()


_CHECKS: Mapping[str, Callable[[_Subject], None]] = {
    "spaces": _spaces,
    "outputs": _outputs,
    "infos": _infos,
    "determinism": _determinism,
    "actions": _actions,
    "options": _options,
    "aliasing": _aliasing,
    "autoreset": _autoreset,
    "lane_independence": _lane_independence,
    "num_envs": _num_envs,
    "single": _single,
    "reset_mask": _reset_mask,
    "spec": _spec,
    "close": _close,
}
