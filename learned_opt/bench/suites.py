"""Named lists of tasks that are raced together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

from learned_opt.errors import unknown_name
from learned_opt.tasks.base import Task, get_task
from learned_opt.tasks.transforms import Rotated


@final
@dataclass(frozen=True)
class SuiteEntry:
    """One task of a suite: a label and how to build it.

    Attributes:
        label: the name under which results are shown, unique in its suite.
        task_name: the registered name.
        settings: keyword arguments of the task.
        rotate: turn every instance by its own random rotation, which takes the coordinate axes
            away from coordinatewise rules.
    """

    label: str
    task_name: str
    settings: dict[str, Any] = field(default_factory=dict)
    rotate: bool = False

    def build(self) -> Task:
        """The task.

        Returns:
            A fresh task.

        Raises:
            LearnedOptError: if the name or a setting is unknown.
        """
        task = get_task(self.task_name, **self.settings)
        return Rotated(task) if self.rotate else task


def _entry(label: str, task_name: str | None = None, /, **settings: Any) -> SuiteEntry:
    return SuiteEntry(label, task_name or label, settings)


def _rotated(label: str, task_name: str, /, **settings: Any) -> SuiteEntry:
    return SuiteEntry(f"{label}-rotated", task_name, settings, rotate=True)


# Two-dimensional tasks stay as they are, so that their contour plots mean something. Strict saddles
# of higher dimension appear rotated, and once axis-aligned: gains from axes are shown apart.
_SADDLE_CORE = (
    _entry("strict_saddle-2", "strict_saddle", dim=2),
    _rotated("strict_saddle-10", "strict_saddle", dim=10),
    _rotated("strict_saddle-100", "strict_saddle", dim=100),
    _entry("strict_saddle-100", "strict_saddle", dim=100),
    _entry("monkey_saddle"),
    _entry("four_fold_saddle"),
    _entry("x2_y3"),
    _entry("x2_y4_y2"),
    _entry("x2_y6_y4"),
    _entry("octopus-5", "octopus", dim=5),
    _entry("octopus-10", "octopus", dim=10),
    _entry("phi4_chain-16", "phi4_chain", dim=16),
    _entry("matrix_factorization"),
    _entry("deep_linear-2", "deep_linear", depth=2),
    _entry("deep_linear-3", "deep_linear", depth=3),
    _entry("deep_linear-4", "deep_linear", depth=4),
    _entry("phase_retrieval"),
    _rotated("styblinski_tang-10", "styblinski_tang", dim=10),
)

_PLATEAU_CORE = (
    _entry("welsch"),
    _entry("geman_mcclure"),
    _entry("logistic_staircase"),
    _entry("saturated_unit"),
    _entry("sigmoid_regression"),
    _entry("soft_committee"),
)

_VALLEY = (
    _entry("rosenbrock-2", "rosenbrock", dim=2),
    _entry("rosenbrock-10", "rosenbrock", dim=10),
    _entry("random_quadratic"),
)

_NETS = (
    _entry("digits_mlp"),
    _entry("breast_cancer_mlp"),
    _entry("deep_sigmoid_mlp"),
    _entry("parity_mlp"),
)

# Where all minima lie at one distance along every axis, a learning rate tuned to that distance is
# there in a step. Turned, the same functions ask for an escape from each saddle.
_ROTATED = (
    _rotated("octopus-5", "octopus", dim=5),
    _rotated("octopus-10", "octopus", dim=10),
    _rotated("phi4_chain-16", "phi4_chain", dim=16),
)

_QUICK = (
    _entry("x2_y4_y2"),
    _entry("monkey_saddle"),
    _rotated("strict_saddle-10", "strict_saddle", dim=10),
    _entry("octopus-5", "octopus", dim=5),
    _entry("geman_mcclure"),
    _entry("rosenbrock-2", "rosenbrock", dim=2),
)

SUITES: dict[str, tuple[SuiteEntry, ...]] = {
    "saddle-core": _SADDLE_CORE,
    "plateau-core": _PLATEAU_CORE,
    "valley": _VALLEY,
    "nets": _NETS,
    "rotated": _ROTATED,
    "quick": _QUICK,
}
"""Suites by name: saddles, plateaus, valleys, small networks on real data, saddles turned away from
the axes, and a quick look."""


def get_suite(name: str) -> tuple[SuiteEntry, ...]:
    """A named suite.

    Args:
        name: a key of `SUITES`.

    Returns:
        Its entries.

    Raises:
        LearnedOptError: if the name is unknown.

    Examples:
        >>> [entry.label for entry in get_suite("valley")]
        ['rosenbrock-2', 'rosenbrock-10', 'random_quadratic']
    """
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    return SUITES[name]
