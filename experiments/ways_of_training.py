"""Which way of training is best? A controller, by back-propagation, by PES and by PPO.

All ways see the same tasks for equal time on one core. The tasks are eleven parts of the mixture
that the shipped controller was trained on, one or two of each kind (`PARTS`), with the weights and
targets that they have there: with all parts, time goes into seeing every one of them, and PES,
which needs several pairs for each batch, is starved by the number of tasks rather than by itself.
The deterministic ones are played as one batch of mixed problems, by every way.

Back-propagation and PES see the mean log gap over a truncation of 20 steps (PES unbiased over the
whole episode), PPO the time to the targets. Rates and exploration decay with the processor time
that is spent, and training stops when it is used up (`_timed_training.py`), so times agree to an
outer step. Evaluations are off the clock. Each way first tries learning rates for a sixth of the
time each, and goes on anew with the one that ends with the lowest held-out score, mean over seeds;
that time comes on top, the same for all. The held-out score is the mean log gap, which is what two
of the ways minimise and PPO does not.

These three train the rule `controller`: recurrent nets that steer the actuator `trust_region`. PPO
alone is told where there is noise and teaches it to the controller's judge; to the others the judge
is a gate like any other.
PPO plays this actuator in the library's own arena (`learned_opt.meta.arena`), not in the gymnasium
environment HyperControl, whose actions are those of another actuator. A fourth way shows what the
actuator buys: PPO again, in the same arena, for a net of as many units that steers HyperControl's
actuator, a heavy ball's step size, momentum and noise. It is HyperControl's observation and action,
but not its reward or stable-baselines3, for which see `learned-opt rl train`; its first step size
is 0.01 over the task's typical curvature, which the controller need not know.

The measure is what a user waits for: the restricted mean number of steps to 0.1, 0.01 and 0.0001 of
the starting gap on fresh instances of the benchmark's tasks, as a ratio to PPO's (geometric mean
over its seeds), geometric mean over tasks and targets, for families that were trained on and for
unseen ones; and the share of instances solved.

    python experiments/ways_of_training.py --minutes 15 --seeds 0 1 --workers 2
    python experiments/ways_of_training.py --smoke                      # a minute

Writes results.json, table.md, ways_of_training.png and the runs into --out. Finished runs are not
made again.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from _capped import GROUPS, entries_of
from _race_report import markdown
from _timed_training import Timed
from _ways_report import HEADER, draw, tabled
from _ways_runs import PARTS, WAYS, Job, Measured, all_parts, names_of, race, train
from rich.console import Console
from rich.table import Table

from learned_opt.cli.failures import run_script


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    minutes: float = 15.0
    """Training time of each run, on one core."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates that each way tries; a single one is taken as it is."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of weights and training."""
    suites: tuple[str, ...] = ("saddle-core", "plateau-core", "valley")
    """Suites to be measured on."""
    num_instances: int = 25
    """Fresh instances of each task."""
    workers: int = 1
    """Processes; each trains on one core."""
    out: Path = Path("runs/ways-of-training")
    """Folder for results and runs."""
    smoke: bool = False
    """Seconds of training, to see that it runs."""


def chosen_rates(tried: Sequence[tuple[Job, Timed]]) -> dict[str, float]:
    """The rate of each way with the lowest last score, mean over seeds; the smaller of equals."""
    scores: dict[str, dict[float, list[float]]] = {}
    for job, run in tried:
        scores.setdefault(job.way, {}).setdefault(job.rate, []).append(run.scores[-1])
    return {
        way: min(sorted(own), key=lambda rate: float(np.mean(own[rate])))
        for way, own in scores.items()
    }


def main(settings: Settings) -> None:
    """Train, choose, train, measure, write."""
    console = Console(width=160)
    if settings.smoke:
        settings = replace(
            settings,
            minutes=0.02,
            rates=(1e-3,),
            seeds=settings.seeds[:1],
            suites=("quick",),
            num_instances=3,
            out=settings.out / "smoke",
        )

    def job(way: str, rate: float, seed: int, share: float) -> Job:
        name = f"{way}-{rate:g}-seed{seed}-{share * settings.minutes:.2f}min"
        return Job(
            way=way,
            rate=rate,
            seed=seed,
            seconds=share * 60 * settings.minutes,
            folder=settings.out / name,
            num_scores=8 if share == 1 else 1,
            small=settings.smoke,
        )

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, mp_context=spawn) as pool:

        def trained(jobs: Sequence[Job]) -> list[tuple[Job, Timed]]:
            found = []
            for each, run in zip(jobs, pool.map(train, jobs), strict=True):
                found.append((each, run))
                console.print(
                    f"{each.way} at {each.rate:g}, seed {each.seed}: {run.outer_steps} outer "
                    f"steps, {run.seconds:.1f} s, score {run.scores[0]:.2f} -> "
                    f"{run.scores[-1]:.2f}",
                    style="dim",
                    highlight=False,
                )
            return found

        rates = dict.fromkeys(WAYS, settings.rates[0])
        tried: list[tuple[Job, Timed]] = []
        if len(settings.rates) > 1:
            grid = [(w, r, s) for w in WAYS for r in settings.rates for s in settings.seeds]
            tried = trained([job(*each, 1 / 6) for each in grid])
            rates = chosen_rates(tried)
        final = trained([job(way, rates[way], s, 1.0) for way in WAYS for s in settings.seeds])
        raced = pool.map(
            race,
            [each for each, _ in final],
            [settings.suites] * len(final),
            [settings.num_instances] * len(final),
        )
        found = [Measured(*each, times) for each, times in zip(final, raced, strict=True)]
    write(settings, tried, found, console)


def write(
    settings: Settings,
    tried: Sequence[tuple[Job, Timed]],
    found: Sequence[Measured],
    console: Console,
) -> None:
    """Write results.json, table.md and the figure."""
    entries = entries_of(settings.suites, names_of(all_parts()))
    members = {g: [label for label in found[0].times if entries[label][1] == g] for g in GROUPS}
    rows, numbers = tabled(found, members)
    table = Table(*HEADER)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    (settings.out / "table.md").write_text(markdown([HEADER, *rows]) + "\n")
    results = {
        "minutes": settings.minutes,
        "tasks": list(PARTS),
        "groups": members,
        "ways": numbers,
        "rates tried": [
            {"way": job.way, "rate": job.rate, "seed": job.seed, **asdict(run)}
            for job, run in tried
        ],
    }
    (settings.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(found, settings.out / "ways_of_training.png")
    console.print(f"files in {settings.out}")


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
