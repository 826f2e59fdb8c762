"""Scripted policies decide what their rules say."""

import math

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401
from envs.scripted import Constant, DoNothing, KickEvery, NoiseEveryStep, PerturbedGD
from learned_opt.errors import LearnedOptError
from learned_opt.rl.episodes import play

HYPER, SADDLE = "LearnedOpt/HyperControl-v0", "LearnedOpt/SaddleEscape-v0"
RATE = "LearnedOpt/LearningRate-v0"


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
    np.testing.assert_array_equal(never.log10_gaps, nothing.log10_gaps)
    assert played.kicks.min() >= 1
    assert np.median(played.log10_gaps) < np.median(nothing.log10_gaps)


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
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(LearnedOptError, match=message):
        build()
