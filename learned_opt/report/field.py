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

    @property
    def label(self) -> str:
        """Rule and tuning budget, as shown in plain text."""
        return self.rule if self.is_learned else f"{self.rule} ({self.effort})"

    @property
    def html(self) -> str:
        """The label, escaped for HTML and for plotly's own markup."""
        return html.escape(self.label)


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
        self._curves: dict[tuple[str, Entrant], Band] = {}
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

        The gap is 1 at the level where the run starts and is kept within ``[1e-12, 10]``; a run
        that has diverged counts as 10. After an early end, a run keeps its last gap.

        Args:
            task: the task's label.
            entrant: who.

        Returns:
            Median and quartiles over instances; empty arrays if the entrant did not run.
        """
        key = (task, entrant)
        if key not in self._curves:
            self._curves[key] = self._gap_band(self.rows(task, entrant))
        return self._curves[key]

    def _gap_band(self, rows: Rows) -> Band:
        losses = self.lists("curve_loss", rows)
        steps = self.lists("curve_step", rows)
        if not any(len(s) for s in steps):
            empty = np.empty(0)
            return Band(empty, empty, empty, empty)
        minimum = self.column("minimum", rows)
        span = np.maximum(self.column("reference", rows) - minimum, 1e-300)
        grid = np.unique(np.concatenate(steps))
        gaps = np.full((len(rows), len(grid)), np.nan)
        for i, (at, loss) in enumerate(zip(steps, losses, strict=True)):
            if len(at):
                gap = np.clip((loss - minimum[i]) / span[i], 1e-12, 10.0)
                gap = np.where(np.isfinite(loss), gap, 10.0)
                gaps[i] = gap[np.clip(np.searchsorted(at, grid, side="right") - 1, 0, None)]
        # "nearest" values are values of runs: a median between 1 and 1e-8 would be nobody's.
        low, median, high = np.nanquantile(gaps, (0.25, 0.5, 0.75), axis=0, method="nearest")
        return Band(grid, low, median, high)

    def levels(self, task: str) -> list[float]:
        """Known critical levels as remaining gaps, descending, medians over the task's instances.

        Levels at the minimum itself, and levels above ten times the starting gap, are left out.

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
