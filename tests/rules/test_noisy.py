"""Rules with noise: its distribution, when it comes, and what the published algorithm does."""

import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.rules.base import get_rule
from learned_opt.rules.noisy import SGLD, NoisyGD, in_ball, on_sphere
from learned_opt.rules.perturbed import PerturbedGD, PerturbedGDTheory


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def zeros(num_problems, **shapes):
    return {
        k: torch.zeros(num_problems, *shape, dtype=torch.float64) for k, shape in shapes.items()
    }


def joined(tree):
    return torch.cat([t.flatten(1) for t in tree.values()], dim=1)


def test_sphere_is_unit_and_isotropic_over_all_tensors():
    draws = joined(on_sphere(zeros(20_000, a=(2,), b=(1, 2)), generator()))
    torch.testing.assert_close(draws.norm(dim=1), torch.ones(20_000, dtype=torch.float64))
    # Covariance I/4; the standard error of an entry is below 0.0025.
    covariance = draws.T @ draws / 20_000
    torch.testing.assert_close(covariance, torch.eye(4).double() / 4, rtol=0, atol=0.01)
    assert draws.mean(0).abs().max() < 4 * 0.5 / math.sqrt(20_000)


def test_ball_has_the_radius_law_of_a_uniform_point():
    radius = joined(in_ball(zeros(20_000, a=(2,), b=(3,)), generator())).norm(dim=1)
    assert radius.max() <= 1
    # P(radius <= r) = r^d, so radius^d is uniform.
    for quantile in (0.1, 0.5, 0.9):
        share = (radius**5 <= quantile).double().mean().item()
        assert abs(share - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / 20_000)


def test_noisy_gd_adds_noise_of_fixed_length_to_the_gradient():
    params = zeros(50, a=(3,), b=(2, 2))
    grads = {k: torch.randn(p.shape, generator=generator(1)).double() for k, p in params.items()}
    rule = NoisyGD(learning_rate=0.1, noise=0.02)
    updates, _ = rule(grads, rule.init(params), params, rng=generator())
    residual = joined(updates) + 0.1 * joined(grads)
    torch.testing.assert_close(residual.norm(dim=1), torch.full((50,), 0.002).double())
    again, _ = rule(grads, {}, params, rng=generator())
    other, _ = rule(grads, {}, params, rng=generator(1))
    assert torch.equal(joined(again), joined(updates))
    assert not torch.equal(joined(other), joined(updates))


def test_noisy_gd_in_one_dimension_is_plus_or_minus_the_noise():
    params = zeros(1000, x=())
    updates, _ = NoisyGD(learning_rate=1.0, noise=0.5)(params, {}, params, rng=generator())
    assert set(updates["x"].tolist()) == {0.5, -0.5}
    assert abs(updates["x"].mean()) < 4 * 0.5 / math.sqrt(1000)


def test_sgld_noise_has_variance_two_learning_rate_temperature():
    params = zeros(20_000, x=(2,))
    grads = {"x": torch.ones(20_000, 2, dtype=torch.float64)}
    rule = SGLD(learning_rate=0.1, temperature=0.3)
    updates, _ = rule(grads, {}, params, rng=generator())
    variance = 2 * 0.1 * 0.3
    assert abs(updates["x"].mean() + 0.1) < 4 * math.sqrt(variance / 40_000)
    assert abs(updates["x"].var() / variance - 1) < 4 * math.sqrt(2 / 40_000)


def test_sgld_reaches_the_stationary_variance_of_a_quadratic():
    # x <- (1 - eta) x + sqrt(2 eta T) xi is autoregressive: variance 2 eta T / (1 - (1 - eta)^2).
    rule, rng = SGLD(learning_rate=0.1, temperature=0.5), generator()
    points = zeros(20_000, x=(1,))
    for _ in range(80):
        updates, _ = rule(points, {}, points, rng=rng)
        points = {"x": points["x"] + updates["x"]}
    expected = 2 * 0.1 * 0.5 / (1 - 0.9**2)
    assert abs(points["x"].var() / expected - 1) < 4 * math.sqrt(2 / 20_000)


def run(rule, gradient, num_steps, *, num_problems=3, loss=None, start=1.0):
    """Points ``[T + 1, N, 4]`` on a field of gradients, and the final state."""
    params = {"x": torch.full((num_problems, 4), start, dtype=torch.float64)}
    state, rng, points = rule.init(params), generator(), [params["x"]]
    for _ in range(num_steps):
        grads = {"x": gradient(params["x"])}
        losses = None if loss is None else loss(params["x"])
        updates, state = rule(grads, state, params, loss=losses, rng=rng)
        params = {"x": params["x"] + updates["x"]}
        points.append(params["x"])
    return torch.stack(points), state


def test_perturbed_gd_perturbs_first_and_then_every_interval_plus_two_steps():
    rule = PerturbedGD(learning_rate=0.0, radius=0.1, gradient_threshold=1.0, interval=3)
    points, _ = run(rule, torch.zeros_like, 16)
    moved = points.diff(dim=0).norm(dim=-1)
    # A perturbation needs more than 3 gradient steps since the last: one step in 1 + 4.
    expected = (torch.arange(16) % 5 == 0).unsqueeze(1).expand(16, 3)
    assert torch.equal(moved > 0, expected)
    assert moved.max() <= 0.1
    assert moved[0].unique().numel() == 3


def test_perturbed_gd_is_gradient_descent_where_the_gradient_is_large():
    rule = PerturbedGD(learning_rate=0.1, radius=0.1, gradient_threshold=0.5, interval=0)
    points, state = run(rule, lambda x: x, 6)  # norms 2 * 0.9^t stay above 0.5
    expected = 0.9 ** torch.arange(7, dtype=torch.float64)
    torch.testing.assert_close(points, expected.reshape(-1, 1, 1).expand(7, 3, 4))
    assert state["elapsed"].tolist() == [math.inf] * 3


def test_perturbed_gd_threshold_is_per_problem():
    rule = PerturbedGD(
        learning_rate=0.0,
        radius=torch.tensor([0.1, 0.2, 0.3]),
        gradient_threshold=torch.tensor([1.0, 3.0, 3.0]),
        interval=torch.tensor([0.0, 0.0, 9.0]),
    )
    points, state = run(rule, lambda x: x, 4)  # norm 2 everywhere near the start
    moved = points.diff(dim=0).norm(dim=-1) > 0
    assert moved.T.tolist() == [[False] * 4, [True, False] * 2, [True, False, False, False]]
    assert state["elapsed"].tolist() == [math.inf, 1.0, 3.0]


def test_theory_constants_equal_the_published_formulas():
    constants = PerturbedGDTheory(
        smoothness=2.0,
        hessian_lipschitz=3.0,
        accuracy=0.05,
        constant=0.5,
        failure_probability=0.2,
        initial_gap=7.0,
    ).constants(10)
    chi = 3 * max(math.log(10 * 2.0 * 7.0 / (0.5 * 0.05**2 * 0.2)), 4)
    assert constants.learning_rate.item() == pytest.approx(0.5 / 2.0)
    assert constants.radius.item() == pytest.approx(math.sqrt(0.5) / chi**2 * 0.05 / 2.0)
    assert constants.gradient_threshold.item() == pytest.approx(math.sqrt(0.5) / chi**2 * 0.05)
    expected = 0.5 / chi**3 * math.sqrt(0.05**3 / 3.0)
    assert constants.loss_threshold.item() == pytest.approx(expected)
    assert constants.interval.item() == math.ceil(chi / 0.25 * 2.0 / math.sqrt(3.0 * 0.05))
    # ... and the numbers of the unit problem in 100 dimensions.
    unit = PerturbedGDTheory().constants(100)
    assert unit.gradient_threshold.item() == pytest.approx(4.3e-6, rel=0.02)
    assert unit.loss_threshold.item() == pytest.approx(9e-9, rel=0.02)


EASY = {"accuracy": 1.0, "hessian_lipschitz": 1.0, "smoothness": 1.0}


def test_theory_returns_to_the_point_before_and_stays_when_nothing_falls():
    rule = PerturbedGDTheory(**EASY)
    interval = int(rule.constants(4).interval.item())
    # A slope that never shows in the loss.
    points, state = run(
        rule,
        lambda x: torch.full_like(x, 1e-4),
        interval + 5,
        loss=lambda x: torch.zeros(len(x)).double(),
    )
    moved = points[1] - points[0]
    assert (moved.norm(dim=-1) > 0).all()
    assert (moved.norm(dim=-1) <= rule.constants(4).radius).all()
    # Perturbed at step 0, `interval` gradient steps of 1e-4, then the decision.
    torch.testing.assert_close(points[interval + 1], points[1] - interval * 1e-4)
    torch.testing.assert_close(points[interval + 2], points[0], rtol=0, atol=1e-15)
    assert torch.equal(points[-1], points[interval + 2])
    assert state["terminated"].all()


def test_theory_goes_on_when_the_loss_fell_enough():
    rule = PerturbedGDTheory(**EASY)
    interval = int(rule.constants(4).interval.item())
    fall = 2 * rule.constants(4).loss_threshold.item()

    class Falling:
        count = -1

        def __call__(self, x):
            self.count += 1
            return torch.tensor([0.0, -fall / 4, -fall]).double() * (self.count > 0)

    _, state = run(rule, torch.zeros_like, interval + 2, loss=Falling())
    assert state["terminated"].tolist() == [True, True, False]
    assert state["elapsed"].tolist() == [interval + 1.0] * 2 + [interval + 1.0]


@pytest.mark.parametrize("name", ["noisy_gd", "sgld", "perturbed_gd", "perturbed_gd_theory"])
def test_a_missing_generator_is_refused(name):
    rule, params = get_rule(name), zeros(2, x=(3,))
    with pytest.raises(LearnedOptError, match=f"{name}: rng must be a torch.Generator, got None"):
        rule(params, rule.init(params), params, loss=torch.zeros(2))


def test_theory_refuses_a_missing_loss_and_constants_of_zero():
    rule, params = PerturbedGDTheory(), zeros(2, x=(3,))
    with pytest.raises(LearnedOptError, match="perturbed_gd_theory: loss must be the"):
        rule(params, rule.init(params), params, rng=generator())
    with pytest.raises(LearnedOptError, match=r"smoothness must be positive, got 0\.0"):
        PerturbedGDTheory(smoothness=0.0)
