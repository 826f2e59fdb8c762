"""Ritz values against the true spectrum, the step in a ball against its optimality conditions."""

import pytest
import torch
from torch.testing import assert_close

from learned_opt.errors import LearnedOptError
from learned_opt.features import dot
from learned_opt.subspace import (
    SAMPLE,
    Products,
    add_step,
    curvature_model,
    init_memory,
    remember,
    rows,
    sampled,
    trust_region_step,
)

F64 = torch.float64


def symmetric(n, dim, seed=0):
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(n, dim, dim, generator=rng, dtype=F64)
    return a + a.mT


def products(memory, change):
    """What `remember` needs, one product after the other."""
    steps = rows(memory, "steps")
    olds = (*rows(memory, "changes")[1:], change)
    return Products(
        torch.stack([dot(step, steps[-1]) for step in steps], dim=1),
        torch.stack([dot(step, change) for step in steps], dim=1),
        torch.stack([dot(old, steps[-1]) for old in olds], dim=1)[:, :-1],
    )


def seen_by(memory, step, change):
    memory = add_step(memory, step)
    return remember(memory, change, products(memory, change))


def remembered(hessian, steps):
    memory = init_memory(steps[0], len(steps))
    for step in steps:
        memory = seen_by(memory, step, (hessian @ step[..., None])[..., 0])
    return memory


def basis(model, memory):
    return model.frame @ torch.stack(rows(memory, "steps"), dim=1)


def steps_of(n, dim, count, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=rng, dtype=F64) for _ in range(count)]


def test_as_many_steps_as_dimensions_give_the_spectrum():
    hessian = symmetric(5, 3)
    memory = remembered(hessian, steps_of(5, 3, 3))
    model = curvature_model(memory)
    assert model.is_known.all()
    assert_close(model.curvatures, torch.linalg.eigvalsh(hessian))
    vectors = basis(model, memory)
    assert_close(vectors @ hessian @ vectors.mT, torch.diag_embed(model.curvatures))


def test_fewer_steps_give_ritz_values_between_the_extremes():
    hessian = symmetric(5, 8)
    memory = remembered(hessian, steps_of(5, 8, 3))
    model = curvature_model(memory)
    spectrum = torch.linalg.eigvalsh(hessian)
    assert (model.curvatures[:, 0] >= spectrum[:, 0] - 1e-9).all()
    assert (model.curvatures[:, -1] <= spectrum[:, -1] + 1e-9).all()
    vectors = basis(model, memory)
    gram = vectors @ vectors.mT
    assert_close(gram, torch.eye(3, dtype=F64).expand(5, 3, 3))
    # Rayleigh quotients of the very vectors.
    assert_close((vectors @ hessian @ vectors.mT).diagonal(dim1=1, dim2=2), model.curvatures)


def test_parallel_and_missing_steps_count_once_and_not_at_all():
    hessian = symmetric(2, 4)
    first, second = steps_of(2, 4, 2)
    memory = init_memory(first, 4)
    for step in (first, -2 * first, second):
        memory = seen_by(memory, step, (hessian @ step[..., None])[..., 0])
    model = curvature_model(memory)
    assert model.is_known.sum(1).tolist() == [2, 2]
    only = curvature_model(remembered(hessian, [first, second]))
    assert_close(model.curvatures[model.is_known], only.curvatures[only.is_known])


def test_what_is_not_finite_is_unknown_in_its_own_lane():
    hessian = symmetric(2, 3)
    first, second = steps_of(2, 3, 2)
    change = (hessian @ first[..., None])[..., 0]
    change[0, 0] = torch.inf
    memory = seen_by(init_memory(first, 2), first, change)
    memory = seen_by(memory, second, (hessian @ second[..., None])[..., 0])
    model = curvature_model(memory)
    assert model.is_known.sum(1).tolist() == [0, 2]
    assert torch.isfinite(model.frame).all()


def test_a_step_whose_square_overflows_is_unknown_in_its_own_lane():
    """A single NaN in a batch ends eigenvalue routines for all, from four steps on."""
    hessian = symmetric(2, 6)
    steps = steps_of(2, 6, 4)
    memory = init_memory(steps[0], 4)
    for step in steps:
        long = torch.stack((1e200 * step[0], step[1]))
        memory = seen_by(memory, long, (hessian @ step[..., None])[..., 0])
    model = curvature_model(memory)
    assert model.is_known.sum(1).tolist() == [0, 4]
    assert torch.isfinite(model.frame).all()


@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_the_step_is_optimal_in_its_ball(shift):
    rng = torch.Generator().manual_seed(0)
    slopes = torch.randn(64, 4, generator=rng, dtype=F64)
    curvatures = torch.randn(64, 4, generator=rng, dtype=F64) + shift
    radius = torch.rand(64, generator=rng, dtype=F64) + 0.1
    step = trust_region_step(slopes, curvatures, radius, num_bisections=60)
    p = step.coefficients
    assert (p.norm(dim=1) <= radius * (1 + 1e-6)).all()
    # -c / p = lambda + mu, one mu for all directions, and no direction is left concave.
    shifts = -slopes / p - curvatures
    assert_close(shifts, shifts[:, :1].expand(-1, 4), rtol=1e-5, atol=1e-6)
    assert (shifts[:, 0] >= -1e-9).all()
    assert (shifts + curvatures > 0).all()
    assert_close(
        shifts[step.is_inside], torch.zeros_like(shifts[step.is_inside]), atol=1e-9, rtol=0
    )
    assert_close(p[~step.is_inside].norm(dim=1), radius[~step.is_inside])
    value = (slopes * p + curvatures * p.square() / 2).sum(1)
    assert_close(step.decrease, -value)
    # No point of the ball is better.
    others = torch.randn(256, 64, 4, generator=rng, dtype=F64)
    others = others / others.norm(dim=2, keepdim=True) * radius[:, None]
    values = (slopes * others + curvatures * others.square() / 2).sum(2)
    assert (values >= value - 1e-9).all()


def test_at_a_saddle_the_step_takes_the_way_out():
    slopes = torch.tensor([[0.0, 1.0]], dtype=F64)
    curvatures = torch.tensor([[-1.0, 1.0]], dtype=F64)
    step = trust_region_step(slopes, curvatures, torch.tensor([10.0], dtype=F64))
    out, down = step.coefficients[0].tolist()
    assert abs(out) == pytest.approx(10, rel=1e-2)
    assert down == pytest.approx(-0.5, rel=1e-2)


@pytest.mark.parametrize("slope", [1e-15, 1e-12, 1e-8, 1e-3, 1e3, 1e15])
@pytest.mark.parametrize("copies", [1, 200])
def test_a_slope_far_smaller_than_curvature_times_radius_leads_no_further_than_the_radius(
    slope, copies
):
    """In float32, where 30 and 30 + slope / radius are one number; both ways to bisect."""
    slopes = slope * torch.tensor([[0.17, 0.0, 0.0, 1.0, 0.5]]).repeat(copies, 1)
    curvatures = torch.tensor([[-30.0, 0.0, 0.0, 21.0, 38.0]]).repeat(copies, 1)
    radius = torch.full((copies,), 0.0224)
    step = trust_region_step(slopes, curvatures, radius)
    assert_close(step.coefficients.norm(dim=1), radius, rtol=1e-3, atol=0)
    assert torch.isfinite(step.decrease).all()
    underflown = trust_region_step(1e-30 * slopes, curvatures, radius)
    assert (underflown.coefficients.norm(dim=1) <= radius * (1 + 1e-6)).all()


def test_bad_sizes_are_refused():
    with pytest.raises(LearnedOptError, match="size must be positive, got 0"):
        init_memory(torch.zeros(1, 2), 0)


def test_short_vectors_are_their_own_sample():
    x = torch.randn(2, SAMPLE)
    assert sampled(x) is x


def test_products_of_samples_estimate_products():
    rng = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, 2, 4 * SAMPLE + 123, generator=rng)
    b = 0.6 * a + 0.8 * noise
    left, right = sampled(a), sampled(b)
    assert 0.8 * SAMPLE < left.shape[1] <= SAMPLE
    lengths = a.norm(dim=1) * b.norm(dim=1)
    # Four standard errors of a mean over the sample.
    assert ((dot(left, right) - dot(a, b)) / lengths).abs().max() < 4 * 2 * left.shape[1] ** -0.5
    assert ((left.norm(dim=1) / a.norm(dim=1)) - 1).abs().max() < 4 * left.shape[1] ** -0.5


def test_no_column_of_a_layer_is_left_out_of_a_sample():
    width = 1024
    column = torch.arange(6 * SAMPLE).remainder(width)[None].float()
    chosen = sampled(column)
    scale = (column.shape[1] / chosen.shape[1]) ** 0.5
    assert len((chosen / scale).round().unique()) == width
