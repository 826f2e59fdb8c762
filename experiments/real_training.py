"""Does an untuned learned rule train real networks as fast as tuned AdamW with cosine decay?

Six problems with minibatches: a deep and a wide perceptron on digits, a convolutional network on
generated MNIST-1D, a character model with a GRU on the texts that ship with scikit-learn, and
perceptrons on breast cancer and diabetes, 320 to 600 steps each (`_real_problems.py`). On each,
AdamW with cosine decay to 0 over that horizon gets its learning rate (1e-4 to 1e-1) and weight
decay (0 or 1e-2) from Sobol trials on other seeds, by the training loss at the end. Adam at its
default of 1e-3 and the learned rules have one setting for all problems. A learned rule needs no
horizon, which a schedule cannot do without: wherever one stops it, it would have run the same.

Time is how many steps a run takes to the training loss (on all training examples, measured 40 times
a horizon) that tuned AdamW has at its end in the median, over AdamW's horizon. Runs go on to three
horizons and count as 3 where they have not reached it. Validation losses are those at the horizon,
where who is faster has overfitted more, and those where a run gets to that training loss; nothing
is tuned by them and nothing stops early.

    python experiments/real_training.py --rules controller      # roughly half an hour on one core
    python experiments/real_training.py --fresh --out runs/fresh-training    # six others
    python experiments/real_training.py --rules a.safetensors b.safetensors lstm --no-guard
    python experiments/real_training.py --smoke    # seconds; shows that it runs, not the result

Writes results.json, table.md and real_training.png into --out, and one file for each run, so that
an interrupted experiment goes on where it was. Runs of learned rules whose weights or sources have
changed are made anew; after changes to the problems, use another folder. Several processes may
share a folder, each with problems of its own (`--problems`); a last one over all writes the tables.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from _fresh_problems import fresh_problems
from _race_report import markdown
from _real_measures import Run
from _real_problems import Problem, problems
from _real_report import (
    BASELINE,
    NO_GUARD,
    UNTUNED,
    Runs,
    compare,
    overall_table,
    plot,
    problem_table,
    summarise,
    tuning_table,
)
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from learned_opt import optim
from learned_opt.bench.units import library_version
from learned_opt.cli.failures import run_script
from learned_opt.cli.progress import progress_bar
from learned_opt.errors import require
from learned_opt.optim import LearnedOptimizer
from learned_opt.rules.weights import resolve_rule

TUNING_SEED, REPORT_SEED = 81_001, 91_001
RATES = (1e-4, 1e-1)
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/real_training")
    """Folder for results and runs."""
    rules: tuple[str, ...] = ("controller",)
    """Learned rules: weight files or bundled names."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Six other problems, which nobody looked at while the bundled weights were made."""
    problems: tuple[str, ...] = ()
    """Names of the problems to run; all if there are none."""
    no_guard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run each learned rule without its guard, too."""
    num_seeds: int = 10
    """Runs of each optimizer on each problem."""
    trials: int = 16
    """Settings of AdamW that are tried on each problem."""
    num_tuning_seeds: int = 2
    """Runs of each trial."""
    length: int = 3
    """Horizons that runs without a schedule go on for."""
    num_evaluations: int = 40
    """Measurements of the losses in a horizon."""
    smoke: bool = False
    """Tiny sizes, to see that it runs."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """An optimizer with its settings.

    Attributes:
        name: what tables and files call it.
        settings: all that its runs depend on, for JSON.
        build: the optimizer of a model, from a seed.
        has_schedule: whether its learning rate decays to 0 over the horizon, where it ends.
    """

    name: str
    settings: dict[str, Any]
    build: Callable[[nn.Module, int], torch.optim.Optimizer]
    has_schedule: bool = False


def adamw(name: str, learning_rate: float, weight_decay: float) -> Entrant:
    """AdamW with cosine decay."""
    return Entrant(
        name=name,
        settings={"optimizer": "adamw", "lr": learning_rate, "weight_decay": weight_decay},
        build=lambda model, _: torch.optim.AdamW(
            model.parameters(), lr=learning_rate, weight_decay=weight_decay
        ),
        has_schedule=True,
    )


def adam() -> Entrant:
    """Adam as torch has it."""
    return Entrant(
        name=UNTUNED,
        settings={"optimizer": "adam"},
        build=lambda model, _: torch.optim.Adam(model.parameters()),
    )


def learned(rules: Iterable[str], *, no_guard: bool) -> list[Entrant]:
    """Learned rules under guard, and without if that is asked for."""
    rules = list(rules)
    # Runs go stale with the sources that made them, as in the benchmark.
    sources = [library_version(), inspect.getsource(optim)]
    found = []
    for name, spec in zip(labels(rules), rules, strict=True):
        rule = resolve_rule(spec)
        digest = hashlib.sha256(
            json.dumps([rule.name, rule.config(), *sources], default=str).encode()
        )
        for key, value in rule.state_dict().items():
            digest.update(key.encode() + value.cpu().numpy().tobytes())
        for guard in (True, False) if no_guard else (True,):
            found.append(
                Entrant(
                    name=name if guard else name + NO_GUARD,
                    settings={"optimizer": digest.hexdigest(), "guard": guard},
                    build=lambda model, seed, rule=rule, guard=guard: LearnedOptimizer(  # type: ignore[misc]
                        model.parameters(), rule, seed=seed, guard=guard
                    ),
                )
            )
    return found


def labels(rules: list[str]) -> list[str]:
    """Short names, told apart by the folder where files are called the same."""
    stems = [Path(rule).stem if rule.endswith(".safetensors") else rule for rule in rules]
    return [
        stem if stems.count(stem) == 1 else f"{Path(rule).parent.name} {stem}"
        for stem, rule in zip(stems, rules, strict=True)
    ]


def sobol_trials(count: int) -> list[Entrant]:
    """Learning rates spread evenly over their decades, half of them with weight decay."""
    points = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(count).double()
    low, high = (math.log10(rate) for rate in RATES)
    return [
        adamw(f"trial-{i}", 10 ** (low + (high - low) * x), WEIGHT_DECAY if y > 0.5 else 0.0)
        for i, (x, y) in enumerate(points.tolist())
    ]


@dataclass
class GuardWatch(logging.Handler):
    """Notes when a guard puts its fallback in charge, and when it lets the rule go on."""

    step: int = 0
    handed_over: list[int] = field(default_factory=list)
    handed_back: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.INFO)

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        told = record.getMessage()
        if "handed over to" in told:
            self.handed_over.append(self.step)
        elif "handed back to" in told:
            self.handed_back.append(self.step)


@contextmanager
def guard_watch() -> Iterator[GuardWatch]:
    """Listen to guards, which stay silent meanwhile."""
    logger, watch = logging.getLogger("learned_opt.rules.guarded"), GuardWatch()
    before = logger.level, logger.propagate
    logger.addHandler(watch)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield watch
    finally:
        logger.removeHandler(watch)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def train(problem: Problem, entrant: Entrant, *, seed: int, num_steps: int, every: int) -> Run:
    """One run.

    Args:
        problem: what is trained.
        entrant: how.
        seed: of initial weights, minibatches and the optimizer.
        num_steps: how long.
        every: steps from one measurement to the next, a divisor of `num_steps`.

    Returns:
        What happened.
    """
    model, batches = problem.model(seed), problem.batches(seed)
    optimizer = entrant.build(model, seed)
    schedule = CosineAnnealingLR(optimizer, num_steps) if entrant.has_schedule else None
    losses: dict[str, list[float]] = {"train": [], "validation": []}
    seconds = []

    def measure() -> None:
        for name, data in (("train", problem.train), ("validation", problem.validation)):
            with torch.no_grad():
                loss = float(problem.loss(model(data.inputs), data.targets))
            losses[name].append(loss if math.isfinite(loss) else math.inf)

    with guard_watch() as watch:
        measure()
        for start in range(0, num_steps, every):
            begun = time.process_time()
            for step in range(start, start + every):
                batch = next(batches)

                def closure(batch: Any = batch) -> torch.Tensor:
                    optimizer.zero_grad()
                    loss = problem.loss(model(batch.inputs), batch.targets)
                    loss.backward()
                    return loss

                watch.step = step
                optimizer.step(closure)  # type: ignore[arg-type]
                if schedule is not None:
                    schedule.step()
            seconds.append((time.process_time() - begun) / every)
            measure()
    return Run(
        steps=list(range(0, num_steps + 1, every)),
        **losses,
        seconds_per_step=float(np.median(seconds)),
        handed_over=watch.handed_over,
        handed_back=watch.handed_back,
    )


def cached(path: Path, settings: dict[str, Any], compute: Callable[[], Run]) -> Run:
    """The run in a file if it was made with these settings, else a new one, written there."""
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["settings"] == settings:
            return Run(**stored["run"])
    run = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: an interrupted experiment leaves no half a file.
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"settings": settings, "run": asdict(run)}) + "\n")
    part.replace(path)
    return run


def runs_of(
    problem: Problem, entrant: Entrant, seeds: range, settings: Settings, bar: Progress
) -> list[Run]:
    """The runs of an entrant on a problem, made or read."""
    num_steps = problem.num_steps * (1 if entrant.has_schedule else settings.length)
    how = {"num_steps": num_steps, "every": problem.num_steps // settings.num_evaluations}
    made_with = {**entrant.settings, **how, "batch_size": problem.batch_size}
    folder = settings.out / "runs" / file_name(problem.name) / file_name(entrant.name)
    found = []
    for seed in seeds:
        bar.update(bar.task_ids[0], note=f"{problem.name}: {entrant.name}")
        found.append(
            cached(
                folder / f"{seed}.json",
                made_with,
                lambda seed=seed: train(problem, entrant, seed=seed, **how),  # type: ignore[misc]
            )
        )
        bar.advance(bar.task_ids[0])
    return found


def file_name(name: str) -> str:
    """Without what folders had better not be called."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def tune(problem: Problem, settings: Settings, bar: Progress) -> tuple[Entrant, list[float]]:
    """AdamW with the best of all trials, and the final training losses of all, best first."""
    seeds = range(TUNING_SEED, TUNING_SEED + settings.num_tuning_seeds)
    scored = []
    for trial in sobol_trials(settings.trials):
        runs = runs_of(problem, trial, seeds, settings, bar)
        scored.append((float(np.mean([run.train[-1] for run in runs])), trial.settings))
    scored.sort(key=lambda pair: pair[0])
    best = scored[0][1]
    entrant = adamw(BASELINE, best["lr"], best["weight_decay"])
    return entrant, [score for score, _ in scored]


def shrunk(problem: Problem) -> Problem:
    """For the smoke test: few steps, few examples."""
    few = torch.arange(128)
    return replace(
        problem,
        num_steps=8,
        train=problem.train.select(few),
        validation=problem.validation.select(few[:32]),
    )


def main(settings: Settings) -> None:
    """Tune, run, compare, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    known = {p.name: p for p in (fresh_problems() if settings.fresh else problems())}
    unknown = sorted(set(settings.problems) - set(known))
    require(not unknown, f"unknown problems {unknown}: choose from {list(known)}")
    suite = tuple(known[name] for name in settings.problems or known)
    if settings.smoke:
        settings = replace(settings, num_seeds=2, trials=2, num_tuning_seeds=1, num_evaluations=4)
        suite = tuple(shrunk(problem) for problem in suite)
    for problem in suite:
        require(
            problem.num_steps % settings.num_evaluations == 0,
            f"num_evaluations must divide all horizons, got {settings.num_evaluations} for "
            f"{problem.num_steps} steps of {problem.name}: try 40",
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    untuned = [adam(), *learned(settings.rules, no_guard=settings.no_guard)]
    seeds = range(REPORT_SEED, REPORT_SEED + settings.num_seeds)
    runs: Runs = {}
    tuning: dict[str, Any] = {}
    with progress_bar() as bar:
        tried = settings.trials * settings.num_tuning_seeds
        total = len(suite) * (tried + (1 + len(untuned)) * settings.num_seeds)
        bar.add_task("runs", total=total, note="")
        for problem in suite:
            best, scores = tune(problem, settings, bar)
            tuning[problem.name] = {**best.settings, "final losses of all trials": scores}
            runs[problem.name] = {
                entrant.name: runs_of(problem, entrant, seeds, settings, bar)
                for entrant in (best, *untuned)
            }
    horizons = {problem.name: problem.num_steps for problem in suite}
    rows = compare(runs, horizons)
    overall = summarise(runs, horizons)
    numbers = {
        "horizons": horizons,
        "tuning": tuning,
        "problems": rows,
        "overall": overall,
        "runs": {
            problem: {name: [asdict(run) for run in found] for name, found in entrants.items()}
            for problem, entrants in runs.items()
        },
    }
    (settings.out / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    tables = (overall_table(overall), problem_table(rows), tuning_table(tuning))
    told = [f"{title}\n\n{markdown([header, *body])}\n" for title, header, body in tables]
    (settings.out / "table.md").write_text("\n".join(told))
    console = Console(width=180)
    for title, header, body in tables:
        table = Table(*header, title=title)
        for line in body:
            table.add_row(*line)
        console.print(table)
    plot(runs, horizons, settings.out / "real_training.png")
    console.print(f"files in {settings.out}")


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
