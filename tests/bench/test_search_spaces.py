import math

import numpy as np
import pytest
import torch

from learned_opt.bench.search_spaces import (
    BASELINES,
    Range,
    SearchSpace,
    Units,
    measure_units,
    search_space,
    sobol,
)
from learned_opt.errors import LearnedOptError
from learned_opt.rules.base import HandMade, get_rule, registered_rules
from learned_opt.tasks.base import get_task

UNITS = Units(smoothness=50.0, radius=0.1, gradient=7.0)
HAND_MADE = [name for name in registered_rules() if isinstance(get_rule(name), HandMade)]


def test_sobol_sequences_are_nested_and_balanced() -> None:
    points = sobol(64, 3, seed=5)
    assert np.array_equal(sobol(4, 3, seed=5), points[:4])
    assert np.array_equal(sobol(11, 3, seed=5), points[:11])
    assert not np.array_equal(sobol(64, 3, seed=6), points)
    # One point in every sixty-fourth of every axis: the property that makes them worth having.
    for column in points.T:
        assert sorted(np.floor(column * 64)) == list(range(64))


def test_ranges_are_log_uniform_in_their_unit() -> None:
    rates = Range(1e-3, 2.0, "inverse smoothness")
    assert rates.value(0.0, UNITS) == pytest.approx(1e-3 / 50)
    assert rates.value(1.0, UNITS) == pytest.approx(2 / 50)
    assert rates.value(0.5, UNITS) == pytest.approx(math.sqrt(1e-3 * 2) / 50)
    assert Range(1e-3, 0.5, complement=True).value(1.0, UNITS) == pytest.approx(0.5)
    assert Range(1e-3, 0.5, complement=True).value(0.0, UNITS) == pytest.approx(0.999)
    choices = Range(choices=(1.0, 10.0, 50.0))
    assert [choices.value(u, UNITS) for u in (0.0, 0.3, 0.34, 0.7, 0.999)] == [1, 1, 10, 50, 50]


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("one", 1.0),
        ("smoothness", 50.0),
        ("inverse smoothness", 0.02),
        ("radius", 0.1),
        ("gradient", 7.0),
        ("loss", 0.5),
        ("hessian lipschitz", 500.0),
    ],
)
def test_units(unit: str, factor: float) -> None:
    assert UNITS.of(unit) == pytest.approx(factor)


def test_search_follows_the_units_of_a_rescaled_task() -> None:
    """f -> a f, x -> c x: each setting becomes the setting of the same trajectory, rescaled."""
    a, c = 1e3, 10.0
    scaled = Units(UNITS.smoothness * a / c**2, UNITS.radius * c, UNITS.gradient * a / c)
    powers = {"learning_rate": c**2 / a, "threshold": a / c, "noise": a / c, "radius": c}
    for rule in ("sgd", "clipped_gd", "noisy_gd"):
        before = search_space(rule).points(8, UNITS, seed=1)
        after = search_space(rule).points(8, scaled, seed=1)
        for one, other in zip(before, after, strict=True):
            for name, value in one.items():
                assert other[name] == pytest.approx(value * powers[name], rel=1e-9)
    for one, other in zip(
        search_space("adam").points(8, UNITS, seed=1),
        search_space("adam").points(8, scaled, seed=1),
        strict=True,
    ):
        assert other["learning_rate"] == pytest.approx(one["learning_rate"] * c)


@pytest.mark.parametrize("rule", HAND_MADE)
def test_every_hand_made_rule_takes_every_point_of_its_space(rule: str) -> None:
    points = search_space(rule).points(64, UNITS, seed=0)
    columns = {k: torch.tensor([p[k] for p in points], dtype=torch.float64) for k in points[0]}
    built = dict(get_rule(rule, **columns).named_parameters())
    for name, column in columns.items():
        assert torch.equal(built[name].detach(), column)


def test_baselines_are_hand_made_rules_with_a_space_of_their_own() -> None:
    assert set(BASELINES) <= set(HAND_MADE) and len(BASELINES) == 13
    assert search_space("sgd").ranges["learning_rate"] == Range(1e-3, 2.0, "inverse smoothness")


def test_a_rule_without_an_entry_is_searched_around_its_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("learned_opt.bench.search_spaces._SPACES", {})
    ranges = search_space("momentum").ranges
    assert ranges["learning_rate"] == Range(1e-4, 1.0)
    assert "weight_decay" not in search_space("lion").ranges  # its default is 0


def test_no_points_need_no_space() -> None:
    assert SearchSpace({}).points(0, UNITS, seed=0) == []


def test_units_are_measured_and_floored() -> None:
    task = get_task("strict_saddle", dim=4, start="ball", start_radius=1e-6)
    units = measure_units(task, task.sample(4, dtype=torch.float64))
    # It starts beside the saddle, where the gradient is tiny.
    assert units.gradient == task.smoothness * task.radius
    task = get_task("rosenbrock", dim=2)
    problems = task.sample(5, dtype=torch.float64)
    points = {k: p.requires_grad_() for k, p in problems.params.items()}
    (gradient,) = torch.autograd.grad(task.loss(points, problems).sum(), list(points.values()))
    floor = task.smoothness * task.radius
    expected = max(float(gradient.norm(dim=1).median()), floor)
    assert measure_units(task, problems).gradient == pytest.approx(expected)


def test_learned_and_unknown_rules_are_refused() -> None:
    with pytest.raises(LearnedOptError, match="rule must be hand-made to be tuned, got 'lstm'"):
        search_space("lstm")
    with pytest.raises(LearnedOptError, match="unknown rule 'sdg'; did you mean 'sgd'"):
        search_space("sdg")
