"""Profiles and gradient samples against closed forms, and the laws of chaos and of truncation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.diagnosis import (
    episode_gradients,
    meta_loss_profile,
    quality,
    quality_by_horizon,
    quality_by_truncation,
)
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.rules.base import get_rule
from learned_opt.tasks import NoisyGradient, get_task
from learned_opt.tasks.base import Facts, Problems, Task

RATE, SIGMA, HORIZON = 0.4, 0.1, 8
CONFIG = TrainConfig(
    dtype="float64",
    num_problems=16,
    num_pairs=16,
    sigma=SIGMA,
    objective="sum",
    truncation=HORIZON,
    horizon=Fixed(HORIZON),
)
RIPPLED = get_task("rippled_quadratic", dim=4, ripple=0.5, condition_decades=(0.5, 0.5))


class Bowl(Task):
    """``x^2 / 2`` from 1: after t steps of rate r the loss is ``(1 - r)^2t / 2``."""

    name = family = "bowl"
    kind = "quadratic"
    shapes = {"x": (1,)}  # noqa: RUF012

    def _sample(self, num_problems, rng):
        del rng
        zeros = torch.zeros(num_problems, dtype=torch.float64)
        facts = Facts(minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None])
        return Problems(params={"x": 1 + zeros[:, None]}, constants={}, facts=facts)

    def loss(self, params, problems, batch=None):
        del problems, batch
        return params["x"][:, 0].square() / 2


def loss_after(rate, steps):
    return (1 - rate) ** (2 * steps) / 2


def slope_of(rate, steps):
    return -steps * (1 - rate) ** (2 * steps - 1)


@pytest.mark.parametrize("objective", ["sum", "final", "log"])
def test_profile_of_a_quadratic_is_its_closed_form(objective):
    offsets = torch.linspace(-0.2, 0.3, 7, dtype=torch.float64)
    found = meta_loss_profile(
        get_rule("sgd", learning_rate=RATE),
        Bowl(),
        replace(CONFIG, objective=objective),
        direction=torch.ones(1),
        offsets=offsets,
        horizons=(2, HORIZON),
        num_draws=2,
    )
    losses = torch.stack([loss_after(RATE + offsets, t) for t in range(1, HORIZON + 1)])
    for row, horizon in enumerate(found.horizons):
        expected = {
            "sum": losses[:horizon].sum(0),
            "final": losses[horizon - 1],
            "log": torch.log(losses[:horizon] / 0.5 + CONFIG.epsilon).mean(0),
        }[objective]
        torch.testing.assert_close(found.values[row], expected)


def test_smoothed_profile_is_a_quadrature():
    offsets = torch.tensor([0.0, 0.25], dtype=torch.float64)
    num_draws = 8192
    found = meta_loss_profile(
        get_rule("sgd", learning_rate=RATE),
        Bowl(),
        replace(CONFIG, num_problems=1),
        direction=torch.ones(1),
        offsets=offsets,
        horizons=(HORIZON,),
        num_draws=num_draws,
    )
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    for k, rate in enumerate((RATE + offsets).tolist()):
        values = sum(loss_after(rate + SIGMA * nodes, t) for t in range(1, HORIZON + 1))
        exact = weights @ values
        standard_error = math.sqrt(weights @ (values - exact) ** 2 / num_draws)
        assert abs(found.smoothed[0, k].item() - exact) < 4 * standard_error
        assert abs(found.values[0, k].item() - exact) > 4 * standard_error


def test_draws_that_are_not_finite_are_left_out_of_the_smoothed_profile():
    found = meta_loss_profile(
        get_rule("sgd", learning_rate=2.0),
        Bowl(),
        replace(CONFIG, num_problems=1, sigma=1.0),
        direction=torch.ones(1),
        offsets=torch.zeros(1),
        horizons=(1000,),
        num_draws=64,
    )
    assert found.smoothed.isfinite().all()


def smoothed_slope(truncation):
    """d/dr of the sum of losses, averaged over noise on r that is drawn anew each truncation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def loss(rate):
        def moment(steps):
            return weights @ (1 - rate - SIGMA * nodes) ** (2 * steps)

        return sum(
            moment(truncation) ** (t // truncation) * moment(t % truncation) / 2
            for t in range(1, HORIZON + 1)
        )

    return (loss(RATE + 1e-5) - loss(RATE - 1e-5)) / 2e-5


def test_back_propagation_knows_the_slope_of_a_quadratic():
    exact = sum(slope_of(RATE, t) for t in range(1, HORIZON + 1))
    config = replace(CONFIG, second_order=True)
    slopes = episode_gradients(get_rule("sgd", learning_rate=RATE), Bowl(), config)
    torch.testing.assert_close(slopes, torch.full((16, 1), exact, dtype=torch.float64))


@pytest.mark.parametrize(
    ("estimator", "truncation", "noise_lasts"),
    [("es", HORIZON, HORIZON), ("nres", 2, HORIZON), ("es_single", 4, HORIZON), ("pes", 2, 2)],
)
def test_evolution_knows_the_slope_of_the_smoothed_quadratic(estimator, truncation, noise_lasts):
    config = replace(
        CONFIG, estimator=estimator, truncation=truncation, num_pairs=4096, num_problems=4096
    )
    samples = episode_gradients(get_rule("sgd", learning_rate=RATE), Bowl(), config)
    error = samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - smoothed_slope(noise_lasts)) < 4 * error


def test_truncation_sees_the_slope_of_its_own_steps_alone():
    # From x_{k-1} on, one step of rate r changes the loss by -(1 - r) x_{k-1}^2 for each unit of r.
    found = episode_gradients(
        get_rule("sgd", learning_rate=RATE),
        Bowl(),
        replace(CONFIG, second_order=True, truncation=1),
    )
    exact = sum(-((1 - RATE) ** (2 * t - 1)) for t in range(1, HORIZON + 1))
    torch.testing.assert_close(found, torch.full((16, 1), exact, dtype=torch.float64))


@pytest.mark.parametrize("objective", ["sum", "log_gap", "final"])
def test_objectives_over_truncations_add_up_to_that_of_the_episode(objective):
    # The same noise for the whole episode: NRES is full-horizon ES, however it is cut.
    config = replace(CONFIG, objective=objective, estimator="nres")
    rule = get_rule("momentum", learning_rate=RATE, momentum=0.5)
    whole = episode_gradients(rule, Bowl(), config)
    cut = episode_gradients(rule, Bowl(), replace(config, truncation=2))
    torch.testing.assert_close(whole, cut)


def test_last_step_counts_once_in_back_propagation():
    config = replace(CONFIG, objective="final", second_order=True)
    rule = get_rule("sgd", learning_rate=RATE)
    found = episode_gradients(rule, Bowl(), config)
    torch.testing.assert_close(
        found, torch.full((16, 1), slope_of(RATE, HORIZON), dtype=torch.float64)
    )
    cut = episode_gradients(rule, Bowl(), replace(config, truncation=4))
    assert (cut - found / 2).abs().max() < 1e-12


def test_chaos_explodes_back_propagation_and_not_es():
    config = replace(
        CONFIG, objective="log_gap", num_pairs=128, num_problems=128, sigma=0.03, truncation=5
    )
    rule = get_rule("momentum", learning_rate=1.0, momentum=0.5)
    found = quality_by_horizon(
        rule,
        RIPPLED,
        config,
        horizons=(5, 20, 80),
        names=("back-propagation", "ES"),
        num_reference=1024,
    )
    slopes = [entry.log10_variance for entry in found if entry.name == "back-propagation"]
    evolved = [entry for entry in found if entry.name == "ES"]
    assert slopes[1] > slopes[0] + 5
    assert slopes[2] > slopes[1] + 20
    assert max(entry.log10_variance for entry in evolved) < 3
    assert evolved[-1].cosine > 0.6
    calm = quality_by_horizon(
        get_rule("momentum", learning_rate=0.3, momentum=0.5),
        get_task("rippled_quadratic", dim=4, ripple=0.0, condition_decades=(0.5, 0.5)),
        config,
        horizons=(80,),
        names=("back-propagation", "ES"),
        num_reference=1024,
    )
    assert calm[0].log10_variance < calm[1].log10_variance
    assert calm[0].cosine > 0.9


def test_short_truncation_wants_smaller_steps_where_the_horizon_wants_larger_ones():
    # Short-horizon bias on noisy bowls, Wu et al. 2018 (arXiv:1803.02021).
    bowl = get_task("rippled_quadratic", dim=8, ripple=0.0, condition_decades=(2.0, 2.0))
    config = replace(
        CONFIG, objective="log_gap", sigma=0.03, num_pairs=512, num_problems=512, horizon=Fixed(80)
    )
    found = quality_by_truncation(
        get_rule("sgd", learning_rate=0.3),
        NoisyGradient(bowl, noise=1.0),
        config,
        truncations=(5, 80),
        num_reference=512,
    )
    by_name = {(entry.name, entry.truncation): entry for entry in found}
    for name in ("back-propagation", "ES"):
        short, whole = by_name[name, 5], by_name[name, 80]
        assert short.mean > 4 * short.standard_error
        assert whole.mean < -4 * whole.standard_error
    pes = by_name["PES", 5]
    assert pes.mean < -2 * pes.standard_error


def test_quality_survives_numbers_whose_squares_overflow():
    samples = torch.tensor([[1e300, 1e300], [1e300, 3e300]], dtype=torch.float64)
    found = quality(samples, torch.ones(2), name="", horizon=1, truncation=1, batch=2)
    assert found.log10_variance == pytest.approx(600 + math.log10(2))
    assert found.cosine == pytest.approx(3 / math.sqrt(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": LogUniform(4, 8)}, "horizon must be fixed"),
        ({"truncation": 3}, "horizon must be a multiple of truncation=3, got 8"),
        ({"estimator": "mixed"}, "estimator must be .* got 'mixed'"),
    ],
)
def test_settings_without_samples_are_refused(settings, message):
    with pytest.raises(LearnedOptError, match=message):
        episode_gradients(get_rule("sgd"), Bowl(), replace(CONFIG, **settings))


def test_bad_arguments_are_refused():
    line = {"direction": torch.ones(1), "offsets": torch.zeros(1)}
    with pytest.raises(LearnedOptError, match="num_draws must be even and positive, got 3"):
        meta_loss_profile(get_rule("sgd"), Bowl(), CONFIG, num_draws=3, **line)
    with pytest.raises(LearnedOptError, match="horizons must hold at least one"):
        meta_loss_profile(get_rule("sgd"), Bowl(), CONFIG, horizons=(), **line)
    with pytest.raises(LearnedOptError, match="samples must be a multiple of batch=16"):
        quality(torch.ones(3, 1), torch.ones(1), name="", horizon=1, truncation=1)
    with pytest.raises(LearnedOptError, match="unknown estimate 'ESS'; did you mean 'ES'"):
        quality_by_truncation(get_rule("sgd"), Bowl(), CONFIG, truncations=(8,), names=("ESS",))
