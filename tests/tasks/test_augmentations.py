"""Augmentations of training: what each leaves exactly as it was, and what it randomises."""

import itertools
import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.rules.classic import SGD
from learned_opt.tasks.augmentations import ConvexTerm, RandomDimension, Reparametrised
from learned_opt.tasks.committee import SoftCommittee
from learned_opt.tasks.mixture import Mixture
from learned_opt.tasks.networks import DigitsMLP
from learned_opt.tasks.plateaus import Welsch
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.tasks.strict_saddle import StrictSaddle
from learned_opt.tasks.transforms import NoisyGradient, RandomlyScaled, Rotated, transformed
from learned_opt.tasks.valleys import Rosenbrock
from learned_opt.trees import flatten, leaves
from learned_opt.unroll import unroll

INNER = [
    Rosenbrock(dim=5),
    SoftCommittee(num_units=2, num_inputs=5),
    DigitsMLP(hidden=(3,), num_train=50, batch_size=8),
]
WRAPPERS = {
    "reparametrised": Reparametrised,
    "convex_term": ConvexTerm,
    "random_dimension": RandomDimension,
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gradient_of(task, problems, params=None, batch=None):
    params = {k: p.detach().requires_grad_() for k, p in (params or problems.params).items()}
    losses = task.loss(params, problems, batch)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    return losses.detach(), dict(zip(params, grads, strict=True))


def nearby(problems, seed=5):
    draws = rng(seed)
    return {
        k: p + 0.1 * torch.randn(p.shape, generator=draws, dtype=p.dtype)
        for k, p in problems.params.items()
    }


@pytest.mark.parametrize("inner", INNER, ids=lambda task: task.name)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_levels_minibatches_and_names_are_the_inner_ones(wrapper, inner):
    outer = WRAPPERS[wrapper](inner)
    problems = outer.sample(4, seed=2, dtype=torch.float64)
    plain = inner.sample(4, seed=2, dtype=torch.float64)
    for name in ("minimum", "reference", "next_level", "levels"):
        assert torch.equal(getattr(problems.facts, name), getattr(plain.facts, name))
    assert outer.name == f"{wrapper}({inner.name})"
    assert (outer.family, outer.kind, outer.budget) == (inner.family, inner.kind, inner.budget)
    assert {name: p.shape[1:] for name, p in problems.params.items()} == outer.shapes
    assert all(leaf.shape[0] == 4 for leaf in leaves(problems.constants).values())
    batch, own = outer.batch(problems, rng()), inner.batch(plain, rng())
    assert (batch is None) == (own is None) == (not outer.is_stochastic)
    if own is not None:
        assert torch.equal(batch["index"], own["index"])


@pytest.mark.parametrize("inner", INNER, ids=lambda task: task.name)
@pytest.mark.parametrize("level", ["global", "tensor", "parameter"])
def test_a_reparametrised_loss_is_the_inner_one_at_the_mapped_point(level, inner):
    outer = Reparametrised(inner, level=level, scale_range=(0.1, 100.0))
    problems = outer.sample(5, seed=1, dtype=torch.float64)
    plain = inner.sample(5, seed=1, dtype=torch.float64)
    scale = problems.constants["scale"]
    torch.testing.assert_close(
        outer.loss(problems.params, problems), inner.loss(plain.params, plain), rtol=1e-9, atol=0.0
    )
    params = nearby(problems)
    mapped = {name: scale[name] * p for name, p in params.items()}
    loss, grads = gradient_of(outer, problems, params)
    expected, slopes = gradient_of(inner, plain, mapped)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, scale[name] * slopes[name], rtol=1e-12, atol=1e-15)


def test_scales_are_log_uniform_and_shared_as_the_level_says():
    inner = DigitsMLP(hidden=(3,), num_train=50, batch_size=8)
    found = {}
    for level in ("global", "tensor", "parameter"):
        task = Reparametrised(inner, level=level, scale_range=(1e-2, 1e4))
        scale = task.sample(500, dtype=torch.float64).constants["scale"]
        found[level] = [s.expand(500, *inner.shapes[name]) for name, s in scale.items()]
        log10 = torch.cat([s.flatten() for s in scale.values()]).log10()
        assert -2 <= log10.min() < -1.9
        assert 3.9 < log10.max() <= 4
        assert float(log10.mean()) == pytest.approx(1.0, abs=4 * 6 / math.sqrt(12 * 500))
        assert float(log10.std()) == pytest.approx(6 / math.sqrt(12), rel=0.1)
    # how many different scales an instance has
    counts = {
        level: len(torch.cat([s[0].flatten() for s in scales]).unique())
        for level, scales in found.items()
    }
    assert len(inner.shapes) == 4
    assert counts == {"global": 1, "tensor": len(inner.shapes), "parameter": inner.dim}


def test_a_scale_for_each_parameter_is_random_scaling():
    inner = Welsch()
    span = (math.exp(-1.5), math.exp(1.5))
    one = Reparametrised(inner, level="parameter", scale_range=span).sample(3, dtype=torch.float64)
    other = RandomlyScaled(inner, log_range=1.5).sample(3, dtype=torch.float64)
    for name, p in one.params.items():
        torch.testing.assert_close(p, other.params[name])


@pytest.mark.parametrize("inner", INNER, ids=lambda task: task.name)
def test_the_convex_term_has_a_closed_form(inner):
    outer = ConvexTerm(inner, weight=0.7, num_coordinates=6)
    problems = outer.sample(400, seed=1, dtype=torch.float64)
    plain = inner.sample(400, seed=1, dtype=torch.float64)
    centre = problems.constants["centre"]
    assert centre.abs().max() <= 1
    assert float(centre.square().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert not problems.params["convex"].any()
    params = nearby(problems)
    y, x = params["convex"], {k: p for k, p in params.items() if k != "convex"}
    batch = outer.batch(problems, rng())
    loss, grads = gradient_of(outer, problems, params, batch)
    own, slopes = gradient_of(inner, plain, x, inner.batch(plain, rng()))
    torch.testing.assert_close(
        loss, own + 0.7 / 6 * (y - centre).square().sum(1), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(grads["convex"], 2 * 0.7 / 6 * (y - centre), rtol=1e-12, atol=1e-16)
    for name, slope in slopes.items():
        torch.testing.assert_close(grads[name], slope, rtol=1e-12, atol=1e-16)
    # at its minimum the term adds nothing, so all levels stay where they were
    solved = {**x, "convex": centre}
    assert torch.equal(outer.loss(solved, problems, batch), own)


@pytest.mark.parametrize("inner", INNER, ids=lambda task: task.name)
def test_a_random_dimension_is_an_isometry(inner):
    outer = RandomDimension(inner, factor=3.0)
    problems = outer.sample(5, seed=1, dtype=torch.float64)
    plain = inner.sample(5, seed=1, dtype=torch.float64)
    basis = torch.eye(outer.dim, dtype=torch.float64)[:, None].expand(-1, 5, -1)
    columns = torch.stack(
        [flatten(outer.inner_params({"x": each}, problems.constants)) for each in basis], dim=2
    )
    assert columns.shape == (5, inner.dim, outer.dim)
    identity = torch.eye(inner.dim, dtype=torch.float64).expand(5, -1, -1)
    torch.testing.assert_close(columns @ columns.mT, identity, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(
        outer.loss(problems.params, problems),
        inner.loss(plain.params, plain),
        rtol=1e-9,
        atol=1e-12,
    )
    _, grads = gradient_of(outer, problems)
    _, slopes = gradient_of(inner, plain)
    assert (grads["x"][~outer.used(problems)] == 0).all()
    torch.testing.assert_close(grads["x"].norm(dim=1), flatten(slopes).norm(dim=1))
    assert torch.equal(outer.used(problems), columns.abs().sum(1) > 0)


def test_dimensions_are_log_uniform_and_places_say_nothing():
    inner = RandomQuadratic(dim=4)
    outer = RandomDimension(inner, factor=8.0)
    problems = outer.sample(4000, dtype=torch.float64)
    used = outer.used(problems)
    dims = used.sum(1)
    assert (dims.min(), dims.max()) == (4, 32)
    # log-uniform over [4, 33): half of the draws lie below the geometric mean
    assert float((dims < math.sqrt(4 * 33)).double().mean()) == pytest.approx(0.5, abs=0.04)
    share = used.double().mean(0)
    assert share.max() - share.min() < 0.06
    owner = problems.constants["owner"]
    for one, mask in itertools.islice(zip(owner, used, strict=True), 50):
        assert set(one[mask].tolist()) == {0, 1, 2, 3}
    # descent along the gradient sees nothing of it, step by step
    rule = SGD(learning_rate=0.01)
    few = outer.sample(3, dtype=torch.float64)
    losses = unroll(outer, rule, few, num_steps=20, rng=rng()).losses
    plain = unroll(inner, rule, inner.sample(3, dtype=torch.float64), num_steps=20, rng=rng())
    torch.testing.assert_close(losses, plain.losses, rtol=1e-9, atol=0.0)
    same = RandomDimension(inner, factor=1.0).sample(2, dtype=torch.float64)
    assert same.params["x"].shape == (2, 4)


def test_noise_levels_are_drawn_for_each_problem():
    inner = RandomQuadratic(dim=20)
    task = NoisyGradient(inner, noise=(0.1, 10.0))
    problems = task.sample(300, dtype=torch.float64)
    level = problems.constants["noise"]
    assert 0.1 <= level.min() < 0.15
    assert 7 < level.max() <= 10
    assert float(level.log10().mean()) == pytest.approx(0.0, abs=4 * 2 / math.sqrt(12 * 300))
    exact, slopes = gradient_of(task, problems)
    draws, squares = rng(), []
    for _ in range(200):
        loss, grads = gradient_of(task, problems, batch=task.batch(problems, draws))
        assert torch.equal(loss, exact)
        squares.append((grads["x"] - slopes["x"]).square().sum(1))
    ratio = torch.stack(squares).mean(0).sqrt() / level
    # 200 times 20 squares of a normal number: the root of their mean varies by about 0.011
    assert ratio.sub(1).abs().max() < 5 * 0.0112
    # one level for all is what it was before there were ranges
    fixed = NoisyGradient(inner, noise=0.5)
    drawn = fixed.batch(fixed.sample(2, dtype=torch.float64), rng(3))["noise"]["x"]
    normal = torch.randn(2, 20, generator=rng(3), dtype=torch.float64)
    assert torch.equal(drawn, 0.5 / math.sqrt(20) * normal)


def test_unused_coordinates_are_known_through_all_wrappers():
    mixture = Mixture.of([RandomQuadratic(dim=2), StrictSaddle(dim=5)], [1.0, 1.0])
    problems = mixture.sample(20)
    used = mixture.used(problems)
    assert set(used.sum(1).tolist()) == {2, 5}
    for wrapper in (Reparametrised, RandomlyScaled, lambda task: NoisyGradient(task, noise=1.0)):
        assert torch.equal(wrapper(mixture).used(wrapper(mixture).sample(20)), used)
    assert Rotated(mixture).used(Rotated(mixture).sample(20)) is None
    convex = ConvexTerm(mixture, num_coordinates=3)
    seen = convex.used(convex.sample(20))
    assert torch.equal(seen[:, :5], used)
    assert seen.shape == (20, 8)
    assert seen[:, 5:].all()
    plain = ConvexTerm(RandomQuadratic(dim=2))
    assert plain.used(plain.sample(3)) is None
    # idle coordinates of idle coordinates, and a mixture of what has some
    spread = RandomDimension(mixture, factor=2.0)
    some = spread.sample(20)
    weight, owner = some.constants["weight"], some.constants["owner"]
    assert torch.equal(spread.used(some), (weight > 0) & used.gather(1, owner))
    mixed = Mixture.of([RandomDimension(RandomQuadratic(dim=2), factor=3.0), Rosenbrock()], [1, 1])
    found = mixed.sample(50, dtype=torch.float64)
    _, grads = gradient_of(mixed, found, nearby(found))
    assert torch.equal(mixed.used(found), grads["x"] != 0)


def test_augmentations_have_names():
    task = transformed(
        RandomQuadratic(dim=3),
        [
            {"name": "noisy", "noise": [0.1, 1.0]},
            {"name": "random_dimension", "factor": 2.0},
            {"name": "convex_term", "num_coordinates": 2},
            {"name": "reparametrised", "level": "tensor"},
        ],
    )
    assert task.name == "reparametrised(convex_term(random_dimension(noisy(random_quadratic))))"
    assert task.shapes == {"x": (6,), "convex": (2,)}
    problems = task.sample(3)
    loss, grads = gradient_of(task, problems, batch=task.batch(problems, rng()))
    assert loss.isfinite().all()
    assert all(g.isfinite().all() and g.any() for g in grads.values())


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda t: Reparametrised(t, level="globl"), "unknown reparametrisation 'globl'; did you"),
        (lambda t: Reparametrised(t, scale_range=(1.0, 0.1)), r"scale_range must be.*got \(1.0, 0"),
        (lambda t: Reparametrised(t, scale_range=(0.0, 1.0)), r"scale_range must be two positive"),
        (lambda t: ConvexTerm(t, weight=0.0), "weight must be positive and finite, got 0.0"),
        (lambda t: ConvexTerm(t, num_coordinates=0), "num_coordinates must be positive, got 0"),
        (lambda t: ConvexTerm(ConvexTerm(t)), r"no parameter called 'convex', got 'convex_term\("),
        (lambda t: RandomDimension(t, factor=0.5), "factor must be at least 1 and finite, got 0.5"),
        (lambda t: NoisyGradient(t, noise=(0.5, 0.1)), r"noise must be two .* got \(0.5, 0.1\)"),
        (lambda t: NoisyGradient(t, noise=(0.5,)), r"noise must be two .* got \(0.5,\)"),
    ],
)
def test_bad_settings_are_refused(build, match):
    with pytest.raises(LearnedOptError, match=match):
        build(RandomQuadratic(dim=2))
