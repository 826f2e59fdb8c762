"""Rippled quadratics: one minimum, a curvature that swings, condition numbers as asked for."""

import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.tasks import get_task

DOUBLE = torch.float64


@pytest.mark.parametrize("ripple", [0.0, 0.2, 0.5])
def test_the_origin_is_the_only_critical_point_of_a_coordinate(ripple):
    task = get_task("rippled_quadratic", dim=1, ripple=ripple, condition_decades=(0.0, 0.0))
    x = torch.linspace(1e-3, 20, 200_001, dtype=DOUBLE)[:, None].requires_grad_()
    (slope,) = torch.autograd.grad(task.function(x).sum(), x)
    assert (slope > 0).all()


def test_the_formula():
    task = get_task("rippled_quadratic", dim=2, ripple=0.3, condition_decades=(2.0, 2.0))
    problems = task.sample(4, seed=0, dtype=DOUBLE)
    losses = task.loss(problems.params, problems)
    for n in range(4):
        total = 0.0
        for h, x in zip(
            problems.constants["curvature"][n].tolist(), problems.params["x"][n].tolist(),
            strict=True,
        ):  # fmt: skip
            total += h * (x**2 / 2 + 0.3 * (1 - math.cos(3 * x)))
        assert losses[n].item() == pytest.approx(total, rel=1e-12)


def test_condition_numbers_span_the_decades_asked_for():
    problems = get_task("rippled_quadratic", dim=5).sample(2000, seed=0, dtype=DOUBLE)
    curvature = problems.constants["curvature"]
    decades = (curvature.amax(1) / curvature.amin(1)).log10()
    assert curvature.amax(1) == pytest.approx(1.0)
    assert 1.0 <= decades.min() < 1.01
    assert 2.99 < decades.max() <= 3.0 + 1e-12
    assert decades.mean().item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("setting", "value"), [("dim", 0), ("ripple", 0.6), ("condition_decades", (3.0, 1.0))]
)
def test_bad_settings(setting, value):
    with pytest.raises(LearnedOptError, match=f"rippled_quadratic: {setting} must"):
        get_task("rippled_quadratic", **{setting: value})
