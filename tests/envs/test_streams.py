"""Streams of random numbers: a lane's own, uniform, normal, apart from one another."""

import numpy as np
import pytest
import torch

from envs import streams


def keys(n, start=0):
    return streams.mix(np.arange(start, start + n, dtype=np.uint64))


def test_mix_is_splitmix64():
    # The first outputs of the reference generator from state 0, which adds the golden ratio first.
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden * k % 2**64 for k in (1, 2, 3)], dtype=np.uint64)
    assert [hex(v) for v in streams.mix(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_a_key_draws_the_same_whatever_runs_beside_it():
    many = streams.combine(keys(100), 7)
    for lane in (0, 42, 99):
        alone = streams.combine(keys(1, lane), 7)
        assert streams.uniform(alone)[0] == streams.uniform(many)[lane]
        assert torch.equal(streams.normal(alone, 5)[0], streams.normal(many, 5)[lane])


def test_combine_takes_one_counter_or_one_for_each():
    each = streams.combine(keys(3), np.array([4, 5, 6], np.uint64))
    for lane, counter in enumerate((4, 5, 6)):
        assert streams.combine(keys(3), counter)[lane] == each[lane]


def test_streams_do_not_collide():
    grid = np.concatenate([streams.combine(keys(300), c) for c in range(300)])
    assert len(np.unique(grid)) == len(grid)


def test_uniform_numbers_are_uniform_and_uncorrelated():
    n = 100_000
    a, b = (streams.uniform(streams.combine(keys(n), c)) for c in (0, 1))
    assert a.min() >= 0
    assert a.max() < 1
    # Five standard errors each.
    assert abs(a.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs((a**2).mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / n**0.5
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 5 / n**0.5


def test_noise_of_lanes_and_steps_is_uncorrelated_and_rarely_repeats():
    n, dim = 4096, 32
    now, later = (streams.normal(streams.combine(keys(n), t), dim).double() for t in (0, 1))
    # Rows are pieces of one table: neighbours of a lane, of a step, within a row.
    for a, b in ((now, later), (now[1:], now[:-1]), (now[:, 1:], now[:, :-1])):
        assert abs((a * b).mean()) < 6 / (n * dim) ** 0.5
    # A million offsets: 4,096 draws share a few (4096**2 / 2**21 = 8 on average).
    assert len(torch.unique(now[:, 0])) > n - 40


@pytest.mark.parametrize("dim", [1, 3])
def test_normal_numbers_are_normal(dim):
    n = 20_000
    x = streams.normal(keys(n), dim).double()
    assert x.shape == (n, dim)
    assert abs(float(x.mean())) < 6 / (n * dim) ** 0.5
    assert abs(float(x.var()) - 1) < 6 * (2 / (n * dim)) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 6 * (96 / (n * dim)) ** 0.5


def test_normal_numbers_for_more_coordinates_than_the_table_once_held():
    x = streams.normal(keys(2), 150_000)
    assert x.shape == (2, 150_000)
    assert not torch.equal(x[0], x[1])
