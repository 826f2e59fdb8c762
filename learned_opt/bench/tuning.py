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

from learned_opt.bench.race import RuleFactory, race
from learned_opt.bench.search_spaces import measure_units, search_space
from learned_opt.bench.statistics import log_gap, rmst
from learned_opt.rules.base import HandMade, Rule, get_rule
from learned_opt.tasks.base import Problems, Task


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
        seconds: its share of the batch's wall time.
    """

    index: int
    hyperparameters: dict[str, float]
    rmst: float
    success: float
    diverged: float
    log_gap: float
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
    num_instances = problems.num_problems
    outcome = race(
        task,
        sweep(rule, settings, num_instances, problems.facts.minimum.device),
        problems.repeat(len(settings)),
        budget=budget,
        seed=seed,
        only_solve=True,
    )
    shape = (len(settings), num_instances)
    times = outcome.events.time("solve").cpu().numpy().reshape(shape)
    diverged = outcome.events.diverged.cpu().numpy().reshape(shape) & ~np.isfinite(times)
    facts = problems.facts
    gaps = log_gap(
        outcome.events.final.cpu().numpy().reshape(shape),
        facts.minimum.double().cpu().numpy(),
        facts.reference.double().cpu().numpy(),
    )
    # What a run did after it was solved depends on when the batch dropped it.
    gaps = np.where(np.isfinite(times), -3.0, np.where(diverged, 1.0, gaps))
    return [
        Trial(
            index=index,
            hyperparameters=hyperparameters,
            rmst=rmst(times[index], budget),
            success=float(np.isfinite(times[index]).mean()),
            diverged=float(diverged[index].mean()),
            log_gap=float(gaps[index].mean()),
            seconds=outcome.seconds / len(settings),
        )
        for index, hyperparameters in enumerate(settings)
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
