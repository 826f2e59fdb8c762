"""The playing loop tells what single environments tell, in every autoreset mode."""

import math

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401
from envs.scripted import Policy
from learned_opt.rl.episodes import play

HYPER, SADDLE = "LearnedOpt/HyperControl-v0", "LearnedOpt/SaddleEscape-v0"


def make(id_=HYPER, num_envs=4, **settings):
    return gym.make_vec(id_, num_envs=num_envs, **{"num_instances": 8, **settings})


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
        log10_gap = opt["log10_gap"]
        if not opt["diverged"]:
            assert log10_gap == pytest.approx(math.log10(gap + 1e-6))
        for mode, found in played.items():
            assert found.returns[lane] == pytest.approx(total), mode
            assert found.lengths[lane] == length
            assert found.kicks[lane] == opt["kicks"]
            assert found.losses[lane] == opt["loss"]
            assert found.diverged[lane] == opt["diverged"]
            assert found.solved[lane] == (terminated and not opt["diverged"])
            assert found.log10_gaps[lane] == pytest.approx(log10_gap)
    assert len(set(played["NextStep"].lengths.tolist())) > 1


def test_play_tells_the_policy_of_restarts():
    env = make(num_envs=2, max_episode_steps=2)
    policy = Script(env, [np.tile(np.array([0, 0, -1], np.float32), (2, 1))] * 2)
    play(env, policy)
    assert policy.resets == [[True, True], [True, True]]


def test_play_takes_any_callable_and_looks_at_every_point():
    env = make(num_envs=2, max_episode_steps=3, autoreset_mode="Disabled")
    steps = []
    episodes = play(
        env,
        lambda observation, info: np.zeros((2, 3), np.float32),
        look=lambda: steps.append(env.unwrapped.state.steps.tolist()),
    )
    assert steps == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert episodes.lengths.tolist() == [3, 3]
