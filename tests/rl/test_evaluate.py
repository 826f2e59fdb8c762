"""How well a policy plays, checked against the environment and against policies that cannot see."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from envs.scripted import DoNothing
from learned_opt.errors import LearnedOptError
from learned_opt.rl.environments import make_lanes
from learned_opt.rl.episodes import play
from learned_opt.rl.evaluate import (
    evaluate_rule_in_env,
    evaluate_with_controls,
    film,
    play_rule,
    summarize,
)
from learned_opt.rules import get_rule
from learned_opt.rules.policy import PolicyRule

SETTINGS = {
    "num_instances": 64,
    "max_episode_steps": 12,
    "task": "random_quadratic",
    "task_settings": {"dim": 3},
}
ENVIRONMENTS = {
    "HyperControl-v0": ("hyper_control", "clip"),
    "CoordUpdate-v0": ("coord_update", "clip"),
    "SaddleEscape-v0": ("saddle_escape", "argmax"),
}


def policy(env="HyperControl-v0", *, scale=1.0, **settings):
    actuator, head = ENVIRONMENTS[env]
    rule = PolicyRule(actuator=actuator, head=head, hidden=(8,), **settings)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * scale)
    return rule.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_episodes_are_those_of_a_plain_loop(env):
    rule = policy(env)
    settings = {**SETTINGS, "target": 0.3, "learning_rate": (-1.0, 0.0)}  # many ends of both kinds
    episodes = evaluate_rule_in_env(rule, env, settings, num_lanes=32, seed=5)
    lanes = make_lanes(env, settings, num_lanes=32)
    seen, info = lanes.reset(seed=5)
    expected = {
        name: np.zeros(32) for name in ("returns", "lengths", "solved", "diverged", "kicks")
    }
    is_first = np.ones(32, bool)
    gap = np.zeros(32)
    for _ in range(12):
        mask = torch.from_numpy(info["action_mask"]) if "action_mask" in info else None
        decided, _ = rule.decide(torch.from_numpy(seen), {}, mask=mask)
        seen, reward, terminated, truncated, info = lanes.step(decided.numpy())
        expected["returns"] += np.where(is_first, reward, 0)
        expected["lengths"] += is_first
        ended = is_first & (terminated | truncated)
        if ended.any():
            last = info["final_info"]["opt"]
            gap[ended] = last["log10_gap"][ended]
            expected["diverged"][ended] = last["diverged"][ended]
            expected["kicks"][ended] = last["kicks"][ended]
            expected["solved"] += ended & terminated & ~last["diverged"]
        is_first &= ~ended
    for name, values in {**expected, "log10_gaps": gap}.items():
        np.testing.assert_allclose(getattr(episodes, name), values, rtol=1e-9, err_msg=name)
    assert len(np.unique(episodes.returns)) > 16
    assert (episodes.lengths < 12).any()


def test_the_return_is_the_fall_of_the_log_gap():
    episodes = evaluate_rule_in_env(policy(), "HyperControl-v0", SETTINGS, num_lanes=64)
    logs = episodes.log10_gaps
    fall = math.log10(1 + 1e-6) - logs
    np.testing.assert_allclose(episodes.returns, fall * math.log(10), rtol=1e-9)
    worst = math.log10(math.e * 1e3)
    np.testing.assert_allclose(logs[episodes.diverged], worst)
    assert (logs[~episodes.diverged] < worst).all()
    summary = summarize(episodes)
    assert summary["median_log10_gap"] == pytest.approx(np.median(logs))
    assert summary["mean_log10_gap"] == pytest.approx(np.mean(logs))
    assert summary["return"] == pytest.approx(episodes.returns.mean())
    assert summary["diverged"] == pytest.approx(episodes.diverged.mean())


def test_a_lane_does_not_depend_on_the_others():
    rule = policy()
    many = evaluate_rule_in_env(rule, "HyperControl-v0", SETTINGS, num_lanes=8, seed=3)
    few = evaluate_rule_in_env(rule, "HyperControl-v0", SETTINGS, num_lanes=2, seed=6)
    np.testing.assert_allclose(few.returns, many.returns[3:5], rtol=1e-5)


def test_longer_episodes_can_be_asked_for():
    rule = policy(scale=0.0)
    short, long = (
        evaluate_rule_in_env(rule, "HyperControl-v0", SETTINGS, num_lanes=16, num_steps=steps)
        for steps in (3, 40)
    )
    assert set(short.lengths) == {3} and long.lengths.max() == 40
    assert np.median(long.log10_gaps) < np.median(short.log10_gaps)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_a_policy_that_does_not_look_is_its_own_control(env):
    """Without weights on what it sees, blindness and replay change nothing."""
    rule = policy(env)
    with torch.no_grad():
        rule.layers[0].weight.zero_()
        if env == "SaddleEscape-v0":
            rule.layers[-1].bias.copy_(torch.eye(9)[1] * 100)
    played = evaluate_with_controls(rule, env, SETTINGS, num_lanes=16)
    for name in ("state-blind", "replay"):
        found = asdict(played[name])
        for key, values in asdict(played["policy"]).items():
            np.testing.assert_allclose(found[key], values, rtol=1e-4, err_msg=key)
    assert (played["nothing"].returns != played["policy"].returns).any()


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_controls_of_a_policy_that_looks(env):
    rule = policy(env)
    played = evaluate_with_controls(rule, env, SETTINGS, num_lanes=32, seed=2)
    # "nothing" is the policy that leaves the controls alone and noise off; the first of equal
    # choices is "continue"
    idle = policy(env, scale=0.0)
    if env == "HyperControl-v0":
        with torch.no_grad():
            idle.layers[-1].bias[2] = -1.0
    still = evaluate_rule_in_env(idle, env, SETTINGS, num_lanes=32, seed=2)
    np.testing.assert_array_equal(played["nothing"].returns, still.returns)
    lanes = make_lanes(env, SETTINGS, num_lanes=32, autoreset="Disabled")
    record = play_rule(rule, lanes, seed=2)
    # blind: one decision, that of the mean observation, in all lanes at all times
    blind = policy(env)
    with torch.no_grad():
        blind.layers[0].bias += blind.layers[0].weight @ record.mean_observation.float()
        blind.layers[0].weight.zero_()
    if env == "SaddleEscape-v0":
        # The mask would tell something of the state: the blind policy's choice is one for all.
        choice = int(blind.decide(torch.zeros(1, len(blind.actuator.features)), {})[0])
        with torch.no_grad():
            blind.layers[-1].weight.zero_()
            blind.layers[-1].bias.copy_(torch.eye(9)[choice] + torch.eye(9)[0] / 2)
    expected = evaluate_rule_in_env(blind, env, SETTINGS, num_lanes=32, seed=2)
    np.testing.assert_allclose(
        played["state-blind"].returns, expected.returns, rtol=1e-3, atol=1e-3
    )
    for name in ("state-blind", "replay"):
        assert (played[name].returns != played["policy"].returns).any()


def test_the_replayed_schedule_is_the_mean_over_lanes_that_still_play():
    rule = policy("HyperControl-v0")
    lanes = make_lanes("HyperControl-v0", SETTINGS, num_lanes=32, autoreset="Disabled")
    record = play_rule(rule, lanes, seed=0)
    seen, _ = lanes.reset(seed=0)
    is_playing = np.ones(32, bool)
    for row in record.schedule:
        decided, _ = rule.decide(torch.from_numpy(seen), {})
        torch.testing.assert_close(row, decided[torch.from_numpy(is_playing)].mean(0))
        seen, _, terminated, truncated, _ = lanes.step(decided.numpy())
        is_playing &= ~(terminated | truncated)
    assert record.episodes.diverged.any() and not record.episodes.diverged.all()


def test_a_policy_with_memory_starts_each_evaluation_afresh():
    rule = policy(lstm_units=4)
    lanes = make_lanes("HyperControl-v0", SETTINGS, num_lanes=8, autoreset="Disabled")
    first, again = (play_rule(rule, lanes, seed=1).episodes for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)
    forgetful = policy(lstm_units=4)
    forgetful.lstm.weight_hh.zero_()
    other = play_rule(forgetful, lanes, seed=1).episodes
    assert (other.returns != first.returns).any()


def test_a_film_has_a_frame_for_each_point():
    lanes = make_lanes(
        "HyperControl-v0",
        {**SETTINGS, "render_mode": "rgb_array", "max_episode_steps": 2},
        num_lanes=1,
        autoreset="Disabled",
    )
    frames = film(policy(scale=0.0), lanes, seed=0)
    assert len(frames) == 3
    assert {(frame.dtype, frame.ndim, frame.shape[2]) for frame in frames} == {
        (np.dtype(np.uint8), 3, 3)
    }


def test_bad_input():
    rule = policy()
    with pytest.raises(LearnedOptError, match="only policies can play in an environment, got rule"):
        evaluate_rule_in_env(get_rule("sgd"), "HyperControl-v0", SETTINGS)
    with pytest.raises(LearnedOptError, match="the rule steers 'hyper_control'"):
        evaluate_rule_in_env(rule, "CoordUpdate-v0", SETTINGS, num_lanes=1)
    with pytest.raises(LearnedOptError, match=r"'gain': 0.7.*'gain': 0.5"):
        evaluate_rule_in_env(rule, "HyperControl-v0", {**SETTINGS, "actuator": {"gain": 0.5}})
    with pytest.raises(LearnedOptError, match="num_steps must be positive, got 0"):
        evaluate_rule_in_env(rule, "HyperControl-v0", SETTINGS, num_steps=0)
    with pytest.raises(LearnedOptError, match="lanes must be made to draw"):
        film(rule, make_lanes("HyperControl-v0", num_lanes=1), seed=0)


def test_agents_and_scripted_policies_are_scored_on_one_scale():
    """Leaving the controls alone, by either kind of policy, diverged and solved lanes included."""
    settings = {**SETTINGS, "learning_rate": [-2.0, 2.0], "max_episode_steps": 60}
    played = evaluate_with_controls(policy(), "HyperControl-v0", settings, num_lanes=64)["nothing"]
    lanes = make_lanes("HyperControl-v0", settings, num_lanes=64, autoreset="Disabled")
    expected = asdict(play(lanes, DoNothing(lanes)))
    for name, values in asdict(played).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)
    assert played.diverged.any()
    assert not played.diverged.all()
