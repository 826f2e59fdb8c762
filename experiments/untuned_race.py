"""How much faster than tuned baselines is an untuned learned rule?

Every baseline is tuned on each task with 64 Sobol trials on instances of their own; the learned
rule runs as it is. The measure is the restricted mean number of gradient evaluations (RMST) to
0.1, 0.01 and 0.0001 of the starting gap, and the ratio of the best baseline of that task and target
over the rule: above 1 the rule is faster. Several weight files are meta-seeds of one rule, whose
times are averaged. Intervals (95 %) come from a bootstrap over instances, the same for both sides,
and over meta-seeds.

Beside it: families that the rule was trained on against unseen ones; baselines with one setting for
all tasks, chosen on the trained ones; and floors, L-BFGS and a Newton method that gets the Hessian
for nothing, which show what is left to gain.

The minimum of a network is unknown: its gaps count from the lower bound 0 of the cross-entropy, so
that they are levels of the training loss, the same for every rule. A target that neither any
baseline nor the rule ever reaches is left out of means, on networks and elsewhere.

    python experiments/untuned_race.py --workers 2    # hours; without "nets" most of an hour
    python experiments/untuned_race.py --smoke        # a minute; shows that it runs

Writes results.json, table.md, untuned_race.png and all shards into --out. Nothing that is there is
computed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _jobs import Job, floor_jobs, run_jobs
from _one_setting import race_one_setting
from _race_report import (
    GROUPS,
    as_list,
    group_table,
    markdown,
    members,
    plot,
    same_cells,
    setting_table,
    summarise,
    task_numbers,
    task_table,
)
from _ratios import (
    EVENTS,
    TARGETS,
    Comparison,
    Floats,
    TaskTimes,
    best_overall,
    compare,
    group_of,
    mean_ratio,
    seed_weights,
)
from rich.console import Console
from rich.table import Table

from learned_opt.bench.entrants import Entrant
from learned_opt.bench.results import Results
from learned_opt.bench.runner import Progress, run_benchmark
from learned_opt.bench.search_spaces import BASELINES
from learned_opt.bench.suites import SuiteEntry, get_suite
from learned_opt.cli.failures import run_script
from learned_opt.errors import require
from learned_opt.rules.weights import read_metadata

REPETITIONS = 2000
"""Bootstrap resamples."""

SMOKE = (
    SuiteEntry("x2_y4_y2", "x2_y4_y2"),
    SuiteEntry("matrix_factorization", "matrix_factorization"),
    SuiteEntry("phase_retrieval", "phase_retrieval"),
)

Times = dict[str, dict[str, Floats]]
"""Task -> rule -> event times ``[T, n]``."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    rules: tuple[str, ...] = ("controller",)
    """Weight files or bundled names: the meta-seeds of one rule."""
    suites: tuple[str, ...] = ("saddle-core", "plateau-core", "valley", "nets")
    """Suites to race on."""
    num_instances: int = 25
    """Fresh instances of each task."""
    tuning_trials: int = 64
    """Sobol points that a baseline is tuned with, beyond its defaults."""
    workers: int = 1
    """Processes."""
    seed: int = 0
    """Seed of instances, tuning, noise and bootstrap."""
    out: Path = Path("runs/untuned-race")
    """Folder for numbers, table, figure and shards."""
    smoke: bool = False
    """Three tasks, 3 instances, 4 trials, to see that it runs."""


def event_times(results: Results) -> Times:
    """Times of a benchmark in which every rule has one tuning budget."""
    names = ["task", "rule", *[f"t_{event}" for event in EVENTS]]
    rows: dict[tuple[str, str], list[list[float]]] = {}
    # Rows are ordered by instance within task and rule.
    for task, rule, *times in zip(*(results.column(name) for name in names), strict=True):
        rows.setdefault((task, rule), []).append(times)
    found: Times = {}
    for (task, rule), cell in rows.items():
        found.setdefault(task, {})[rule] = np.array(cell, dtype=np.float64).T
    return found


def learned_times(settings: Settings, suite: Sequence[str | SuiteEntry], say: Any) -> list[Times]:
    """Times of each meta-seed, each in a folder of its own: files may share a name."""
    found = []
    for source in settings.rules:
        entrant = Entrant.of(source)
        require(entrant.rule_kind == "learned", f"rules must be learned, got '{source}'")
        folder = settings.out / "rules" / f"{entrant.name}-{entrant.weights_hash}"
        found.append(event_times(benchmark(settings, suite, [source], folder, say)))
    return found


def benchmark(
    settings: Settings, suite: Sequence[str | SuiteEntry], rules: Sequence[str], out: Path, say: Any
) -> Results:
    """The library's benchmark with these settings."""

    def on_progress(p: Progress) -> None:
        if p.status != "skipped":
            say(f"{p.done} of {p.total}: {p.rule} on {p.task} {p.status}, {p.seconds:.0f} s")

    return run_benchmark(
        suite,
        rules=rules,
        out=out,
        seed=settings.seed,
        num_instances=settings.num_instances,
        tuning_trials=(settings.tuning_trials,),
        workers=settings.workers,
        on_progress=on_progress,
    )


def trained_on(sources: Sequence[str]) -> list[str]:
    """Task names that the weights' headers list, all of them together."""
    lists = [json.loads(read_metadata(source).get("tasks") or "[]") for source in sources]
    return list(dict.fromkeys(name for names in lists for name in names))


def all_tasks(
    entries: Sequence[SuiteEntry], groups: dict[str, str], rivals: Times, learned: Sequence[Times]
) -> list[TaskTimes]:
    """What comparisons are made from, in the order of the suites."""
    tasks = []
    for entry in entries:
        built = entry.build()
        seeds = [next(iter(times[entry.label].values())) for times in learned]
        tasks.append(
            TaskTimes(
                label=entry.label,
                family=built.family,
                group=groups[entry.label],
                budget=built.budget,
                rivals={name: rivals[entry.label][name] for name in BASELINES},
                rule=np.stack(seeds),
            )
        )
    return tasks


def against_one_setting(
    settings: Settings,
    entries: Sequence[SuiteEntry],
    tasks: Sequence[TaskTimes],
    weights: Floats,
    say: Any,
) -> tuple[dict[str, Any], list[Comparison]]:
    """Baselines with one setting: ratio of each to the rule, and the best of them task by task."""
    trained = [entry for entry, task in zip(entries, tasks, strict=True) if task.group == "trained"]
    if not trained:
        return {}, []
    chosen, times = race_one_setting(
        BASELINES,
        entries,
        trained,
        settings.out / "one-setting",
        num_trials=settings.tuning_trials,
        num_instances=settings.num_instances,
        seed=settings.seed,
        workers=settings.workers,
        on_done=lambda job: say(f"one setting, {job.kind}: {job.rule} on {job.entry.label}"),
    )
    found = {}
    for name in BASELINES:
        versus = [
            compare(
                replace(task, rivals={name: times[task.label][name]}), weights, seed=settings.seed
            )
            for task in tasks
        ]
        found[name] = versus
    # All cells that some baseline or the rule reaches count, for every baseline the same.
    reached = {
        task.label: np.any([found[name][i].is_reached for name in BASELINES], axis=0)
        for i, task in enumerate(tasks)
    }
    found = {
        name: [replace(c, is_reached=reached[c.label]) for c in versus]
        for name, versus in found.items()
    }
    best = best_overall(times, {task.label: task.budget for task in tasks})
    numbers = {
        "best overall": best,
        "baselines": {
            name: {
                "setting": chosen[name],
                "ratio": {
                    group: as_list(mean_ratio(members(versus, group))) for group in (*GROUPS, "all")
                },
            }
            for name, versus in found.items()
        },
    }
    return numbers, found[best]


def main(settings: Settings) -> None:
    """Race, compare, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(width=220)
    if settings.smoke:
        settings = replace(settings, num_instances=3, tuning_trials=4)
    suite: Sequence[str | SuiteEntry] = SMOKE if settings.smoke else settings.suites
    entries = list(
        {
            e.label: e
            for part in suite
            for e in ((part,) if isinstance(part, SuiteEntry) else get_suite(part))
        }.values()
    )
    names = trained_on(settings.rules)
    groups = {entry.label: group_of(entry.build(), names) for entry in entries}

    def say(line: str) -> None:
        console.print(line, style="dim", highlight=False)

    learned = learned_times(settings, suite, say)
    rivals = event_times(benchmark(settings, suite, BASELINES, settings.out / "baselines", say))
    tasks = all_tasks(entries, groups, rivals, learned)
    weights = seed_weights(len(learned), REPETITIONS, seed=settings.seed)
    comparisons = [compare(task, weights, seed=settings.seed) for task in tasks]
    floors = floor_comparisons(settings, entries, tasks, comparisons, say)
    one_setting, best_setting = against_one_setting(settings, entries, tasks, weights, say)
    write(settings, names, comparisons, floors, one_setting, best_setting, console)


def floor_comparisons(
    settings: Settings,
    entries: Sequence[SuiteEntry],
    tasks: Sequence[TaskTimes],
    comparisons: Sequence[Comparison],
    say: Any,
) -> dict[str, list[Comparison]]:
    """Each floor in the place of the rule, on the tasks where it exists."""
    jobs: list[Job] = floor_jobs(entries, seed=settings.seed, num_instances=settings.num_instances)
    outcomes = run_jobs(
        jobs,
        settings.out / "floors",
        workers=settings.workers,
        on_done=lambda job: say(f"floor: {job.rule} on {job.entry.label}"),
    )
    by_label = {task.label: task for task in tasks}
    alone = np.ones((REPETITIONS, 1))
    found: dict[str, list[Comparison]] = {"lbfgs": [], "newton": []}
    for job, times in zip(jobs, outcomes, strict=True):
        task = replace(by_label[job.entry.label], rule=times[None])
        found[job.rule].append(compare(task, alone, seed=settings.seed))
    return {name: same_cells(floor, comparisons) for name, floor in found.items()}


def write(
    settings: Settings,
    names: Sequence[str],
    comparisons: Sequence[Comparison],
    floors: dict[str, list[Comparison]],
    one_setting: dict[str, Any],
    best_setting: Sequence[Comparison],
    console: Console,
) -> None:
    """results.json, table.md, the figure, and the same on the screen."""
    groups = {
        group: summarise(found, floors)
        for group in (*GROUPS, "all")
        if (found := members(comparisons, group))
    }
    nothing = [
        f"{c.label} at {target}"
        for c in comparisons
        for target, ok in zip(TARGETS, c.is_reached, strict=True)
        if not ok
    ]
    numbers: dict[str, Any] = {
        "rules": list(settings.rules),
        "trained on": list(names),
        "seed": settings.seed,
        "num_instances": settings.num_instances,
        "tuning_trials": settings.tuning_trials,
        "tasks": {c.label: task_numbers(c, floors) for c in comparisons},
        "groups": groups,
        "targets that nobody reaches": nothing,
        "one setting": one_setting,
    }
    parts = [
        ("Tasks (in a cell: to a gap of 1e-1 / 1e-2 / 1e-4)", task_table(comparisons, floors)),
        ("Groups: geometric mean of best baseline's time / rule's", group_table(groups)),
    ]
    if best_setting:
        beside = {
            group: summarise(found, {})
            for group in (*GROUPS, "all")
            if (found := members(best_setting, group))
        }
        one_setting["tasks"] = {c.label: task_numbers(c, {}) for c in best_setting}
        one_setting["groups"] = beside
        best = one_setting["best overall"]
        parts += [
            ("Baselines with one setting for all tasks", setting_table(one_setting["baselines"])),
            (f"Against the best of them overall, {best}", task_table(best_setting, {})),
            (f"Groups against {best} with one setting", group_table(beside)),
        ]
    notes = [
        f"{group}: reaches some target less often than the best baseline on "
        + (", ".join(entry["solved less often"]) or "no task")
        for group, entry in groups.items()
    ]
    notes.append(f"Left out, reached by nobody: {', '.join(nothing) or 'none'}")
    (settings.out / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    text = "\n\n".join(f"## {title}\n\n{markdown(table)}" for title, table in parts)
    (settings.out / "table.md").write_text(
        text + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    )
    for title, (header, *rows) in parts:
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    who = ", ".join(dict.fromkeys(Entrant.of(rule).name for rule in settings.rules))
    if len(settings.rules) > 1:
        who += f" ({len(settings.rules)} meta-seeds)"
    plot(
        comparisons,
        floors,
        groups,
        settings.out / "untuned_race.png",
        title=f"{who}, untuned, against {len(BASELINES)} baselines tuned on each task with "
        f"{settings.tuning_trials} trials",
    )


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
