"""Observe and act: closed forms."""

import math

import pytest
import torch

from learned_opt.actuators import additive, bounded
from learned_opt.errors import LearnedOptError
from learned_opt.features import log_and_sign, moment_ratios


def test_log_and_sign_closed_form():
    grads = torch.tensor([math.e, -math.e, math.exp(-2.5), 0.0, 1e-300, -1e30], dtype=torch.float64)
    features = log_and_sign(grads, log_range=5.0)
    assert features.shape == (6, 2)
    expected = [[0.2, 1.0], [0.2, -1.0], [-0.5, 1.0], [-1.0, 0.0], [-1.0, 0.0]]
    torch.testing.assert_close(features[:5], torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(features[5, 0].item(), math.log(1e30) / 5)


def test_log_and_sign_is_linear_in_tiny_gradients():
    tiny = torch.tensor([1e-4, 2e-4], dtype=torch.float64)
    sign = log_and_sign(tiny)[:, 1]
    torch.testing.assert_close(sign[1] / sign[0], torch.tensor(2.0, dtype=torch.float64))


def test_log_and_sign_refuses_a_bad_range():
    with pytest.raises(LearnedOptError, match=r"log_range must be positive, got 0"):
        log_and_sign(torch.ones(1), log_range=0.0)


def test_moment_ratios_do_not_depend_on_the_scale_of_the_loss():
    rng = torch.Generator().manual_seed(0)
    grads = torch.randn(7, generator=rng, dtype=torch.float64)
    first, second = 0.3 * grads, grads.square() * 2
    plain = moment_ratios(first, second, grads, epsilon=0.0)
    scaled = moment_ratios(1e3 * first, 1e6 * second, 1e3 * grads, epsilon=0.0)
    torch.testing.assert_close(plain, scaled)
    torch.testing.assert_close(plain[:, 0].abs(), torch.full((7,), 0.5**0.5, dtype=torch.float64))


def test_actuators():
    decision = torch.tensor([-1e9, 0.5])
    assert additive(decision, scale=0.1)[1].item() == pytest.approx(0.05)
    assert bounded(decision, scale=0.1).tolist() == pytest.approx([-0.1, 0.1 * math.tanh(0.5)])
