"""Scripted policies decide what their rules say; fixed settings are plain heavy balls."""

import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs  # noqa: F401
from envs.core import episode_keys
from envs.scripted import (
    GRID,
    Constant,
    DoNothing,
    FixedSetting,
    KickEvery,
    NoiseEveryStep,
    PerturbedGD,
    Policy,
    best_constant,
    hindsight_oracle,
    play,
    sweep,
)
from learned_opt.errors import LearnedOptError
from learned_opt.rules import Momentum
from learned_opt.unroll import unroll

HYPER, SADDLE = "LearnedOpt/HyperControl-v0", "LearnedOpt/SaddleEscape-v0"
RATE = "LearnedOpt/LearningRate-v0"
EXACT = {"num_instances": 16, "dtype": "float64"}


def make(id_=HYPER, num_envs=4, **settings):
    return gym.make_vec(id_, num_envs=num_envs, **{"num_instances": 8, **settings})


def seen(env, *, at_most=0.0, mask=True):
    """An observation and info in which a gradient feature and the kick mask have these values."""
    names = [f.name for f in env.unwrapped.core.actuator.features]
    observation = np.zeros((env.num_envs, len(names)), np.float32)
    observation[:, names.index("gradient at most")] = at_most
    return observation, {"action_mask": np.full((env.num_envs, 9), mask)}


@pytest.mark.parametrize("id_", [HYPER, SADDLE, RATE, "LearnedOpt/CoordUpdate-v0"])
def test_doing_nothing_leaves_the_controls_alone(id_):
    env = make(id_)
    observation, info = env.reset(seed=0)
    policy = DoNothing(env)
    first = info["opt"]["step_size"]
    for _ in range(3):
        action = policy(observation, info)
        assert action in env.action_space
        observation, *_, info = env.step(action)
        np.testing.assert_allclose(info["opt"]["step_size"], first, rtol=1e-6)
    if id_ == HYPER:
        assert (info["opt"]["noise"] < 1e-4).all()


def test_constant():
    env = make()
    action = Constant(env, [0.5, -0.25, -1.0])(*env.reset(seed=0))
    assert action in env.action_space
    np.testing.assert_array_equal(action, [[0.5, -0.25, -1.0]] * 4)
    env = make(SADDLE)
    assert Constant(env, 2)(*env.reset(seed=0)).tolist() == [2] * 4


def test_noise_every_step():
    env = make()
    policy = NoiseEveryStep(env, 0.5)
    observation, info = env.reset(seed=0)
    *_, info = env.step(policy(observation, info))
    np.testing.assert_allclose(info["opt"]["noise"], math.exp(-2.5), rtol=1e-6)
    np.testing.assert_allclose(info["opt"]["momentum"], 0.9, rtol=1e-6)


def test_kick_every():
    env = make(SADDLE, num_envs=2)
    policy = KickEvery(env, 3, choice=5)
    quiet = seen(env)
    assert [policy(*quiet).tolist() for _ in range(7)] == [
        [0, 0],
        [0, 0],
        [0, 0],
        [5, 5],
        [0, 0],
        [0, 0],
        [5, 5],
    ]
    policy.reset(np.array([False, True]))
    assert [policy(*quiet).tolist() for _ in range(4)] == [[0, 0], [0, 0], [5, 0], [0, 5]]
    # A forbidden kick waits.
    policy.reset(np.array([True, True]))
    forbidden = seen(env, mask=False)
    assert [policy(*forbidden).tolist() for _ in range(5)] == [[0, 0]] * 5
    assert policy(*quiet).tolist() == [5, 5]


def test_perturbed_gd():
    env = make(SADDLE, num_envs=1)
    policy = PerturbedGD(env, gradient_threshold=0.1, waiting=2, choice=6)
    low, high = seen(env, at_most=math.log(0.1) / 5), seen(env, at_most=math.log(0.11) / 5)
    assert policy(*high).tolist() == [0]
    # At once where none was made, then only after more than two steps.
    assert [policy(*low).item() for _ in range(7)] == [6, 0, 0, 6, 0, 0, 6]
    policy.reset(np.ones(1, bool))
    assert policy(*seen(env, at_most=-4, mask=False)).tolist() == [0]
    assert policy(*low).tolist() == [6]


def test_perturbed_gd_kicks_where_the_gradient_is_small():
    env = make(SADDLE, num_envs=16, max_episode_steps=250)
    played = play(env, PerturbedGD(env, gradient_threshold=0.01, waiting=20), seed=0)
    never = play(env, PerturbedGD(env, gradient_threshold=1e-9, waiting=20), seed=0)
    nothing = play(env, DoNothing(env), seed=0)
    assert never.kicks.max() == 0
    np.testing.assert_array_equal(never.log_gaps, nothing.log_gaps)
    assert played.kicks.min() >= 1
    assert np.median(played.log_gaps) < np.median(nothing.log_gaps)


class Script(Policy):
    """Replays actions, told when lanes restart."""

    def __init__(self, env, actions):
        super().__init__(env)
        self.actions, self.step, self.resets = actions, 0, []

    def reset(self, mask):
        if hasattr(self, "resets"):
            self.resets.append(mask.tolist())

    def __call__(self, observation, info):
        self.step += 1
        return self.actions[self.step - 1]


@pytest.mark.parametrize("id_", [HYPER, SADDLE])
def test_play_tells_what_single_episodes_give_in_any_mode(id_):
    settings = {"num_instances": 8, "max_episode_steps": 12, "learning_rate": (-1.0, 1.5)}
    played = {}
    for mode in ("NextStep", "SameStep", "Disabled"):
        env = make(id_, num_envs=6, autoreset_mode=mode, **settings)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(12)]
        played[mode] = play(env, Script(env, actions), seed=3)
    for lane in range(6):
        single = gym.make(id_, **settings)
        single.reset(seed=3 + lane)
        total, length, over = 0.0, 0, False
        while not over:
            _, reward, terminated, truncated, info = single.step(actions[length][lane])
            total, length, over = total + reward, length + 1, terminated or truncated
        opt = info["opt"]
        gap = opt["best_gap"] if id_ == SADDLE else opt["gap"]
        log_gap = opt["log10_gap"]
        if not opt["diverged"]:
            assert log_gap == pytest.approx(math.log10(gap + 1e-6))
        for mode, found in played.items():
            assert found.returns[lane] == pytest.approx(total), mode
            assert found.lengths[lane] == length
            assert found.kicks[lane] == opt["kicks"]
            assert found.log_gaps[lane] == pytest.approx(log_gap)
    assert len(set(played["NextStep"].lengths.tolist())) > 1


def test_play_tells_the_policy_of_restarts():
    env = make(num_envs=2, max_episode_steps=2)
    policy = Script(env, [np.tile(np.array([0, 0, -1], np.float32), (2, 1))] * 2)
    play(env, policy)
    assert policy.resets == [[True, True], [True, True]]


def test_a_fixed_setting_is_the_environments_own_heavy_ball():
    """Without noise, controls left alone: the same gaps from the environment and the sweep."""
    made = partial(make, num_envs=8, actuator={"noise": False, "momentum": 0.9}, **EXACT)
    swept = sweep(made, [FixedSetting(1.0, 0.9)], seed=2)
    env = made()
    np.testing.assert_allclose(swept.log_gaps[0], play(env, DoNothing(env), seed=2).log_gaps)


def test_minibatches_are_the_environments_own():
    made = partial(make, RATE, num_envs=3, max_episode_steps=5)
    env = made()
    swept = sweep(made, [FixedSetting(1.0, 0.0)], seed=1)
    np.testing.assert_allclose(
        swept.log_gaps[0], play(env, DoNothing(env), seed=1).log_gaps, rtol=1e-6
    )


def test_fixed_settings_are_the_momentum_rule():
    """Against `unroll` with the rule, one run for all settings and instances."""
    made = partial(
        make, num_envs=6, max_episode_steps=20, task="random_quadratic", target=0.1, **EXACT
    )
    settings = [FixedSetting(c, b) for c in (0.3, 3.0, 300.0) for b in (0.0, 0.9)]
    swept = sweep(made, settings, seed=4)
    core = made().unwrapped.core
    start = core.initial(episode_keys(np.arange(4, 10, dtype=np.uint64), np.zeros(6, np.int64)))
    rate = start.actuator["learning_rate"]
    rule = Momentum(
        learning_rate=torch.cat([c * rate for c, _ in settings]),
        momentum=torch.tensor([b for _, b in settings for _ in range(6)]),
    )
    problems = start.problems.repeat(len(settings))
    run = unroll(core.task, rule, problems, num_steps=20, rng=torch.Generator())
    minimum = problems.facts.minimum[:, None]
    gaps = (run.losses - minimum) / (run.losses[:, :1] - minimum)
    over = (gaps <= 0.1) | ~(gaps <= 1e3)
    over[:, -1] = True
    last = gaps[torch.arange(len(gaps)), over.int().argmax(1)]
    expected = torch.where(last <= 1e3, torch.log10(last + 0.1), (math.log(1e3) + 1) / math.log(10))
    np.testing.assert_allclose(swept.log_gaps, expected.reshape(-1, 6), rtol=1e-6)
    assert (last > 1e3).any()
    assert (last <= 0.1).any()
    assert ((last > 0.1) & (last <= 1e3)).any()


def test_chunks_do_not_matter(monkeypatch):
    made = partial(make, num_envs=3, max_episode_steps=6)
    whole = sweep(made, GRID[:5])
    monkeypatch.setattr("envs.scripted._LANES_AT_ONCE", 7)
    np.testing.assert_array_equal(sweep(made, GRID[:5]).log_gaps, whole.log_gaps)


def test_best_constant_and_hindsight():
    made = partial(make, num_envs=16, max_episode_steps=30, task="random_quadratic")
    swept = sweep(made, seed=1)
    assert swept.log_gaps.shape == (50, 16)
    setting, gaps = best_constant(made, seed=1)
    assert setting == swept.best_constant
    assert setting in GRID
    np.testing.assert_array_equal(gaps, swept.log_gaps[GRID.index(setting)])
    medians = np.median(swept.log_gaps, axis=1)
    assert np.median(gaps) == medians.min()
    oracle = hindsight_oracle(made, seed=1)
    np.testing.assert_array_equal(oracle, np.min(swept.log_gaps, axis=0))
    # One setting cannot serve all: step sizes to start from are off by up to 2.5 decades.
    assert np.median(oracle) < np.median(gaps) - 0.3


def test_the_grid():
    assert len(set(GRID)) == 50
    assert GRID[0].multiplier == pytest.approx(10**-1.5)
    assert GRID[-1] == FixedSetting(1000.0, 0.9)
    assert FixedSetting(1.0, 0.9) in GRID


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DoNothing(gym.make_vec("CartPole-v1")), "must be a vector environment of this"),
        (lambda: Constant(make(), [2, 0, 0]), "action must lie in Box"),
        (lambda: Constant(make(), [0, 0]), "action must lie in Box"),
        (lambda: Constant(make(SADDLE), 9), "action must lie in Discrete"),
        (lambda: NoiseEveryStep(make(), 1.5), r"level must lie in \[-1, 1\], got 1.5"),
        (lambda: NoiseEveryStep(make(SADDLE), 0), "noise must be a control of the environment"),
        (lambda: KickEvery(make(), 3), "kicks are choices of the actuator 'saddle_escape'"),
        (lambda: KickEvery(make(SADDLE), 0), "interval must be positive, got 0"),
        (lambda: KickEvery(make(SADDLE), 2, choice=1), "choice must be a kick"),
        (lambda: PerturbedGD(make()), "kicks are choices"),
        (
            lambda: PerturbedGD(make(SADDLE), gradient_threshold=0),
            "gradient_threshold must lie in",
        ),
        (lambda: PerturbedGD(make(SADDLE), waiting=-1), "waiting must not be negative, got -1"),
        (lambda: sweep(make, []), "settings must name at least one"),
        (lambda: sweep(make, [FixedSetting(1.0, 1.0)]), r"momentum in \[0, 1\)"),
        (lambda: sweep(partial(gym.make_vec, "CartPole-v1")), "make_env must make a vector"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(LearnedOptError, match=message):
        build()
