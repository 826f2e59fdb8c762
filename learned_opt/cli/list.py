"""``learned-opt list``: what there is, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from learned_opt.bench.suites import SUITES
from learned_opt.cli.options import Options
from learned_opt.rules.base import registered_rules
from learned_opt.rules.weights import list_rules
from learned_opt.tasks.base import ClosedFormTask, get_task, list_tasks


@dataclass(frozen=True, kw_only=True)
class List:
    """Show tasks (with dimension, kind and minimum), rules or suites by name."""

    what: tyro.conf.Positional[Literal["tasks", "rules", "suites"]] = "tasks"
    """What to list."""
    out: Path | None = None
    """File for the table as plain text; by default it is only printed."""
    shared: Options = field(default_factory=Options)

    def main(self) -> None:
        """Print one table."""
        self.shared.apply()
        table = {"tasks": _tasks, "rules": _rules, "suites": _suites}[self.what]()
        console = Console()
        if not console.is_terminal:
            console = Console(width=140)
        console.print(table)
        if self.out is not None:
            with self.out.open("w", encoding="utf-8") as file:
                Console(file=file, width=140).print(table)


def _tasks() -> Table:
    table = Table("task", "kind", "dim", "minimum", "what it is", title="Tasks, default settings")
    for name, description in list_tasks().items():
        task = get_task(name)
        if isinstance(task, ClosedFormTask):
            minimum = f"{task.minimum:.6g}"
        else:
            facts = task.sample(1).facts
            minimum = f"{'>= ' if facts.is_lower_bound else ''}{facts.minimum.item():.6g}"
        table.add_row(name, task.kind, str(task.dim), minimum, description)
    return table


def _rules() -> Table:
    table = Table("rule", "theta", "what it is", title="Rules")
    for name, description in list_rules().items():
        table.add_row(name, "bundled weights", description)
    for name, description in registered_rules().items():
        table.add_row(name, "hyperparameters or untrained", description)
    return table


def _suites() -> Table:
    table = Table("suite", "task", "kind", "dim", "budget", title="Suites")
    for name, entries in SUITES.items():
        for entry in entries:
            task = entry.build()
            table.add_row(name, entry.label, task.kind, str(task.dim), str(task.budget))
    return table
