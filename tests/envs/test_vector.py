"""The vector environments: gymnasium's promises on every id, autoreset, seeds, bad input."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

import envs
from envs.testing import check_vector_env
from learned_opt.errors import LearnedOptError
from learned_opt.tasks import list_tasks

IDS = [
    f"LearnedOpt/{name}-v0"
    for name in ("HyperControl", "CoordUpdate", "SaddleEscape", "LearningRate")
]
HYPER, SADDLE = IDS[0], IDS[2]


def make(id_=HYPER, num_envs=4, **settings):
    settings = {"num_instances": 8, **settings}
    return gym.make_vec(id_, num_envs=num_envs, vectorization_mode="vector_entry_point", **settings)


@pytest.mark.parametrize("id_", IDS)
def test_every_id_passes_the_checker(id_):
    made = {"id": id_, "max_episode_steps": 3, "num_instances": 8}
    check_vector_env(
        partial(gym.make_vec, **made), partial(gym.make, **made), num_envs=3, num_steps=7
    )


@pytest.mark.parametrize("id_", IDS)
def test_native_lanes_are_what_gymnasium_makes_of_single_ones(id_):
    settings = {"num_instances": 8, "max_episode_steps": 4}
    native = make(id_, num_envs=3, **settings)
    sync = gym.make_vec(id_, num_envs=3, vectorization_mode="sync", **settings)
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    native.action_space.seed(0)
    np.testing.assert_array_equal(native.reset(seed=2)[0], sync.reset(seed=2)[0])
    for _ in range(7):
        action = native.action_space.sample()
        ours, theirs = native.step(action), sync.step(action)
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        assert ours[4].keys() == theirs[4].keys()
        for key, value in theirs[4]["opt"].items():
            if not key.startswith("_"):
                np.testing.assert_allclose(ours[4]["opt"][key], value, rtol=1e-6)


def test_the_library_path_needs_no_mode():
    assert type(gym.make_vec(HYPER, num_instances=2).unwrapped).__name__ == "HyperControlVectorEnv"


@pytest.mark.parametrize("task", list_tasks())
def test_any_task_is_playable_by_name(task):
    # Two precisions name the same problems; one of them mixing types is what has gone wrong before.
    gaps = {}
    for dtype in ("float64", "float32"):
        env = make(task=task, num_envs=2, num_instances=2, dtype=dtype, learning_rate=(-2.5, -2.5))
        observation, _ = env.reset(seed=0)
        assert observation in env.observation_space
        for _ in range(3):
            observation, rewards, *_, info = env.step(np.array([[0, 0, -1]] * 2, dtype))
            assert observation in env.observation_space
            assert np.isfinite(rewards).all()
        assert (info["opt"]["num_gradients"] == 3).all()
        gaps[dtype] = info["opt"]["gap"]
    np.testing.assert_allclose(gaps["float32"], gaps["float64"], atol=1e-3)


def test_all_lanes_can_be_worked_through_in_long_runs():
    env = make(SADDLE, num_envs=64, max_episode_steps=20, learning_rate=(0.0, 2.0))
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    ends = np.zeros(2, int)
    for _ in range(100):
        observation, rewards, terminations, truncations, _ = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert np.isfinite(rewards).all()
        assert not (terminations & truncations).any()
        ends += terminations.sum(), truncations.sum()
    assert (ends > 10).all()


def test_the_budget_truncates():
    env = make(max_episode_steps=3, autoreset_mode="Disabled")
    env.reset(seed=0)
    quiet = np.tile(np.array([0, 0, -1], np.float32), (4, 1))
    for step in (1, 2, 3):
        _, _, terminations, truncations, info = env.step(quiet)
        assert not terminations.any()
        assert truncations.tolist() == [step == 3] * 4
        assert info["opt"]["num_gradients"].tolist() == [step] * 4


def test_divergence_terminates_with_the_lowest_return():
    env = make(task="rosenbrock", learning_rate=(3.0, 3.0), autoreset_mode="Disabled")
    env.reset(seed=0)
    returns, has_ended = np.zeros(4), np.zeros(4, bool)
    for _ in range(10):
        _, rewards, terminations, truncations, info = env.step(np.ones((4, 3), np.float32))
        returns += np.where(has_ended, 0, rewards)
        has_ended |= terminations
        np.testing.assert_array_equal(info["opt"]["diverged"], terminations)
        assert not truncations.any()
    assert has_ended.all()
    np.testing.assert_allclose(returns, -np.log(1e3) - 1 + np.log1p(1e-6))


def test_same_step_hands_over_the_last_observation_and_info():
    same = make(max_episode_steps=2, autoreset_mode="SameStep")
    late = make(max_episode_steps=2, autoreset_mode=AutoresetMode.DISABLED)
    for env in (same, late):
        env.reset(seed=0)
        env.action_space.seed(0)
    for _ in range(2):
        action = same.action_space.sample()
        now, _, _, truncations, info = same.step(action)
        last, *_, last_info = late.step(action)
    assert truncations.all()
    np.testing.assert_array_equal(np.stack(info["final_obs"]), last)
    assert info["_final_obs"].all()
    assert info["_final_info"].all()
    for key, value in last_info["opt"].items():
        np.testing.assert_array_equal(info["final_info"]["opt"][key], value)
    assert (info["opt"]["num_gradients"] == 0).all()
    np.testing.assert_array_equal(now, late.reset()[0])


def test_seeds_name_streams_of_episodes():
    env = make()
    first = env.reset(seed=5)[1]["opt"]["step_size"]
    second = env.reset()[1]["opt"]["step_size"]
    assert (first != second).all()
    np.testing.assert_array_equal(env.reset(seed=5)[1]["opt"]["step_size"], first)
    np.testing.assert_array_equal(env.reset()[1]["opt"]["step_size"], second)
    np.testing.assert_array_equal(env.reset(seed=[8, 7, 6, 5])[1]["opt"]["step_size"][3], first[0])
    np.testing.assert_array_equal(
        env.reset(seed=np.array([5, 6, 7, 8]))[1]["opt"]["step_size"], first
    )
    # None in a list goes on with that lane.
    np.testing.assert_array_equal(
        env.reset(seed=[None, 6, None, 8])[1]["opt"]["step_size"],
        np.array([second[0], first[1], second[2], first[3]]),
    )


def test_without_a_seed_environments_differ():
    a, b = (make().reset()[1]["opt"]["step_size"] for _ in range(2))
    assert (a != b).any()
    assert len(set(a.tolist())) == 4


def test_a_saved_state_is_gone_on_from():
    env = make(SADDLE, max_episode_steps=4)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(12)]
    env.reset(seed=0)
    for action in actions[:3]:
        env.step(action)
    saved = env.unwrapped.get_state()

    def go_on():
        return [env.step(action)[:4] for action in actions[3:]]

    first = go_on()
    for _ in range(2):
        env.unwrapped.set_state(saved)
        for again, before in zip(go_on(), first, strict=True):
            for a, b in zip(again, before, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_state_is_saved_before_the_first_reset_too():
    env = make()
    env.unwrapped.set_state(env.unwrapped.get_state())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_forbidden_choices_count_as_continue():
    env, other = make(SADDLE), make(SADDLE)
    info = env.reset(seed=0)[1]
    other.reset(seed=0)
    rng = np.random.default_rng(0)
    num_forbidden = 0
    for _ in range(60):
        assert info["action_mask"].dtype == bool
        assert info["action_mask"][:, :4].all()
        action = rng.integers(0, 9, 4)
        allowed = info["action_mask"][np.arange(4), action]
        num_forbidden += (~allowed).sum()
        observation, *_, info = env.step(action)
        expected, *_ = other.step(np.where(allowed, action, 0))
        np.testing.assert_array_equal(observation, expected)
    assert num_forbidden > 20


def test_actions_of_another_type_are_taken():
    env = make()
    observations = []
    for kind in (np.float32, np.float64, np.int64):
        env.reset(seed=0)
        action = np.zeros((4, 3), kind)
        action.flags.writeable = False
        observations.append(env.step(action)[0])
        assert env.step(torch.zeros(4, 3))[0].dtype == np.float32
    for other in observations[1:]:
        np.testing.assert_array_equal(other, observations[0])


def test_gymnasiums_wrappers_read_the_infos():
    env = DictInfoToList(RecordEpisodeStatistics(make(max_episode_steps=3)))
    env.reset(seed=0)
    for _ in range(3):
        *_, infos = env.step(env.action_space.sample())
    assert [info["opt"]["num_gradients"] for info in infos] == [3] * 4
    assert [info["episode"]["l"] for info in infos] == [3] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be positive, got 0"),
        ({"max_episode_steps": 0}, "max_episode_steps must be positive, got 0"),
        ({"render_mode": "human"}, "render_mode must be 'rgb_array' or None, got 'human'"),
        ({"autoreset_mode": "Later"}, "autoreset_mode must be one of .*, got 'Later'"),
        ({"tusk": "octopus"}, "unknown setting 'tusk'; did you mean 'task'"),
        ({"actuator": {"gian": 1}}, "actuator: .*'gian'"),
        ({"actuator": {"gain": -1}}, "gain must be positive, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(LearnedOptError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seed": [1, 2]}, "seed must be one number or 4, got 2"),
        ({"seed": [1, 2, 3, -4]}, r"whole number from 0 to 2\*\*64 - 1, got -4"),
        ({"seed": [1, 2, 3, 0.5]}, "got 0.5"),
        ({"seed": -1}, "got -1"),
        ({"seed": 2**64 - 1}, "got 18446744073709551616"),
        ({"options": {"reset_mask": np.ones(3, bool)}}, r"4 booleans, got bool of \(3,\)"),
        ({"options": {"reset_mask": np.ones(4, int)}}, "4 booleans, got int64"),
        ({"options": {"reset_mask": np.zeros(4, bool)}}, "at least one lane, got none"),
        (
            {"options": {"reset_mask": np.arange(4) == 1}},
            "the first reset must start every lane",
        ),
    ],
)
def test_bad_resets(asked, message):
    env = make()
    with pytest.raises(LearnedOptError, match=message):
        env.reset(**asked)
    # Nothing has happened: a good reset still gives the seed's first episode.
    first = make().reset(seed=3)[0]
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)


@pytest.mark.parametrize(
    ("id_", "action", "message"),
    [
        (HYPER, np.zeros((1, 3)), r"actions must have the shape \(4, 3\), got \(1, 3\)"),
        (HYPER, np.zeros(3), r"got \(3,\)"),
        (SADDLE, np.full(4, 9), "whole numbers from 0 to 8, got int64 from 9 to 9"),
        (SADDLE, np.array([0, 0, -1, 2]), "got int64 from -1 to 2"),
        (SADDLE, np.zeros(4), "got float64"),
        (SADDLE, np.zeros((4, 1), int), r"actions must have the shape \(4,\), got \(4, 1\)"),
    ],
)
def test_bad_actions(id_, action, message):
    env = make(id_)
    env.reset(seed=0)
    with pytest.raises(LearnedOptError, match=message):
        env.step(action)


@pytest.mark.parametrize("call", [lambda e: e.step(np.zeros((4, 3))), lambda e: e.unwrapped.state])
def test_reset_comes_first(call):
    with pytest.raises(gym.error.ResetNeeded, match="call reset before"):
        call(make())


def test_importing_again_does_not_warn():
    import importlib

    importlib.reload(envs)
    assert gym.spec(HYPER).max_episode_steps == 64
