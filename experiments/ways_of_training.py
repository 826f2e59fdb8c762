"""Which way of training is best? The controller, by back-propagation, by PES and by PPO.

One architecture, one mixture of tasks, one seed, equal time on one core. Back-propagation and PES
see the mean log gap over a truncation of 20 steps (PES unbiased over the whole episode), PPO the
time to the targets. Each way first tries learning rates for a sixth of the time each, and goes on
anew with the one that ends with the lowest held-out score; that time comes on top, the same for
all.

The measure is what a user waits for: the restricted mean number of steps to 0.1, 0.01 and 0.0001 of
the starting gap on fresh instances of the benchmark's tasks, as a ratio to PPO's, geometric mean
over tasks and targets, for families that were trained on and for unseen ones; and the share of
instances solved.

    python experiments/ways_of_training.py --minutes 15 --workers 2     # one and a half hours
    python experiments/ways_of_training.py --smoke                      # two minutes

Writes results.json, table.md, ways_of_training.png and the runs into --out. Finished runs are not
made again.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from _capped import GROUPS, Times, entries_of, mean_ratio, mean_solved, measure
from _race_report import markdown
from rich.console import Console
from rich.table import Table

from learned_opt.meta.presets import get_preset
from learned_opt.meta.trainer import meta_train
from learned_opt.rules import get_rule
from learned_opt.rules.weights import load_rule

mpl.use("Agg")
import matplotlib.pyplot as plt

SCORE = "eval/score"
WAYS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "pes": {"num_problems": 256, "num_pairs": 64, "truncation": 20, "sigma": 0.03},
    "truncated_backpropagation": {"num_problems": 64, "truncation": 20},
}
"""What differs from the preset, which is PPO's."""
EPSILON = get_preset("controller").settings["epsilon"]
ROLLOUT = 12
"""Outer steps of PPO from one rollout to the next."""
NAMES = {"ppo": "PPO", "pes": "PES", "truncated_backpropagation": "back-propagation, truncated"}
COLOURS = {"ppo": "#0072B2", "pes": "#E69F00", "truncated_backpropagation": "#CC3311"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    minutes: float = 15.0
    """Training time of each way, on one core."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates that each way tries."""
    suites: tuple[str, ...] = ("saddle-core", "plateau-core", "valley")
    """Suites to be measured on."""
    num_instances: int = 25
    """Fresh instances of each task."""
    workers: int = 1
    """Processes; each trains on one core."""
    seed: int = 0
    """Seed of weights, training and instances."""
    out: Path = Path("runs/ways-of-training")
    """Folder for results and runs."""
    smoke: bool = False
    """Seconds of training, to see that it runs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run: a way, a learning rate and seconds of processor time; `small` to try it."""

    way: str
    rate: float
    seconds: float
    seed: int
    folder: Path
    num_evaluations: int
    small: bool


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run came to.

    Attributes:
        way: how it was trained.
        rate: learning rate.
        outer_steps: updates of theta.
        seconds: of the processor, evaluations on held-out problems left out.
        steps: outer steps of the evaluations.
        scores: held-out mean log10 gap there.
        nonfinite: outer steps without a finite meta-gradient, which were skipped.
    """

    way: str
    rate: float
    outer_steps: int
    seconds: float
    steps: list[int]
    scores: list[float]
    nonfinite: int


def train(job: Job) -> Trained:
    """Train for the given time, or read what an earlier call left."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    summary = job.folder / "trained.json"
    if summary.exists():
        return Trained(**json.loads(summary.read_text()))
    preset = get_preset("controller")
    parts = preset.mixture()[:: 9 if job.small else 1]
    tasks = [part.task for part in parts]
    config = preset.config(
        **WAYS[job.way],
        estimator=job.way,
        seed=job.seed,
        learning_rate=job.rate,
        evaluate_every=10**9,
        num_eval_problems=4,
        eval_steps=50,
        task_weights=tuple(part.weight for part in parts),
        task_epsilons=tuple(part.epsilon or EPSILON for part in parts)
        if job.way == "ppo"
        else None,
    )
    if job.small:
        config = replace(config, num_problems=64, eval_steps=10)

    def run(num_outer_steps: int, folder: Path, evaluations: int) -> tuple[Any, list[float]]:
        shutil.rmtree(folder, ignore_errors=True)
        clock: list[float] = []
        result = meta_train(
            get_rule("controller", seed=job.seed),
            tasks,
            config=replace(
                config,
                num_outer_steps=num_outer_steps,
                evaluate_every=max(1, num_outer_steps // evaluations),
                log_every=max(1, num_outer_steps // 100),
            ),
            out=folder,
            on_progress=lambda *_: clock.append(time.process_time()),
        )
        return result, clock

    # How long an outer step takes, from the later ones of a short run.
    warm = 3 * ROLLOUT if job.way == "ppo" else 12
    _, clock = run(warm, job.folder / "pilot", 1)
    pace = (clock[-2] - clock[warm // 3 - 1]) / (warm - 1 - warm // 3)
    num_outer_steps = max(warm, round(job.seconds / pace))
    result, clock = run(num_outer_steps, job.folder / "run", job.num_evaluations)
    history = [json.loads(line) for line in Path(result.history).read_text().splitlines()]
    known = [(line["step"], line[SCORE]) for line in history if SCORE in line]
    trained = Trained(
        way=job.way,
        rate=job.rate,
        outer_steps=num_outer_steps,
        seconds=_without_evaluations(clock, max(1, num_outer_steps // job.num_evaluations)),
        steps=[step for step, _ in known],
        scores=[score for _, score in known],
        nonfinite=result.nonfinite_meta_losses,
    )
    summary.write_text(json.dumps(asdict(trained)))
    return trained


def _without_evaluations(clock: Sequence[float], every: int) -> float:
    """Seconds of all outer steps but the first; one with an evaluation counts like its likes.

    Each twelfth step of PPO plays a rollout, so steps are alike that are a multiple of 12 apart.
    """
    seconds = np.diff(clock)
    step = np.arange(2, len(clock) + 1)
    is_evaluated = (step % every == 0) | (step == len(clock))
    for i in np.flatnonzero(is_evaluated):
        alike = ~is_evaluated & ((step - step[i]) % ROLLOUT == 0)
        seconds[i] = np.median(seconds[alike] if alike.any() else seconds[~is_evaluated])
    return float(seconds.sum())


def main(settings: Settings) -> None:
    """Train, choose, train, measure, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(width=160)
    if settings.smoke:
        settings = replace(
            settings,
            minutes=0.05,
            rates=settings.rates[1:2],
            suites=("quick",),
            num_instances=3,
            out=settings.out / "smoke",
        )
    seconds = 60 * settings.minutes

    def job(way: str, rate: float, share: float) -> Job:
        folder = settings.out / f"{way}-{rate:g}-{share * settings.minutes:.2f}min"
        return Job(
            way=way,
            rate=rate,
            seconds=share * seconds,
            seed=settings.seed,
            folder=folder,
            num_evaluations=5 if share == 1 else 1,
            small=settings.smoke,
        )

    def all_of(jobs: Sequence[Job]) -> list[Trained]:
        for todo in jobs:
            todo.folder.mkdir(parents=True, exist_ok=True)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(settings.workers, mp_context=spawn) as pool:
            found = []
            for each in pool.map(train, jobs):
                found.append(each)
                console.print(
                    f"{each.way} at {each.rate:g}: {each.outer_steps} outer steps, "
                    f"{each.seconds:.0f} s, score {each.scores[0]:.2f} -> {each.scores[-1]:.2f}",
                    style="dim",
                    highlight=False,
                )
            return found

    tried = all_of([job(way, rate, 1 / 6) for way in WAYS for rate in settings.rates])
    chosen = {
        way: min((t for t in tried if t.way == way), key=lambda t: t.scores[-1]).rate
        for way in WAYS
    }
    jobs = [job(way, chosen[way], 1.0) for way in WAYS]
    final = all_of(jobs)
    write(settings, jobs, tried, final, console)


def write(
    settings: Settings,
    jobs: Sequence[Job],
    tried: Sequence[Trained],
    final: Sequence[Trained],
    console: Console,
) -> None:
    """Measure, and write results.json, table.md and the figure."""
    names = [part.task.name for part in get_preset("controller").mixture()]
    entries = entries_of(settings.suites, names)
    if settings.smoke:
        entries = dict(list(entries.items())[:1])
    found: dict[str, dict[str, Times]] = {}
    for job in jobs:
        rule = load_rule(str(job.folder / "run" / "last.safetensors"))
        found[job.way] = {
            label: measure(rule, entry, num_instances=settings.num_instances, seed=settings.seed)
            for label, (entry, _) in entries.items()
        }
    members = {g: [label for label, (_, own) in entries.items() if own == g] for g in GROUPS}
    header = [
        "trained by",
        "outer steps",
        "core-minutes",
        "learning rate",
        "held-out log10 gap",
        "steps over PPO's, trained",
        "unseen",
        "solved, trained",
        "unseen",
    ]
    rows, numbers = [], {}
    for each in final:
        own = found[each.way]
        ratio = {g: mean_ratio(own, found["ppo"], members[g]) for g in GROUPS}
        share = {g: mean_solved(own, members[g]) for g in GROUPS}
        numbers[each.way] = {"ratio": ratio, "solved": share, **asdict(each)}
        rows.append([
            NAMES[each.way],
            f"{each.outer_steps}",
            f"{each.seconds / 60:.1f}",
            f"{each.rate:g}",
            f"{each.scores[-1]:.2f}",
            *(f"{ratio[group]:.2f}" for group in GROUPS),
            *(f"{share[group]:.0%}" for group in GROUPS),
        ])
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    (settings.out / "table.md").write_text(markdown([header, *rows]) + "\n")
    results = {
        "seed": settings.seed,
        "minutes": settings.minutes,
        "ways": numbers,
        "steps": {
            way: {label: t.means.tolist() for label, t in own.items()} for way, own in found.items()
        },
        "rates tried": [asdict(each) for each in tried],
    }
    (settings.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for each in final:
        minutes = np.array(each.steps) / each.outer_steps * each.seconds / 60
        axis.plot(minutes, each.scores, "o-", color=COLOURS[each.way], label=NAMES[each.way])
    axis.set(
        xlabel="core-minutes",
        ylabel="held-out mean log10 gap",
        title="One controller, one mixture of tasks, three ways of training",
    )
    axis.grid(alpha=0.2)
    axis.legend()
    figure.savefig(settings.out / "ways_of_training.png", dpi=110)
    console.print(f"files in {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
