"""Adam with learned hyperparameters: Adam at first, another Adam later."""

import math

import pytest
import torch
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.optim import LearnedOptimizer
from learned_opt.rules.adaptive import Adam
from learned_opt.rules.learnable_adam import LearnableAdam
from learned_opt.rules.weights import load_rule, save_rule
from learned_opt.tasks.base import get_task
from learned_opt.unroll import unroll


def race(rule, *, num_steps=30):
    task = get_task("rosenbrock", dim=4)
    problems = task.sample(3, seed=0, dtype=torch.float64)
    return unroll(task, rule, problems, num_steps=num_steps, rng=torch.Generator()).losses


@pytest.mark.parametrize(
    "settings",
    [{}, {"learning_rate": 0.03, "beta1": 0.7, "beta2": 0.9, "eps": 1e-3}],
    ids=["defaults", "others"],
)
def test_is_adam_to_the_last_bit_at_its_initial_theta(settings):
    assert torch.equal(race(LearnableAdam(**settings)), race(Adam(**settings)))


def test_is_torch_adam_at_its_initial_theta():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 2, 6, dtype=torch.float64)) for _ in range(2))
    optimizer = LearnedOptimizer([ours], LearnableAdam())
    twin = torch.optim.Adam([theirs], lr=1e-3)
    for _ in range(200):
        for p, each in ((ours, optimizer), (theirs, twin)):
            each.zero_grad()
            (p.pow(4) / 4 - p.sin()).sum().backward()
            each.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_theta_are_shifts_of_logarithms():
    rule = LearnableAdam(learning_rate=0.01, beta1=0.8, beta2=0.99, eps=1e-4).double()
    with torch.no_grad():
        rule.log_learning_rate.fill_(math.log(5))
        rule.log_rate1.fill_(math.log(0.5))
        rule.log_rate2.fill_(math.log(20))
        rule.log_eps.fill_(math.log(0.1))
    found = {k: v.item() for k, v in rule.hyperparameters.items()}
    assert found == pytest.approx({"learning_rate": 0.05, "beta1": 0.9, "beta2": 0.8, "eps": 1e-5})
    other = Adam(learning_rate=0.05, beta1=0.9, beta2=0.8, eps=1e-5)
    torch.testing.assert_close(race(rule), race(other), rtol=1e-10, atol=0)


def test_decays_stay_between_zero_and_one():
    rule = LearnableAdam()
    with torch.no_grad():
        rule.log_rate1.fill_(50.0)
        rule.log_rate2.fill_(-50.0)
    assert rule.hyperparameters["beta1"].item() == 0.0
    assert 0.999 < rule.hyperparameters["beta2"].item() < 1.0
    assert race(rule).isfinite().all()


def test_meta_gradients_are_those_of_finite_differences():
    rule = LearnableAdam(learning_rate=0.05, eps=1e-2).double()
    theta = list(rule.parameters())
    task = get_task("rosenbrock", dim=4)
    problems = task.sample(2, seed=0, dtype=torch.float64)

    def loss():
        return unroll(
            task,
            rule,
            problems,
            num_steps=8,
            rng=torch.Generator(),
            differentiable=True,
            second_order=True,
        ).losses.sum()

    grads = torch.autograd.grad(loss(), theta)
    for p, grad in zip(theta, grads, strict=True):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                p.add_(shift)
            values.append(loss().item())
            with torch.no_grad():
                p.sub_(shift)
        assert grad.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
        assert grad.item() != 0


def test_trained_theta_come_back_from_a_file(tmp_path):
    rule = LearnableAdam(learning_rate=0.01)
    with torch.no_grad():
        rule.log_learning_rate.fill_(0.3)
    loaded = load_rule(save_rule(rule, tmp_path / "rule.safetensors"))
    assert loaded.config() == rule.config()
    assert torch.equal(race(loaded), race(rule))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("learning_rate", 0.0, "learning_rate must be positive and finite, got 0.0"),
        ("eps", float("inf"), "eps must be positive and finite, got inf"),
        ("beta1", 1.0, r"beta1 must be in \(0, 1\), got 1.0"),
        ("beta2", 0.0, r"beta2 must be in \(0, 1\), got 0.0"),
    ],
)
def test_bad_settings_are_refused(setting, value, message):
    with pytest.raises(LearnedOptError, match=message):
        LearnableAdam(**{setting: value})
