"""Laws of the statistics, on whatever hypothesis comes up with."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learned_opt.bench.statistics import ecdf, ert, iqm, performance_profile, rmst, wilson_interval

BUDGET = 100
times = st.lists(
    st.one_of(st.integers(0, BUDGET).map(float), st.just(math.inf)), min_size=1, max_size=20
)


@given(times)
def test_ert_is_rmst_over_the_success_rate(sample):
    rate = np.mean(np.array(sample) <= BUDGET)
    expected = rmst(sample, BUDGET) / rate if rate else math.inf
    assert ert(sample, BUDGET) == expected or math.isclose(ert(sample, BUDGET), expected)


@given(times, st.randoms(use_true_random=False))
def test_statistics_do_not_depend_on_the_order_of_runs(sample, random):
    shuffled = random.sample(sample, len(sample))
    assert math.isclose(rmst(sample, BUDGET), rmst(shuffled, BUDGET))
    grid = np.arange(0, BUDGET, 7)
    assert np.array_equal(ecdf(sample, grid), ecdf(shuffled, grid))


@given(times)
def test_ecdf_rises_from_nothing_to_the_success_rate(sample):
    shares = ecdf(sample, np.arange(BUDGET + 1))
    assert np.all(np.diff(shares) >= 0)
    assert math.isclose(shares[-1], np.mean(np.array(sample) <= BUDGET))


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_interval_holds_its_estimate(successes, runs):
    successes = min(successes, runs)
    interval = wilson_interval(successes, runs)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_iqm_lies_between_the_extremes(values):
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= float(iqm(values)) <= max(values) + slack


@given(st.lists(st.floats(1, 1e3), min_size=2, max_size=6), st.floats(1e-3, 1e3))
def test_profiles_do_not_depend_on_the_unit_of_cost(costs, unit):
    table = np.array([costs, [2 * c for c in costs]])
    ratios = 2.0 ** (np.arange(-3, 12) / 2 + 0.123)
    plain = performance_profile(table, table, ratios)
    assert np.array_equal(plain, performance_profile(unit * table, unit * table, ratios))
