"""Baselines with one setting for all tasks: as untuned, task by task, as a learned rule is.

Candidates are the defaults and Sobol points of the rule's search space. Its ranges are relative to
units that each task ships; here they are absolute, with each unit at its geometric mean over the
trained tasks, so that the same numbers run everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from _jobs import Job, complete, run_jobs, sample
from _ratios import Floats, restricted

from learned_opt.bench.search_spaces import Units, measure_units, search_space
from learned_opt.bench.statistics import geometric_mean
from learned_opt.bench.suites import SuiteEntry
from learned_opt.bench.units import derive_seed

NUM_TUNING = 8
"""Tuning instances of each task, those that tuning task by task sees."""


def mean_units(units: Sequence[Units]) -> Units:
    """Each unit at its geometric mean.

    Examples:
        >>> one, two = Units(1.0, 1.0, 2.0), Units(100.0, 4.0, 2.0)
        >>> mean_units([one, two])
        Units(smoothness=10.0, radius=2.0, gradient=2.0)
    """
    return Units(**{
        part.name: float(np.round(geometric_mean([getattr(u, part.name) for u in units]), 12))
        for part in fields(Units)
    })


def best_setting(times: Mapping[str, Floats], budgets: Mapping[str, int]) -> int:
    """The setting of least geometric mean over tasks of its restricted mean time.

    Args:
        times: task -> ``[settings, n]`` times on tuning instances.
        budgets: task -> its budget.

    Returns:
        Its position; the first of equals.
    """
    means = [restricted(t, budgets[task]).mean(axis=1) for task, t in times.items()]
    return int(np.log(means).mean(axis=0).argmin())


def race_one_setting(
    rules: Sequence[str],
    entries: Sequence[SuiteEntry],
    trained: Sequence[SuiteEntry],
    folder: Path,
    *,
    num_trials: int,
    num_instances: int,
    seed: int,
    workers: int,
    on_done: Callable[[Job], None],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Floats]]]:
    """Choose one setting for each baseline on the trained tasks and race it on all.

    Args:
        rules: the baselines.
        entries: all tasks.
        trained: the tasks that settings are chosen on, on their tuning instances.
        folder: where outcomes are kept.
        num_trials: Sobol points beyond the defaults.
        num_instances: evaluation instances.
        seed: seed of the benchmark.
        workers: processes.
        on_done: called after each job that ran.

    Returns:
        The setting of each baseline, and task -> baseline -> times ``[T, n]``.
    """
    units = mean_units([
        measure_units(entry.build(), sample(entry, "tuning", NUM_TUNING, seed)) for entry in trained
    ])
    sobol_seed = derive_seed(seed, "one setting") % 2**32
    candidates = {
        rule: complete(rule, search_space(rule).points(num_trials, units, seed=sobol_seed))
        for rule in rules
    }
    trials = [
        Job(
            kind="trials",
            entry=entry,
            rule=rule,
            settings=candidates[rule],
            seed=seed,
            num_instances=NUM_TUNING,
        )
        for rule in rules
        for entry in trained
    ]
    outcomes = dict(
        zip(
            [(job.rule, job.entry.label) for job in trials],
            run_jobs(trials, folder, workers=workers, on_done=on_done),
            strict=True,
        )
    )
    budgets = {entry.label: entry.build().budget for entry in trained}
    chosen = {
        rule: candidates[rule][
            best_setting({label: outcomes[rule, label] for label in budgets}, budgets)
        ]
        for rule in rules
    }
    runs = [
        Job(
            kind="runs",
            entry=entry,
            rule=rule,
            settings=(chosen[rule],),
            seed=seed,
            num_instances=num_instances,
        )
        for entry in entries
        for rule in rules
    ]
    times: dict[str, dict[str, Floats]] = {}
    found = run_jobs(runs, folder, workers=workers, on_done=on_done)
    for job, outcome in zip(runs, found, strict=True):
        times.setdefault(job.entry.label, {})[job.rule] = outcome
    return chosen, times
