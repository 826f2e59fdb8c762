"""What a training run did, and how it compares with the tuned baseline; nothing here runs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from learned_opt.bench.statistics import Interval, geometric_mean, stratified_bootstrap

Floats = NDArray[np.float64]

LOSS_FLOOR = 1e-6
"""Losses below count as this: what float32 makes of them there is rounding."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        steps: when losses were measured, from 0 on.
        train: loss on all training examples; inf where it is not finite.
        validation: on all validation examples, likewise.
        seconds_per_step: of the processor, median over the stretches between measurements.
        handed_over: steps at which a guard put its fallback in charge.
        handed_back: steps at which it let the rule go on.
    """

    steps: list[int]
    train: list[float]
    validation: list[float]
    seconds_per_step: float
    handed_over: list[int]
    handed_back: list[int]

    def fallback_share(self, horizon: int) -> float:
        """Share of the steps before `horizon` with the fallback in charge (its trials included)."""
        events = sorted(
            [(t, True) for t in self.handed_over] + [(t, False) for t in self.handed_back]
        )
        total, since = 0, None
        for step, is_over in events:
            if is_over and since is None:
                since = min(step, horizon)
            elif not is_over and since is not None:
                total, since = total + min(step, horizon) - since, None
        return (total + (0 if since is None else horizon - since)) / horizon


@dataclass(frozen=True)
class Curves:
    """Runs of one optimizer on one problem, a row a seed.

    Attributes:
        steps: ``[E]`` when losses were measured.
        train: ``[S, E]`` training losses.
        validation: ``[S, E]`` validation losses.
        horizon: steps of the tuned baseline.
    """

    steps: NDArray[np.int64]
    train: Floats
    validation: Floats
    horizon: int

    @classmethod
    def of(cls, runs: Sequence[Run], horizon: int) -> Curves:
        """Those of runs that were measured at the same steps."""
        return cls(
            np.array(runs[0].steps),
            np.maximum([run.train for run in runs], LOSS_FLOOR),
            np.maximum([run.validation for run in runs], LOSS_FLOOR),
            horizon,
        )

    @property
    def end(self) -> int:
        """Which measurement is the one at the horizon."""
        return int(np.flatnonzero(self.steps == self.horizon)[0])

    def select(self, seeds: NDArray[np.int64]) -> Curves:
        """Some rows, perhaps more than once."""
        return Curves(self.steps, self.train[seeds], self.validation[seeds], self.horizon)

    def diverged(self) -> NDArray[np.bool_]:
        """``[S]`` whether the training loss at the horizon is not finite or above the first one."""
        final = self.train[:, self.end]
        return ~np.isfinite(final) | (final > self.train[:, 0])


def time_to_loss(steps: ArrayLike, losses: ArrayLike, target: float) -> Floats:
    """The first measurement at or below a loss.

    Args:
        steps: ``[E]`` when losses were measured, ascending.
        losses: ``[S, E]``; NaN is above every target.
        target: the loss.

    Returns:
        ``[S]`` steps, inf where it was never reached.
    """
    reached = np.asarray(losses) <= target
    first = np.asarray(steps)[reached.argmax(axis=1)]
    return np.where(reached.any(axis=1), first, np.inf)


def target_of(baseline: Curves) -> float:
    """What is to be reached: the baseline's median training loss at its horizon."""
    return float(np.median(baseline.train[:, baseline.end]))


def times(ours: Curves, baseline: Curves) -> Floats:
    """``[S]`` steps to the baseline's final training loss over its horizon; inf if not reached."""
    return time_to_loss(ours.steps, ours.train, target_of(baseline)) / ours.horizon


def time_ratio(ours: Curves, baseline: Curves) -> float:
    """Median of `times`; runs that never reach it count with their length, as a lower bound."""
    longest, shortest = ours.steps[-1] / ours.horizon, 1 / ours.horizon
    return float(np.median(np.clip(times(ours, baseline), shortest, longest)))


def train_ratio(ours: Curves, baseline: Curves) -> float:
    """Median training loss at the horizon over the baseline's."""
    return float(np.median(ours.train[:, ours.end])) / target_of(baseline)


def validation_ratio(ours: Curves, baseline: Curves) -> float:
    """Median validation loss at the horizon over the baseline's."""
    median = np.median(baseline.validation[:, baseline.end])
    return float(np.median(ours.validation[:, ours.end]) / median)


def validation_there_ratio(ours: Curves, baseline: Curves) -> float:
    """Median validation loss where the training loss is the baseline's last, over the baseline's.

    At about equal training losses what is left is which minima an optimizer finds, not how fast.
    Runs that never get there count with their end.
    """
    is_there = ours.train <= target_of(baseline)
    there = np.where(is_there.any(axis=1), is_there.argmax(axis=1), -1)
    losses = ours.validation[np.arange(len(there)), there]
    return float(np.median(losses) / np.median(baseline.validation[:, baseline.end]))


RATIOS: dict[str, Callable[[Curves, Curves], float]] = {
    "time": time_ratio,
    "train": train_ratio,
    "validation": validation_ratio,
    "validation there": validation_there_ratio,
}


def over_problems(
    ours: Mapping[str, Curves], baseline: Mapping[str, Curves], ratio: str
) -> Interval:
    """Geometric mean of a ratio over problems.

    Args:
        ours: the curves of an optimizer on each problem.
        baseline: those of the baseline, with the same seeds.
        ratio: which one of `RATIOS`.

    Returns:
        The mean with a 95 % interval: seeds are drawn anew, the same for both, and so the target is
        uncertain, too. The problems are kept.
    """
    names = list(ours)

    def statistic(strata: list[Floats]) -> float:
        rows = [stratum.astype(int) for stratum in strata]
        values = [
            RATIOS[ratio](ours[name].select(row), baseline[name].select(row))
            for name, row in zip(names, rows, strict=True)
        ]
        return float(geometric_mean(values))

    strata = [np.arange(len(ours[name].train)) for name in names]
    return stratified_bootstrap(strata, statistic, seed=0)
