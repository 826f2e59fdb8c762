"""Who won: one row per rule, tuning budget and group of tasks, from results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import pyarrow as pa

from learned_opt.bench.results import Results
from learned_opt.bench.statistics import (
    Floats,
    Interval,
    ecdf_area,
    ert,
    geometric_mean,
    interval_of_draws,
    iqm,
    rmst,
    wilson_interval,
)
from learned_opt.errors import require

TARGETS = ("t_exit", "t_half", "t_gap1", "t_gap2", "t_gap3", "t_gap4")
"""The targets of the empirical distribution; the solve target is ``t_gap3``."""

OVERALL = "all"
"""Name of the one group of ``by="overall"``."""


@final
@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """How a rule did on a group of tasks; times are to the solve target.

    Attributes:
        group: a family, a task, or ``all``.
        rule: name of the rule.
        rule_kind: ``hand-made`` or ``learned``.
        tuning_trials: tuning trials per task that it was given.
        num_tasks: tasks of the group that it ran on.
        num_runs: runs on them.
        success: share of runs solved within their budget, Wilson interval.
        num_diverged: runs that diverged unsolved.
        rmst_ratio: geometric mean over tasks of its restricted mean time over that of the task's
            best hand-made rule at the largest tuning budget, paired bootstrap interval; NaN if no
            hand-made rule took part.
        log_gap: interquartile mean of the final log gap over all runs, bootstrap interval.
        ert: geometric mean over tasks of the expected running time in steps; inf if some task was
            never solved.
        ecdf_area: area under the distribution of times to six targets over log steps, in [0, 1].
        median_seconds: median wall time of a run within its batch.
        underflow: share of runs in which some gradient component became exactly zero: such a run
            may have been absorbed by rounding rather than be slow.
    """

    group: str
    rule: str
    rule_kind: str
    tuning_trials: int
    num_tasks: int
    num_runs: int
    success: Interval
    num_diverged: int
    rmst_ratio: Interval
    log_gap: Interval
    ert: float
    ecdf_area: float
    median_seconds: float
    underflow: float


@dataclass(frozen=True)
class _TaskTable:
    """The runs of one task, entrant by entrant and instance by instance."""

    family: str
    budget: int
    columns: dict[tuple[str, int], dict[str, Floats]]
    statuses: dict[tuple[str, int], list[str]]
    best_baseline: tuple[str, int] | None


def leaderboard(
    results: Results,
    *,
    by: Literal["family", "overall", "task"] = "overall",
    seed: int = 0,
    repetitions: int = 1000,
) -> list[LeaderboardRow]:
    """Rank the rules.

    Args:
        results: the runs.
        by: one table per family, one over all tasks, or one per task.
        seed: seed of the bootstrap, which draws instances anew within each task, the same for
            every rule.
        repetitions: bootstrap resamples.

    Returns:
        Rows by group, best RMST ratio first.

    Raises:
        LearnedOptError: if there are no runs, or `by` is none of the three.
    """
    require(len(results) > 0, "results must hold at least one run, got none")
    require(
        by in {"family", "overall", "task"},
        f"by must be 'family', 'overall' or 'task', got '{by}'",
    )
    kinds = dict(
        zip(results.column("rule").tolist(), results.column("rule_kind").tolist(), strict=True)
    )
    tables = {task: _task_table(results.filter(task=task).runs, kinds) for task in results.tasks}
    groups: dict[str, list[str]] = {}
    for task, table in tables.items():
        group = {"family": table.family, "task": task, "overall": OVERALL}[by]
        groups.setdefault(group, []).append(task)
    rows: list[LeaderboardRow] = []
    for group, tasks in sorted(groups.items()):
        members = [tables[task] for task in tasks]
        rng = np.random.default_rng(seed)
        draws = [
            rng.integers(n, size=(repetitions, n)) for n in (_num_instances(t) for t in members)
        ]
        entrants = sorted({key for table in members for key in table.columns})
        scored = [_row(group, key, kinds[key[0]], members, draws) for key in entrants]
        rows += sorted(scored, key=_rank)
    return rows


def _rank(row: LeaderboardRow) -> tuple[float, float]:
    ratio = row.rmst_ratio.estimate
    return (math.inf if math.isnan(ratio) else ratio, row.log_gap.estimate)


def _num_instances(table: _TaskTable) -> int:
    return max(len(column["t_solve"]) for column in table.columns.values())


def _task_table(runs: pa.Table, kinds: dict[str, str]) -> _TaskTable:
    """Runs grouped by entrant, instances ascending (as `Results.load` orders them)."""
    names = [*TARGETS, "t_solve", "log_gap", "seconds", "zero_gradient_steps"]
    keys = list(zip(runs["rule"].to_pylist(), runs["tuning_trials"].to_pylist(), strict=True))
    positions: dict[tuple[str, int], list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    arrays = {name: runs[name].to_numpy() for name in names}
    statuses = runs["status"].to_pylist()
    columns = {
        key: {name: array[at] for name, array in arrays.items()} for key, at in positions.items()
    }
    budget = int(runs["budget"][0].as_py())
    tuned = [key for key in columns if kinds[key[0]] == "hand-made"]
    most = max((key[1] for key in tuned), default=0)
    baselines = [key for key in tuned if key[1] == most]
    best = min(baselines, key=lambda key: rmst(columns[key]["t_solve"], budget), default=None)
    return _TaskTable(
        runs["family"][0].as_py(),
        budget,
        columns,
        {key: [statuses[i] for i in at] for key, at in positions.items()},
        best,
    )


def _row(
    group: str,
    key: tuple[str, int],
    rule_kind: str,
    tables: Sequence[_TaskTable],
    draws: Sequence[np.ndarray[tuple[int, int], np.dtype[np.int64]]],
) -> LeaderboardRow:
    took_part = [
        (table, draw) for table, draw in zip(tables, draws, strict=True) if key in table.columns
    ]
    mine = [table.columns[key] for table, _ in took_part]
    statuses = [status for table, _ in took_part for status in table.statuses[key]]
    ratios, ratio_draws = [], []
    for table, draw in took_part:
        if table.best_baseline is None:
            continue
        both = [table.columns[name]["t_solve"] for name in (key, table.best_baseline)]
        # Instances are drawn for the pair, so what is common to both cancels.
        times = [np.minimum(column, table.budget) for column in both]
        ratios.append(max(times[0].mean(), 1.0) / max(times[1].mean(), 1.0))
        sampled = [np.maximum(t[draw].mean(axis=1), 1.0) for t in times]
        ratio_draws.append(sampled[0] / sampled[1])
    nothing = Interval(math.nan, math.nan, math.nan)
    gaps = np.concatenate([column["log_gap"] for column in mine])
    gap_draws = iqm(
        np.concatenate(
            [column["log_gap"][draw] for column, (_, draw) in zip(mine, took_part, strict=True)],
            axis=1,
        )
    )
    budgets = [table.budget for table, _ in took_part]
    erts = [ert(column["t_solve"], b) for column, b in zip(mine, budgets, strict=True)]
    return LeaderboardRow(
        group=group,
        rule=key[0],
        rule_kind=rule_kind,
        tuning_trials=key[1],
        num_tasks=len(took_part),
        num_runs=len(statuses),
        success=wilson_interval(statuses.count("solved"), len(statuses)),
        num_diverged=statuses.count("diverged"),
        rmst_ratio=interval_of_draws(
            float(geometric_mean(ratios)), geometric_mean(np.array(ratio_draws), axis=0)
        )
        if ratios
        else nothing,
        log_gap=interval_of_draws(float(iqm(gaps)), gap_draws),
        # A run that starts solved costs one step, as in the ratios.
        ert=float(geometric_mean(np.maximum(erts, 1.0))),
        ecdf_area=float(
            np.mean([
                ecdf_area(np.stack([column[target] for target in TARGETS]), budget)
                for column, budget in zip(mine, budgets, strict=True)
            ])
        ),
        median_seconds=float(np.median(np.concatenate([column["seconds"] for column in mine]))),
        underflow=float(
            np.mean(np.concatenate([column["zero_gradient_steps"] > 0 for column in mine]))
        ),
    )
