"""Tables and the figure of the experiment on what the guard costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from _guard_runs import GUARDS

from learned_opt.bench.statistics import Interval

mpl.use("Agg")
import matplotlib.pyplot as plt

LIMIT = 1.10
"""How many times the gradients of the fallback alone the guard may need."""

FALLBACKS = ("Adam, default", "Adam, tuned")
COLOURS = {"LearnedOptimizer": "#0072B2", "Guarded": "#D55E00"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One side's gradients to a target over another's on the same instances of a task.

    Attributes:
        suite: the suite.
        task: label of the task.
        target: the target gap.
        contender: who is guarded.
        guard: whose terms the guard has.
        fallback: who it falls back to.
        ratio: restricted mean gradients over the other side's, 95 % bootstrap interval.
        allowed: the ratio that guarantee 3 allows; NaN for a price.
        gradients: both restricted means, the other side's second.
        reached: share of instances on which either side reaches the target, likewise.
        overs: hand-overs a run.
        backs: hand-backs a run.
        nonfinite: parameters that were infinite or NaN, all runs and steps together.
    """

    suite: str
    task: str
    target: str
    contender: str
    guard: str
    fallback: str
    ratio: Interval
    allowed: float
    gradients: tuple[float, float]
    reached: tuple[float, float]
    overs: float
    backs: float
    nonfinite: int

    @property
    def is_over(self) -> bool:
        """Whether the ratio exceeds the limit."""
        return self.ratio.estimate > LIMIT

    @property
    def is_surely_over(self) -> bool:
        """Whether its whole interval does."""
        return self.ratio.low > LIMIT

    @property
    def is_beyond(self) -> bool:
        """Whether its whole interval exceeds both the limit and what guarantee 3 allows."""
        return self.ratio.low > max(LIMIT, self.allowed)


def mean_of(found: Sequence[Cell]) -> float:
    """Geometric mean of ratios; NaN without cells."""
    return float(np.exp(np.mean([np.log(c.ratio.estimate) for c in found]))) if found else np.nan


def worst_of(found: Sequence[Cell]) -> Cell | None:
    """The cell of the highest ratio."""
    return max(found, key=lambda c: c.ratio.estimate, default=None)


def shown(cell: Cell | None, *, with_contender: bool) -> list[str]:
    """Ratio, allowed ratio and whereabouts of a cell."""
    if cell is None:
        return ["-"] * 3
    ratio = f"{cell.ratio.estimate:.2f} [{cell.ratio.low:.2f}, {cell.ratio.high:.2f}]"
    who = f"{cell.contender}, " if with_contender else ""
    return [ratio, f"{cell.allowed:.2f}", f"{who}{cell.task}, {cell.target}"]


def promise_table(found: Sequence[Cell], by: str) -> list[list[str]]:
    """Guarded over fallback alone: a header, then a row for each value of `by`, guard, fallback."""
    header = [by, "guard", "fallback", "tasks above 1.10", "cells", "geometric mean", "above 1.10"]
    header += ["surely", "beyond guarantee 3", "worst", "allowed there", "where"]
    if by == "contender":
        header += ["hand-overs", "hand-backs"]
    rows = [header]
    for value in dict.fromkeys(getattr(c, by) for c in found):
        for guard in GUARDS:
            for fallback in FALLBACKS:
                own = [
                    c
                    for c in found
                    if (getattr(c, by), c.guard, c.fallback) == (value, guard, fallback)
                ]
                if not own:
                    continue
                over = {c.task for c in own if c.is_over}
                row = [value, guard, fallback, f"{len(over)} of {len({c.task for c in own})}"]
                row += [str(len(own)), f"{mean_of(own):.3f}"]
                for flag in ("is_over", "is_surely_over", "is_beyond"):
                    row.append(str(sum(getattr(c, flag) for c in own)))
                row += shown(worst_of(own), with_contender=by != "contender")
                if by == "contender":
                    row += [f"{np.mean([c.overs for c in own]):.2f}"]
                    row += [f"{np.mean([c.backs for c in own]):.2f}"]
                rows.append(row)
    return rows


def price_table(prices: Sequence[Cell], fine: set[tuple[str, ...]]) -> list[list[str]]:
    """Guarded over unguarded learned rules.

    Args:
        prices: the cells.
        fine: contender, task, target and fallback where the unguarded rule is no slower than the
            fallback alone.

    Returns:
        Header and rows.
    """
    header = ["rule", "guard", "fallback"]
    for group in ("all", "fine"):
        header += [f"cells, {group}", f"geometric mean, {group}", f"unchanged, {group}"]
        header += [f"worst, {group}", f"where, {group}"]
    rows = [header]
    for rule in dict.fromkeys(c.contender for c in prices):
        for guard in GUARDS:
            for fallback in FALLBACKS:
                own = [
                    c
                    for c in prices
                    if (c.contender, c.guard, c.fallback) == (rule, guard, fallback)
                ]
                row = [rule, guard, fallback]
                good = [c for c in own if (rule, c.task, c.target, fallback) in fine]
                for group in (own, good):
                    same = sum(c.gradients[0] == c.gradients[1] for c in group)
                    ratio, _, where = shown(worst_of(group), with_contender=False)
                    row += [str(len(group)), f"{mean_of(group):.3f}", str(same), ratio, where]
                rows.append(row)
    return rows


def excess_table(found: Sequence[Cell]) -> list[list[str]]:
    """Every cell that surely exceeds the limit, the worst first."""
    rows = [["guarded / alone", "allowed", "contender, task, target", "guard", "fallback",
             "gradients", "reached %"]]  # fmt: skip
    over = [c for c in found if c.is_surely_over]
    for c in sorted(over, key=lambda c: -c.ratio.estimate):
        row = [*shown(c, with_contender=True), c.guard, c.fallback]
        row += [" / ".join(f"{x:.0f}" for x in c.gradients)]
        row += [" / ".join(f"{100 * x:.0f}" for x in c.reached)]
        rows.append(row)
    return rows


def plot(found: Sequence[Cell], path: Path) -> None:
    """Ratios of all cells by contender; one panel a fallback, one colour a guard."""
    names = list(dict.fromkeys(c.contender for c in found))
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, fallback in zip(axes, FALLBACKS, strict=True):
        for shift, (guard, colour) in zip((-0.15, 0.15), COLOURS.items(), strict=True):
            own = [c for c in found if (c.guard, c.fallback) == (guard, fallback)]
            spread = np.random.default_rng(0).uniform(-0.1, 0.1, len(own))
            axis.scatter(
                [c.ratio.estimate for c in own],
                np.array([names.index(c.contender) for c in own]) + shift + spread,
                s=9,
                alpha=0.6,
                color=colour,
                label=f"terms of {guard}",
            )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.axvline(LIMIT, color="black", linewidth=0.8, linestyle="--")
        axis.set(
            xscale="log",
            title=f"falls back to {fallback}",
            xlabel="gradients, guarded over fallback alone",
            yticks=range(len(names)),
            yticklabels=names,
        )
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axis.grid(axis="x", alpha=0.2)
    axes[0].invert_yaxis()
    axes[0].legend(loc="lower left", fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
