"""Wrappers: what each leaves unchanged, what it changes, and that they compose."""

import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.rules.classic import SGD
from learned_opt.tasks.committee import SoftCommittee
from learned_opt.tasks.networks import DigitsMLP
from learned_opt.tasks.plateaus import Welsch
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.tasks.transforms import (
    NoisyGradient,
    RandomlyScaled,
    Rotated,
    Scaled,
    Shifted,
)
from learned_opt.tasks.valleys import Rosenbrock
from learned_opt.trees import flatten, leaves
from learned_opt.unroll import unroll

INNER = [
    Rosenbrock(dim=5),
    RandomQuadratic(dim=4),
    SoftCommittee(num_units=2, num_inputs=5),
    DigitsMLP(hidden=(3,), num_train=50, batch_size=8),
]
WRAPPERS = {
    "rotated": Rotated,
    "shifted": Shifted,
    "scaled": lambda inner: Scaled(inner, value_scale=3.0, value_shift=-1.0, coordinate_scale=2.0),
    "noisy": lambda inner: NoisyGradient(inner, noise=0.5),
    "randomly_scaled": RandomlyScaled,
}


def gradient_of(task, problems, batch=None):
    params = {name: p.detach().requires_grad_() for name, p in problems.params.items()}
    losses = task.loss(params, problems, batch)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    return losses.detach(), dict(zip(params, grads, strict=True))


@pytest.mark.parametrize("inner", INNER, ids=lambda task: task.name)
@pytest.mark.parametrize("wrapper", ["rotated", "shifted", "noisy", "randomly_scaled"])
def test_the_start_keeps_its_loss(wrapper, inner):
    outer = WRAPPERS[wrapper](inner)
    problems = outer.sample(6, seed=2, dtype=torch.float64)
    plain = inner.sample(6, seed=2, dtype=torch.float64)
    torch.testing.assert_close(
        outer.loss(problems.params, problems),
        inner.loss(plain.params, plain),
        rtol=1e-9,
        atol=1e-12,
    )
    assert torch.equal(problems.facts.reference, plain.facts.reference)


@pytest.mark.parametrize("inner", INNER, ids=lambda task: task.name)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_family_kind_budget_and_minibatches_are_the_inner_ones(wrapper, inner):
    outer = WRAPPERS[wrapper](inner)
    assert outer.name == f"{wrapper}({inner.name})"
    assert (outer.family, outer.kind, outer.budget, outer.dim) == (
        inner.family,
        inner.kind,
        inner.budget,
        inner.dim,
    )
    problems = outer.sample(3)
    assert {name: p.shape[1:] for name, p in problems.params.items()} == outer.shapes
    batch = outer.batch(problems, torch.Generator().manual_seed(0))
    assert outer.is_stochastic == (batch is not None)
    if wrapper != "noisy":
        plain = inner.batch(inner.sample(3), torch.Generator().manual_seed(0))
        assert outer.is_stochastic == inner.is_stochastic
        if batch is not None:
            assert torch.equal(batch["index"], plain["index"])


def test_rotations_are_orthogonal_and_uniform():
    rotation = Rotated(Rosenbrock(dim=4)).sample(2000, dtype=torch.float64).constants["rotation"]
    identity = torch.eye(4, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=1e-12, rtol=0)
    # Haar: entries average 0 with second moment 1/d, the trace has variance 1, either sign is
    # as likely. Without the sign fix the diagonal is biased.
    assert rotation.mean(0).abs().max() < 4 * math.sqrt(1 / 4 / 2000)
    trace = rotation.diagonal(dim1=1, dim2=2).sum(1)
    assert float(trace.var()) == pytest.approx(1.0, rel=0.15)
    assert abs(float(torch.linalg.det(rotation).mean())) < 4 / math.sqrt(2000)


def test_descent_does_not_see_a_rotation():
    inner = RandomQuadratic(dim=5)
    rule, rng = SGD(learning_rate=0.01), torch.Generator()
    outer = Rotated(inner)
    rotated = unroll(outer, rule, outer.sample(4, dtype=torch.float64), num_steps=30, rng=rng)
    plain = unroll(inner, rule, inner.sample(4, dtype=torch.float64), num_steps=30, rng=rng)
    torch.testing.assert_close(rotated.losses, plain.losses, rtol=1e-9, atol=0)


def test_a_rotation_acts_on_the_flattened_vector():
    inner = SoftCommittee(num_units=2, num_inputs=5)
    outer = Rotated(inner)
    problems = outer.sample(3, dtype=torch.float64)
    plain = inner.sample(3, dtype=torch.float64)
    rotation = problems.constants["rotation"]
    torch.testing.assert_close(
        (rotation @ problems.params["x"].unsqueeze(2)).squeeze(2), flatten(plain.params)
    )
    _, grads = gradient_of(outer, problems)
    _, inner_grads = gradient_of(inner, plain)
    torch.testing.assert_close(
        grads["x"], (rotation.mT @ flatten(inner_grads).unsqueeze(2)).squeeze(2)
    )


def test_a_shift_moves_start_and_minimum_alike():
    inner = Rosenbrock(dim=3)
    outer = Shifted(inner, scale=10.0)
    problems = outer.sample(500, dtype=torch.float64)
    shift = problems.constants["shift"]["x"]
    assert float(shift.std()) == pytest.approx(10.0, rel=0.1)
    assert outer.loss({"x": 1 + shift}, problems).max() < 1e-20
    torch.testing.assert_close(
        problems.params["x"] - shift, inner.sample(500, dtype=torch.float64).params["x"]
    )


def test_scaling_changes_units_and_facts_follow():
    inner = Rosenbrock(dim=5)
    outer = Scaled(inner, value_scale=3.0, value_shift=-1.0, coordinate_scale=2.0)
    problems, plain = outer.sample(4, dtype=torch.float64), inner.sample(4, dtype=torch.float64)
    losses, grads = gradient_of(outer, problems)
    inner_losses, inner_grads = gradient_of(inner, plain)
    torch.testing.assert_close(losses, 3 * inner_losses - 1)
    torch.testing.assert_close(grads["x"], 1.5 * inner_grads["x"])
    for fact in ("minimum", "reference", "next_level", "levels"):
        torch.testing.assert_close(
            getattr(problems.facts, fact), 3 * getattr(plain.facts, fact) - 1
        )
    assert outer.smoothness == pytest.approx(0.75 * inner.smoothness)
    assert outer.radius == 2 * inner.radius


def test_descent_with_its_step_in_units_of_smoothness_does_not_see_a_scaling():
    inner = Rosenbrock(dim=3)
    outer = Scaled(inner, value_scale=5.0, coordinate_scale=0.1)
    curves = []
    for task in (inner, outer):
        rule = SGD(learning_rate=0.1 / task.smoothness)
        problems = task.sample(3, dtype=torch.float64)
        curves.append(unroll(task, rule, problems, num_steps=50, rng=torch.Generator()).losses)
    torch.testing.assert_close(curves[1], 5 * curves[0], rtol=1e-9, atol=0)


def test_noise_leaves_the_value_exact_and_adds_to_the_gradient():
    inner = SoftCommittee(num_units=2, num_inputs=5)
    outer = NoisyGradient(inner, noise=0.7)
    problems = outer.sample(400, dtype=torch.float64)
    batch = outer.batch(problems, torch.Generator().manual_seed(0))
    losses, grads = gradient_of(outer, problems, batch)
    exact_losses, exact = gradient_of(outer, problems)
    assert torch.equal(losses, exact_losses)
    torch.testing.assert_close(grads["w"] - exact["w"], batch["noise"]["w"], atol=1e-12, rtol=0)
    norms = flatten(batch["noise"]).square().sum(1)
    assert float(norms.mean()) == pytest.approx(0.7**2, rel=0.1)


def test_noise_goes_with_minibatches():
    inner = DigitsMLP(hidden=(3,), num_train=50, batch_size=8)
    outer = NoisyGradient(inner, noise=0.1)
    problems = outer.sample(2, dtype=torch.float64)
    batch = outer.batch(problems, torch.Generator().manual_seed(0))
    plain = inner.sample(2, dtype=torch.float64)
    torch.testing.assert_close(
        outer.loss(problems.params, problems, batch),
        inner.loss(plain.params, plain, batch["inner"]),
        rtol=0,
        atol=0,
    )


def test_random_scales_are_log_uniform_and_multiply_the_gradient():
    inner = DigitsMLP(hidden=(20,), batch_size=None, num_train=20)
    outer = RandomlyScaled(inner, log_range=2.0)
    problems, plain = outer.sample(3, dtype=torch.float64), inner.sample(3, dtype=torch.float64)
    scale = problems.constants["scale"]
    logs = flatten(scale).log()
    assert 1.99 < logs.abs().max() <= 2.0
    assert float(logs.std()) == pytest.approx(2 / math.sqrt(3), rel=0.05)
    _, grads = gradient_of(outer, problems)
    _, inner_grads = gradient_of(inner, plain)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, scale[name] * inner_grads[name])


@pytest.mark.parametrize("inner", INNER, ids=lambda task: task.name)
def test_wrappers_compose_in_any_order(inner):
    chains = [
        ("rotated", "shifted", "scaled", "randomly_scaled", "noisy"),
        ("noisy", "randomly_scaled", "scaled", "shifted", "rotated"),
    ]
    plain = inner.sample(3, seed=5, dtype=torch.float64)
    expected = 3 * inner.loss(plain.params, plain) - 1
    for chain in chains:
        task = inner
        for wrapper in chain:
            task = WRAPPERS[wrapper](task)
        problems = task.sample(3, seed=5, dtype=torch.float64)
        torch.testing.assert_close(
            task.loss(problems.params, problems), expected, rtol=1e-8, atol=1e-10
        )
        batch = task.batch(problems, torch.Generator().manual_seed(0))
        value, grads = gradient_of(task, problems, batch)
        assert torch.isfinite(value).all()
        assert all(torch.isfinite(g).all() for g in grads.values())
        # The innermost wrapper with constants of its own lies under all wrappers around it.
        assert max(path.count("inner.") for path in leaves(problems.constants)) >= 3
        assert task.name.count("(") == 5


def test_select_and_repeat_reach_the_inner_constants():
    task = Rotated(Shifted(RandomQuadratic(dim=3)))
    problems = task.sample(4, dtype=torch.float64)
    losses = task.loss(problems.params, problems)
    index = torch.tensor([2, 0])
    chosen = problems.select(index)
    torch.testing.assert_close(task.loss(chosen.params, chosen), losses[index])
    twice = problems.repeat(2)
    torch.testing.assert_close(task.loss(twice.params, twice), losses.repeat(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shifted(Welsch(), scale=-1.0), "scale must be finite and not negative, got -1.0"),
        (lambda: Scaled(Welsch(), value_scale=0.0), "value_scale must be positive and finite"),
        (lambda: Scaled(Welsch(), value_shift=math.inf), "value_shift must be finite, got inf"),
        (lambda: Scaled(Welsch(), coordinate_scale=-2.0), "coordinate_scale must be positive"),
        (lambda: NoisyGradient(Welsch(), noise=-0.1), "noise must be finite and not negative"),
        (lambda: RandomlyScaled(Welsch(), log_range=math.nan), "log_range must be finite"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(LearnedOptError, match=message):
        make()
