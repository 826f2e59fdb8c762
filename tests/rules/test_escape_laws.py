"""Steps to leave a quadratic saddle, against the closed-form laws.

Curvature -0.01, learning rate 1, from 1e-6 (from 0 with noise) to 1: gradient descent grows by
``1 + eta g`` a step, momentum by the larger root of its characteristic polynomial.
"""

import math

import pytest
import torch

from learned_opt.rules.classic import SGD, Momentum, Nesterov
from learned_opt.rules.noisy import NoisyGD
from learned_opt.rules.perturbed import PerturbedGD
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.unroll import unroll

CURVATURE = 0.01
START = 1e-6


class Hill(Task):
    """``- CURVATURE / 2 x^2`` in one dimension."""

    name = "hill"
    shapes = {"x": (1,)}  # noqa: RUF012

    def __init__(self, start):
        self.start = start

    def _sample(self, num_problems, rng):
        del rng
        zeros = torch.zeros(num_problems, dtype=torch.float64)
        facts = Facts(minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None])
        points = torch.full((num_problems, 1), self.start, dtype=torch.float64)
        return Problems(params={"x": points}, constants={}, facts=facts)

    def loss(self, params, problems, batch=None):
        del problems, batch
        return -CURVATURE / 2 * params["x"].square().squeeze(1)


def escape_steps(rule, *, start, num_problems=1, num_steps=1500):
    """``[N]`` first steps at which the point is at least 1 away from the saddle."""
    task = Hill(start)
    losses = unroll(
        task,
        rule,
        task.sample(num_problems, dtype=torch.float64),
        num_steps=num_steps,
        rng=torch.Generator().manual_seed(0),
        stop=lambda losses: bool((losses <= -CURVATURE / 2).all()),
    ).losses
    has_left = losses <= -CURVATURE / 2
    assert has_left.any(1).all()
    return has_left.double().argmax(1)


def larger_root(trace, determinant):
    return (trace + math.sqrt(trace**2 - 4 * determinant)) / 2


def test_gradient_descent():
    expected = math.log(1 / START) / math.log(1 + CURVATURE)
    assert expected == pytest.approx(1388.4, abs=0.1)
    assert escape_steps(SGD(learning_rate=1.0), start=START).item() == math.ceil(expected)


def test_heavy_ball():
    momentum = torch.tensor([0.9, 0.99, 0.999], dtype=torch.float64)
    rule = Momentum(learning_rate=1.0, momentum=momentum)
    steps = escape_steps(rule, start=START, num_problems=3)
    for b, found, known in zip(momentum.tolist(), steps.tolist(), (226, 152, 146), strict=True):
        law = math.log(1 / START) / math.log(larger_root(1 + b + CURVATURE, b))
        assert abs(found - law) <= 0.02 * law + 8  # the law leaves out the transient
        assert abs(found - known) <= 1


def test_nesterov():
    momentum = torch.tensor([0.9, 0.99], dtype=torch.float64)
    rule = Nesterov(learning_rate=1.0, momentum=momentum)
    steps = escape_steps(rule, start=START, num_problems=2)
    growth = 1 + CURVATURE
    for b, found, known in zip(momentum.tolist(), steps.tolist(), (217, 145), strict=True):
        law = math.log(1 / START) / math.log(larger_root(growth * (1 + b), b * growth))
        assert abs(found - law) <= 0.02 * law + 8
        assert abs(found - known) <= 1


def test_noisy_gradient_descent_from_the_saddle_itself():
    sigma, num_runs = 1e-3, 400
    rule = NoisyGD(learning_rate=1.0, noise=sigma)
    steps = escape_steps(rule, start=0.0, num_problems=num_runs).double()
    # The unstable component is asymptotically normal with deviation s (1 + g)^t; -E log|normal| is
    # 0.635, the half of Euler's constant plus log 2.
    s = sigma / math.sqrt((1 + CURVATURE) ** 2 - 1)
    law = (math.log(1 / s) + 0.635) / math.log(1 + CURVATURE)
    assert law == pytest.approx(561.7, abs=0.1)
    assert abs(steps.mean().item() - law) <= 0.02 * law + 8
    # The spread is that of log|normal|, pi / (2 sqrt 2).
    spread = math.pi / (2 * math.sqrt(2)) / math.log(1 + CURVATURE)
    assert steps.std().item() == pytest.approx(spread, rel=0.15)


def test_perturbed_gradient_descent_leaves_where_gradient_descent_stays():
    still = Hill(0.0)
    problems = still.sample(1, dtype=torch.float64)
    rng = torch.Generator()
    stuck = unroll(still, SGD(learning_rate=1.0), problems, num_steps=50, rng=rng)
    assert stuck.carry.params["x"].item() == 0.0
    radius, num_runs = 1e-3, 400
    rule = PerturbedGD(learning_rate=1.0, radius=radius, gradient_threshold=1e-9, interval=1000.0)
    steps = escape_steps(rule, start=0.0, num_problems=num_runs).double()
    # One perturbation r U, U uniform in [-1, 1]: 1 + (ln(1 / r) + 1) / ln(1 + g) steps on average.
    law = 1 + (math.log(1 / radius) + 1) / math.log(1 + CURVATURE)
    assert abs(steps.mean().item() - law) <= 0.02 * law + 8
