"""Truncated back-propagation: which steps the gradient sees, and when problems change."""

from dataclasses import replace

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.episodes import Episode, EpisodeSampler
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.meta.objectives import get_objective
from learned_opt.meta.truncated import TruncatedBackpropagation
from learned_opt.rules.classic import Momentum
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.unroll import unroll

DTYPE = torch.float64
TASK = RandomQuadratic(dim=4)
TEN_STEPS = Fixed(10)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def estimator(*, horizon=TEN_STEPS, truncation=4, objective="sum", tasks=(TASK,), **options):
    sampler = EpisodeSampler(tasks=tasks, num_problems=3, horizon=horizon, dtype=DTYPE)
    return TruncatedBackpropagation(
        sampler=sampler, objective=get_objective(objective), truncation=truncation, **options
    )


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("objective", ["sum", "log_gap"])
def test_equals_full_back_propagation_if_the_horizon_fits(objective, second_order):
    rule = CoordinatewiseLSTM().double()
    backpropagation = estimator(
        horizon=Fixed(6), truncation=6, objective=objective, second_order=second_order
    )
    estimate = backpropagation.estimate(rule, None, progress=0.0, rng=rng())

    draws = rng()
    problems = TASK.sample(3, seed=draws, dtype=DTYPE)
    losses = unroll(
        TASK,
        rule,
        problems,
        num_steps=6,
        rng=draws,
        differentiable=True,
        second_order=second_order,
    ).losses
    meta_loss = get_objective(objective)(
        losses, facts=problems.facts, initial=losses[:, 0].detach(), epsilon=1e-6
    )
    assert estimate.meta_loss.item() == meta_loss.item()
    for grad, expected in zip(
        estimate.grads, torch.autograd.grad(meta_loss, list(rule.parameters())), strict=True
    ):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-14)
    assert estimate.state is None


def test_an_episode_is_cut_into_truncations_of_one_trajectory():
    rule, backpropagation = Momentum(learning_rate=0.01), estimator()
    draws, state, steps, meta_losses = rng(), None, [], []
    for _ in range(3):
        estimate = backpropagation.estimate(rule, state, progress=0.0, rng=draws)
        state = estimate.state
        steps.append(estimate.diagnostics["inner_step"])
        meta_losses.append(estimate.meta_loss.item())
    assert steps == [4, 8, 10]  # the last truncation is shorter
    assert state is None
    problems = TASK.sample(3, seed=rng(), dtype=DTYPE)
    whole = unroll(TASK, rule, problems, num_steps=10, rng=rng()).losses
    expected = [whole[:, a:b].sum(1).mean().item() for a, b in ((1, 5), (5, 9), (9, 11))]
    assert meta_losses == pytest.approx(expected, rel=1e-12)


def test_truncations_ignore_what_came_before_them():
    rule, backpropagation = Momentum(learning_rate=0.01), estimator(horizon=Fixed(8))
    draws = rng()
    first = backpropagation.estimate(rule, None, progress=0.0, rng=draws)
    assert not any(p.requires_grad for p in first.state.carry.params.values())
    second = backpropagation.estimate(rule, first.state, progress=0.0, rng=draws)
    # the gradient of steps 5 to 8, from where the first four ended, and of nothing else
    problems = first.state.problems
    carry = unroll(TASK, rule, problems, num_steps=4, rng=rng()).carry
    losses = unroll(
        TASK, rule, problems, num_steps=4, rng=rng(), carry=carry, differentiable=True
    ).losses
    expected = torch.autograd.grad(losses[:, 1:].sum(1).mean(), list(rule.parameters()))
    for grad, reference in zip(second.grads, expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-12, atol=0.0)
    # and that is biased: the whole episode says something else
    whole = unroll(TASK, rule, problems, num_steps=8, rng=rng(), differentiable=True).losses
    (full,) = torch.autograd.grad(whole[:, 1:].sum(1).mean(), rule.learning_rate)
    assert abs(first.grads[0] + second.grads[0] - full) > 1e-2 * abs(full)


def test_log_gap_is_measured_from_the_start_of_the_episode():
    rule, backpropagation = Momentum(learning_rate=0.01), estimator(objective="log_gap")
    draws = rng()
    first = backpropagation.estimate(rule, None, progress=0.0, rng=draws)
    second = backpropagation.estimate(rule, first.state, progress=0.0, rng=draws)
    start = TASK.loss(first.state.problems.params, first.state.problems)
    torch.testing.assert_close(second.state.initial, start)


def test_the_state_survives_packing():
    rule, backpropagation = CoordinatewiseLSTM().double(), estimator()
    first = backpropagation.estimate(rule, None, progress=0.0, rng=rng())
    packed = backpropagation.pack(first.state)
    estimates = [
        backpropagation.estimate(rule, state, progress=0.0, rng=rng(7))
        for state in (first.state, backpropagation.unpack(packed))
    ]
    assert torch.equal(estimates[0].meta_loss, estimates[1].meta_loss)
    for a, b in zip(estimates[0].grads, estimates[1].grads, strict=True):
        assert torch.equal(a, b)
    fresh = Episode(task=0, problems=first.state.problems, horizon=3)
    assert Episode.unpack(fresh.pack()) == fresh


def test_fresh_problems_follow_a_finished_episode():
    rule, backpropagation = Momentum(learning_rate=0.01), estimator(horizon=Fixed(4))
    draws = rng()
    losses = {
        backpropagation.estimate(rule, None, progress=0.0, rng=draws).meta_loss.item()
        for _ in range(4)
    }
    assert len(losses) == 4


def test_a_parameter_without_influence_has_gradient_zero():
    rule = Momentum(learning_rate=0.01)
    estimate = estimator(truncation=1).estimate(rule, None, progress=0.0, rng=rng())
    assert estimate.grads[0] != 0  # the learning rate
    assert estimate.grads[1] == 0  # momentum says nothing before the second step


def test_frozen_parameters_are_left_out():
    rule = Momentum(learning_rate=0.01)
    rule.momentum.requires_grad_(requires_grad=False)
    estimate = estimator().estimate(rule, None, progress=0.0, rng=rng())
    assert len(estimate.grads) == 1


def test_tasks_are_drawn_by_weight():
    tasks = [RandomQuadratic(dim=2), RandomQuadratic(dim=3), RandomQuadratic(dim=5)]
    sampler = EpisodeSampler(
        tasks=tasks, weights=(1.0, 0.0, 3.0), num_problems=2, horizon=LogUniform(5, 50)
    )
    draws = rng()
    episodes = [sampler.draw(0.0, draws) for _ in range(400)]
    counts = [sum(e.task == k for e in episodes) for k in range(3)]
    assert counts[1] == 0
    assert abs(counts[2] / 400 - 0.75) < 4 * (0.75 * 0.25 / 400) ** 0.5
    assert all(e.problems.params["x"].shape == (2, tasks[e.task].dim) for e in episodes)
    assert {e.problems.params["x"].dtype for e in episodes} == {torch.float32}
    assert len({e.horizon for e in episodes}) > 20


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tasks": []}, "tasks must hold at least one task"),
        ({"num_problems": 0}, "num_problems must be positive, got 0"),
        ({"weights": (1.0, 1.0)}, r"task_weights must have one entry per task \(1\), got 2"),
        ({"weights": (-1.0,)}, "task_weights must be non-negative"),
        ({"weights": (0.0,)}, "not all zero"),
    ],
)
def test_bad_samplers_are_refused(changes, match):
    sampler = EpisodeSampler(tasks=[TASK], num_problems=3, horizon=Fixed(5))
    with pytest.raises(LearnedOptError, match=match):
        replace(sampler, **changes)


def test_bad_truncations_are_refused():
    with pytest.raises(LearnedOptError, match="truncation must be positive, got 0"):
        estimator(truncation=0)
    with pytest.raises(LearnedOptError, match="epsilon must be positive, got 0"):
        estimator(epsilon=0.0)
