"""Fixed settings are plain heavy balls, played as the environment plays."""

import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs  # noqa: F401
from envs.core import episode_keys
from envs.fixed_settings import GRID, FixedSetting, best_constant, hindsight_oracle, sweep
from envs.scripted import DoNothing
from learned_opt.errors import LearnedOptError
from learned_opt.rl.episodes import play
from learned_opt.rules import Momentum
from learned_opt.unroll import unroll

HYPER, RATE = "LearnedOpt/HyperControl-v0", "LearnedOpt/LearningRate-v0"
EXACT = {"num_instances": 16, "dtype": "float64"}


def make(id_=HYPER, num_envs=4, **settings):
    return gym.make_vec(id_, num_envs=num_envs, **{"num_instances": 8, **settings})


def test_a_fixed_setting_is_the_environments_own_heavy_ball():
    """Without noise, controls left alone: the same gaps from the environment and the sweep."""
    made = partial(make, num_envs=8, actuator={"noise": False, "momentum": 0.9}, **EXACT)
    swept = sweep(made, [FixedSetting(1.0, 0.9)], seed=2)
    env = made()
    np.testing.assert_allclose(swept.log10_gaps[0], play(env, DoNothing(env), seed=2).log10_gaps)


def test_minibatches_are_the_environments_own():
    made = partial(make, RATE, num_envs=3, max_episode_steps=5)
    env = made()
    swept = sweep(made, [FixedSetting(1.0, 0.0)], seed=1)
    np.testing.assert_allclose(
        swept.log10_gaps[0], play(env, DoNothing(env), seed=1).log10_gaps, rtol=1e-6
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
    expected = torch.where(last <= 1e3, torch.log10(last + 0.1), math.log10(math.e * (1e3 + 0.1)))
    np.testing.assert_allclose(swept.log10_gaps, expected.reshape(-1, 6), rtol=1e-6)
    assert (last > 1e3).any()
    assert (last <= 0.1).any()
    assert ((last > 0.1) & (last <= 1e3)).any()


def test_chunks_do_not_matter(monkeypatch):
    made = partial(make, num_envs=3, max_episode_steps=6)
    whole = sweep(made, GRID[:5])
    monkeypatch.setattr("envs.fixed_settings._LANES_AT_ONCE", 7)
    np.testing.assert_array_equal(sweep(made, GRID[:5]).log10_gaps, whole.log10_gaps)


def test_best_constant_and_hindsight():
    made = partial(make, num_envs=16, max_episode_steps=30, task="random_quadratic")
    swept = sweep(made, seed=1)
    assert swept.log10_gaps.shape == (50, 16)
    setting, gaps = best_constant(made, seed=1)
    assert setting == swept.best_constant
    assert setting in GRID
    np.testing.assert_array_equal(gaps, swept.log10_gaps[GRID.index(setting)])
    medians = np.median(swept.log10_gaps, axis=1)
    assert np.median(gaps) == medians.min()
    oracle = hindsight_oracle(made, seed=1)
    np.testing.assert_array_equal(oracle, np.min(swept.log10_gaps, axis=0))
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
        (lambda: sweep(make, []), "settings must name at least one"),
        (lambda: sweep(make, [FixedSetting(1.0, 1.0)]), r"momentum in \[0, 1\)"),
        (lambda: sweep(partial(gym.make_vec, "CartPole-v1")), "make_env must make a vector"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(LearnedOptError, match=message):
        build()
