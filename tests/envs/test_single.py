"""The single environments: gymnasium's own checker on every id, with warnings as errors."""

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match

import envs  # noqa: F401
from learned_opt.errors import LearnedOptError

IDS = [
    f"LearnedOpt/{name}-v0"
    for name in ("HyperControl", "CoordUpdate", "SaddleEscape", "LearningRate")
]


def make(id_=IDS[0], **settings):
    return gym.make(id_, **{"num_instances": 8, **settings})


@pytest.mark.parametrize("id_", IDS)
def test_gymnasiums_checker_has_nothing_to_say(id_):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(id_).unwrapped)


@pytest.mark.parametrize("id_", IDS)
def test_two_of_them_are_equal(id_):
    check_environments_match(make(id_), make(id_), num_steps=12, seed=3)


@pytest.mark.parametrize("id_", IDS)
def test_a_seed_names_a_stream_of_episodes(id_):
    env, other = make(id_, max_episode_steps=3), make(id_, max_episode_steps=3)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(3)]

    def episode(env, **asked):
        env.reset(**asked)
        return [env.step(action)[:2] for action in actions]

    first, second = episode(env, seed=4), episode(env)
    other.reset(seed=9)
    for again, expected in ((episode(other, seed=4), first), (episode(other), second)):
        for (o, r), (p, q) in zip(again, expected, strict=True):
            np.testing.assert_array_equal(o, p)
            assert r == q
    assert [r for _, r in first] != [r for _, r in second]


def test_without_a_seed_environments_differ():
    sizes = set()
    for _ in range(2):
        env = make()
        sizes |= {env.reset()[1]["opt"]["step_size"] for _ in range(2)}
    assert len(sizes) == 4


def test_types_are_pythons():
    env = make("LearnedOpt/SaddleEscape-v0")
    _, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert observation.dtype == np.float32
    assert info["action_mask"].dtype == bool
    assert info["opt"]["num_gradients"] == 1
    assert all(type(value) in {int, float, bool} for value in info["opt"].values())


def test_what_is_handed_out_is_the_callers():
    env = make("LearnedOpt/SaddleEscape-v0")
    observation, info = env.reset(seed=0)
    for _ in range(2):
        held = env.unwrapped.state.observation.clone()
        mask = env.unwrapped.core.actuator.mask(env.unwrapped.state.actuator)[0].tolist()
        observation[:], info["action_mask"][:] = 7, False
        assert env.unwrapped.state.observation.equal(held)
        assert env.unwrapped.core.actuator.mask(env.unwrapped.state.actuator)[0].tolist() == mask
        observation, *_, info = env.step(0)


def test_the_time_limit_is_gymnasiums():
    env = make(max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(np.array([0, 0, -1], np.float32))[3] for _ in range(2)] == [False, True]


def test_divergence_terminates():
    env = make(task="rosenbrock", learning_rate=(3.0, 3.0))
    env.reset(seed=0)
    total, terminated = 0.0, False
    while not terminated:
        _, reward, terminated, truncated, info = env.step(np.ones(3, np.float32))
        total += reward
        assert not truncated
    assert info["opt"]["diverged"]
    assert total == pytest.approx(-math.log(1e3) - 1 + math.log1p(1e-6))


def test_without_a_render_mode_there_is_no_frame():
    env = make().unwrapped
    env.reset(seed=0)
    assert env.render() is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.step(np.zeros(2)), r"actions must have the shape \(1, 3\), got \(1, 2\)"),
        (lambda e: e.step(np.zeros((1, 3))), r"got \(1, 1, 3\)"),
        (lambda e: e.reset(seed=2**64), r"whole number from 0 to 2\*\*64 - 1"),
    ],
)
def test_bad_calls(call, message):
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(LearnedOptError, match=message):
        call(env)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"render_mode": "ansi"}, "render_mode must be 'rgb_array' or None, got 'ansi'"),
        ({"tasks": "octopus"}, "unknown setting 'tasks'; did you mean 'task'"),
        ({"task": "nothing"}, "unknown task 'nothing'"),
    ],
)
def test_bad_settings(settings, message):
    from envs.hyper_control import HyperControlEnv

    with pytest.raises(LearnedOptError, match=message):
        HyperControlEnv(**settings)


def test_a_wrong_choice_is_refused():
    env = make("LearnedOpt/LearningRate-v0").unwrapped
    env.reset(seed=0)
    with pytest.raises(LearnedOptError, match="whole numbers from 0 to 2, got int64 from 3 to 3"):
        env.step(3)


@pytest.mark.parametrize("call", [lambda e: e.step(np.zeros(3)), lambda e: e.state])
def test_reset_comes_first(call):
    with pytest.raises(gym.error.ResetNeeded, match="call reset before"):
        call(make().unwrapped)
