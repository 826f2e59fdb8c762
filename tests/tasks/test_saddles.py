"""Starts, escape laws, sampled curvatures and bad input of the closed-form saddles."""

import math

import pytest
import torch
from torch.autograd.functional import hessian

from learned_opt.errors import LearnedOptError
from learned_opt.rules.classic import SGD
from learned_opt.tasks.base import Problems, get_task
from learned_opt.tasks.chain import Phi4Chain
from learned_opt.tasks.deep_linear import DeepLinear
from learned_opt.tasks.low_dimensional import (
    CubicValley,
    Himmelblau,
    ProductSaddle,
    QuarticDoubleWell,
    SexticDoubleWell,
)
from learned_opt.tasks.matrix import MatrixFactorization
from learned_opt.tasks.octopus import Octopus
from learned_opt.tasks.phase_retrieval import PhaseRetrieval
from learned_opt.tasks.re_zn import FourFoldSaddle, MonkeySaddle, ReZn
from learned_opt.tasks.strict_saddle import StrictSaddle
from learned_opt.tasks.styblinski_tang import StyblinskiTang
from learned_opt.trees import flatten
from learned_opt.unroll import unroll

CLASSES = [
    StrictSaddle,
    ReZn,
    MonkeySaddle,
    FourFoldSaddle,
    CubicValley,
    QuarticDoubleWell,
    SexticDoubleWell,
    ProductSaddle,
    Himmelblau,
    Octopus,
    Phi4Chain,
    MatrixFactorization,
    DeepLinear,
    PhaseRetrieval,
    StyblinskiTang,
]
EVERY_CLASS = pytest.mark.parametrize("task_class", CLASSES, ids=lambda c: c.name)


def sample_flat(task, num_problems=20, seed=0):
    problems = task.sample(num_problems, seed=seed, dtype=torch.float64)
    return flatten(problems.params), problems


def gradients(task, problems):
    x = {name: p.clone().requires_grad_() for name, p in problems.params.items()}
    return torch.cat(
        [g.flatten(1) for g in torch.autograd.grad(task.loss(x, problems).sum(), list(x.values()))],
        dim=1,
    )


def saddle_of(task):
    """The canonical saddle: the exact start of one problem."""
    return sample_flat(type(task)(start="exact"), 1)[0][0]


def first_step_below(task, problems, *, threshold, learning_rate, num_steps):
    """Steps of gradient descent until every problem's loss is below `threshold`, or None."""
    losses = unroll(
        task,
        SGD(learning_rate=learning_rate),
        problems,
        num_steps=num_steps,
        rng=torch.Generator(),
        stop=lambda values: bool((values <= threshold).all()),
    ).losses
    below = (losses <= threshold).all(0).nonzero()
    return int(below[0]) if len(below) else None


@EVERY_CLASS
def test_is_registered(task_class):
    assert isinstance(get_task(task_class.name), task_class)


@EVERY_CLASS
def test_exact_start_is_a_critical_point_with_the_reference_value(task_class):
    task = task_class(start="exact")
    x, problems = sample_flat(task)
    assert (x == x[0]).all()
    assert gradients(task, problems).abs().max() < 1e-12
    losses = task.loss(problems.params, problems)
    torch.testing.assert_close(losses, problems.facts.reference, rtol=1e-12, atol=1e-12)
    lowest = torch.linalg.eigvalsh(hessian(task.function, x[0]))[0]
    assert lowest < 1e-9  # no minimum


@EVERY_CLASS
def test_ball_start_lies_at_its_radius(task_class):
    task = task_class(start="ball", start_radius=0.25)
    x, _ = sample_flat(task)
    distance = (x - saddle_of(task)).norm(dim=1)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.25))
    assert x.std(dim=0).min() > 0


@EVERY_CLASS
def test_manifold_start_lies_about_delta_from_its_stable_part(task_class):
    near, _ = sample_flat(task_class(start="manifold", start_radius=1e-6))
    far, _ = sample_flat(task_class(start="manifold", start_radius=1e-2))
    # The same draw of the factor in [10^-1/2, 10^1/2] scales both.
    factors = (far - near).norm(dim=1) / (1e-2 - 1e-6)
    assert 10**-0.5 <= factors.min() < 0.9
    assert 1.1 < factors.max() <= 10**0.5


@pytest.mark.parametrize(
    "task",
    [
        StrictSaddle(dim=5, index=2, start="manifold", start_radius=1e-12),
        MonkeySaddle(start="manifold", start_radius=1e-12),
        FourFoldSaddle(start="manifold", start_radius=1e-12),
        QuarticDoubleWell(start="manifold", start_radius=1e-12),
        ProductSaddle(start="manifold", start_radius=1e-12),
        Octopus(dim=4, start="manifold", start_radius=1e-12),
        DeepLinear(depth=2, width=3, start="manifold", start_radius=1e-12, singular_values=(1,)),
        DeepLinear(depth=3, width=3, start="manifold", start_radius=1e-12, singular_values=(1,)),
    ],
    ids=lambda t: f"{t.name}-{t.dim}",
)
def test_manifold_start_approaches_the_saddle_first(task):
    _, problems = sample_flat(task)
    run = unroll(
        task,
        SGD(learning_rate=0.1 / task.smoothness),
        problems,
        num_steps=200,
        rng=torch.Generator(),
    )
    before = (run.losses[:, 0] - problems.facts.reference).abs()
    after = (run.losses[:, -1] - problems.facts.reference).abs()
    assert (after < 0.2 * before).all()


@EVERY_CLASS
def test_natural_starts_vary_and_are_finite(task_class):
    x, problems = sample_flat(task_class(start="natural"))
    assert x.std(dim=0).min() > 0
    assert torch.isfinite(gradients(task_class(), problems)).all()


@EVERY_CLASS
def test_a_seed_names_the_same_problems_in_every_dtype(task_class):
    x, _ = sample_flat(task_class(), seed=7)
    single = task_class().sample(20, seed=7, dtype=torch.float32)
    assert torch.equal(flatten(single.params), x.float())
    assert not torch.equal(sample_flat(task_class(), seed=8)[0], x)


def test_deep_linear_natural_layers_are_scaled_isometries():
    task = DeepLinear(depth=3, width=4, hidden=3, start="natural", start_radius=0.1)
    params = task.sample(5, dtype=torch.float64).params
    eye = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    torch.testing.assert_close(params["w1"] @ params["w1"].mT, 0.01 * eye)
    torch.testing.assert_close(params["w2"] @ params["w2"].mT, 0.01 * eye)
    torch.testing.assert_close(params["w3"].mT @ params["w3"], 0.01 * eye)


def test_spread_draws_curvatures_and_keeps_facts_true():
    task = StrictSaddle(dim=4, index=2, spread=0.5, largest_escape=0.1)
    problems = task.sample(200, dtype=torch.float64)
    escape = -problems.constants["quadratic"][:, :2]
    confinement = problems.constants["quartic"][:, :2]
    canonical = torch.tensor([0.1, 0.01], dtype=torch.float64)
    decades = (escape / canonical).log10()
    assert decades.abs().max() <= 0.5
    assert decades.max() > 0.45
    assert decades.min() < -0.45
    minima = torch.zeros(200, 4, dtype=torch.float64)
    minima[:, :2] = (escape / confinement).sqrt()
    unmoved = task.critical_points()[-1].x.abs().expand(200, 4)
    torch.testing.assert_close(minima, unmoved)
    torch.testing.assert_close(task.loss({"x": minima}, problems), problems.facts.minimum)
    one_left = minima.clone()
    drops = escape**2 / (4 * confinement)
    one_left[torch.arange(200), drops.argmin(1)] = 0
    torch.testing.assert_close(task.loss({"x": one_left}, problems), problems.facts.next_level)


def test_many_unstable_directions_keep_the_level_list_short():
    facts = StrictSaddle(dim=40, index=20, smallest_escape=1e-3).sample(2).facts
    assert facts.levels.shape == (2, 2)
    assert StyblinskiTang(dim=40).sample(2).facts.levels.shape == (2, 3)


@pytest.mark.parametrize("start_radius", [1e-3, 1e-6])
def test_gradient_descent_leaves_a_strict_saddle_in_logarithmic_time(start_radius):
    # A far wall leaves the escape quadratic: ln(R / u0) / ln(1 + eta g) steps to R.
    task = StrictSaddle(dim=2, confinement=1e-12, start_radius=start_radius)
    _, problems = sample_flat(task, 1)
    problems.params["x"][:] = torch.tensor([start_radius, 0.0])
    steps = first_step_below(task, problems, threshold=-0.01 / 2, learning_rate=1.0, num_steps=1500)
    assert steps == pytest.approx(math.log(1 / start_radius) / math.log(1.01), abs=1)


def test_cubic_valley_lets_one_side_out():
    task = CubicValley(start_radius=0.02)
    x, problems = sample_flat(task, 30)
    is_right_side = x[:, 1] < 0
    assert 0 < int(is_right_side.sum()) < 30
    run = unroll(task, SGD(learning_rate=0.1), problems, num_steps=1000, rng=torch.Generator())
    final = run.carry.params["x"][:, 1]
    torch.testing.assert_close(final[is_right_side], torch.full_like(final[is_right_side], -3))
    stuck, began = final[~is_right_side], x[~is_right_side, 1]
    # y_t ~ 1 / (1 / y0 + 3 eta t)
    torch.testing.assert_close(stuck, 1 / (1 / began + 300), rtol=0.02, atol=0)


def radial_start(degree, *, radius):
    """A problem of `ReZn` on a descent ray, whose walls are too far away to be felt."""
    task = ReZn(degree=degree, confinement=1e-9)
    angle = math.pi / degree
    x = radius * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    sampled = task.sample(1, dtype=torch.float64)
    problems = Problems(params={"x": x}, constants={}, facts=sampled.facts)
    return task, problems


def flow_time(degree, *, start, end):
    return (start ** (2 - degree) - end ** (2 - degree)) / (degree * (degree - 2))


@pytest.mark.parametrize(
    ("degree", "radius", "learning_rate"),
    [(3, 3e-2, 1e-2), (4, 0.1, 1e-2), (5, 0.2, 1e-2)],
)
def test_degenerate_escape_time_law(degree, radius, learning_rate):
    task, problems = radial_start(degree, radius=radius)
    steps = first_step_below(
        task, problems, threshold=-(0.5**degree), learning_rate=learning_rate, num_steps=5000
    )
    predicted = flow_time(degree, start=radius, end=0.5) / learning_rate
    assert steps == pytest.approx(predicted, rel=0.05)


def test_monkey_saddle_takes_as_long_as_was_measured():
    task, problems = radial_start(3, radius=1e-2)
    steps = first_step_below(
        task, problems, threshold=-(0.5**3), learning_rate=1e-2, num_steps=4000
    )
    assert abs(steps - 3271) <= 1
    assert steps == pytest.approx(flow_time(3, start=1e-2, end=0.5) / 1e-2, rel=0.05)


@pytest.mark.slow
def test_four_fold_saddle_takes_as_long_as_was_measured():
    task, problems = radial_start(4, radius=1e-2)
    steps = first_step_below(
        task, problems, threshold=-(0.5**4), learning_rate=1e-2, num_steps=130_000
    )
    assert steps == pytest.approx(124_956, abs=5)


def test_matrix_factorization_learns_modes_one_by_one():
    # Many columns leave later modes room beside the learned ones, so the law is sharp.
    task = MatrixFactorization(size=6, rank=60, eigenvalues=(4, 2, 1), start_radius=1e-3)
    _, problems = sample_flat(task, 4)
    scales = problems.params["u"].norm(dim=2)
    eta = 0.01
    losses = unroll(
        task, SGD(learning_rate=eta), problems, num_steps=1500, rng=torch.Generator()
    ).losses
    levels = problems.facts.levels
    for r, mode in enumerate((4.0, 2.0, 1.0)):
        half_way = (levels[:, r] + levels[:, r + 1]) / 2
        first = (losses <= half_way[:, None]).int().argmax(dim=1).double()
        # Logistic growth reaches half the drop when u^2 = (1 - 1 / sqrt 2) l.
        to_half = math.log(math.sqrt(2) - 1) / 2
        law = ((math.sqrt(mode) / scales[:, r]).log() + to_half) / (eta * mode)
        torch.testing.assert_close(first, law, rtol=0.05, atol=0)


def test_deep_linear_scalar_chain_time():
    # One mode, balanced: w' = eta w^2 (s - w^3) takes about w0^{-1} / (eta s) steps.
    task = DeepLinear(depth=3, width=1, singular_values=(1.0,), start_radius=0.01)
    _, problems = sample_flat(task, 1)
    problems = Problems(
        params={name: p.abs() for name, p in problems.params.items()},
        constants={},
        facts=problems.facts,
    )
    steps = first_step_below(task, problems, threshold=0.125, learning_rate=0.05, num_steps=2500)
    assert steps == pytest.approx(1983, rel=0.01)


@EVERY_CLASS
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "bal"}, "unknown start 'bal'; did you mean 'ball'"),
        ({"start_radius": 0.0}, "start_radius must be positive and finite, got 0.0"),
        ({"start_radius": math.inf}, "start_radius must be positive and finite, got inf"),
    ],
)
def test_bad_starts_are_refused(task_class, settings, message):
    with pytest.raises(LearnedOptError, match=message):
        task_class(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("strict_saddle", {"dim": 2, "index": 3}, "index must lie in 1..dim=2, got 3"),
        ("strict_saddle", {"index": 0}, "index must lie in 1..dim=10, got 0"),
        ("strict_saddle", {"smallest_escape": 1.0}, "smallest_escape must be positive and at most"),
        ("strict_saddle", {"smallest_curvature": 0.0}, "smallest_curvature must be positive"),
        ("strict_saddle", {"confinement": 0.0}, "confinement must be positive, got 0.0"),
        ("strict_saddle", {"spread": -1.0}, "spread must not be negative, got -1.0"),
        ("re_zn", {"degree": 2}, "degree must be at least 3, got 2"),
        ("re_zn", {"num_planes": 0}, "num_planes must be positive, got 0"),
        ("re_zn", {"num_stable": -1}, "num_stable must not be negative, got -1"),
        ("monkey_saddle", {"confinement": 0.0}, "confinement must be positive and finite, got 0.0"),
        ("xy_saddle", {"confinement": -1.0}, "confinement must be positive, got -1.0"),
        ("octopus", {"dim": 0}, "dim must be positive, got 0"),
        ("octopus", {"tau": 0.0}, "tau must be positive, got 0.0"),
        ("octopus", {"gamma": 3.0}, "gamma must lie in .*got gamma=3.0"),
        ("phi4_chain", {"dim": 2}, "dim must be at least 3, got 2"),
        ("phi4_chain", {"coupling": -0.1}, "coupling must be finite and not negative, got -0.1"),
        ("matrix_factorization", {"rank": 0}, "rank must be positive, got 0"),
        (
            "matrix_factorization",
            {"eigenvalues": (1, 0)},
            "eigenvalues must be 1..size=10 positive",
        ),
        ("matrix_factorization", {"eigenvalues": ()}, "eigenvalues must be 1..size=10 positive"),
        ("deep_linear", {"depth": 1}, "depth must be at least 2, got 1"),
        ("deep_linear", {"hidden": 0}, "hidden must be positive, got 0"),
        ("deep_linear", {"singular_values": (-1,)}, "singular_values must be 1..width=10 positive"),
        ("phase_retrieval", {"dim": 1}, "dim must be at least 2, got 1"),
        ("phase_retrieval", {"num_measurements": 0}, "num_measurements must be positive or None"),
        ("styblinski_tang", {"dim": 0}, "dim must be positive, got 0"),
        ("styblinski_tang", {"dim": 2, "index": 3}, "index must lie in 1..dim=2, got 3"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(LearnedOptError, match=message):
        get_task(name, **settings)
