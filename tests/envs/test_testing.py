"""`check_vector_env` passes what is right, and names what is broken."""

import itertools
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorWrapper

import envs  # noqa: F401
from envs.testing import check_vector_env
from learned_opt.errors import LearnedOptError

MADE = {
    "id": "LearnedOpt/HyperControl-v0",
    "max_episode_steps": 3,
    "num_instances": 4,
    "task_settings": {"dim": 2},
}
QUICK = {"num_envs": 2, "num_steps": 5}


class Broken(VectorWrapper):
    """Passes everything on; a subclass spoils one thing."""

    @property
    def mode(self):
        return self.env.metadata["autoreset_mode"]


def spoil_reward(function):
    """Rewards become ``function(rewards, env, actions)`` in rows that are not restarts."""

    class Spoiled(Broken):
        def step(self, actions):
            obs, rewards, terminations, truncations, infos = self.env.step(actions)
            changed = np.where(rewards != 0, function(rewards, self, np.asarray(actions)), rewards)
            return obs, changed, terminations, truncations, infos

    return Spoiled


def spoil_step(function):
    """What step returns becomes ``function(returned, env)``."""

    class Spoiled(Broken):
        def step(self, actions):
            return function(self.env.step(actions), self)

    return Spoiled


class WrongBatchSpace(Broken):
    @property
    def action_space(self):
        return Box(-1, 1, (self.num_envs + 1, 3))


class UntoldMode(Broken):
    @property
    def metadata(self):
        return {"render_modes": []}


class ChangesActions(Broken):
    def step(self, actions):
        returned = self.env.step(actions)
        actions[:] = 0
        return returned


class PopsMask(Broken):
    def reset(self, *, seed=None, options=None):
        mask = (options or {}).pop("reset_mask", None)
        inner = None if mask is None else {"reset_mask": mask}
        return self.env.reset(seed=seed, options=inner)


class OneBuffer(Broken):
    buffer = None

    def reset(self, *, seed=None, options=None):
        obs, infos = self.env.reset(seed=seed, options=options)
        self.buffer = obs.copy() if self.buffer is None else self.buffer
        self.buffer[:] = obs
        return self.buffer, infos

    def step(self, actions):
        obs, *rest = self.env.step(actions)
        self.buffer[:] = obs
        return self.buffer, *rest


class NeedsItsObservations(Broken):
    def reset(self, *, seed=None, options=None):
        obs, infos = self.env.reset(seed=seed, options=options)
        self.kept = obs
        return obs, infos

    def step(self, actions):
        obs, rewards, *rest = self.env.step(actions)
        rewards = np.where(rewards != 0, rewards + 0.01 * self.kept.sum(1), rewards)
        self.kept = obs
        return obs, rewards, *rest


class NeedsItsActions(Broken):
    kept = None

    def step(self, actions):
        obs, rewards, *rest = self.env.step(actions)
        if self.kept is not None:
            rewards = np.where(rewards != 0, rewards + 0.01 * self.kept.sum(1), rewards)
        self.kept = actions
        return obs, rewards, *rest

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.kept = None
        return self.env.reset(seed=seed, options=options)


class IgnoresMask(Broken):
    def reset(self, *, seed=None, options=None):
        del options
        return self.env.reset(seed=seed)


class ShowsOthersFresh(Broken):
    """The right lanes restart, but all rows of the answer come from new episodes."""

    def reset(self, *, seed=None, options=None):
        obs, infos = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        return (obs if mask is None else np.where(mask[:, None], obs, obs * 0.5)), infos


class ForgetsSpec(Broken):
    def __init__(self, env):
        super().__init__(env)
        env.unwrapped.spec.kwargs["task_settings"] = {"dim": 3}


class ClosesOnce(Broken):
    was_closed = False

    def close(self, **kwargs):
        if self.was_closed:
            raise RuntimeError("closed already")
        self.was_closed = True


class Raises(Broken):
    def step(self, actions):
        raise TypeError("no such thing")


def without_mask(returned, env):
    del env
    infos = {k: v for k, v in returned[4].items() if k != "_opt"}
    return (*returned[:4], infos)


def number_mask(returned, env):
    del env
    return (*returned[:4], {**returned[4], "_opt": np.ones(2)})


def short_info(returned, env):
    del env
    opt = {**returned[4]["opt"], "gap": np.zeros(1)}
    return (*returned[:4], {**returned[4], "opt": opt})


def orphan_mask(returned, env):
    return (*returned[:4], {**returned[4], "_lost": np.ones(env.num_envs, bool)})


def half_missing(returned, env):
    mask = np.ones(env.num_envs, bool)
    values = np.full(env.num_envs, None, dtype=object)
    return (*returned[:4], {**returned[4], "note": values, "_note": mask})


def wrong_final(returned, env):
    if env.mode is AutoresetMode.SAME_STEP and "final_obs" in returned[4]:
        finals = returned[4]["final_obs"]
        for lane in np.flatnonzero(returned[4]["_final_obs"]):
            finals[lane] = returned[0][lane].copy()
    return returned


def no_final(returned, env):
    del env
    drop = {"final_obs", "_final_obs"}
    return (*returned[:4], {k: v for k, v in returned[4].items() if k not in drop})


def paid_restart(returned, env):
    obs, rewards, *rest = returned
    if env.mode is AutoresetMode.NEXT_STEP:
        rewards = np.where(rewards == 0, 0.5, rewards)
    return obs, rewards, *rest


def flagged_restart(returned, env):
    obs, rewards, terminations, *rest = returned
    if env.mode is AutoresetMode.NEXT_STEP:
        terminations = terminations | (rewards == 0)
    return obs, rewards, terminations, *rest


def fewer_types(returned, env):
    del env
    return returned[0], returned[1].tolist(), *returned[2:]


CLOCK = itertools.count(1)

BROKEN = {
    "wrong batch space": ("spaces", "action_space is not", WrongBatchSpace),
    "untold mode": ("spaces", "autoreset_mode", UntoldMode),
    "reward list": ("outputs", "rewards of step 1 are not 2 numbers", spoil_step(fewer_types)),
    "int flags": (
        "outputs",
        "terminations of step 1 are not",
        spoil_step(lambda r, _: (*r[:2], r[2].astype(int), *r[3:])),
    ),
    "double observations": (
        "outputs",
        "are float64 of",
        spoil_step(lambda r, _: (r[0].astype(float), *r[1:])),
    ),
    "lost lane": (
        "outputs",
        "observations hold 1 rows for 2 lanes",
        spoil_step(lambda r, _: (r[0][:1], *r[1:])),
    ),
    "outside": (
        "outputs",
        "outside the observation space",
        spoil_step(lambda r, _: (r[0] + 99, *r[1:])),
    ),
    "nan reward": ("outputs", "not all finite", spoil_reward(lambda r, *_: r * np.nan)),
    "raises": ("outputs", "raised TypeError: no such thing", Raises),
    "no info mask": ("infos", "opt without its mask _opt", spoil_step(without_mask)),
    "number mask": ("infos", "mask _opt", spoil_step(number_mask)),
    "short info": ("infos", "opt['gap']", spoil_step(short_info)),
    "orphan mask": ("infos", "mask _lost without lost", spoil_step(orphan_mask)),
    "objects missing": ("infos", "not there exactly where", spoil_step(half_missing)),
    "clock": ("determinism", "same seed", spoil_reward(lambda r, *_: r + 1e-3 * next(CLOCK))),
    "changes actions": ("actions", "step 1 modified the actions", ChangesActions),
    "pops mask": ("options", "modified the options", PopsMask),
    "one buffer": ("aliasing", "share memory", OneBuffer),
    "needs observations": ("aliasing", "overwriting returned arrays", NeedsItsObservations),
    "needs actions": ("aliasing", "given actions changed lane", NeedsItsActions),
    "talks": (
        "lane_independence",
        "noticed others' actions",
        spoil_reward(lambda r, _, actions: r + actions.mean()),
    ),
    "lane number": (
        "lane_independence",
        "something else in lane",
        spoil_reward(lambda r, *_: r + np.arange(len(r))),
    ),
    "lane count": ("num_envs", "lane 0 of 1 is not", spoil_reward(lambda r, *_: r + len(r))),
    "another reward": ("single", "the reward of its event 1", spoil_reward(lambda r, *_: r * 1.01)),
    "fresh final_obs": ("autoreset", "mode SameStep", spoil_step(wrong_final)),
    "no final_obs": ("autoreset", "_final_obs", spoil_step(no_final)),
    "paid restart": ("autoreset", "with reward 0.5", spoil_step(paid_restart)),
    "flagged restart": ("autoreset", "and a flag", spoil_step(flagged_restart)),
    "mode matters": (
        "autoreset",
        "mode Disabled differs",
        spoil_reward(lambda r, env, _: r + (env.mode is AutoresetMode.DISABLED)),
    ),
    "ignores mask": ("reset_mask", "was touched by a reset of others", IgnoresMask),
    "shows others fresh": ("reset_mask", "was touched by a reset of others", ShowsOthersFresh),
    "forgets spec": ("spec", "made from JSON", ForgetsSpec),
    "closes once": ("close", "raised RuntimeError: closed already", ClosesOnce),
}


CHECKS = {check for check, *_ in BROKEN.values()}


@pytest.mark.parametrize("name", BROKEN)
def test_names_what_is_broken(name):
    check, message, wrapper = BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        check_vector_env(
            lambda **asked: wrapper(gym.make_vec(**MADE, **asked)),
            partial(gym.make, **MADE),
            skip=CHECKS - {check},
            **QUICK,
        )
    assert str(caught.value).startswith(f"{check}: ")
    assert message in str(caught.value)


def test_an_untouched_wrapper_passes():
    check_vector_env(
        lambda **asked: Broken(gym.make_vec(**MADE, **asked)), partial(gym.make, **MADE), **QUICK
    )


def test_tolerance_bounds_what_batches_of_another_shape_may_differ_by():
    nearly = spoil_reward(lambda r, *_: r * (1 + 1e-9 * len(r)))

    def check(tolerance):
        check_vector_env(
            lambda **asked: nearly(gym.make_vec(**MADE, **asked)), tolerance=tolerance, **QUICK
        )

    check(1e-6)
    with pytest.raises(AssertionError, match="num_envs: lane 0 of 1"):
        check(0.0)


def test_asks_for_episodes_that_end():
    with pytest.raises(AssertionError, match="autoreset: no episode ended within 2 steps"):
        check_vector_env(partial(gym.make_vec, **MADE), num_envs=2, num_steps=2)


def make_carts(num_envs, autoreset_mode):
    return gym.make_vec(
        "CartPole-v1",
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": autoreset_mode},
    )


def test_other_environments():
    # Gymnasium 1.4.0 takes reset_mask out of the caller's dictionary.
    check_vector_env(make_carts, lambda: gym.make("CartPole-v1"), skip=("options",))
    check_vector_env(
        make_carts, autoreset_modes=["SameStep"], num_envs=2, num_steps=40, skip=("options",)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 1}, "num_envs must be at least 2, got 1"),
        ({"num_steps": 0}, "num_steps must be positive, got 0"),
        ({"tolerance": -1}, "tolerance must not be negative, got -1"),
        ({"autoreset_modes": ["Next"]}, "unknown autoreset mode 'Next'; did you mean 'NextStep'"),
        ({"autoreset_modes": []}, "autoreset_modes must name at least one mode"),
        ({"skip": ["info"]}, "unknown check 'info'; did you mean 'infos'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(LearnedOptError, match=message):
        check_vector_env(partial(gym.make_vec, **MADE), **arguments)
