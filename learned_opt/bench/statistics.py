"""Statistics of censored event times and of final losses; numpy only, all randomness seeded.

Times are in steps and ``inf`` (or NaN) where the event was not reached within the budget. No
function averages raw steps of different tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from learned_opt.errors import require

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: the number itself.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _times(times: ArrayLike) -> Floats:
    """Event times with NaN read as "not reached"."""
    values = _floats(times)
    require(values.size > 0, "times must not be empty, got no runs")
    return np.where(np.isnan(values), np.inf, values)


def wilson_interval(num_successes: int, num_runs: int, *, confidence: float = 0.95) -> Interval:
    """Success rate with the score interval of Wilson (1927).

    Args:
        num_successes: runs that succeeded.
        num_runs: runs in all, positive.
        confidence: coverage, in (0, 1).

    Returns:
        The rate and its interval, within [0, 1].

    Raises:
        LearnedOptError: if the counts are out of range.

    Examples:
        >>> wilson_interval(0, 10).low
        0.0
    """
    require(
        num_runs >= 1 and 0 <= num_successes <= num_runs,
        f"num_successes must lie in [0, num_runs] with num_runs positive, "
        f"got {num_successes} of {num_runs}",
    )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = num_successes / num_runs
    centre = (rate + z**2 / (2 * num_runs)) / (1 + z**2 / num_runs)
    half = (
        z / (1 + z**2 / num_runs) * np.sqrt(rate * (1 - rate) / num_runs + z**2 / (4 * num_runs**2))
    )
    # At a rate of 0 or 1 the end is exact; rounding would leave 1e-17.
    low = 0.0 if num_successes == 0 else float(max(0.0, centre - half))
    high = 1.0 if num_successes == num_runs else float(min(1.0, centre + half))
    return Interval(rate, low, high)


def rmst(times: ArrayLike, budget: ArrayLike) -> float:
    """Restricted mean survival time, ``mean(min(T, B))``: the area under Kaplan-Meier up to B.

    Args:
        times: event times, inf or NaN where not reached.
        budget: the censoring time, a scalar or one a run.

    Returns:
        The mean in steps; `budget` itself if no run succeeded.
    """
    return float(np.minimum(_times(times), _floats(budget)).mean())


def ert(times: ArrayLike, budget: ArrayLike) -> float:
    """Expected running time with restarts, ``sum min(T, B) / #successes = RMST / p``.

    Hansen et al. 2016, arXiv:1605.03560.

    Args:
        times: event times, inf or NaN where not reached.
        budget: the censoring time, a scalar or one a run.

    Returns:
        Expected steps to the first success; inf if there was none.
    """
    values = _times(times)
    num_successes = int(np.isfinite(values).sum())
    if num_successes == 0:
        return float("inf")
    return float(np.minimum(values, _floats(budget)).sum() / num_successes)


def ecdf(times: ArrayLike, grid: ArrayLike) -> Floats:
    """Share of (run, target) pairs that are reached by each time of `grid`.

    Args:
        times: event times of any shape, inf or NaN where not reached.
        grid: times at which to evaluate.

    Returns:
        Shares in [0, 1], shaped as `grid`.
    """
    ordered = np.sort(_times(times).ravel())
    return np.asarray(np.searchsorted(ordered, _floats(grid), side="right") / ordered.size)


def ecdf_area(times: ArrayLike, budget: ArrayLike) -> float:
    """Area under `ecdf` over ``log t`` from 1 step to the budget, scaled to [0, 1].

    Args:
        times: event times of any shape, inf or NaN where not reached.
        budget: the censoring time, a scalar or shaped to broadcast with `times`; above 1.

    Returns:
        1 if every target is reached within the first step, 0 if none is reached at all.

    Raises:
        LearnedOptError: if a budget is not above 1.
    """
    limit = _floats(budget)
    require(bool((limit > 1).all()), f"budget must be above 1 step, got {limit.min()}")
    clipped = np.clip(_times(times), 1.0, limit)
    return float((1 - np.log(clipped) / np.log(limit)).mean())


def _cost_ratios(costs: ArrayLike, reference: ArrayLike) -> Floats:
    """``[S, K]`` cost over the best reference cost; inf for a failure."""
    cost = np.where(np.isnan(_floats(costs)), np.inf, _floats(costs))
    pool = np.where(np.isnan(_floats(reference)), np.inf, _floats(reference))
    failed = np.isinf(cost)
    # Where no reference solver succeeds, any success is within every factor.
    return np.where(failed, np.inf, np.where(failed, 1.0, cost) / pool.min(axis=0))


def performance_profile(costs: ArrayLike, reference: ArrayLike, ratios: ArrayLike) -> Floats:
    """Share of tasks on which each solver is within a factor of the best reference solver.

    Dolan & Moré 2002 (arXiv:cs/0102001), with the best taken over a frozen reference set, so that
    adding a solver leaves the other curves as they were.

    Args:
        costs: ``[S, K]`` cost of each solver on each task; inf or NaN for a failure.
        reference: ``[R, K]`` costs of the reference solvers.
        ratios: ``[M]`` factors, at which to evaluate.

    Returns:
        ``[S, M]`` shares in [0, 1]. A failure is never within any factor.
    """
    ratio = _cost_ratios(costs, reference)
    return np.asarray((ratio[:, :, None] <= _floats(ratios)).mean(axis=1))


def profile_score(costs: ArrayLike, reference: ArrayLike, *, max_ratio: float = 4.0) -> Floats:
    """Area under `performance_profile` between the ratios 1 and `max_ratio`, scaled to [0, 1].

    The score of AlgoPerf (arXiv:2306.07179).

    Args:
        costs: ``[S, K]``, as for `performance_profile`.
        reference: ``[R, K]``, likewise.
        max_ratio: where the profile ends, above 1.

    Returns:
        ``[S]`` scores.
    """
    ratio = _cost_ratios(costs, reference)
    within = (max_ratio - np.clip(ratio, 1.0, max_ratio)) / (max_ratio - 1)
    return np.asarray(within.mean(axis=1))


def iqm(values: ArrayLike, axis: int = -1) -> Floats:
    """Interquartile mean: the mean without the lowest and the highest quarter.

    Agarwal et al. 2021 (arXiv:2108.13264). With ``n`` values, ``floor(n / 4)`` go at either end;
    NaN counts as the worst (highest) value.

    Args:
        values: any shape.
        axis: the axis to reduce.

    Returns:
        The means, `values` without `axis`.
    """
    ordered = np.sort(np.where(np.isnan(_floats(values)), np.inf, _floats(values)), axis=axis)
    size = ordered.shape[axis]
    require(size > 0, "values must not be empty, got none")
    return np.asarray(
        np.take(ordered, range(size // 4, size - size // 4), axis=axis).mean(axis=axis)
    )


def log_gap(final: ArrayLike, minimum: ArrayLike, reference: ArrayLike) -> Floats:
    """How far a run is from the minimum: ``log10((f - f* + 1e-12) / (f_s - f*))`` in [-12, 1].

    Args:
        final: losses; a run whose loss is not finite scores 1.
        minimum: ``f*`` of each problem.
        reference: ``f_s``, the level at which it started.

    Returns:
        Scores, lower is better: 0 at the starting level, -3 at a thousandth of the way left.
    """
    loss, low, high = _floats(final), _floats(minimum), _floats(reference)
    finite = np.isfinite(loss)
    # A loss below the stated minimum is rounding, or a bound that is none: it scores -12.
    gap = np.maximum(np.where(finite, loss, high) - low, 0.0) + 1e-12
    score = np.clip(np.log10(gap / np.maximum(high - low, 1e-300)), -12.0, 1.0)
    return np.where(finite, score, 1.0)


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """``P(ours < theirs) + P(equal) / 2`` over pairs of runs on the same instance.

    Args:
        ours: ``[n]`` costs; NaN counts as inf.
        theirs: ``[n]`` costs of the other rule on the same instances.

    Returns:
        A probability; 1/2 means no difference, two failures tie.

    Raises:
        LearnedOptError: if the lengths differ.
    """
    left, right = _times(ours), _times(theirs)
    require(left.shape == right.shape, f"pairs must match, got {left.shape} and {right.shape}")
    return float(np.mean((left < right) + 0.5 * (left == right)))


def stratified_bootstrap(
    strata: Sequence[ArrayLike],
    statistic: Callable[[list[Floats]], float],
    *,
    seed: int,
    repetitions: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic` when the runs of every stratum are drawn anew.

    Rows are drawn whole, so columns (rules that ran on the same instance) stay paired.

    Args:
        strata: one array ``[runs, ...]`` a task; the tasks themselves are kept.
        statistic: maps the resampled strata to a number.
        seed: seed of `numpy.random.default_rng`; the same seed gives the same interval.
        repetitions: how many resamples.
        confidence: coverage, in (0, 1).

    Returns:
        The statistic of the data as they are, with its interval.

    Raises:
        LearnedOptError: if there is no stratum or one is empty.
    """
    tables = [_floats(stratum) for stratum in strata]
    require(
        bool(tables) and all(len(table) for table in tables),
        f"strata must be non-empty arrays, got sizes {[len(t) for t in tables]}",
    )
    rng = np.random.default_rng(seed)
    draws = np.array([
        statistic([table[rng.integers(len(table), size=len(table))] for table in tables])
        for _ in range(repetitions)
    ])
    return interval_of_draws(statistic(tables), draws, confidence=confidence)


def interval_of_draws(estimate: float, draws: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws; exact about inf, since it never interpolates.

    Args:
        estimate: the statistic of the data.
        draws: ``[repetitions]`` statistics of the resamples.
        confidence: coverage, in (0, 1).

    Returns:
        Estimate and interval.
    """
    tail = (1 - confidence) / 2
    ordered = _floats(draws)
    low = np.quantile(ordered, tail, method="lower")
    high = np.quantile(ordered, 1 - tail, method="higher")
    return Interval(float(estimate), float(low), float(high))


def geometric_mean(values: ArrayLike, axis: int = -1) -> Floats:
    """Geometric mean of ratios; inf if any is inf.

    Args:
        values: positive numbers.
        axis: the axis to reduce.

    Returns:
        The means, `values` without `axis`.

    Raises:
        LearnedOptError: if a value is not positive.
    """
    ratios = _floats(values)
    require(bool((ratios > 0).all()), "values must be positive for a geometric mean")
    return np.asarray(np.exp(np.log(ratios).mean(axis=axis)))


def geometric_mean_interval(
    values: ArrayLike, *, seed: int, repetitions: int = 1000, confidence: float = 0.95
) -> Interval:
    """Geometric mean of one ratio a task, with the interval of drawing the tasks anew.

    Args:
        values: ``[K]`` positive ratios.
        seed: seed of the resampling.
        repetitions: how many resamples.
        confidence: coverage, in (0, 1).

    Returns:
        Mean and interval.
    """
    return stratified_bootstrap(
        [_floats(values)],
        lambda strata: float(geometric_mean(strata[0])),
        seed=seed,
        repetitions=repetitions,
        confidence=confidence,
    )
