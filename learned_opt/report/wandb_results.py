"""Finished results as W&B runs: one per rule and suite, so that a workspace compares rules."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learned_opt.bench.leaderboard import LeaderboardRow, leaderboard
from learned_opt.bench.results import Results
from learned_opt.errors import require
from learned_opt.report.field import Entrant, Field
from learned_opt.tracking import WandbMode, WandbTracker

_COLUMNS = (
    "task",
    "family",
    "rule",
    "tuning_trials",
    "instance",
    "status",
    "budget",
    "t_exit",
    "t_half",
    "t_solve",
    "final_loss",
    "log_gap",
    "hyperparameters",
)


def log_results(
    results: Results,
    *,
    project: str = "learned_opt",
    group: str,
    mode: WandbMode = "offline",
    directory: Path | str = ".",
    figures: Mapping[str, Path] | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> list[Path]:
    """Log every shown rule of every suite as a W&B run of one group.

    A run has the rule's settings as config; per task the median loss ``loss/<task>`` and log10 gap
    ``log_gap/<task>`` over ``gradient_evaluations``; the leaderboard's numbers, overall and per
    family, as summary; and its runs as a table. What belongs to the whole benchmark (figures) is
    media of each run, so that any of them shows it; weights go with the learned rules.

    Args:
        results: finished results.
        project: W&B project.
        group: W&B group, such as the benchmark's name; the suite is appended if there are several.
        mode: W&B mode.
        directory: where W&B makes its ``wandb`` folder.
        figures: name -> picture.
        weights: weight file to log as an artifact, or None.
        seed: seed of the bootstrap intervals in the summary.

    Returns:
        The folders of the runs that were opened; empty if W&B could not start.

    Raises:
        LearnedOptError: if there are no runs.
    """
    require(len(results) > 0, "results hold no runs, so there is nothing to log")
    suites = results.unique("suite")
    folders: list[Path] = []
    for suite in suites:
        part = results.filter(suite=suite)
        field = Field(part)
        rows = [row for by in ("overall", "family") for row in leaderboard(part, by=by, seed=seed)]
        for entrant in field.shown:
            name = field.name(entrant)
            tracker = WandbTracker(
                project=project,
                group=group if len(suites) == 1 else f"{group}/{suite}",
                name=name if len(suites) == 1 else f"{name} on {suite}",
                config=_config(field, entrant),
                mode=mode,
                directory=directory,
            )
            _log_curves(field, entrant, tracker)
            tracker.summary(_summary(rows, entrant))
            tracker.table("runs", _COLUMNS, _runs_of(part, entrant))
            for title, picture in (figures or {}).items():
                tracker.figure(title, picture)
            if weights is not None and entrant.rule == weights.stem:
                tracker.artifact(f"{entrant.rule}-weights", weights, kind="model")
            tracker.finish()
            if tracker.run_dir is not None:
                folders.append(tracker.run_dir)
    return folders


def _config(field: Field, entrant: Entrant) -> dict[str, Any]:
    chosen = {}
    for task in field.tasks:
        rows = field.rows(task.label, entrant)
        if len(rows):
            chosen[task.label] = json.loads(str(field.column("hyperparameters", rows)[0]))
    return {
        **field.results.metadata,
        "suite": field.tasks[0].suite,
        "rule": entrant.rule,
        "rule_kind": "learned" if entrant.is_learned else "hand-made",
        "tuning_trials": entrant.tuning_trials,
        "hyperparameters": chosen,
    }


def _log_curves(field: Field, entrant: Entrant, tracker: WandbTracker) -> None:
    """Medians of all tasks, merged into one row per step: W&B's own counter must not go back."""
    by_step: dict[int, dict[str, float]] = {}
    for task in field.tasks:
        gap = field.gap_band(task.label, entrant)
        loss = field.loss_band(task.label, entrant)
        for name, steps, values in (
            (f"loss/{task.label}", loss.steps, loss.median),
            (f"log_gap/{task.label}", gap.steps, np.log10(gap.median)),
        ):
            for step, value in zip(steps, values, strict=True):
                if np.isfinite(value):
                    by_step.setdefault(int(step), {})[name] = float(value)
    for step in sorted(by_step):
        tracker.log(by_step[step], step=step)


def _summary(rows: Sequence[LeaderboardRow], entrant: Entrant) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for row in rows:
        if (row.rule, row.tuning_trials) != (entrant.rule, entrant.tuning_trials):
            continue
        for name, interval in (
            ("success", row.success),
            ("time_ratio", row.rmst_ratio),
            ("final_log_gap", row.log_gap),
        ):
            numbers[f"{row.group}/{name}"] = interval.estimate
            numbers[f"{row.group}/{name}_low"] = interval.low
            numbers[f"{row.group}/{name}_high"] = interval.high
        numbers[f"{row.group}/ecdf_area"] = row.ecdf_area
        numbers[f"{row.group}/ert"] = row.ert
        numbers[f"{row.group}/diverged"] = row.num_diverged
    return numbers


def _runs_of(results: Results, entrant: Entrant) -> list[list[Any]]:
    mine = results.filter(rule=entrant.rule, tuning_trials=entrant.tuning_trials)
    table = mine.runs.select(list(_COLUMNS)).to_pylist()
    return [[row[column] for column in _COLUMNS] for row in table]


def how_to_view(run_dirs: Sequence[Path]) -> str:
    """What to type to look at W&B runs, offline and online.

    Args:
        run_dirs: what `log_results` returned.

    Returns:
        One line for the terminal viewer and one for uploading; empty without runs.

    Examples:
        >>> print(how_to_view([Path("runs/demo/wandb/offline-run-1-a")]))
        W&B      wandb leet runs/demo/wandb                      (in this terminal)
                 wandb sync --yes runs/demo/wandb/offline-run-*  (to wandb.ai, after wandb login)
    """
    folders = sorted({Path(folder).parent for folder in run_dirs})
    lines = []
    for folder in folders:
        quoted = shlex.quote(str(folder))
        lines.append((f"wandb leet {quoted}", "(in this terminal)"))
        lines.append((
            f"wandb sync --yes {quoted}/offline-run-*",
            "(to wandb.ai, after wandb login)",
        ))
    width = max((len(command) for command, _ in lines), default=0)
    return "\n".join(
        f"{'W&B' if i == 0 else '':<9}{command:<{width}}  {what}"
        for i, (command, what) in enumerate(lines)
    )
