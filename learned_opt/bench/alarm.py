"""The sanity alarm: a speedup that theory does not allow means that something leaked.

On a strict saddle under a random rotation no method that sees gradients can be much faster than a
well-tuned heavy ball: with curvature ratio ``l / g`` the ball gains ``sqrt(l / g)`` over gradient
descent, and ``log(d) sqrt(l / g)`` queries are needed by any method at all (Simchowitz et al. 2018,
arXiv:1804.01221). More than a factor of 10 points at a rotation seen before, a memorised minimum or
an axis that was not turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from learned_opt.bench.results import Results
from learned_opt.bench.statistics import rmst

MAX_SPEEDUP = 10.0
"""Largest believable speedup over tuned heavy ball on a rotated strict saddle."""

_FAMILY, _BASELINE = "strict_saddle", "momentum"


@final
@dataclass(frozen=True, kw_only=True)
class LeakageAlarm:
    """A speedup on a rotated strict saddle that is too good to be true.

    Attributes:
        task: label of the task.
        rule: the rule.
        tuning_trials: its tuning budget.
        speedup: restricted mean time of tuned heavy ball over that of the rule.
        baseline_rmst: restricted mean steps of tuned heavy ball to the solve target.
        rule_rmst: those of the rule.
    """

    task: str
    rule: str
    tuning_trials: int
    speedup: float
    baseline_rmst: float
    rule_rmst: float

    @property
    def message(self) -> str:
        """One sentence for the reader of a report."""
        return (
            f"{self.rule} (K = {self.tuning_trials}) is {self.speedup:.1f} times faster than tuned "
            f"heavy ball on the rotated strict saddle {self.task}: more than {MAX_SPEEDUP:g} times "
            "means leakage (a fixed rotation, a memorised minimum, axis alignment)"
        )


def checked_tasks(results: Results) -> list[str]:
    """Rotated strict saddles on which tuned heavy ball ran, so that the check means something.

    Args:
        results: the runs.

    Returns:
        Labels of the tasks.
    """
    suspects = results.filter(family=_FAMILY, rotated=True)
    return [
        task
        for task in suspects.tasks
        if any(k > 0 for k in suspects.filter(task=task, rule=_BASELINE).unique("tuning_trials"))
    ]


def leakage_alarms(results: Results, *, max_speedup: float = MAX_SPEEDUP) -> list[LeakageAlarm]:
    """Find speedups over tuned heavy ball on rotated strict saddles that are above `max_speedup`.

    Args:
        results: the runs; tasks on which the rule ``momentum`` did not run tuned are passed over.
        max_speedup: largest ratio of restricted mean times that is believed.

    Returns:
        The alarms, largest speedup first; empty if all is well.
    """
    alarms = []
    suspects = results.filter(family=_FAMILY, rotated=True)
    for task in checked_tasks(results):
        runs = suspects.filter(task=task)
        baseline = runs.filter(rule=_BASELINE)
        budget = int(runs.column("budget")[0])
        most = int(baseline.column("tuning_trials").max())
        reference = rmst(baseline.filter(tuning_trials=most).column("t_solve"), budget)
        for rule in runs.rules:
            entrant = runs.filter(rule=rule)
            for trials in entrant.unique("tuning_trials"):
                times = entrant.filter(tuning_trials=trials).column("t_solve")
                steps = max(rmst(times, budget), 1.0)
                if reference / steps > max_speedup:
                    alarms.append(
                        LeakageAlarm(
                            task=task,
                            rule=rule,
                            tuning_trials=trials,
                            speedup=reference / steps,
                            baseline_rmst=reference,
                            rule_rmst=steps,
                        )
                    )
    return sorted(alarms, key=lambda alarm: -alarm.speedup)
