"""Every listed critical point of every closed-form saddle, against autograd in float64."""

import math

import pytest
import torch
from torch.autograd.functional import hessian

from learned_opt.tasks.base import ClosedFormTask
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

TASKS = [
    StrictSaddle(dim=2),
    StrictSaddle(dim=5, index=5),
    StrictSaddle(dim=6, index=3, smallest_escape=0.1, largest_escape=2.0, smallest_curvature=1e-3),
    StrictSaddle(dim=7, index=5, smallest_escape=0.1, largest_escape=1.0, confinement=0.3),
    ReZn(degree=5, num_stable=2, confinement=2.0),
    ReZn(degree=3, num_planes=2, num_stable=1),
    ReZn(degree=4, num_planes=4),
    MonkeySaddle(),
    FourFoldSaddle(confinement=0.1),
    CubicValley(),
    QuarticDoubleWell(),
    SexticDoubleWell(),
    ProductSaddle(confinement=0.7),
    Himmelblau(),
    Octopus(dim=1),
    Octopus(dim=5),
    Octopus(dim=4, tau=0.5, L=3.0, gamma=0.2),
    Phi4Chain(dim=6, coupling=0.2),
    Phi4Chain(dim=8, coupling=0.1),
    Phi4Chain(dim=16),
    Phi4Chain(dim=6, coupling=0.4),
    Phi4Chain(dim=5, coupling=0.0),
    MatrixFactorization(size=5, rank=2, eigenvalues=(3, 2, 1)),
    MatrixFactorization(),
    MatrixFactorization(size=2, rank=4, eigenvalues=(2, 1)),
    MatrixFactorization(size=8, rank=2, eigenvalues=range(1, 9)),
    MatrixFactorization(size=3, rank=3, eigenvalues=(2, 2)),
    DeepLinear(depth=2, width=4, hidden=3),
    DeepLinear(depth=3, width=3, hidden=2, singular_values=(3, 2, 1)),
    DeepLinear(depth=4, width=4, singular_values=(2, 1)),
    DeepLinear(depth=2, width=7, hidden=1, singular_values=range(1, 8)),
    PhaseRetrieval(dim=2),
    PhaseRetrieval(dim=20),
    StyblinskiTang(dim=3),
    StyblinskiTang(dim=10),
]


def label(task: ClosedFormTask) -> str:
    return f"{task.name}-{task.dim}"


@pytest.mark.parametrize("task", TASKS, ids=label)
def test_gradient_value_and_spectrum_of_every_point(task):
    points = task.critical_points()
    assert len(points) >= 2
    for point in points:
        x = point.x.clone().requires_grad_()
        value = task.function(x)
        (gradient,) = torch.autograd.grad(value, x)
        curvature = hessian(task.function, point.x)
        assert abs(value.item() - point.value) < 1e-9
        assert gradient.norm() < 1e-8
        assert point.eigenvalues.dtype == torch.float64
        torch.testing.assert_close(
            torch.linalg.eigvalsh(curvature), point.eigenvalues, atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("task", TASKS, ids=label)
def test_facts_agree_with_the_points(task):
    points = task.critical_points()
    values = [point.value for point in points]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(task.minimum, abs=1e-9)
    assert points[-1].kind in {"minimum", "degenerate"}  # degenerate: symmetry leaves flat minima
    facts = task.sample(3, dtype=torch.float64).facts
    for level in (facts.reference, facts.next_level, facts.minimum, *facts.levels.T):
        assert level.shape == (3,)
        assert min(abs(level[0].item() - value) for value in values) < 1e-9
    assert (facts.levels.diff(dim=1) < 0).all()
    assert (facts.next_level < facts.reference).all()
    assert facts.minimum[0].item() == pytest.approx(task.minimum, abs=1e-12)


@pytest.mark.parametrize("task", TASKS, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_equal_the_function_and_stay_above_the_minimum(task, dtype):
    problems = task.sample(16, seed=1, dtype=dtype)
    wide = {
        name: p + torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        for name, p in problems.params.items()
    }
    for params in (problems.params, wide):
        assert {name: p.shape[1:] for name, p in params.items()} == task.shapes
        losses = task.loss(params, problems)
        assert losses.shape == (16,)
        assert losses.dtype == dtype
        flat = torch.cat([p.flatten(1) for p in params.values()], dim=1)
        singly = torch.stack([task.function(x) for x in flat.double()])
        tolerance = 1e-4 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(losses.double(), singly, rtol=tolerance, atol=tolerance)
        assert (losses >= problems.facts.minimum - tolerance * task.smoothness).all()


@pytest.mark.parametrize("task", TASKS, ids=label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_critical_points_and_far_away(task, dtype):
    points = torch.stack([point.x for point in task.critical_points()])
    generator = torch.Generator().manual_seed(0)
    far = 30 * torch.randn(64, task.dim, generator=generator, dtype=torch.float64)
    x = torch.cat([points, far]).to(dtype).requires_grad_()
    (gradients,) = torch.autograd.grad(task.function(x).sum(), x)
    assert gradients.dtype == dtype
    assert torch.isfinite(gradients).all()


def test_minima_of_low_dimensional_saddles():
    assert CubicValley().minimum == -6.75
    assert [p.kind for p in CubicValley().critical_points()] == ["degenerate", "minimum"]
    assert QuarticDoubleWell().critical_points()[0].kind == "strict saddle"
    assert SexticDoubleWell().critical_points()[0].kind == "degenerate"
    assert SexticDoubleWell().minimum == pytest.approx(-4 / 27)


def test_himmelblau_values_match_the_literature():
    values = [p.value for p in Himmelblau().critical_points()]
    expected = [181.617, 178.337, 104.015, 67.719, 13.312, 0, 0, 0, 0]
    assert values == pytest.approx(expected, abs=1e-3)
    kinds = [p.kind for p in Himmelblau().critical_points()]
    assert kinds == ["maximum"] + ["strict saddle"] * 4 + ["minimum"] * 4


def test_matrix_factorization_known_spectra():
    points = MatrixFactorization(size=5, rank=2, eigenvalues=(3, 2, 1)).critical_points()
    assert points[0].eigenvalues.tolist() == [-3, -3, -2, -2, -1, -1, 0, 0, 0, 0]
    spectra = [p.eigenvalues.tolist() for p in points]
    second_mode = [-3, -1, -1, 0, 0, 0, 1, 2, 2, 4]
    assert any(s == pytest.approx(second_mode, abs=1e-12) for s in spectra)


def test_deep_linear_greedy_saddles_are_degenerate_and_others_strict():
    task = DeepLinear(depth=3, width=3, hidden=2, singular_values=(3, 2, 1))
    by_value = {round(p.value, 6): p for p in task.critical_points()}
    origin, greedy, other = by_value[7.0], by_value[2.5], by_value[5.0]
    assert hessian(task.function, origin.x).abs().max() == 0
    assert greedy.kind == "degenerate"
    assert greedy.eigenvalues[:11].abs().max() == 0
    assert greedy.eigenvalues[11:].tolist() == pytest.approx(
        [1.4422, 2.8845, 5.7690, 7.2112, 12.9802], abs=1e-4
    )
    assert other.kind == "strict saddle"
    assert other.eigenvalues[0].item() == pytest.approx(-(2 ** (1 / 3)))


def test_deep_linear_two_layers_are_strict_at_the_origin():
    task = DeepLinear(depth=2, width=4, hidden=3, singular_values=(3, 2))
    expected = sorted([3, -3, 2, -2] * 3 + [0] * 12)
    assert task.critical_points()[0].eigenvalues.tolist() == expected


def test_phi4_index_of_the_origin():
    task = Phi4Chain(dim=6, coupling=0.4)
    expected = sorted(-1 + 0.8 * (1 - math.cos(2 * math.pi * m / 6)) for m in range(6))
    assert task.critical_points()[0].eigenvalues.tolist() == pytest.approx(expected)
    assert len(task.escape) == sum(value < 0 for value in expected) == 3


def test_sampled_phase_retrieval_averages_to_the_population_loss():
    task = PhaseRetrieval(dim=3, num_measurements=400_000)
    problems = task.sample(1, seed=0, dtype=torch.float64)
    x = torch.tensor([[0.4, -0.3, 0.7]], dtype=torch.float64)
    sampled = task.loss({"x": x}, problems)
    assert sampled.item() == pytest.approx(task.function(x).item(), rel=0.02)
    target = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    assert task.loss({"x": target}, problems).item() == 0
    assert task.loss({"x": -target}, problems).item() == 0


def test_phase_retrieval_equals_its_published_polynomial():
    task = PhaseRetrieval(dim=4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    r = x.square().sum(-1)
    polynomial = (3 * r**2 - 2 * r - 4 * x[:, 0] ** 2 + 3) / 4
    torch.testing.assert_close(task.function(x), polynomial)
