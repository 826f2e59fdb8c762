"""Tuning a hand-made rule by the metric that is reported, on instances of their own.

All trials on all tuning instances move as one batch, because hyperparameters carry the problem
axis. Budgets are nested: ``K`` trials are the defaults and the first ``K`` Sobol points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from learned_opt.bench.events import EventTracker
from learned_opt.bench.race import Race, RuleFactory, race
from learned_opt.bench.search_spaces import measure_units, search_space
from learned_opt.bench.statistics import log_gap
from learned_opt.rules.base import HandMade, Rule, get_rule
from learned_opt.tasks.base import Problems, Task

LARGE_DIM = 200
"""Parameters above which a task is costly enough to stop trials that cannot win."""

GROUP = 17
"""Trials of a large task that move as one batch: the defaults and the first 16 come first."""


@final
@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of hyperparameters and how it did on the tuning instances.

    Attributes:
        index: 0 for the defaults, then the position in the Sobol sequence from 1.
        hyperparameters: all of them, also those that were not searched.
        rmst: restricted mean time to the solve target, in steps.
        success: share of instances solved within the budget.
        diverged: share of instances that diverged unsolved.
        log_gap: mean final log gap, the tie-break; runs that were solved count as -3.
        is_pruned: whether it was stopped once it could no longer be selected, so that `rmst` and
            `success` are lower bounds.
        seconds: its share of the batch's wall time.
    """

    index: int
    hyperparameters: dict[str, float]
    rmst: float
    success: float
    diverged: float
    log_gap: float
    is_pruned: bool = False
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """The columns of a tuning shard that come from the trial."""
        return {
            "trial": self.index,
            "hyperparameters": json.dumps(self.hyperparameters, sort_keys=True),
            "rmst": self.rmst,
            "success": self.success,
            "diverged": self.diverged,
            "log_gap": self.log_gap,
            "is_pruned": self.is_pruned,
            "seconds": self.seconds,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Trial:
        """Undo `row`."""
        return cls(
            index=row["trial"],
            hyperparameters=json.loads(row["hyperparameters"]),
            rmst=row["rmst"],
            success=row["success"],
            diverged=row["diverged"],
            log_gap=row["log_gap"],
            is_pruned=row["is_pruned"],
            seconds=row["seconds"],
        )


def defaults(rule: str) -> dict[str, float]:
    """The default hyperparameters of a hand-made rule."""
    return {name: float(value.detach()) for name, value in get_rule(rule).named_parameters()}


def sweep(
    rule: str, settings: Sequence[dict[str, float]], num_instances: int, device: torch.device | str
) -> RuleFactory:
    """Builder of one rule that runs every setting on `num_instances` problems each.

    Args:
        rule: registered name of a hand-made rule.
        settings: full hyperparameters of each trial.
        num_instances: problems a trial; run ``i + k num_instances`` has setting ``k``.
        device: where the hyperparameters live.

    Returns:
        A factory that, given positions of runs, builds the rule for those runs.
    """
    columns = {
        name: torch.tensor(
            [s[name] for s in settings], dtype=torch.float64, device=device
        ).repeat_interleave(num_instances)
        for name in settings[0]
    }

    def make(rows: Tensor | None) -> Rule:
        chosen = {k: v if rows is None else v[rows] for k, v in columns.items()}
        built = get_rule(rule, **chosen).to(device)
        assert isinstance(built, HandMade)
        return built

    return make


def tune(
    task: Task,
    rule: str,
    problems: Problems,
    *,
    num_trials: int,
    budget: int,
    seed: int,
) -> list[Trial]:
    """Try the defaults and `num_trials` Sobol points.

    Tasks of more than `LARGE_DIM` parameters run their trials in groups, and a trial stops as soon
    as no further luck could get it selected. On deterministic tasks and for rules that draw no
    noise, what is selected stays the same; elsewhere the grouping changes the noise streams.

    Args:
        task: what is minimised.
        rule: registered name of a hand-made rule.
        problems: the tuning instances.
        num_trials: Sobol points beyond the defaults.
        budget: gradient evaluations a run.
        seed: seed of the Sobol scrambling, minibatches and noise.

    Returns:
        ``num_trials + 1`` trials in order; `select_trial` picks among them.
    """
    units = measure_units(task, problems)
    base = defaults(rule)
    points = search_space(rule).points(num_trials, units, seed=seed % 2**32)
    settings = [base, *({**base, **point} for point in points)]
    is_large = task.dim > LARGE_DIM
    size = GROUP if is_large else len(settings)
    trials: list[Trial] = []
    for start in range(0, len(settings), size):
        group = settings[start : start + size]
        best = min((trial.rmst for trial in trials if not trial.is_pruned), default=math.inf)
        bounds = _Bounds(len(group), budget, best=best, prunes=is_large)
        outcome = race(
            task,
            sweep(rule, group, problems.num_problems, problems.facts.minimum.device),
            problems.repeat(len(group)),
            budget=budget,
            seed=seed,
            leave=bounds.leave,
        )
        trials += _trials(outcome, bounds, problems, group, budget=budget, first=start)
    return trials


class _Bounds:
    """Which runs of a group have nothing more to tell.

    A trial's lower bound counts what is unresolved as if it were solved now. It is hopeless once an
    earlier trial, which is a candidate for every tuning budget that it is itself a candidate for,
    has finished with a lower RMST than that.

    Args:
        num_trials: trials of the group.
        budget: gradient evaluations a run.
        best: lowest RMST of the groups before.
        prunes: whether hopeless trials leave.
    """

    def __init__(self, num_trials: int, budget: int, *, best: float, prunes: bool) -> None:
        self._shape, self._budget, self._best = (num_trials, -1), budget, best
        self._prunes = prunes
        self.stopped_at = torch.full((num_trials,), math.inf, dtype=torch.float64)

    def leave(self, events: EventTracker, step: int) -> Tensor:
        """Runs that are solved, diverged or of a hopeless trial."""
        solved = torch.isfinite(events.time("solve"))
        resolved = (solved | events.diverged).reshape(self._shape)
        if self._prunes:
            bound = self.means(events, step)
            finished = torch.where(resolved.all(dim=1).cpu(), bound, math.inf)
            earlier = finished.cummin(dim=0).values.clamp(max=self._best)
            hopeless = (bound > earlier) & torch.isinf(self.stopped_at) & ~resolved.all(dim=1).cpu()
            self.stopped_at[hopeless] = step
            gone = torch.isfinite(self.stopped_at).to(resolved.device)
            resolved = resolved | gone[:, None]
        return resolved.flatten()

    def means(self, events: EventTracker, step: float | Tensor) -> Tensor:
        """``[num_trials]`` mean times: unresolved runs at `step`, diverged ones at the budget."""
        times = events.time("solve").reshape(self._shape).cpu()
        lost = events.diverged.reshape(self._shape).cpu() & torch.isinf(times)
        now = torch.as_tensor(step, dtype=torch.float64).clamp(max=self._budget)
        return torch.where(lost, self._budget, torch.minimum(times, now.reshape(-1, 1))).mean(dim=1)


def _trials(
    outcome: Race,
    bounds: _Bounds,
    problems: Problems,
    settings: Sequence[dict[str, float]],
    *,
    budget: int,
    first: int,
) -> list[Trial]:
    shape = (len(settings), problems.num_problems)
    events, facts = outcome.events, problems.facts
    times = events.time("solve").cpu().numpy().reshape(shape)
    diverged = events.diverged.cpu().numpy().reshape(shape) & ~np.isfinite(times)
    gaps = log_gap(
        events.final.cpu().numpy().reshape(shape),
        facts.minimum.double().cpu().numpy(),
        facts.reference.double().cpu().numpy(),
    )
    # What a run did after it was solved depends on when the batch dropped it.
    gaps = np.where(np.isfinite(times), -3.0, np.where(diverged, 1.0, gaps))
    means = bounds.means(events, bounds.stopped_at.clamp(max=budget))
    return [
        Trial(
            index=first + k,
            hyperparameters=hyperparameters,
            rmst=float(means[k]),
            success=float(np.isfinite(times[k]).mean()),
            diverged=float(diverged[k].mean()),
            log_gap=float(gaps[k].mean()),
            is_pruned=bool(torch.isfinite(bounds.stopped_at[k])),
            seconds=outcome.seconds / len(settings),
        )
        for k, hyperparameters in enumerate(settings)
    ]


def select_trial(trials: Sequence[Trial], tuning_trials: int) -> Trial:
    """The best of the defaults and the first `tuning_trials` Sobol points.

    Args:
        trials: what `tune` returned.
        tuning_trials: ``K``; 0 for the defaults.

    Returns:
        The trial of least RMST; ties go to the lower final log gap, then to the earlier trial.
    """
    allowed = [trial for trial in trials if trial.index <= tuning_trials]
    return min(
        allowed, key=lambda t: (t.rmst, t.log_gap if not math.isnan(t.log_gap) else 9.0, t.index)
    )
