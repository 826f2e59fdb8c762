"""Horizon schedules: their distributions, stages and refusals."""

import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.horizons import Curriculum, Fixed, LogUniform


def rng():
    return torch.Generator().manual_seed(0)


def test_log_uniform_has_the_right_distribution():
    generator = rng()
    draws = torch.tensor([LogUniform(10, 1000).draw(0.0, generator) for _ in range(4000)])
    assert draws.min() >= 10
    assert draws.max() <= 1000
    # P(draw < 100) = log(100 / 10) / log(1001 / 10), within 4 standard errors
    p = math.log(10) / math.log(100.1)
    share = (draws < 100).double().mean().item()
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 4000)


def test_log_uniform_reaches_both_ends():
    generator = rng()
    draws = {LogUniform(2, 4).draw(0.0, generator) for _ in range(200)}
    assert draws == {2, 3, 4}
    assert LogUniform(7, 7).draw(0.0, generator) == 7


def test_a_curriculum_passes_through_its_stages():
    shares = Curriculum((Fixed(5), Fixed(10), Fixed(20), Fixed(40)))
    assert [shares.draw(p, rng()) for p in (0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 1.0)] == [
        5,
        5,
        10,
        20,
        20,
        40,
        40,
    ]
    given = Curriculum((Fixed(5), LogUniform(50, 60)), starts=(0.0, 0.9))
    assert given.draw(0.89, rng()) == 5
    assert 50 <= given.draw(0.9, rng()) <= 60


def test_the_longest_episode():
    assert Fixed(5).longest == 5
    assert LogUniform(5, 9).longest == 9
    assert Curriculum((Fixed(50), LogUniform(5, 9))).longest == 50


def test_configs_tell_schedules_apart():
    assert Fixed(5).config() == {"kind": "Fixed", "steps": 5}
    assert LogUniform(5, 9).config() == {"kind": "LogUniform", "low": 5, "high": 9}
    assert Curriculum((Fixed(5), Fixed(6))).config() == {
        "kind": "Curriculum",
        "stages": [{"kind": "Fixed", "steps": 5}, {"kind": "Fixed", "steps": 6}],
        "starts": [0.0, 0.5],
    }


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Fixed(0), "steps must be positive, got 0"),
        (lambda: LogUniform(0, 5), "low must be positive, got 0"),
        (lambda: LogUniform(6, 5), "high must be at least low=6, got 5"),
        (lambda: Curriculum(()), "stages must hold at least one horizon"),
        (lambda: Curriculum((Fixed(5),), starts=(0.0, 0.5)), r"one entry per stage \(1\), got 2"),
        (lambda: Curriculum((Fixed(5),), starts=(0.1,)), "starts must begin with 0"),
        (lambda: Curriculum((Fixed(5),) * 2, starts=(0.0, 0.0)), "starts must begin with 0"),
        (lambda: Curriculum((Fixed(5),) * 2, starts=(0.0, 1.0)), "starts must begin with 0"),
    ],
)
def test_bad_settings_are_refused(make, match):
    with pytest.raises(LearnedOptError, match=match):
        make()
