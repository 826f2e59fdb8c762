"""What does the guard cost, and is it never much slower than its fallback?

On every task of some suites Adam runs alone, at the learning rate that `LearnedOptimizer` falls
back to and at the best of a grid, chosen on other instances. Guarded with either run learned rules,
and rules that should never have been let loose, under the terms of `LearnedOptimizer` and under
`Guarded`'s own. Measured is the restricted mean number of gradients to 0.1, 0.01 and 0.0001 of the
starting gap on fresh instances; a run ends with the last target or with its budget.

A *cell* is one contender on one task with one target. Cells where neither side ever reaches the
target say nothing and are left out; where one side does not, censoring flatters it. Guarded over
fallback alone should be at most 1.10. Beside it stands what guarantee 3 of `Guarded` allows: more
than that in short runs, by the windows that are undone. A cell beyond both kept windows of the
rule, which led to other places, or slowly.

    python experiments/guard_price.py                       # about ten minutes on one core
    python experiments/guard_price.py --suites nets rotated
    python experiments/guard_price.py --smoke               # a minute; shows that it runs

Writes results.json, table.md and guard_price.png into --out; a second call skips runs that are
there, unless theta or the guard's source has changed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _guard_report import (
    FALLBACKS,
    Cell,
    excess_table,
    plot,
    price_table,
    promise_table,
)
from _guard_runs import GUARDS, KINDS, UNTRAINED, Job, Outcome, digest, hush, run_jobs
from _race_report import markdown
from _ratios import TARGETS, Floats, restricted
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from learned_opt.bench.statistics import Interval, interval_of_draws
from learned_opt.bench.suites import SuiteEntry, get_suite
from learned_opt.cli.failures import run_script
from learned_opt.rules import get_rule
from learned_opt.rules.guarded import Guarded

DEFAULT_RATE = 1e-3
RATES = tuple(float(f"{rate:.4g}") for rate in np.logspace(-3, 0, 7))
"""Learning rates that the tuned Adam has the choice of."""

NUM_TUNING = 8
REPETITIONS = 2000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    rules: tuple[str, ...] = ("controller", "lstm")
    """Learned rules: bundled names or weight files."""
    suites: tuple[str, ...] = ("saddle-core", "plateau-core", "valley")
    """Suites to be measured on."""
    num_instances: int = 25
    """Fresh instances of each task."""
    max_budget: int = 1000
    """Gradients a run at most; some tasks of the suites have 2,000 or 3,000."""
    seed: int = 0
    """Seed of instances."""
    workers: int = 1
    """Processes."""
    out: Path = Path("runs/guard_price")
    """Folder for results."""
    smoke: bool = False
    """Two tasks, few instances and steps, to see that it runs."""


def best_rate(times: Floats, budget: int) -> int:
    """The learning rate of least geometric mean over targets of its restricted mean time.

    Args:
        times: ``[rates, T, n]``.
        budget: where they are censored.

    Returns:
        Its position; the first of equals.

    Examples:
        >>> best_rate(np.array([[[9.0, np.inf]], [[9.0, 9.0]]]), 10)
        1
    """
    return int(np.log(restricted(times, budget).mean(-1)).mean(-1).argmin())


def late(times: Floats, *, window: int, rest: int) -> Floats:
    """Times no later than which a guard comes that keeps no window of its rule.

    An undone window of ``w`` steps costs at most ``w + 2`` gradients. There is one at first, and at
    most one of ``w`` for every ``rest * w`` steps of the fallback.

    Args:
        times: gradients that the fallback alone needs.
        window: steps of the guard's shortest window.
        rest: windows of the fallback before a trial.

    Returns:
        Gradients.

    Examples:
        >>> late(np.array([100.0, 400.0, np.inf]), window=16, rest=24).tolist()
        [118.0, 436.0, inf]
    """
    trials = np.floor(np.where(np.isfinite(times), times, 0) / (rest * window))
    return times + (window + 2) * (1 + trials)


def resamples(label: str, num_instances: int, *, seed: int) -> Floats:
    """``[R, n]`` share of each instance in each resample, the same for all that run on a task."""
    rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
    counts = rng.multinomial(num_instances, [1 / num_instances] * num_instances, size=REPETITIONS)
    return counts / num_instances


def ratio_of(ours: Floats, theirs: Floats, shares: Floats, *, budget: int) -> Interval:
    """Ratio of restricted means, with a bootstrap over instances.

    Args:
        ours: ``[n]`` times.
        theirs: ``[n]`` times on the same instances.
        shares: what `resamples` returned.
        budget: where both are censored.

    Returns:
        The ratio and its 95 % interval.
    """
    a, b = restricted(ours, budget), restricted(theirs, budget)
    return interval_of_draws(float(a.mean() / b.mean()), (shares @ a) / (shares @ b))


def cells(
    ours: Outcome, theirs: Floats, *, variant: int, budget: int, seed: int, guard: str, **names: str
) -> list[Cell]:
    """A guarded contender against somebody, target by target.

    Args:
        ours: its runs.
        theirs: ``[T, n]`` times of the other side, the fallback alone unless ``against`` says else.
        variant: which of its variants.
        budget: where times are censored.
        seed: of the bootstrap.
        guard: whose terms.
        names: other fields of `Cell`; ``against`` is ``fallback`` or ``rule``.

    Returns:
        The cells that either side reaches.
    """
    against = names.pop("against")
    times = ours.times[variant]
    shares = resamples(names["task"], times.shape[1], seed=seed)
    terms = Guarded("sgd", "adam", **GUARDS[guard])
    found = []
    for target, own, other in zip(TARGETS, times, theirs, strict=True):
        if not np.isfinite([own, other]).any():
            continue
        latest = restricted(late(other, window=terms.window, rest=terms.rest), budget).mean()
        cell = Cell(
            **names,
            guard=guard,
            target=target,
            ratio=ratio_of(own, other, shares, budget=budget),
            allowed=float(latest / restricted(other, budget).mean())
            if against == "fallback"
            else float("nan"),
            gradients=(
                float(restricted(own, budget).mean()),
                float(restricted(other, budget).mean()),
            ),
            reached=(float(np.isfinite(own).mean()), float(np.isfinite(other).mean())),
            overs=float(ours.overs[variant].mean()),
            backs=float(ours.backs[variant].mean()),
            nonfinite=int(ours.nonfinite[variant].sum()),
        )
        found.append(cell)
    return found


def plan(
    entry: SuiteEntry, rates: tuple[float, ...], budget: int, settings: Settings
) -> dict[tuple[str, str], Job]:
    """Contender and guard -> the runs on one task, once the tuned learning rate is known."""
    common: dict[str, Any] = {"entry": entry, "budget": budget, "seed": settings.seed}
    common["num_instances"] = settings.num_instances
    jobs = {("fallback", ""): Job(contender="fallback", rates=rates, **common)}
    for rule in settings.rules:
        jobs[rule, ""] = Job(contender=rule, digest=digest(rule, ""), **common)
    for name in (*settings.rules, "hopeless", UNTRAINED):
        for guard in GUARDS:
            own = {"contender": name, "guard": guard, "digest": digest(name, guard)}
            jobs[name, guard] = Job(**own, rates=rates, **common)
    return jobs


def judge(
    names: Mapping[str, str],
    outcomes: Mapping[tuple[str, str], Outcome],
    *,
    rules: Sequence[str],
    budget: int,
    seed: int,
) -> tuple[list[Cell], list[Cell], set[tuple[str, ...]]]:
    """All comparisons on one task.

    Args:
        names: its ``suite`` and ``task``.
        outcomes: contender and guard -> runs, as `plan` lists them.
        rules: the learned rules.
        budget: where times are censored.
        seed: of the bootstrap.

    Returns:
        Cells against the fallback, cells against the rule alone, and where the rule alone is no
        slower than the fallback.
    """
    alone = outcomes["fallback", ""].times
    found, prices, fine = [], [], set()
    for guard in GUARDS:
        for position, fallback in enumerate(FALLBACKS):
            common: dict[str, Any] = {"guard": guard, "budget": budget, "seed": seed, **names}
            common["fallback"] = fallback
            theirs = alone[position]
            for name in (*rules, UNTRAINED):
                own = outcomes[name, guard]
                versus = {**common, "variant": position, "contender": name}
                found += cells(own, theirs, against="fallback", **versus)
                if name in rules:
                    free = outcomes[name, ""].times[0]
                    prices += cells(own, free, against="rule", **versus)
                    for target, a, b in zip(TARGETS, free, theirs, strict=True):
                        if restricted(a, budget).mean() <= restricted(b, budget).mean():
                            fine.add((name, names["task"], target, fallback))
            for kind, name in enumerate(KINDS):
                variant = kind * len(FALLBACKS) + position
                own = outcomes["hopeless", guard]
                versus = {**common, "variant": variant, "contender": name}
                found += cells(own, theirs, against="fallback", **versus)
    return found, prices, fine


def main(settings: Settings) -> None:
    """Tune, run, compare, write."""
    torch.set_num_threads(1)
    hush()
    assert float(get_rule("adam").learning_rate.detach()) == DEFAULT_RATE
    console = Console(width=220)
    entries = {
        (suite, entry.label): entry for suite in settings.suites for entry in get_suite(suite)
    }
    if settings.smoke:
        settings = replace(
            settings, num_instances=3, max_budget=120, out=settings.out / "smoke", rules=("lstm",)
        )
        entries = {("quick", e.label): e for e in get_suite("quick")[:2]}
    budgets = {key: min(settings.max_budget, e.build().budget) for key, e in entries.items()}
    folder = settings.out / "runs"
    with Progress(console=console) as progress:

        def run(jobs: Sequence[Job], title: str) -> list[Outcome]:
            bar = progress.add_task(title, total=sum(not j.path(folder).exists() for j in jobs))
            return run_jobs(
                jobs, folder, workers=settings.workers, on_done=lambda _: progress.advance(bar)
            )

        trials = [
            Job(entry=entry, contender="tuning", rates=RATES, budget=budgets[key],
                num_instances=min(NUM_TUNING, settings.num_instances), seed=settings.seed)
            for key, entry in entries.items()
        ]  # fmt: skip
        tuned = {
            key: RATES[best_rate(outcome.times, budgets[key])]
            for key, outcome in zip(entries, run(trials, "learning rates"), strict=True)
        }
        plans = {
            key: plan(entry, (DEFAULT_RATE, tuned[key]), budgets[key], settings)
            for key, entry in entries.items()
        }
        done = iter(run([job for jobs in plans.values() for job in jobs.values()], "runs"))
    found: list[Cell] = []
    prices: list[Cell] = []
    fine: set[tuple[str, ...]] = set()
    nonfinite = {"guarded": 0, "alone": 0}
    for (suite, label), jobs in plans.items():
        outcomes = {name: next(done) for name in jobs}
        for (_, guard), outcome in outcomes.items():
            nonfinite["guarded" if guard else "alone"] += int(outcome.nonfinite.sum())
        own, paid, good = judge(
            {"suite": suite, "task": label},
            outcomes,
            rules=settings.rules,
            budget=budgets[suite, label],
            seed=settings.seed,
        )
        found, prices, fine = found + own, prices + paid, fine | good
    tables = {
        "Guarded over fallback alone, by suite": promise_table(found, "suite"),
        "Guarded over fallback alone, by contender": promise_table(found, "contender"),
        "Guarded over unguarded": price_table(prices, fine),
    }
    for title, (header, *rows) in tables.items():
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(f"parameters that were not finite: {nonfinite['guarded']} guarded")
    tables["Cells that surely exceed 1.10"] = excess_table(found)
    text = "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items())
    note = f"Parameters that were not finite: {nonfinite['guarded']} guarded."
    (settings.out / "table.md").write_text(f"{note}\n\n{text}\n")
    results = {
        "nonfinite": nonfinite,
        "tuned": {label: rate for (_, label), rate in tuned.items()},
        "budgets": {label: budget for (_, label), budget in budgets.items()},
        "cells": [asdict(cell) for cell in found],
        "prices": [asdict(cell) for cell in prices],
    }
    (settings.out / "results.json").write_text(json.dumps(results) + "\n")
    plot(found, settings.out / "guard_price.png")
    console.print(f"files in {settings.out}")


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
