import math
from collections.abc import Callable

import numpy as np
import pytest

from learned_opt.bench.statistics import (
    ecdf,
    ecdf_area,
    ert,
    geometric_mean,
    geometric_mean_interval,
    iqm,
    log_gap,
    performance_profile,
    probability_of_improvement,
    profile_score,
    rmst,
    stratified_bootstrap,
    wilson_interval,
)
from learned_opt.errors import LearnedOptError

INF, NAN = math.inf, math.nan


def test_wilson_interval_of_a_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 has the score interval [0.2553, 0.3662].
    interval = wilson_interval(81, 263)
    assert interval.estimate == 81 / 263
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


def test_wilson_interval_stays_within_zero_and_one() -> None:
    none, every = wilson_interval(0, 20), wilson_interval(20, 20)
    assert none.low == 0.0 and 0.15 < none.high < 0.17
    assert every.high == 1.0 and every.low == pytest.approx(1 - none.high)


def test_rmst_counts_failures_at_the_budget() -> None:
    assert rmst([10, 30, INF, NAN], 100) == 60.0
    assert rmst([INF, INF], 100) == 100.0
    assert rmst([10, 300], [100, 200]) == 105.0


def test_ert_is_rmst_over_success_rate() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        times = rng.integers(1, 200, size=30).astype(float)
        times[times > 150] = INF
        rate = np.isfinite(times).mean()
        assert ert(times, 150) == pytest.approx(rmst(times, 150) / rate, rel=1e-14)
    assert ert([INF, NAN], 10) == INF


def test_ecdf_by_hand_with_ties() -> None:
    times = [[5, 5], [20, NAN]]
    assert ecdf(times, [4, 5, 19, 20, 1e9]).tolist() == [0, 0.5, 0.5, 0.75, 0.75]


def test_ecdf_area_is_the_integral_of_the_ecdf_over_log_time() -> None:
    times = np.array([1.0, 7.0, 7.0, 40.0, 99.0, INF, NAN])
    grid = np.linspace(0, math.log(100), 200_001)
    numeric = np.trapezoid(ecdf(times, np.exp(grid)), grid) / math.log(100)
    assert ecdf_area(times, 100) == pytest.approx(numeric, abs=1e-5)
    assert ecdf_area([0.0, 1.0], 100) == 1.0 and ecdf_area([INF], 100) == 0.0


def test_performance_profile_by_hand() -> None:
    costs = [[10, 20, INF, 8], [20, 20, NAN, INF]]
    reference = [[10, 40, INF, INF]]
    got = performance_profile(costs, reference, [0.4, 1, 2, 100])
    assert got.tolist() == [[0.25, 0.75, 0.75, 0.75], [0, 0.25, 0.5, 0.5]]


def test_adding_a_solver_leaves_the_other_profiles_as_they_were() -> None:
    costs = [[10.0, 20.0], [30.0, 5.0]]
    alone = performance_profile(costs, costs[:1], [1, 2, 4])
    more = performance_profile([*costs, [1.0, 1.0]], costs[:1], [1, 2, 4])
    assert np.array_equal(alone, more[:2])


def test_profile_score_is_the_area_under_the_profile() -> None:
    costs, reference = [[10, 25, 50, INF]], [[10, 10, 10, 10]]
    grid = np.linspace(1, 4, 300_001)
    numeric = np.trapezoid(performance_profile(costs, reference, grid)[0], grid) / 3
    assert profile_score(costs, reference)[0] == pytest.approx(numeric, abs=1e-5)
    assert profile_score(costs, reference)[0] == pytest.approx((1 + 0.5) / 4)


def test_iqm_drops_a_quarter_at_either_end() -> None:
    assert iqm([1, 2, 3, 100]) == 2.5
    assert iqm([[NAN, 1, 2, 3], [4, 4, 4, 4]]).tolist() == [2.5, 4.0]
    assert iqm([7.0]) == 7.0


def test_log_gap_by_hand() -> None:
    got = log_gap([1.0, 0.001, 0.0, -5.0, INF, NAN, 1e9], 0.0, 1.0)
    assert got.tolist() == pytest.approx([0, -3, -12, -12, 1, 1, 1], abs=1e-8)
    assert log_gap(3.0, 1.0, 5.0) == pytest.approx(math.log10(0.5))


def test_probability_of_improvement_is_paired_and_halves_ties() -> None:
    assert probability_of_improvement([1, 5, INF, 3], [2, 4, NAN, INF]) == (1 + 0 + 0.5 + 1) / 4
    # Unpaired, these two samples would be equal in distribution.
    assert probability_of_improvement([1, 2, 3], [2, 3, 1]) == pytest.approx(2 / 3)


def test_bootstrap_is_reproducible_and_close_to_the_standard_error() -> None:
    rng = np.random.default_rng(1)
    strata = [rng.normal(size=200), rng.normal(5, 2, size=100)]

    def mean_of_means(tables: list[np.ndarray]) -> float:
        return float(np.mean([table.mean() for table in tables]))

    one = stratified_bootstrap(strata, mean_of_means, seed=7, repetitions=2000)
    assert one == stratified_bootstrap(strata, mean_of_means, seed=7, repetitions=2000)
    assert one != stratified_bootstrap(strata, mean_of_means, seed=8, repetitions=2000)
    assert one.estimate == mean_of_means(strata)
    error = math.sqrt(sum(s.var() / len(s) for s in strata)) / 2
    assert one.high - one.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_bootstrap_keeps_rows_paired() -> None:
    base = np.random.default_rng(2).normal(size=(50, 1))
    table = np.concatenate([base, base + 1.0], axis=1)
    interval = stratified_bootstrap(
        [table], lambda t: float((t[0][:, 1] - t[0][:, 0]).mean()), seed=0, repetitions=200
    )
    assert interval.low == pytest.approx(1.0) and interval.high == pytest.approx(1.0)


def test_bootstrap_of_infinite_values_has_infinite_ends_not_nan() -> None:
    interval = stratified_bootstrap(
        [[1.0, 2.0, INF]], lambda t: float(t[0].mean()), seed=0, repetitions=200
    )
    assert interval.high == INF and math.isfinite(interval.low)


def test_geometric_mean_and_interval() -> None:
    assert geometric_mean([1, 4, 16]) == pytest.approx(4)
    assert geometric_mean([1, INF]) == INF
    interval = geometric_mean_interval([1, 4, 16], seed=0)
    assert 1 <= interval.low < interval.estimate < interval.high <= 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(3, 2), r"num_successes must lie in \[0, num_runs\].*got 3 of 2"),
        (lambda: wilson_interval(0, 0), "got 0 of 0"),
        (lambda: rmst([], 10), "times must not be empty"),
        (lambda: ecdf_area([1.0], 1), "budget must be above 1 step, got 1"),
        (lambda: iqm([]), "values must not be empty"),
        (lambda: probability_of_improvement([1], [1, 2]), "pairs must match"),
        (lambda: stratified_bootstrap([], lambda t: 0.0, seed=0), "strata must be non-empty"),
        (lambda: stratified_bootstrap([[]], lambda t: 0.0, seed=0), "strata must be non-empty"),
        (lambda: geometric_mean([0.0, 1.0]), "values must be positive"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(LearnedOptError, match=message):
        call()
