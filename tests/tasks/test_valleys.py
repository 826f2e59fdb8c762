"""Valleys and quadratics: critical points, levels, plain formulas."""

import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.tasks.valleys import Rastrigin, Rosenbrock


def hessian(function):
    """Reverse over reverse: forward mode makes torch warn of its own deprecated internals."""
    return torch.func.jacrev(torch.func.grad(function))


@pytest.mark.parametrize(
    "task",
    [*(Rosenbrock(dim=dim) for dim in range(2, 10)), Rastrigin(dim=1), Rastrigin(dim=3)],
    ids=lambda task: f"{task.name}-{task.dim}",
)
def test_critical_points_have_zero_gradient_and_the_stated_spectrum(task):
    for point in task.critical_points():
        gradient = torch.func.grad(task.function)(point.x)
        spectrum = torch.linalg.eigvalsh(hessian(task.function)(point.x))
        assert gradient.abs().max() < 1e-8
        torch.testing.assert_close(spectrum, point.eigenvalues, atol=1e-6, rtol=1e-9)
    assert task.critical_points()[-1].value == task.minimum
    assert task.critical_points()[-1].kind == "minimum"


@pytest.mark.parametrize(
    ("dim", "second_minimum", "saddle", "escape"),
    [
        (4, 3.7014, 3.7082, -0.5686),
        (5, 3.9308, 4.6574, -2.71),
        (6, 3.9739, 5.6464, None),
        (7, 3.9836, 6.6363, -2.81),
    ],
)
def test_rosenbrock_has_one_more_minimum_behind_one_saddle(dim, second_minimum, saddle, escape):
    high, low, lowest = Rosenbrock(dim=dim).critical_points()
    assert (high.kind, low.kind, lowest.kind) == ("strict saddle", "minimum", "minimum")
    assert (high.eigenvalues < 0).sum() == 1
    assert high.value == pytest.approx(saddle, abs=6e-5)
    assert low.value == pytest.approx(second_minimum, abs=6e-5)
    if escape is not None:
        assert float(high.eigenvalues[0]) == pytest.approx(escape, abs=5e-3)


def test_rosenbrock_spectrum_in_the_plane():
    (point,) = Rosenbrock(dim=2).critical_points()
    assert point.eigenvalues.tolist() == pytest.approx([0.3994, 1001.6006], abs=1e-4)


def test_rosenbrock_levels_are_told_from_the_valley_floor_at_the_origin():
    task = Rosenbrock(dim=5)
    facts = task.sample(3, dtype=torch.float64).facts
    floor = float(task.function(torch.zeros(5, dtype=torch.float64)))
    assert facts.reference.tolist() == [floor] * 3
    assert facts.next_level.tolist() == pytest.approx([3.9308] * 3, abs=1e-4)
    assert Rosenbrock(dim=4).sample(1).facts.next_level.item() == 0.0


def test_rosenbrock_equals_its_plain_sum():
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = [
        sum(100 * (p[i + 1] - p[i] ** 2) ** 2 + (1 - p[i]) ** 2 for i in range(3))
        for p in x.tolist()
    ]
    assert Rosenbrock(dim=4).function(x).tolist() == pytest.approx(plain)


def test_rastrigin_equals_its_plain_sum():
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = [30 + sum(xi**2 - 10 * math.cos(2 * math.pi * xi) for xi in p) for p in x.tolist()]
    assert Rastrigin(dim=3).function(x).tolist() == pytest.approx(plain)


def test_rastrigin_barrier_stands_between_two_minima():
    barrier, second, lowest = Rastrigin(dim=2).critical_points()
    assert (barrier.kind, second.kind, lowest.kind) == ("strict saddle", "minimum", "minimum")
    assert lowest.x[0] < barrier.x[0] < second.x[0] < 1
    assert lowest.value < second.value < barrier.value


def test_random_quadratic_equals_its_plain_formula_and_is_solvable():
    task = RandomQuadratic(dim=4)
    problems = task.sample(3, dtype=torch.float64)
    matrix, target = problems.constants["matrix"], problems.constants["target"]
    plain = [(matrix[n] @ problems.params["x"][n] - target[n]).norm() ** 2 for n in range(3)]
    torch.testing.assert_close(problems.facts.reference, torch.stack(plain))
    torch.testing.assert_close(task.loss(problems.params, problems), torch.stack(plain))
    solution = torch.linalg.solve(matrix, target)
    assert task.loss({"x": solution}, problems).max() < 1e-20


def test_random_quadratic_smoothness_is_the_edge_of_the_spectrum():
    task = RandomQuadratic(dim=40)
    matrix = task.sample(8, dtype=torch.float64).constants["matrix"]
    largest = 2 * torch.linalg.matrix_norm(matrix, ord=2).square().mean()
    assert float(largest) == pytest.approx(task.smoothness, rel=0.15)


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (Rosenbrock, {"dim": 1}, "rosenbrock: dim must be at least 2, got 1"),
        (Rosenbrock, {"spread": -0.1}, "spread must not be negative, got -0.1"),
        (Rastrigin, {"dim": 0}, "rastrigin: dim must be positive, got 0"),
        (Rastrigin, {"half_width": 0.0}, "half_width must be positive, got 0.0"),
        (RandomQuadratic, {"dim": 0}, "random_quadratic: dim must be positive, got 0"),
    ],
)
def test_bad_settings_are_refused(factory, settings, message):
    with pytest.raises(LearnedOptError, match=message):
        factory(**settings)
