"""Numbers, tables and the figure of untuned_race.py, from comparisons alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from _ratios import TARGETS, Comparison, mean_ratio

from learned_opt.bench.statistics import Interval

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

GROUPS = ("trained", "unseen")
COLOURS = {"trained": "#0072B2", "unseen": "#D55E00"}
FLOORS = {"lbfgs": ("L-BFGS", "|"), "newton": ("Newton, Hessian free", "x")}
"""Floors: their names and marks."""

Floors = Mapping[str, Sequence[Comparison]]


def members(comparisons: Sequence[Comparison], group: str) -> list[Comparison]:
    """The tasks of a group; ``all`` is every task."""
    return [c for c in comparisons if group in {"all", c.group}]


def summarise(comparisons: Sequence[Comparison], floors: Floors) -> dict[str, Any]:
    """Geometric means of a list of tasks, the worst of them, and those solved less often."""
    ratios = {c.label: mean_ratio([c]) for c in comparisons}
    known = {label: ratio.estimate for label, ratio in ratios.items() if ratio is not None}
    worst = min(known, key=lambda label: known[label], default=None)
    beside = {}
    for name, found in floors.items():
        # A floor does not exist everywhere: the rule is shown on the same tasks.
        labels = {c.label for c in comparisons} & {c.label for c in found}
        beside[name] = {
            "num_tasks": len(labels),
            "floor": as_list(mean_ratio([c for c in found if c.label in labels])),
            "rule": as_list(mean_ratio([c for c in comparisons if c.label in labels])),
        }
    return {
        "num_tasks": len(comparisons),
        "over tasks": as_list(mean_ratio(comparisons)),
        "over families": as_list(mean_ratio(comparisons, by_family=True)),
        "by target": {
            target: as_list(mean_ratio(comparisons, target=k)) for k, target in enumerate(TARGETS)
        },
        "worst task": worst and [worst, known[worst]],
        "faster on": sum(ratio > 1 for ratio in known.values()),
        "solved less often": [c.label for c in comparisons if c.is_less_solved],
        "floors": beside,
    }


def as_list(interval: Interval | None) -> list[float] | None:
    """Estimate, low, high."""
    return None if interval is None else list(astuple(interval))


def task_numbers(comparison: Comparison, floors: Floors) -> dict[str, Any]:
    """Everything about one task, JSON-able."""
    c = comparison
    targets = {
        target: {
            "best baseline": c.best[k],
            "its rmst": float(c.rival_rmst[k]),
            "its success": float(c.rival_success[k]),
            "rmst": float(c.rule_rmst[k]),
            "success": float(c.rule_success[k]),
            "ratio": as_list(mean_ratio([c], target=k)),
        }
        for k, target in enumerate(TARGETS)
    }
    beside = {
        name: {"rmst": f.rule_rmst.tolist(), "success": f.rule_success.tolist(),
               "ratio": as_list(mean_ratio([f]))}
        for name, found in floors.items()
        for f in found
        if f.label == c.label
    }  # fmt: skip
    return {
        "group": c.group,
        "family": c.family,
        "ratio": as_list(mean_ratio([c])),
        "targets": targets,
        "floors": beside,
    }


def same_cells(comparisons: Sequence[Comparison], like: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, with means over exactly the targets that those of `like` are over."""
    reached = {c.label: c.is_reached for c in like}
    return [replace(c, is_reached=reached[c.label]) for c in comparisons]


def shown(ratio: Sequence[float] | Interval | None, *, digits: int = 3) -> str:
    """``1.25 [1.10, 1.40]``, or a dash."""
    if ratio is None:
        return "-"
    values = astuple(ratio) if isinstance(ratio, Interval) else tuple(ratio)
    estimate, low, high = (f"{x:.{digits}g}" for x in values)
    return f"{estimate} [{low}, {high}]"


def task_table(comparisons: Sequence[Comparison], floors: Floors) -> list[list[str]]:
    """Header and one row a task; three numbers in a cell are those of the three targets."""
    table = [
        ["task", "group", "best baseline", "its RMST", "rule's RMST", "ratio", "its success %",
         "rule's success %", *[f"ratio of {FLOORS[name][0]}" for name in floors]]
    ]  # fmt: skip
    for c in comparisons:
        names = [
            name if share > 0 else "none"
            for name, share in zip(c.best, c.rival_success, strict=True)
        ]
        names = names[:1] if len(set(names)) == 1 else names
        beside = [
            next((mean_ratio([f]) for f in found if f.label == c.label), None)
            for found in floors.values()
        ]
        table.append([
            c.label,
            c.group,
            " / ".join(names),
            _three(c.rival_rmst),
            _three(c.rule_rmst),
            shown(mean_ratio([c])),
            _three(100 * c.rival_success),
            _three(100 * c.rule_success),
            *["-" if ratio is None else f"{ratio.estimate:.3g}" for ratio in beside],
        ])
    return table


def _three(values: Sequence[float] | np.ndarray) -> str:
    # Whole numbers from 100 on, as :.3g would write 1234 with an exponent.
    return " / ".join(f"{x:.0f}" if x >= 99.5 else f"{x:.3g}" for x in values)


def group_table(groups: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Header and one row a group."""
    first = next(iter(groups.values()))
    table = [
        ["group", "tasks", "faster on", "over tasks", "over families",
         *[f"to {target}" for target in TARGETS], "worst task",
         *[f"{FLOORS[name][0]} (rule on the same tasks)" for name in first["floors"]]]
    ]  # fmt: skip
    for name, group in groups.items():
        worst = group["worst task"]
        beside = [
            f"{shown(entry['floor'])} ({shown(entry['rule'])}), {entry['num_tasks']} tasks"
            for entry in group["floors"].values()
        ]
        table.append([
            name,
            str(group["num_tasks"]),
            str(group["faster on"]),
            shown(group["over tasks"]),
            shown(group["over families"]),
            *[shown(ratio) for ratio in group["by target"].values()],
            f"{worst[0]} {worst[1]:.3g}" if worst else "-",
            *beside,
        ])
    return table


def setting_table(baselines: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Header and one row a baseline with one setting for all tasks, hardest first."""
    table = [["baseline", "its one setting", "time / rule's, trained", "unseen", "all tasks"]]
    for name, entry in sorted(
        baselines.items(), key=lambda item: (item[1]["ratio"]["all"] or [float("inf")])[0]
    ):
        values = ", ".join(f"{key} {value:.3g}" for key, value in entry["setting"].items())
        ratio = entry["ratio"]
        table.append([name, values, *[shown(ratio[group]) for group in (*GROUPS, "all")]])
    return table


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table as Markdown.

    Examples:
        >>> print(markdown([["a", "b"], ["1", "2"]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def plot(
    comparisons: Sequence[Comparison],
    floors: Floors,
    groups: Mapping[str, Mapping[str, Any]],
    path: Path,
    *,
    title: str,
) -> None:
    """One row a task: its ratio with the interval, floors as small marks; groups below."""
    rows: list[tuple[str, str, Interval, bool]] = []
    for group in GROUPS:
        found = [(c.label, mean_ratio([c])) for c in members(comparisons, group)]
        known = [(label, ratio) for label, ratio in found if ratio is not None]
        tasks = [
            (label, group, ratio, False)
            for label, ratio in sorted(known, key=lambda pair: pair[1].estimate)
        ]
        mean = groups.get(group, {}).get("over tasks")
        if mean:
            label = f"mean of {len(tasks)}, {group}"
            rows.append((label, group, Interval(*mean), True))
        rows += tasks
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.27 * len(rows)), layout="constrained")
    marks = {(name, f.label): mean_ratio([f]) for name, found in floors.items() for f in found}
    for y, (label, group, ratio, is_mean) in enumerate(rows):
        axis.plot(
            [ratio.low, ratio.high], [y, y], color=COLOURS[group], linewidth=3 if is_mean else 1.5
        )
        axis.plot(
            ratio.estimate, y, "D" if is_mean else "o", color=COLOURS[group],
            markersize=8 if is_mean else 6,
        )  # fmt: skip
        for name in floors:
            mark = marks.get((name, label))
            if mark is not None:
                axis.plot(mark.estimate, y, FLOORS[name][1], color="#777777", markersize=7)
        if is_mean:
            axis.axhspan(y - 0.5, y + 0.5, color=COLOURS[group], alpha=0.1, linewidth=0)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    for tick, row in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row[3] else "normal")
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel("time of the best tuned baseline / time of the untuned rule (right: faster)")
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    present = [group for group in GROUPS if any(row[1] == group for row in rows)]
    handles = [
        Line2D([], [], color=COLOURS[group], marker="o", label=f"family {group}")
        for group in present
    ] + [
        Line2D([], [], color="#777777", marker=FLOORS[name][1], linestyle="", label=FLOORS[name][0])
        for name in floors
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
