"""Meta-objectives against numbers worked out by hand, and their invariances."""

import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.objectives import (
    OBJECTIVES,
    OVER_STEPS,
    get_objective,
    judge_steps,
    relative_gaps,
)
from learned_opt.rules.classic import SGD
from learned_opt.tasks.base import Facts
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.unroll import unroll

LOSSES = torch.tensor([[8.0, 4.0, 2.0], [10.0, 6.0, 2.0]], dtype=torch.float64)


def facts(minimum=0.0, reference=0.0):
    minimum, reference = (torch.full((2,), v, dtype=torch.float64) for v in (minimum, reference))
    return Facts(
        minimum=minimum, reference=reference, next_level=minimum, levels=minimum[:, None][:, :0]
    )


def value(name, losses=LOSSES, *, known=None, initial=None, epsilon=1e-9):
    return get_objective(name)(
        losses,
        facts=known or facts(),
        initial=losses[:, 0] if initial is None else initial,
        epsilon=epsilon,
    ).item()


def test_values_by_hand():
    assert value("sum") == 7.0  # (4 + 2 + 6 + 2) / 2
    assert value("final") == 2.0
    expected = (math.log(4 / 8) + math.log(2 / 8) + math.log(6 / 10) + math.log(2 / 10)) / 4
    assert value("log") == pytest.approx(expected, rel=1e-7)
    assert value("log_gap") == pytest.approx(expected, rel=1e-7)
    expected = (math.log(3 / 7) + math.log(1 / 7) + math.log(5 / 9) + math.log(1 / 9)) / 4
    assert value("log_gap", known=facts(minimum=1.0)) == pytest.approx(expected, rel=1e-7)


def test_the_floor_is_relative():
    assert value("log_gap", torch.tensor([[8.0, 0.0], [2.0, 0.0]]), epsilon=1e-3) == pytest.approx(
        math.log(1e-3)
    )
    assert value("log", torch.tensor([[8.0, 0.0], [2.0, 0.0]]), epsilon=1e-3) == pytest.approx(
        math.log(1e-3)
    )


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_loss_before_the_first_step_does_not_count(name):
    changed = LOSSES.clone()
    changed[:, 0] = 1e3
    initial = torch.tensor([9.0, 9.0], dtype=torch.float64)
    assert value(name, initial=initial) == value(name, changed, initial=initial)


def test_log_gap_is_invariant_under_affine_maps_of_the_loss():
    plain = value("log_gap", known=facts(minimum=1.0), epsilon=1e-2)
    mapped = value("log_gap", 7 * LOSSES - 3, known=facts(minimum=4.0), epsilon=1e-2)
    assert mapped == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("name", ["log", "log_gap"])
def test_logarithms_are_invariant_under_scaling(name):
    assert value(name, 1e-5 * LOSSES) == pytest.approx(value(name), rel=1e-9)


def test_gaps_are_in_units_of_the_fall_from_the_saddle():
    far_above = torch.tensor([-1.0, 4000.0], dtype=torch.float64)
    gaps = relative_gaps(LOSSES, facts=facts(reference=20.0), initial=far_above)
    assert gaps[:, 1].tolist() == [4 / 20, 6 / 20]
    # Without a known saddle the start itself is the unit.
    gaps = relative_gaps(LOSSES, facts=facts(), initial=LOSSES[:, 0])
    assert gaps[:, 1].tolist() == [4 / 8, 6 / 10]


def test_a_minibatch_loss_below_the_minimum_is_no_gap():
    gaps = relative_gaps(LOSSES, facts=facts(minimum=3.0), initial=LOSSES[:, 0])
    assert gaps[:, 2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_prefers_lower_losses(name):
    assert value(name, torch.cat((LOSSES[:, :1], LOSSES[:, 1:] / 2), 1)) < value(name)


def test_an_unknown_name_is_refused():
    with pytest.raises(LearnedOptError, match="unknown objective 'loggap'; did you mean 'log_gap'"):
        get_objective("loggap")


def test_log_mean_gap_averages_over_problems_before_the_logarithm():
    expected = (math.log((4 + 6) / (8 + 10)) + math.log((2 + 2) / (8 + 10))) / 2
    assert value("log_mean_gap") == pytest.approx(expected, rel=1e-7)
    typical = value("log_gap")
    assert value("balanced") == pytest.approx((expected + typical) / 2, rel=1e-7)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_steps_add_up_to_the_objective(name):
    task = RandomQuadratic(dim=3)
    problems = task.sample(6, seed=0, dtype=torch.float64)
    run = unroll(task, SGD(learning_rate=0.01), problems, num_steps=5, rng=torch.Generator())
    terms = judge_steps(
        get_objective(name),
        run.losses.view(2, 1, 3, 6),
        facts=problems.facts,
        initial=run.losses[:, 0].view(2, 3),
        epsilon=1e-6,
    )
    assert terms.shape == (2, 1, 5)
    add_up = {"sum": lambda t: t.sum(), "mean": lambda t: t.mean(), "last": lambda t: t[-1]}
    for group in range(2):
        part = problems.select(torch.arange(3) + 3 * group)
        losses = run.losses[3 * group : 3 * group + 3]
        whole = get_objective(name)(losses, facts=part.facts, initial=losses[:, 0], epsilon=1e-6)
        found = add_up[OVER_STEPS[name]](terms[group, 0])
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=0.0)
