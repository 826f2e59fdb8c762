"""Plateaus: dwell times against quadrature, spectra, exact plateau values."""

import math
from dataclasses import replace

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.rules.classic import SGD
from learned_opt.tasks.committee import SoftCommittee
from learned_opt.tasks.plateaus import GemanMcClure, LogisticStaircase, Welsch
from learned_opt.tasks.saturation import SaturatedUnit, SigmoidRegression
from learned_opt.unroll import unroll

# From one stair to the next; the floor's curvature is too small to matter.
STAIRS_6 = LogisticStaircase(dim=2, num_steps=2, spacing=6.0, floor=1e-12)
STAIRS_10 = LogisticStaircase(dim=2, num_steps=2, spacing=10.0, floor=1e-12)
ALL = [Welsch(), GemanMcClure(), LogisticStaircase(), SaturatedUnit(), SoftCommittee(num_inputs=8)]


def hessian(function):
    """Reverse over reverse: forward mode makes torch warn of its own deprecated internals."""
    return torch.func.jacrev(torch.func.grad(function))


def descent_steps(task, start, end, learning_rate, limit):
    """Steps of gradient descent until the first coordinate reaches `end`, by `unroll`."""
    problems = task.sample(1, dtype=torch.float64)
    problems = replace(problems, params={"x": torch.full_like(problems.params["x"], start)})
    path = []
    unroll(
        task,
        SGD(learning_rate=learning_rate),
        problems,
        num_steps=limit,
        rng=torch.Generator(),
        observe=lambda *, step, params, grads, losses: path.append(float(params["x"][0, 0])),
        stop=lambda _: path[-1] <= end,
    )
    assert path[-1] <= end
    return len(path) - 1


@pytest.mark.parametrize(
    ("task", "start", "end", "known"),
    [
        (Welsch(dim=2), 4.0, 1.0, 443),
        (Welsch(dim=2), 4.5, 1.0, 2788),
        (GemanMcClure(dim=2), 5.0, 1.0, 184),
        (GemanMcClure(dim=2), 10.0, 1.0, 2604),
        (STAIRS_6, 6 - 1.6, 1.6, 296),
        pytest.param(STAIRS_10, 10 - 1.6, 1.6, 17286, marks=pytest.mark.slow),
    ],
)
def test_gradient_descent_dwells_as_long_as_the_quadrature_says(task, start, end, known):
    predicted = task.gradient_flow_steps(start, end, learning_rate=0.5)
    measured = descent_steps(task, start, end, learning_rate=0.5, limit=20_000)
    assert measured == pytest.approx(predicted, rel=0.05)
    assert measured == pytest.approx(known, rel=0.01)


def test_stair_dwell_matches_its_closed_form():
    steps = STAIRS_10.gradient_flow_steps(9.0, 1.0, learning_rate=0.5)
    assert steps == pytest.approx(math.pi * 0.5**2 * math.exp(10.0) / (2 * 0.5), rel=0.002)


def test_flow_is_mirrored_for_even_laws_and_halves_with_twice_the_rate():
    task = Welsch(dim=1)
    once = task.gradient_flow_steps(3.0, 1.0, learning_rate=0.25)
    assert task.gradient_flow_steps(-3.0, -1.0, learning_rate=0.25) == pytest.approx(once)
    assert task.gradient_flow_steps(3.0, 1.0, learning_rate=0.5) == pytest.approx(once / 2)


@pytest.mark.parametrize(("start", "end"), [(1.0, 3.0), (2.0, 2.0), (-1.0, -2.0), (2.0, -1.0)])
def test_flow_refuses_to_go_uphill(start, end):
    with pytest.raises(LearnedOptError, match="end must lie downhill from start"):
        Welsch().gradient_flow_steps(start, end, learning_rate=0.5)


def test_flow_refuses_a_learning_rate_of_zero():
    with pytest.raises(LearnedOptError, match="learning_rate must be positive, got 0"):
        Welsch().gradient_flow_steps(3.0, 1.0, learning_rate=0)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_critical_points_have_zero_gradient_and_the_stated_spectrum(task):
    for point in task.critical_points():
        gradient = torch.func.grad(task.function)(point.x)
        spectrum = torch.linalg.eigvalsh(hessian(task.function)(point.x))
        assert gradient.abs().max() < 1e-8
        torch.testing.assert_close(spectrum, point.eigenvalues, atol=1e-9, rtol=1e-6)
        assert float(task.function(point.x)) == pytest.approx(point.value, abs=1e-12)
    assert task.critical_points()[-1].kind == "minimum"
    assert task.critical_points()[-1].value == pytest.approx(task.minimum, abs=1e-15)


def test_saturated_unit_has_the_curvature_of_gauss_and_newton():
    point = SaturatedUnit().critical_points()[0]
    torch.testing.assert_close(
        point.eigenvalues.sum(),
        torch.tensor(0.1966119**2 * 3.5, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


def test_stair_levels_count_down_by_the_height():
    task = LogisticStaircase(dim=3, num_steps=3, height=2.0)
    facts = task.sample(2, dtype=torch.float64).facts
    torch.testing.assert_close(
        facts.levels[0, :3], torch.tensor([18.0, 12.0, 6.0], dtype=torch.float64)
    )
    assert facts.reference.tolist() == [18.0, 18.0]
    assert facts.next_level.tolist() == [12.0, 12.0]
    between = torch.tensor([[12.0] * 3, [4.0] * 3], dtype=torch.float64)
    assert task.function(between).tolist() == pytest.approx([12.0, 6.0], rel=1e-3)


def test_stair_minimum_lies_below_everything_around():
    task = LogisticStaircase(dim=1)
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64).unsqueeze(1)
    values = task.function(grid)
    assert task.minimum <= values.min()
    assert task.minimum == pytest.approx(float(values.min()), rel=1e-3)


@pytest.mark.parametrize("task", [Welsch(), GemanMcClure(), LogisticStaircase()])
def test_all_coordinates_of_an_instance_start_equally_far_out(task):
    x = task.sample(16, dtype=torch.float64).params["x"]
    distance = x.abs()
    torch.testing.assert_close(distance, distance[:, :1].expand_as(x), rtol=0, atol=0)
    assert len(distance[:, 0].unique()) == 16


def test_smoothness_of_the_stairs_is_their_largest_curvature():
    task = LogisticStaircase(dim=1)
    grid = torch.linspace(-5, 25, 30_001, dtype=torch.float64).unsqueeze(1)
    curvature = torch.func.vmap(hessian(task.function))(grid).abs().max()
    assert task.smoothness == pytest.approx(float(curvature), rel=1e-3)


def test_saturated_unit_keeps_its_tiny_gradient_in_float32():
    grads = {}
    for dtype in (torch.float32, torch.float64):
        task = SaturatedUnit()
        problems = task.sample(8, dtype=dtype)
        x = problems.params["x"].requires_grad_()
        (grads[dtype],) = torch.autograd.grad(task.loss({"x": x}, problems).sum(), x)
    assert 0 < grads[torch.float64].abs().max() < 1e-8
    torch.testing.assert_close(
        grads[torch.float32].double(), grads[torch.float64], rtol=1e-4, atol=0
    )


def test_saturated_unit_equals_the_plain_formula():
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    total = torch.zeros(50, dtype=torch.float64)
    for u in (1.0, 2.0):
        total += (torch.sigmoid(x[:, 0] * u + x[:, 1]) - 1 / (1 + math.exp(2 * u - 3))) ** 2
    torch.testing.assert_close(SaturatedUnit().function(x), total / 4)


def test_sigmoid_regression_equals_the_plain_formula_and_reaches_zero():
    task = SigmoidRegression(dim=4, num_samples=10)
    problems = task.sample(3, dtype=torch.float64)
    inputs, targets = problems.constants["inputs"], problems.constants["targets"]
    x = problems.params["x"]
    plain = [
        sum((torch.sigmoid(inputs[n, j] @ x[n]) - targets[n, j]) ** 2 for j in range(10)) / 10
        for n in range(3)
    ]
    torch.testing.assert_close(task.loss({"x": x}, problems), torch.stack(plain))
    torch.testing.assert_close(problems.facts.reference, torch.stack(plain))
    teacher = torch.linalg.lstsq(inputs, torch.logit(targets).unsqueeze(2)).solution.squeeze(2)
    assert task.loss({"x": teacher}, problems).abs().max() < 1e-25


@pytest.mark.parametrize(("num_units", "value"), [(2, 0.01161), (3, 0.02030), (4, 0.02838)])
def test_committee_plateau_is_a_strict_saddle_of_known_value(num_units, value):
    task = SoftCommittee(num_units=num_units, num_inputs=10)
    saddle, teacher = task.critical_points()
    assert float(task.function(saddle.x)) == pytest.approx(value, abs=5e-6)
    assert saddle.kind == "strict saddle"
    assert (saddle.eigenvalues < -1e-3).sum() >= num_units - 1
    assert teacher.value == 0.0
    assert float(task.function(teacher.x)) == pytest.approx(0.0, abs=1e-15)


def test_committee_loss_is_the_population_average():
    task = SoftCommittee(num_units=2, num_inputs=4)
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 4, generator=rng, dtype=torch.float64)
    x = torch.randn(400_000, 4, generator=rng, dtype=torch.float64)
    student = torch.erf(x @ weights.T / math.sqrt(2)).sum(1)
    teacher = torch.erf(x[:, :2] / math.sqrt(2)).sum(1)
    squared = (student - teacher).square() / 2
    error = float(squared.std()) / math.sqrt(len(x))
    exact = float(task.function(weights.flatten()))
    assert exact == pytest.approx(float(squared.mean()), abs=4 * error)
    assert error < 0.01 * exact


def test_committee_starts_unspecialised_with_an_orthonormal_teacher():
    task = SoftCommittee(num_units=3, num_inputs=20, symmetry_breaking=1e-5)
    problems = task.sample(8, dtype=torch.float64)
    teacher, weights = problems.constants["teacher"], problems.params["w"]
    identity = torch.eye(3, dtype=torch.float64).expand(8, 3, 3)
    torch.testing.assert_close(teacher @ teacher.mT, identity)
    torch.testing.assert_close(weights @ weights.mT, 0.5 * identity, atol=1e-7, rtol=0)
    overlap = weights @ teacher.mT
    assert 1e-6 < float(overlap.std()) < 3e-5


def test_committee_rests_on_its_plateau_the_longer_the_smaller_the_asymmetry():
    exits = []
    for symmetry_breaking in (1e-2, 1e-4):
        task = SoftCommittee(num_units=2, num_inputs=10, symmetry_breaking=symmetry_breaking)
        problems = task.sample(8, dtype=torch.float64)
        losses = unroll(
            task, SGD(learning_rate=0.7), problems, num_steps=1000, rng=torch.Generator()
        ).losses
        plateau = task.plateau_value
        assert ((losses / plateau - 1).abs() < 0.05).sum(1).min() > 20
        exits.append((losses > plateau / 2).sum(1).double().mean())
        assert (losses[:, -1] < 1e-3 * plateau).all()
    assert exits[1] > 1.3 * exits[0]


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (Welsch, {"dim": 0}, "welsch: dim must be positive, got 0"),
        (Welsch, {"start": (4.0, 3.0)}, r"start must be a range 0 < low <= high, got \(4.0, 3.0\)"),
        (GemanMcClure, {"start": (0.0, 3.0)}, "start must be a range"),
        (LogisticStaircase, {"num_steps": 0}, "num_steps must be positive, got 0"),
        (LogisticStaircase, {"spacing": -1.0}, "spacing must be positive, got -1.0"),
        (LogisticStaircase, {"width": 0.0}, "width must be positive, got 0.0"),
        (LogisticStaircase, {"height": 0.0}, "height must be positive, got 0.0"),
        (LogisticStaircase, {"floor": 0.0}, "floor must be positive, got 0.0"),
        (SaturatedUnit, {"start": 0.0}, "start must be positive, got 0.0"),
        (SaturatedUnit, {"spread": -1.0}, "spread must not be negative, got -1.0"),
        (SigmoidRegression, {"dim": 0}, "dim must be positive, got 0"),
        (SigmoidRegression, {"num_samples": 0}, "num_samples must be positive, got 0"),
        (SigmoidRegression, {"start_std": 0.0}, "start_std must be positive, got 0.0"),
        (SoftCommittee, {"num_units": 1}, "num_units must be at least 2, got 1"),
        (SoftCommittee, {"num_inputs": 5}, "num_inputs must be at least 2 num_units = 6, got 5"),
        (SoftCommittee, {"symmetry_breaking": 0.0}, "symmetry_breaking must be positive, got 0.0"),
    ],
)
def test_bad_settings_are_refused(factory, settings, message):
    with pytest.raises(LearnedOptError, match=message):
        factory(**settings)
