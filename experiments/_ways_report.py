"""What ways_of_training.py makes of its runs: a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from _capped import GROUPS, Times, mean_ratio, mean_solved
from _ways_runs import WAYS, Measured

mpl.use("Agg")
import matplotlib.pyplot as plt

HEADER = (
    "trained by",
    "seed",
    "core-minutes",
    "outer steps",
    "learning rate",
    "held-out log10 gap",
    "steps over PPO's, trained",
    "unseen",
    "solved, trained",
    "unseen",
)


def mean_times(found: Sequence[Measured]) -> dict[str, Times]:
    """Geometric mean over seeds of the steps, mean of the shares solved."""
    return {
        label: Times(
            means=np.exp(np.mean([np.log(each.times[label].means) for each in found], axis=0)),
            solved=float(np.mean([each.times[label].solved for each in found])),
        )
        for label in found[0].times
    }


def by_way(found: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Runs of each way."""
    return {way: [each for each in found if each.job.way == way] for way in WAYS}


def tabled(
    found: Sequence[Measured], members: Mapping[str, Sequence[str]]
) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows for people and numbers for machines: each way's mean, and each seed.

    Args:
        found: finished runs.
        members: labels of the tasks of each group.
    """
    of = by_way(found)
    reference = mean_times(of["ppo"])

    def row(label: str, seed: str, some: Sequence[Measured]) -> tuple[list[str], dict[str, Any]]:
        times = mean_times(some)
        ratio = {g: mean_ratio(times, reference, members[g]) for g in GROUPS}
        solved = {g: mean_solved(times, members[g]) for g in GROUPS}
        minutes, steps, score = np.mean(
            [(r.seconds / 60, r.outer_steps, r.scores[-1]) for _, r, _ in some], axis=0
        ).tolist()
        cells = [
            label,
            seed,
            f"{minutes:.2f}",
            f"{steps:,.0f}",
            f"{some[0].job.rate:g}",
            f"{score:.2f}",
            *(_shown(ratio[group], ".2f") for group in GROUPS),
            *(_shown(solved[group], ".0%") for group in GROUPS),
        ]
        return cells, {"minutes": minutes, "score": score, "ratio": ratio, "solved": solved}

    rows, numbers = [], {}
    for way, own in of.items():
        cells, mean = row(WAYS[way].label, "mean", own)
        each_row = [row(WAYS[way].label, str(each.job.seed), [each]) for each in own]
        rows += [cells, *(cells for cells, _ in each_row)] if len(own) > 1 else [each_row[0][0]]
        numbers[way] = {
            "rate": own[0].job.rate,
            "mean": mean,
            "seeds": {
                str(each.job.seed): {**asdict(each.run), **own_numbers}
                for each, (_, own_numbers) in zip(own, each_row, strict=True)
            },
            "steps": {label: times.means.tolist() for label, times in mean_times(own).items()},
        }
    return rows, numbers


def _shown(value: float, form: str) -> str:
    """A number, or a dash where a group has no tasks."""
    return "-" if math.isnan(value) else format(value, form)


def draw(found: Sequence[Measured], path: Path) -> None:
    """Held-out scores against time: thin lines for seeds, a thick one for their mean."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for way, own in by_way(found).items():
        colour, label = WAYS[way].colour, WAYS[way].label
        clocks = [np.array(each.run.clock) / 60 for each in own]
        for clock, each in zip(clocks, own, strict=True):
            axis.plot(clock, each.run.scores, color=colour, lw=0.8, alpha=0.6)
        # A step may be so long that a run is scored less often.
        least = min(map(len, clocks))
        clock = np.mean([each[:least] for each in clocks], axis=0)
        scores = np.mean([each.run.scores[:least] for each in own], axis=0)
        axis.plot(clock, scores, "o-", color=colour, lw=2, ms=4, label=label)
    axis.set(
        xlabel="core-minutes",
        ylabel="held-out mean log10 gap",
        title="The same tasks and time on a core, four ways of training",
    )
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
