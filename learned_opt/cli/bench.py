"""``learned-opt bench``: race rules on a suite, every baseline tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Column, Table

from learned_opt.bench.leaderboard import leaderboard
from learned_opt.bench.results import Results
from learned_opt.bench.runner import Progress, run_benchmark
from learned_opt.bench.search_spaces import BASELINES
from learned_opt.bench.statistics import Interval
from learned_opt.cli.options import Options
from learned_opt.cli.progress import console, progress_bar
from learned_opt.report.figures import curves_figure, leaderboard_figure
from learned_opt.report.page import write_report
from learned_opt.report.wandb_results import how_to_view, log_results
from learned_opt.rules.weights import list_rules


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Race rules on suites, tune every baseline equally, write results, page and W&B runs."""

    suites: tyro.conf.Positional[tuple[str, ...]] = ("quick",)
    """Suites by name; `learned-opt list suites` shows them."""
    rules: tuple[str, ...] = ()
    """Rules by name or path to .safetensors; by default every baseline and all bundled weights."""
    out: Path = Path("runs/bench")
    """Folder for shards, page and W&B runs; an interrupted run goes on from what is there."""
    num_instances: int = 25
    """Fresh problem instances per task that the numbers are reported on."""
    num_tuning_instances: int = 8
    """Problem instances per task that hyperparameters are chosen on."""
    tuning_trials: tuple[int, ...] = (0, 4, 16, 64)
    """Tuning budgets to report: number of Sobol trials per baseline and task (0: defaults)."""
    budget_scale: float = 1.0
    """Multiplies every task's budget of gradient evaluations."""
    workers: int = 1
    """Processes; the numbers do not depend on it."""
    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the runs."""
    shared: Options = field(default_factory=Options)

    def main(self) -> None:
        """Run, report, log, and end in a short table."""
        self.shared.apply()
        results = race(
            self.suites,
            rules=self.rules or (*BASELINES, *list_rules()),
            out=self.out,
            seed=self.shared.seed,
            num_instances=self.num_instances,
            num_tuning_instances=self.num_tuning_instances,
            tuning_trials=self.tuning_trials,
            budget_scale=self.budget_scale,
            workers=self.workers,
            device=self.shared.device,
            dtype=self.dtype,
        )
        present(results, self.out, options=self.shared)


def race(
    suites: Sequence[str],
    *,
    rules: Sequence[str],
    out: Path,
    seed: int,
    num_instances: int,
    num_tuning_instances: int,
    tuning_trials: Sequence[int],
    budget_scale: float,
    workers: int,
    device: str,
    dtype: str,
) -> Results:
    """`run_benchmark` under a progress bar; the arguments are its own."""
    with progress_bar() as bar:
        line = bar.add_task("benchmark", total=None, note="")

        def on_progress(progress: Progress) -> None:
            bar.update(
                line,
                completed=progress.done,
                total=progress.total,
                note=f"{progress.task} {progress.rule}",
            )

        return run_benchmark(
            suites,
            rules=rules,
            out=out,
            seed=seed,
            num_instances=num_instances,
            num_tuning_instances=num_tuning_instances,
            tuning_trials=tuning_trials,
            budget_scale=budget_scale,
            workers=workers,
            device=device,
            dtype=getattr(torch, dtype),
            on_progress=on_progress,
        )


def present(
    results: Results,
    out: Path,
    *,
    options: Options,
    weights: Path | None = None,
    training_history: Path | None = None,
) -> None:
    """Write page and figures, log to W&B, print the short table and how to look at it all.

    Args:
        results: finished results.
        out: folder for report.html, the figures and the W&B runs.
        options: shared options.
        weights: weights that were trained on the way, logged as an artifact.
        training_history: JSON lines of their training, drawn into the page.
    """
    with console.status("writing the page"):
        page = write_report(
            results, out / "report.html", seed=options.seed, training_history=training_history
        )
        figures = {
            "leaderboard": leaderboard_figure(results, out / "leaderboard.png"),
            "curves": curves_figure(results, out / "curves.png"),
        }
    runs: list[Path] = []
    if options.wandb != "disabled":
        with console.status("logging to W&B"):
            runs = log_results(
                results,
                project=options.project,
                group=out.name,
                mode=options.wandb,
                directory=out,
                figures=figures,
                weights=weights,
            )
    screen = Console()
    screen.print(_short_table(results, seed=options.seed))
    screen.print(f"page     {page}", soft_wrap=True)
    screen.print(f"results  {out} (Parquet)", soft_wrap=True)
    if weights is not None:
        screen.print(f"weights  {weights}", soft_wrap=True)
    if runs:
        screen.print(how_to_view(runs), soft_wrap=True)


def _short_table(results: Results, *, seed: int) -> Table:
    rows = leaderboard(results, by="overall", seed=seed)
    table = Table(
        Column("rule", no_wrap=True),
        Column("trials", justify="right"),
        Column("solved %", justify="right", no_wrap=True),
        Column("time / best", justify="right", no_wrap=True),
        Column("diverged", justify="right", no_wrap=True),
        title=f"{len(results.tasks)} tasks, {results.column('instance').max() + 1} instances each",
        caption="estimate [95 % interval]; time: restricted mean number of gradient evaluations to "
        "0.1 % of the gap, in units of each task's best tuned baseline, geometric mean over tasks",
    )
    most = max(row.tuning_trials for row in rows)
    for row in rows:
        learned = row.rule_kind == "learned"
        if not learned and row.tuning_trials != most:
            continue
        table.add_row(
            row.rule,
            "none" if learned else str(row.tuning_trials),
            _interval(row.success, scale=100, digits=0),
            _interval(row.rmst_ratio, digits=2),
            f"{row.num_diverged} of {row.num_runs}",
            style="bold" if learned else None,
        )
    return table


def _interval(interval: Interval, *, digits: int, scale: float = 1.0) -> str:
    estimate, low, high = (scale * x for x in (interval.estimate, interval.low, interval.high))
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
