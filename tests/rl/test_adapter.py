"""What stable-baselines3 is shown is what the environment does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.callbacks import BaseCallback

from learned_opt.errors import LearnedOptError
from learned_opt.rl.adapter import LaneAdapter
from learned_opt.rl.agents import build_agent
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.environments import make_lanes, resolve_environment
from learned_opt.rl.train import _callback

SETTINGS = {"num_instances": 16, "max_episode_steps": 5, "task_settings": {"dim": 3}}
SETTINGS["task"] = "random_quadratic"


def lanes(env="HyperControl-v0", num_lanes=6, **changes):
    return make_lanes(env, {**SETTINGS, **changes}, num_lanes=num_lanes)


def adapter(env="HyperControl-v0", num_lanes=6, changes=None, **options):
    shown = LaneAdapter(lanes(env, num_lanes, **(changes or {})), **options)
    shown.seed(3)
    return shown


def actions(shape, *, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_steps_are_those_of_the_lanes():
    shown, twin = adapter(reward_scale=2.0, reward_clip=0.1), lanes()
    first, _ = twin.reset(seed=3)
    seen = shown.reset()
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, first)
    returns = np.zeros(6)
    num_clipped = num_whole = 0
    for step in range(13):
        action = actions((6, 3), seed=step)
        after, raw, terminated, truncated, info = twin.step(action)
        seen, rewards, ended, infos = shown.step(action)
        # an algorithm that spoils what it was handed changes nothing of what follows
        np.testing.assert_array_equal(seen, after)
        np.testing.assert_allclose(rewards, np.clip(raw / 2.0, -0.1, 0.1), rtol=1e-6)
        assert rewards.dtype == np.float32
        num_clipped += (abs(raw / 2) > 0.1).sum()
        num_whole += (abs(raw / 2) < 0.1).sum()
        np.testing.assert_array_equal(ended, terminated | truncated)
        returns += raw
        for lane in range(6):
            if not ended[lane]:
                assert infos[lane] == {}
                continue
            told = infos[lane]
            np.testing.assert_array_equal(told["terminal_observation"], info["final_obs"][lane])
            assert told["TimeLimit.truncated"] == truncated[lane]
            assert told["episode"] == {"r": pytest.approx(returns[lane]), "l": 5}
            assert told["final"]["gap"] == info["final_info"]["opt"]["gap"][lane]
            returns[lane] = 0
        np.testing.assert_array_equal(shown.cut[0], np.flatnonzero(truncated))
        assert bool(len(shown.cut[0])) == (step in {4, 9})
        seen[:], rewards[:] = np.nan, np.nan
        infos.clear()
    assert num_clipped > 10 and num_whole > 10


def test_staggered_lanes_end_at_different_times():
    shown = adapter(num_lanes=10, stagger=True)
    shown.reset()
    still = np.zeros((10, 3), np.float32)
    ends = np.array([shown.step(still)[2] for _ in range(15)])
    np.testing.assert_array_equal(ends.sum(1), np.full(15, 2))
    for lane in ends.T:
        assert set(np.diff(np.flatnonzero(lane))) == {5}


def test_each_coordinate_is_an_agent():
    shown, twin = adapter("CoordUpdate-v0", num_lanes=4), lanes("CoordUpdate-v0", num_lanes=4)
    first, _ = twin.reset(seed=3)
    seen = shown.reset()
    assert shown.num_envs == 12 and shown.action_space.shape == (3,)
    np.testing.assert_array_equal(seen.reshape(4, 3, -1), first)
    for step in range(7):
        action = actions((12, 3), seed=step)
        after, raw, terminated, truncated, info = twin.step(action.reshape(4, 3, 3))
        seen, rewards, ended, infos = shown.step(action)
        np.testing.assert_array_equal(seen.reshape(4, 3, -1), after)
        np.testing.assert_allclose(rewards, np.repeat(np.clip(raw / 3, -3, 3), 3), rtol=1e-6)
        np.testing.assert_array_equal(ended, np.repeat(terminated | truncated, 3))
        if step == 4:
            np.testing.assert_array_equal(
                np.stack([told["terminal_observation"] for told in infos]).reshape(4, 3, -1),
                np.stack(info["final_obs"]),
            )
            assert ["episode" in told for told in infos] == [True, False, False] * 4
            np.testing.assert_array_equal(shown.cut[0], np.arange(12))


def test_masks():
    shown, twin = adapter("SaddleEscape-v0"), lanes("SaddleEscape-v0")
    _, info = twin.reset(seed=3)
    shown.reset()
    num_different = 0
    for step in range(12):
        masks = info["action_mask"]
        assert shown.has_attr("action_masks")
        np.testing.assert_array_equal(np.stack(shown.env_method("action_masks")), masks)
        np.testing.assert_array_equal(shown.env_method("action_masks", indices=[2])[0], masks[2])
        num_different += (masks != masks[:1]).any()
        choices = np.random.default_rng(step).integers(9, size=6)
        *_, info = twin.step(choices)
        shown.step(choices)
    assert num_different > 3
    assert not adapter().has_attr("action_masks")


def test_attributes():
    shown = adapter()
    assert shown.get_attr("max_episode_steps", indices=[0, 3]) == [5, 5]
    assert shown.render_mode is None
    assert shown.env_is_wrapped(object, indices=0) == [False]
    assert not shown.has_attr("nonsense")


def test_lanes_go_on_from_a_saved_state():
    shown, other = adapter("SaddleEscape-v0", stagger=True), adapter("SaddleEscape-v0")
    shown.reset()
    other.reset()

    def play(env, steps):
        return [env.step(np.random.default_rng(step).integers(9, size=6)) for step in steps]

    play(shown, range(3))
    other.set_state(shown.get_state())
    np.testing.assert_array_equal(other.action_masks(), shown.action_masks())
    for a, b in zip(play(shown, range(3, 9)), play(other, range(3, 9)), strict=True):
        for x, y in zip(a[:3], b[:3], strict=True):
            np.testing.assert_array_equal(x, y)
        assert [told.get("episode") for told in a[3]] == [told.get("episode") for told in b[3]]
    assert shown.take_tally() == other.take_tally()
    assert shown.take_tally() == {"episodes": 0}


class Silent(BaseCallback):
    def _on_step(self):
        return True


@pytest.mark.parametrize(
    ("algo", "env"),
    [
        ("ppo", "HyperControl-v0"),
        ("ppo", "CoordUpdate-v0"),
        ("recurrent-ppo", "HyperControl-v0"),
        ("maskable-ppo", "SaddleEscape-v0"),
    ],
)
def test_values_after_a_cut_are_those_that_sb3_adds_one_by_one(algo, env):
    config = AgentConfig.for_algorithm(
        algo,
        env=env,
        env_settings=SETTINGS,
        num_lanes=6,
        rollout_steps=12,
        minibatches=2,
        hidden=(8,),
        total_steps=72,
        bootstrap_truncated=True,
        gamma=0.9,
        **({"lstm_units": 4} if algo == "recurrent-ppo" else {}),
    )
    rewards = []
    for marks in (True, False):
        shown = adapter(env, stagger=True, marks_truncation=marks)
        model = build_agent(config, shown)
        # values far from zero, so that a forgotten one shows
        torch.nn.init.constant_(model.policy.value_net.bias, 7.0)
        callback = Silent() if marks else _callback(model, shown, lambda: None, config)
        shown.seed(3)
        model.learn(72 * shown.agents_per_lane, callback=callback, log_interval=None)
        rewards.append(model.rollout_buffer.rewards.copy())
    np.testing.assert_allclose(rewards[1], rewards[0], rtol=1e-5, atol=1e-5)
    assert (rewards[0] > 5).sum() == 12 * 6 // 5 * shown.agents_per_lane


def test_a_limit_can_be_an_end():
    config = AgentConfig.for_algorithm(
        "ppo", env_settings=SETTINGS, num_lanes=6, rollout_steps=10, minibatches=2, total_steps=60
    )
    assert not config.bootstrap_truncated
    shown, twin = adapter(marks_truncation=False), lanes()
    model = build_agent(config, shown)
    torch.nn.init.constant_(model.policy.value_net.bias, 7.0)
    shown.seed(3)
    model.learn(60, callback=_callback(model, shown, lambda: None, config), log_interval=None)
    twin.reset(seed=3)
    chosen = model.rollout_buffer.actions.reshape(6, 10, 3).clip(-1, 1)
    for step in range(10):
        _, raw, *_ = twin.step(chosen[:, step])
        np.testing.assert_allclose(
            model.rollout_buffer.rewards[step], np.clip(raw / 3, -3, 3), rtol=1e-5
        )


def test_replay_knows_ends_from_cuts():
    config = AgentConfig.for_algorithm(
        "sac", env_settings=SETTINGS, num_lanes=6, total_steps=60, learning_starts=100
    )
    shown = adapter(changes={"learning_rate": (-3.0, -3.0)})  # slow enough for no other end
    model = build_agent(config, shown)
    model.learn(60, callback=Silent(), log_interval=None)
    memory = model.replay_buffer
    cut = memory.timeouts[:10].astype(bool)
    assert cut[4].all() and cut[9].all() and cut.sum() == 12
    np.testing.assert_array_equal(memory.dones[:10], memory.timeouts[:10])
    # what follows a cut is the last observation of the episode, not the first of the next
    assert (memory.next_observations[4] != memory.observations[5]).any(1).all()
    np.testing.assert_array_equal(memory.next_observations[3], memory.observations[4])


def test_bad_input(monkeypatch):
    with pytest.raises(LearnedOptError, match="reward_scale must be positive, got 0"):
        LaneAdapter(lanes(), reward_scale=0)
    with pytest.raises(LearnedOptError, match="reward_clip must be positive, got -1"):
        LaneAdapter(lanes(), reward_clip=-1)
    with pytest.raises(LearnedOptError, match="autoreset_mode='SameStep', got"):
        LaneAdapter(make_lanes("HyperControl-v0", num_lanes=1, autoreset="NextStep"))
    with pytest.raises(LearnedOptError, match="did you mean 'HyperControl-v0'"):
        resolve_environment("HyperContol-v0")
    with pytest.raises(LearnedOptError, match="num_lanes must be positive, got 0"):
        make_lanes("HyperControl-v0", num_lanes=0)
    with pytest.raises(LearnedOptError, match="unknown task 'octopsu'"):
        make_lanes("HyperControl-v0", {"task": "octopsu"}, num_lanes=1)
    with pytest.raises(LearnedOptError, match="cannot be made"):
        make_lanes("nowhere:Nothing-v0", num_lanes=1)
    foreign = SimpleNamespace(unwrapped=SimpleNamespace())
    monkeypatch.setattr("gymnasium.make_vec", lambda *args, **kwargs: foreign)
    with pytest.raises(LearnedOptError, match="has no decision process"):
        make_lanes("foreign:Other-v0", num_lanes=1)


def test_algorithms_refuse_actions_that_they_cannot_take():
    for algo, env, message in (
        ("dqn", "HyperControl-v0", "dqn needs discrete actions"),
        ("maskable-ppo", "HyperControl-v0", "maskable-ppo needs discrete actions"),
        ("sac", "SaddleEscape-v0", "sac needs continuous actions"),
    ):
        config = AgentConfig.for_algorithm(algo, env=env, num_lanes=6, rollout_steps=12)
        with pytest.raises(LearnedOptError, match=message):
            build_agent(config, adapter(env))
    shown = adapter("SaddleEscape-v0")
    shown.reset()
    shown.lanes.core = SimpleNamespace(actuator=SimpleNamespace(mask=lambda state: None))
    config = AgentConfig.for_algorithm("maskable-ppo", env="SaddleEscape-v0", num_lanes=6)
    with pytest.raises(LearnedOptError, match="has no action masks"):
        build_agent(config, shown)
