"""The controller before training: a trust region that needs no scale and no tuning."""

import pytest
import torch
from torch.testing import assert_close

from learned_opt.errors import LearnedOptError
from learned_opt.rules import get_rule
from learned_opt.rules.controller import FEATURES
from learned_opt.tasks import Rotated, get_task
from learned_opt.unroll import unroll


def run(task, rule, num_steps, n=8, dtype=torch.float64, seed=0):
    problems = task.sample(n, seed=seed, dtype=dtype)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(1)
        return unroll(task, rule.to(dtype), problems, num_steps=num_steps, rng=rng), problems


def quiet(**settings):
    """A controller that draws next to no noise, so that runs can be compared."""
    rule = get_rule("controller", **settings)
    with torch.no_grad():
        rule.head.bias[4] = -30.0
    return rule


def solved_after(losses, facts, target=1e-3):
    gaps = (losses - facts.minimum[:, None]) / (facts.reference - facts.minimum)[:, None]
    return torch.where((gaps <= target).any(1), (gaps <= target).int().argmax(1), 10**6)


def test_untrained_it_leaves_rotated_saddles_within_sixty_steps():
    task = Rotated(get_task("strict_saddle", dim=10))
    outcome, problems = run(task, quiet(), 60)
    assert (solved_after(outcome.losses, problems.facts) <= 60).all()


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 3.0)])
def test_the_loss_has_no_unit(scale, shift):
    """Powers of two times a power of ten would hide rounding; these do not."""
    params = {"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()}
    curvature = torch.linspace(-1, 3, 6).double()
    points = []
    for factor in (1.0, scale):
        rule, x = quiet().double(), params
        state = rule.init(x)
        for t in range(25):
            grads = {"x": factor * curvature * x["x"]}
            loss = factor * (curvature * x["x"].square()).sum(1) / 2 + shift
            rng = torch.Generator().manual_seed(t)
            updates, state = rule(grads, state, x, loss=loss, rng=rng)
            x = {"x": x["x"] + updates["x"]}
        points.append(x["x"].detach())
    assert_close(points[0], points[1], rtol=1e-5, atol=1e-8)


def test_parameters_have_no_unit():
    curvature = torch.linspace(-1, 3, 6).double()
    points = []
    for c in (1.0, 1e-3, 1e3):
        rule = quiet().double()
        x = {"x": c * torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()}
        state = rule.init(x)
        for t in range(25):
            # f(x / c): gradients shrink with 1 / c.
            grads = {"x": curvature * x["x"] / c**2}
            updates, state = rule(grads, state, x, rng=torch.Generator().manual_seed(t))
            x = {"x": x["x"] + updates["x"]}
        points.append(x["x"].detach() / c)
    assert_close(points[1], points[0], rtol=1e-5, atol=1e-8)
    assert_close(points[2], points[0], rtol=1e-5, atol=1e-8)


def test_a_quadratic_in_as_many_dimensions_as_it_remembers_is_solved_like_newton():
    curvature = torch.tensor([1.0, 10.0, 100.0]).double()
    rule = quiet(memory=3).double()
    x = {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()}
    state = rule.init(x)
    for t in range(30):
        grads = {"x": curvature * x["x"]}
        updates, state = rule(grads, state, x, rng=torch.Generator().manual_seed(t))
        x = {"x": x["x"] + updates["x"]}
    assert (x["x"].norm(dim=1) < 1e-6).all()


def test_gradients_of_theta_flow_and_what_is_remembered_has_no_graph():
    rule = get_rule("controller", hidden_size=4)
    task = get_task("strict_saddle", dim=4)
    problems = task.sample(4, seed=0, dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    outcome = unroll(task, rule, problems, num_steps=8, rng=rng, differentiable=True)
    outcome.losses.sum().backward()
    for name, parameter in rule.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert rule.head.weight.grad.abs().sum() > 0
    assert rule.log_first_radius.grad != 0
    assert not outcome.carry.state["memory"]["steps"].requires_grad


def test_a_given_loss_says_how_far_to_trust():
    """The loss fell less than the gradients say: a step was too long, whatever they promise."""
    x = {"x": torch.ones(1, 2).double()}
    radii = {}
    for name, losses in (("kept", (1.0, 0.5)), ("broken", (1.0, 0.999))):
        rule = quiet().double()
        state = rule.init(x)
        for loss in losses:
            rng = torch.Generator().manual_seed(0)
            grads = {"x": torch.ones(1, 2).double()}
            _, state = rule(grads, state, x, loss=torch.tensor([loss]).double(), rng=rng)
        radii[name] = state["radius"].item()
    assert radii["broken"] < 0.5 * radii["kept"]


def test_what_is_not_finite_moves_nothing():
    rule = get_rule("controller").double()
    x = {"x": torch.ones(2, 3).double()}
    state = rule.init(x)
    for t in range(6):
        grads = {"x": torch.tensor([[torch.nan] * 3, [1.0, 2.0, 3.0]]).double()}
        updates, state = rule(grads, state, x, rng=torch.Generator().manual_seed(t))
        assert torch.isfinite(updates["x"]).all()
        x = {"x": x["x"] + updates["x"]}
    assert_close(x["x"][0], torch.ones(3).double())


def test_sizes_are_checked():
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)
    with pytest.raises(LearnedOptError, match="memory must be positive, got 0"):
        get_rule("controller", memory=0)
    with pytest.raises(LearnedOptError, match="hidden_size must be positive, got 0"):
        get_rule("controller", hidden_size=0)
