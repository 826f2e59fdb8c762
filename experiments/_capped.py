"""Restricted mean times of a learned rule, without the machinery of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from _ratios import EVENTS, TARGETS, Floats, group_of

from learned_opt.bench.race import race
from learned_opt.bench.suites import SuiteEntry, get_suite
from learned_opt.bench.units import derive_seed
from learned_opt.rules.base import Rule

GROUPS = ("trained", "unseen")


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long a rule takes on one task.

    Attributes:
        means: ``[T]`` steps to each target, runs that do not reach it counted with the budget.
        solved: share of the instances that reach the last target.
    """

    means: Floats
    solved: float


def entries_of(suites: Sequence[str], names: Sequence[str]) -> dict[str, tuple[SuiteEntry, str]]:
    """Label -> task and its group, for all tasks of some suites.

    Args:
        suites: their names.
        names: of the tasks that were trained on.
    """
    entries = {entry.label: entry for suite in suites for entry in get_suite(suite)}
    return {label: (entry, group_of(entry.build(), names)) for label, entry in entries.items()}


def measure(rule: Rule, entry: SuiteEntry, *, num_instances: int, seed: int) -> Times:
    """Run on fresh instances, those of a benchmark with this seed."""
    task = entry.build()
    problems = task.sample(
        num_instances, seed=derive_seed(seed, "evaluation", entry.label), dtype=torch.float64
    )
    events = race(
        task,
        lambda _: rule.double(),
        problems,
        budget=task.budget,
        seed=derive_seed(seed, "noise", entry.label),
    ).events
    reached = torch.stack([events.time(event) for event in EVENTS]).numpy()
    capped = np.where(np.isfinite(reached), reached, task.budget).clip(1, task.budget)
    return Times(means=capped.mean(1), solved=float(np.isfinite(reached[-1]).mean()))


def mean_ratio(of: Mapping[str, Times], to: Mapping[str, Times], labels: Sequence[str]) -> float:
    """Geometric mean over tasks and targets; NaN without tasks."""
    logs = [np.log(of[label].means / to[label].means) for label in labels]
    assert all(len(each) == len(TARGETS) for each in logs)
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def mean_solved(of: Mapping[str, Times], labels: Sequence[str]) -> float:
    """Mean share of solved instances; NaN without tasks."""
    return float(np.mean([of[label].solved for label in labels])) if labels else float("nan")
