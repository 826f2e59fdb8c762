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

import copy
import json
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from _capped import GROUPS, Times, entries_of, mean_ratio, mean_solved, measure
from _race_report import markdown
from _timed_training import Timed, train_for
from rich.console import Console
from rich.table import Table

from learned_opt.cli.failures import run_script
from learned_opt.errors import require
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.configured import configured_estimator
from learned_opt.meta.evaluation import draw_held_out, evaluate
from learned_opt.meta.presets import Part, get_preset
from learned_opt.rules import get_rule
from learned_opt.rules.base import Rule
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import load_rule, save_rule
from learned_opt.tasks.base import Task
from learned_opt.tasks.mixture import Mixture

mpl.use("Agg")
import matplotlib.pyplot as plt

PARTS = (
    "rotated(strict_saddle)-4",
    "rotated(strict_saddle)-30",
    "strict_saddle-30",
    "x2_y3-2",
    "deep_linear-40",
    "welsch-8",
    "sigmoid_regression-8",
    "rosenbrock-2",
    "noisy(mixture)-16",
    "digits_mlp-1210",
    "breast_cancer_mlp-398",
)
"""Names of tasks and their numbers of parameters: what all ways are trained on."""

SEEN = ("random_quadratic", "strict_saddle")
"""What the noisy mixture holds."""

INSTANCES = 0
"""Seed of the instances that are measured on, the same for all."""


def _controller(seed: int) -> Rule:
    return get_rule("controller", seed=seed)


def _heavy_ball(seed: int) -> Rule:
    """As many recurrent units as the controller has, which starts as nearly plain momentum."""
    return get_rule(
        "policy",
        actuator="hyper_control",
        lstm_units=32,
        hidden=(),
        scope="problem",
        output_scale=0.01,
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of training.

    Attributes:
        label: in table and figure.
        colour: of its lines.
        estimator: of the meta-gradient.
        changes: settings that differ from the preset, which is PPO's.
        rule: from a seed, what is trained.
    """

    label: str
    colour: str
    estimator: str
    changes: dict[str, Any] = field(default_factory=dict)
    rule: Callable[[int], Rule] = _controller

    @property
    def plays(self) -> bool:
        """Whether it takes a target for each task, and mixes the deterministic ones itself."""
        return self.estimator == "ppo"


WAYS = {
    "ppo": Way(label="PPO", colour="#0072B2", estimator="ppo"),
    "pes": Way(
        label="PES",
        colour="#E69F00",
        estimator="pes",
        # A pair costs little beside the batches, one for each of four groups of tasks.
        changes={"num_problems": 128, "num_pairs": 32, "truncation": 20, "sigma": 0.03},
    ),
    "truncated_backpropagation": Way(
        label="back-propagation, truncated",
        colour="#CC3311",
        estimator="truncated_backpropagation",
        changes={"num_problems": 64, "truncation": 20},
    ),
    "ppo-hyper_control": Way(
        label="PPO, hyper_control actuator",
        colour="#009E73",
        estimator="ppo",
        rule=_heavy_ball,
    ),
}


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


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run: a way, a learning rate and seconds of processor time; `small` to try it."""

    way: str
    rate: float
    seed: int
    seconds: float
    folder: Path
    num_scores: int
    small: bool

    @property
    def weights(self) -> Path:
        """Where the trained weights are."""
        return self.folder / "last.safetensors"


class Measured(NamedTuple):
    """A finished run and its times on each task."""

    job: Job
    run: Timed
    times: dict[str, Times]


def picked(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """The first part of each name, such as ``welsch-8``, with its weight and target."""
    first: dict[str, Part] = {}
    for part in parts:
        first.setdefault(f"{part.task.name}-{part.task.dim}", part)
    missing = [name for name in names if name not in first]
    require(not missing, f"the preset's mixture has no {', '.join(missing)}")
    return [first[name] for name in names]


def scaled(rule: Rule, task: Task) -> Rule:
    """A copy that takes its first step size in units of the task's curvature, as in the mixture.

    It is what HyperControl does, and what the controller, which has no step size, does without.
    """
    assert isinstance(rule, PolicyRule)
    copied = copy.deepcopy(rule)
    copied.learning_rate /= task.smoothness
    return copied


def batched(parts: Sequence[Part]) -> tuple[list[Task], tuple[float, ...]]:
    """All deterministic tasks as one that mixes them, then the others, with their weights.

    PPO plays them so by itself. With the others an episode, or a pair, would have a task to itself:
    as many batches as tasks for PES, and a gradient that is of one task at a time.
    """
    certain = [part for part in parts if not part.task.is_stochastic]
    others = [part for part in parts if part.task.is_stochastic]
    mixture = Mixture.of([part.task for part in certain], [part.weight for part in certain])
    weights = (sum(part.weight for part in certain), *(part.weight for part in others))
    return [mixture, *(part.task for part in others)], weights


def picked_for(job: Job) -> list[Part]:
    """Parts of the controller's mixture."""
    return picked(get_preset("controller").mixture(), PARTS[::5] if job.small else PARTS)


def configured(job: Job, parts: Sequence[Part]) -> tuple[list[Task], TrainConfig]:
    """Tasks as the estimator wants them, and settings."""
    way, preset = WAYS[job.way], get_preset("controller")
    if way.plays:
        tasks, weights = [part.task for part in parts], tuple(part.weight for part in parts)
        common = preset.settings["epsilon"]
        own: dict[str, Any] = {"task_epsilons": tuple(part.epsilon or common for part in parts)}
    else:
        tasks, weights = batched(parts)
        own = {
            "task_epsilons": None,
            "stochastic_stretch": 1.0,
            "noise_exploration": 1.0,
            "twins": False,
        }
    config = preset.config(
        estimator=way.estimator,
        seed=job.seed,
        learning_rate=job.rate,
        task_weights=weights,
        averaging=None,  # of weights that come at equal times, not steps
        **own,
        **way.changes,
    )
    if job.small:
        num_pairs = min(8, config.num_pairs)
        config = replace(config, num_problems=4 * num_pairs, num_pairs=num_pairs, eval_steps=10)
    return tasks, config


def train(job: Job) -> Timed:
    """Train for the given time, or read what an earlier call left."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    summary = job.folder / "trained.json"
    if summary.exists():
        return Timed(**json.loads(summary.read_text()))
    way, parts = WAYS[job.way], picked_for(job)
    tasks, config = configured(job, parts)
    held_out = draw_held_out(
        [part.task for part in parts], 8, dtype=config.torch_dtype, device=config.device
    )

    def score(rule: Rule) -> float:
        known = [
            evaluate(scaled(rule, each.task), [each], num_steps=config.num_eval_steps).score
            for each in held_out
        ]
        return sum(known) / len(known)

    rule = way.rule(job.seed)
    run = train_for(
        job.seconds,
        rule,
        configured_estimator(config, tasks),
        config=config,
        score=score,
        num_scores=job.num_scores,
    )
    job.folder.mkdir(parents=True, exist_ok=True)
    save_rule(rule, job.weights)
    summary.write_text(json.dumps(asdict(run)))
    return run


def names_of(parts: Sequence[Part]) -> list[str]:
    """Tasks as a header of weights would list them, those of the noisy mixture by name."""
    return [part.task.name for part in parts if "mixture" not in part.task.name] + list(SEEN)


def race(job: Job, suites: Sequence[str], num_instances: int) -> dict[str, Times]:
    """Steps of the trained rule to the targets, or what an earlier call found."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    entries = entries_of(suites, names_of(picked(get_preset("controller").mixture(), PARTS)))
    if job.small:
        entries = dict(list(entries.items())[:3:2])
    path = job.folder / "times.json"
    asked = {"labels": list(entries), "num_instances": num_instances}
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("asked") != asked:
        rule = load_rule(str(job.weights))
        found = {
            label: measure(
                scaled(rule, entry.build()), entry, num_instances=num_instances, seed=INSTANCES
            )
            for label, (entry, _) in entries.items()
        }
        times = {label: [each.means.tolist(), each.solved] for label, each in found.items()}
        known = {"asked": asked, "times": times}
        path.write_text(json.dumps(known))
    return {
        label: Times(means=np.array(means), solved=solved)
        for label, (means, solved) in known["times"].items()
    }


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


def mean_times(found: Sequence[Measured]) -> dict[str, Times]:
    """Geometric mean over seeds of the steps, mean of the shares solved."""
    return {
        label: Times(
            means=np.exp(np.mean([np.log(each.times[label].means) for each in found], axis=0)),
            solved=float(np.mean([each.times[label].solved for each in found])),
        )
        for label in found[0].times
    }


def write(
    settings: Settings,
    tried: Sequence[tuple[Job, Timed]],
    found: Sequence[Measured],
    console: Console,
) -> None:
    """Write results.json, table.md and the figure."""
    names = names_of(picked(get_preset("controller").mixture(), PARTS))
    entries = entries_of(settings.suites, names)
    members = {g: [label for label in found[0].times if entries[label][1] == g] for g in GROUPS}
    of = {way: [each for each in found if each.job.way == way] for way in WAYS}
    reference = mean_times(of["ppo"])
    header = [
        "trained by",
        "seed",
        "core-minutes",
        "outer steps",
        "learning rate",
        "held-out log10 gap",
        "steps over PPO's, trained",
        "unseen",
        "solved, trained",
        "unseen",
    ]

    def row(label: str, seed: str, some: Sequence[Measured]) -> tuple[list[str], dict[str, Any]]:
        times = mean_times(some)
        ratio = {g: mean_ratio(times, reference, members[g]) for g in GROUPS}
        solved = {g: mean_solved(times, members[g]) for g in GROUPS}
        minutes, steps, score = np.mean(
            [(r.seconds / 60, r.outer_steps, r.scores[-1]) for _, r, _ in some], axis=0
        ).tolist()
        cells = [
            label,
            seed,
            f"{minutes:.2f}",
            f"{steps:,.0f}",
            f"{some[0].job.rate:g}",
            f"{score:.2f}",
            *(_shown(ratio[group], ".2f") for group in GROUPS),
            *(_shown(solved[group], ".0%") for group in GROUPS),
        ]
        return cells, {"minutes": minutes, "score": score, "ratio": ratio, "solved": solved}

    rows, numbers = [], {}
    for way, own in of.items():
        cells, mean = row(WAYS[way].label, "mean", own)
        each_row = [row(WAYS[way].label, str(each.job.seed), [each]) for each in own]
        rows += [cells, *(cells for cells, _ in each_row)] if len(own) > 1 else [each_row[0][0]]
        numbers[way] = {
            "rate": own[0].job.rate,
            "mean": mean,
            "seeds": {
                str(each.job.seed): {**asdict(each.run), **own_numbers}
                for each, (_, own_numbers) in zip(own, each_row, strict=True)
            },
            "steps": {label: times.means.tolist() for label, times in mean_times(own).items()},
        }
    table = Table(*header)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    (settings.out / "table.md").write_text(markdown([header, *rows]) + "\n")
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
    draw(of, settings.out / "ways_of_training.png")
    console.print(f"files in {settings.out}")


def _shown(value: float, form: str) -> str:
    """A number, or a dash where a group has no tasks."""
    return "-" if math.isnan(value) else format(value, form)


def draw(of: dict[str, list[Measured]], path: Path) -> None:
    """Held-out scores against time: thin lines for seeds, a thick one for their mean."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for way, own in of.items():
        colour, label = WAYS[way].colour, WAYS[way].label
        clocks = [np.array(each.run.clock) / 60 for each in own]
        for clock, each in zip(clocks, own, strict=True):
            axis.plot(clock, each.run.scores, color=colour, lw=0.8, alpha=0.6)
        # A step may be so long that a run is scored less often.
        least = min(map(len, clocks))
        clock = np.mean([each[:least] for each in clocks], axis=0)
        scores = np.mean([each.run.scores[:least] for each in own], axis=0)
        axis.plot(clock, scores, "o-", color=colour, lw=2, ms=4, label=label)
    axis.set(
        xlabel="core-minutes",
        ylabel="held-out mean log10 gap",
        title="The same tasks and time on a core, four ways of training",
    )
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
