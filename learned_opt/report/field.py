"""Who raced on what: results indexed by task and entrant, and the numbers drawn from them."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from learned_opt.bench.results import Results
from learned_opt.errors import require
from learned_opt.report.styles import Style, rule_styles

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

TARGETS = ("t_exit", "t_half", "t_gap1", "t_gap2", "t_gap3", "t_gap4")
"""Event columns that the ECDFs count; the solve target repeats ``t_gap3`` and is left out."""


@dataclass(frozen=True, order=True)
class Entrant:
    """A rule at one tuning budget.

    Attributes:
        rule: its name.
        tuning_trials: trials per task that its hyperparameters were chosen from; 0: defaults.
        is_learned: learned rather than hand-made.
    """

    rule: str
    tuning_trials: int
    is_learned: bool

    @property
    def effort(self) -> str:
        """The tuning budget in words."""
        if self.tuning_trials == 0:
            return "untuned" if self.is_learned else "defaults"
        return f"{self.tuning_trials} trial{'s' if self.tuning_trials > 1 else ''}"


@dataclass(frozen=True)
class TaskInfo:
    """A task of the race.

    Attributes:
        label: its name in the suite.
        suite: the suite.
        family: the name under which results are aggregated.
        kind: saddle, plateau, ...
        dim: number of parameters.
        is_rotated: whether instances were turned by random rotations.
        budget: gradient evaluations after which runs were censored.
        num_instances: fresh instances per entrant.
    """

    label: str
    suite: str
    family: str
    kind: str
    dim: int
    is_rotated: bool
    budget: int
    num_instances: int


@dataclass(frozen=True)
class Band:
    """Median and quartiles of the runs of an entrant on a task.

    Attributes:
        steps: ``[C]`` gradient evaluations.
        low: ``[C]`` lower quartile.
        median: ``[C]``.
        high: ``[C]`` upper quartile.
    """

    steps: Floats
    low: Floats
    median: Floats
    high: Floats


@final
class Field:
    """The runs of a benchmark by task and entrant.

    Args:
        results: finished results.

    Attributes:
        results: the same.
        tasks: every task, ordered by kind, family and label.
        entrants: every rule at every tuning budget; learned rules first, then by name.
        shown: learned rules, and each hand-made rule at its largest tuning budget: what is drawn.
        styles: rule -> how it is drawn.

    Raises:
        LearnedOptError: if there are no runs.
    """

    def __init__(self, results: Results) -> None:
        require(len(results) > 0, "results hold no runs, so there is nothing to report")
        self.results = results
        self._columns: dict[str, Any] = {}
        self._bands: dict[tuple[str, Entrant], Band] = {}
        names, trials = self._column("rule"), self._column("tuning_trials")
        learned = self._column("rule_kind") == "learned"
        keys = {
            Entrant(str(rule), int(k), bool(flag))
            for rule, k, flag in zip(names, trials, learned, strict=True)
        }
        self.entrants = sorted(keys, key=lambda e: (not e.is_learned, e.rule, -e.tuning_trials))
        largest: dict[str, Entrant] = {}
        for entrant in self.entrants:
            largest.setdefault(entrant.rule, entrant)
        self.shown = [e for e in self.entrants if e.is_learned or largest[e.rule] == e]
        self.styles: dict[str, Style] = rule_styles(
            {e.rule for e in self.entrants if e.is_learned},
            {e.rule for e in self.entrants if not e.is_learned},
        )
        labels = self._column("task")
        self._rows: dict[tuple[str, Entrant], Rows] = {}
        for entrant in self.entrants:
            mine = (names == entrant.rule) & (trials == entrant.tuning_trials)
            mine &= learned == entrant.is_learned
            for task in np.unique(labels[mine]):
                self._rows[str(task), entrant] = np.flatnonzero(mine & (labels == task))
        self.tasks = self._describe_tasks()

    def _column(self, name: str) -> Any:
        """A whole column, converted once."""
        if name not in self._columns:
            self._columns[name] = self.results.column(name)
        return self._columns[name]

    def _describe_tasks(self) -> list[TaskInfo]:
        column = self._column
        labels = column("task")
        tasks = []
        for label in np.unique(labels):
            first = int(np.flatnonzero(labels == label)[0])
            sizes = [len(rows) for (task, _), rows in self._rows.items() if task == label]
            tasks.append(
                TaskInfo(
                    label=str(label),
                    suite=str(column("suite")[first]),
                    family=str(column("family")[first]),
                    kind=str(column("kind")[first]),
                    dim=int(column("dim")[first]),
                    is_rotated=bool(column("rotated")[first]),
                    budget=int(column("budget")[first]),
                    num_instances=max(sizes),
                )
            )
        return sorted(tasks, key=lambda t: (t.kind, t.family, t.label))

    @property
    def common_trials(self) -> int | None:
        """The tuning budget that all shown hand-made rules share; None if they differ."""
        budgets = {e.tuning_trials for e in self.shown if not e.is_learned}
        return budgets.pop() if len(budgets) == 1 else None

    def name(self, entrant: Entrant) -> str:
        """What an entrant is called in plain text: its rule, and its tuning where that differs."""
        if entrant.is_learned or entrant.tuning_trials == self.common_trials:
            return entrant.rule
        return f"{entrant.rule} ({entrant.effort})"

    def html(self, entrant: Entrant) -> str:
        """The name, escaped for HTML and for plotly's own markup."""
        return html.escape(self.name(entrant))

    def drawn_as(self, entrant: Entrant) -> Entrant:
        """The shown entrant of the same rule: the one that stands in the legend."""
        same = (
            e for e in self.shown if (e.rule, e.is_learned) == (entrant.rule, entrant.is_learned)
        )
        return next(same, entrant)

    @property
    def families(self) -> list[str]:
        """Families in the order of `tasks`."""
        return list(dict.fromkeys(task.family for task in self.tasks))

    def rows(self, task: str, entrant: Entrant) -> Rows:
        """Positions of an entrant's runs on a task by instance; empty if it did not run."""
        rows = self._rows.get((task, entrant), np.empty(0, dtype=np.int64))
        return rows[np.argsort(self._column("instance")[rows], kind="stable")]

    def column(self, name: str, rows: Rows) -> Any:
        """One scalar column of some runs."""
        return self._column(name)[rows]

    def lists(self, name: str, rows: Rows) -> list[Floats]:
        """One list column of some runs, an array per run."""
        values = self.results.runs[name].take(rows).to_pylist()
        return [
            np.asarray(value if value is not None else [], dtype=np.float64) for value in values
        ]

    def times(self, event: str, task: str, entrant: Entrant) -> Floats:
        """Event times of an entrant's runs on a task, inf where not reached."""
        values = self.column(event, self.rows(task, entrant))
        return np.asarray(values, dtype=np.float64)

    def gap_band(self, task: str, entrant: Entrant) -> Band:
        """Remaining gap ``(f - f*) / (f_s - f*)`` over gradient evaluations.

        The gap is 1 at the level of the saddle or plateau and at least 1e-12.

        Args:
            task: the task's label.
            entrant: who.

        Returns:
            Median and quartiles over instances, inf where that many runs have diverged; empty
            arrays if the entrant did not run.
        """
        key = (task, entrant)
        if key not in self._bands:
            rows = self.rows(task, entrant)
            minimum = self.column("minimum", rows)[:, None]
            span = np.maximum(self.column("reference", rows)[:, None] - minimum, 1e-300)
            steps, losses = self._losses(rows)
            self._bands[key] = _quartiles(steps, np.maximum((losses - minimum) / span, 1e-12))
        return self._bands[key]

    def loss_band(self, task: str, entrant: Entrant) -> Band:
        """Losses themselves over gradient evaluations, as `gap_band`."""
        return _quartiles(*self._losses(self.rows(task, entrant)))

    def _losses(self, rows: Rows) -> tuple[Floats, Floats]:
        """Steps ``[C]`` and losses ``[R, C]`` of some runs; inf where a run has diverged."""
        curves = self.lists("curve_loss", rows)
        steps = self.lists("curve_step", rows)
        if not any(len(at) for at in steps):
            return np.empty(0), np.empty((len(rows), 0))
        grid = np.unique(np.concatenate(steps))
        losses = np.full((len(rows), len(grid)), np.inf)
        for i, (at, curve) in enumerate(zip(steps, curves, strict=True)):
            if len(at):
                finite = np.where(np.isfinite(curve), curve, np.inf)
                losses[i] = finite[np.clip(np.searchsorted(at, grid, side="right") - 1, 0, None)]
        return grid, losses

    def levels(self, task: str) -> list[float]:
        """Known critical levels as remaining gaps, descending, medians over the task's instances.

        Levels at the minimum itself, and levels ten times as high as the start, are left out.

        Args:
            task: the task's label.

        Returns:
            Gaps in ``(0, 10]``; levels closer to each other than 2 % are merged.
        """
        rows = max((r for (t, _), r in self._rows.items() if t == task), key=len)
        minimum = self.column("minimum", rows)
        span = np.maximum(self.column("reference", rows) - minimum, 1e-300)
        found: list[float] = []
        runs = self.lists("levels", rows)
        width = max((len(levels) for levels in runs), default=0)
        for position in range(width):
            gaps = [
                (levels[position] - minimum[i]) / span[i]
                for i, levels in enumerate(runs)
                if len(levels) > position and np.isfinite(levels[position])
            ]
            gap = float(np.median(gaps)) if gaps else 0.0
            if 1e-9 < gap <= 10 and all(abs(gap / other - 1) > 0.02 for other in found):
                found.append(gap)
        return sorted(found, reverse=True)


def _quartiles(steps: Floats, values: Floats) -> Band:
    if not values.size:
        return Band(steps, *np.empty((3, len(steps))))
    # A quartile is the value of some run: between a gap of 1 and one of 1e-8 there may be nobody.
    ordered = np.sort(values, axis=0)
    last = len(values) - 1
    return Band(steps, *(ordered[round(q * last)] for q in (0.25, 0.5, 0.75)))
