"""Static figures for a README, a paper or W&B: the leaderboard and the curves as PNG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from learned_opt.bench.leaderboard import leaderboard
from learned_opt.bench.results import Results
from learned_opt.report.charts import FAINT, GRID, INK
from learned_opt.report.field import Field

_SETTINGS: dict[str, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "figure.dpi": 150,
}


@contextmanager
def png_figure(path: Path | str, **size: Any) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, written to `path` at the end; no display and no global state.

    Args:
        path: the PNG to write; its folder is made.
        size: ``figsize``, and what ``Figure.subplots`` takes.

    Yields:
        The figure and what ``subplots`` returned.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=size.pop("figsize"), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(**size)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Without matplotlib's version inside, the same results give the same bytes for longer.
        figure.savefig(path, format="png", metadata={"Software": None})


def leaderboard_figure(results: Results, path: Path | str, *, seed: int = 0) -> Path:
    """Draw success rates and times over the best baseline, with 95 % intervals.

    Args:
        results: finished results.
        path: the PNG to write; its folder is made.
        seed: seed of the bootstrap intervals.

    Returns:
        Where the figure is.

    Raises:
        LearnedOptError: if there are no runs.
    """
    field = Field(results)
    shown = {(e.rule, e.tuning_trials): e for e in field.shown}
    board = leaderboard(results, by="overall", seed=seed)
    rows = [row for row in reversed(board) if (row.rule, row.tuning_trials) in shown]
    names = [field.name(shown[row.rule, row.tuning_trials]) for row in rows]
    height = 1.2 + 0.36 * len(rows)
    with png_figure(path, figsize=(9.0, height), ncols=2, sharey=True) as (figure, (left, right)):
        for y, row in enumerate(rows):
            style = field.styles[row.rule]
            is_learned = row.rule_kind == "learned"
            marker = {
                "fmt": "D" if is_learned else "o",
                "color": style.colour,
                "markersize": 9 if is_learned else 6.5,
                "elinewidth": 2.5 if is_learned else 1.6,
                "capsize": 0,
            }
            for axes, interval, unit in ((left, row.success, 100), (right, row.rmst_ratio, 1)):
                if math.isfinite(interval.estimate):
                    low, mid, high = interval.low, interval.estimate, interval.high
                    ends = [[unit * max(mid - low, 0)], [unit * max(high - mid, 0)]]
                    axes.errorbar([unit * mid], [y], xerr=ends, **marker)
        left.set_yticks(range(len(rows)), names)
        for label, row in zip(left.get_yticklabels(), rows, strict=True):
            label.set_color(INK)
            label.set_fontweight("bold" if row.rule_kind == "learned" else "normal")
        left.set(xlabel="solved runs, %", xlim=(-3, 103), ylim=(-0.6, len(rows) - 0.4))
        right.set(xlabel="time / best baseline of each task", xscale="log")
        right.axvline(1, color=FAINT, linewidth=1, linestyle="--")
        ratios = [e for row in rows for e in (row.rmst_ratio.low, row.rmst_ratio.high)]
        finite = [ratio for ratio in ratios if math.isfinite(ratio)] + [0.5, 2.0]
        first, last = math.floor(math.log2(min(finite))), math.ceil(math.log2(max(finite)))
        ticks = [2.0**k for k in range(first, last + 1)]
        right.set_xlim(ticks[0], ticks[-1])
        right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        right.minorticks_off()
        instances = max(task.num_instances for task in field.tasks)
        trials = field.common_trials
        tuned = "" if trials is None else f", hand-made rules with {trials} tuning trials"
        figure.suptitle(
            f"{len(field.tasks)} tasks, {instances} instances each{tuned}; 95 % intervals",
            fontsize=11,
            color=FAINT,
        )
    return Path(path)


def curves_figure(results: Results, path: Path | str) -> Path:
    """Draw the remaining gap over gradient evaluations, one panel per task.

    Medians over instances, quartiles as bands, known plateau and saddle levels as dashed lines.

    Args:
        results: finished results.
        path: the PNG to write; its folder is made.

    Returns:
        Where the figure is.

    Raises:
        LearnedOptError: if there are no runs.
    """
    field = Field(results)
    columns = min(3, len(field.tasks))
    num_rows = math.ceil(len(field.tasks) / columns)
    size = (max(3.7 * columns, 6.5), 2.8 * num_rows + 0.8)
    with png_figure(path, figsize=size, nrows=num_rows, ncols=columns, squeeze=False) as (
        figure,
        grid,
    ):
        for axes, task in zip(grid.flat, field.tasks, strict=False):
            _draw_curves(field, task.label, axes)
            axes.set(xlim=(1, task.budget))
            axes.set_title(task.label, fontsize=11)
        for axes in grid.flat[len(field.tasks) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("remaining gap")
        for axes in grid.flat[max(0, len(field.tasks) - columns) : len(field.tasks)]:
            axes.set_xlabel("gradient evaluations")
        handles = {
            line.get_label(): line
            for axes in grid.flat
            for line in axes.get_lines()
            if not line.get_label().startswith("_")
        }
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=min(5, len(handles))
        )
    return Path(path)


def _draw_curves(field: Field, task: str, axes: Any) -> None:
    lowest, highest = 0.1, 2.0
    for entrant in sorted(field.shown, key=lambda e: e.is_learned):
        band, style = field.gap_band(task, entrant), field.styles[entrant.rule]
        keep = band.steps >= 1
        if not keep.any():
            continue
        lowest = min(lowest, float(band.median[keep].min()))
        highest = max(highest, float(band.median[keep][0]))
        # Diverged runs are infinitely far; matplotlib overflows well before that.
        low, median, high = (
            np.clip(x[keep], 1e-30, 1e30) for x in (band.low, band.median, band.high)
        )
        axes.fill_between(
            band.steps[keep],
            low,
            high,
            color=style.colour,
            alpha=0.12,
            linewidth=0,
        )
        axes.plot(
            band.steps[keep],
            median,
            color=style.colour,
            linestyle=style.matplotlib_dash,
            linewidth=style.width * 0.75,
            label=field.name(entrant),
        )
    for level in field.levels(task):
        axes.axhline(level, color=FAINT, linewidth=0.8, linestyle="--", zorder=0.5)
    axes.set(xscale="log", yscale="log", ylim=(max(lowest / 3, 1e-6), min(2 * highest, 1e6)))
