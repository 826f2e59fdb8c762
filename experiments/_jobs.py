"""Work whose outcome is kept as JSON, so that a second call skips what is there."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from _floors import lbfgs_times, newton_times
from _ratios import EVENTS, Floats
from torch import Tensor

from learned_opt.bench.events import EventTracker
from learned_opt.bench.race import race
from learned_opt.bench.shards import config_hash, write_atomically
from learned_opt.bench.suites import SuiteEntry
from learned_opt.bench.tuning import GROUP, LARGE_DIM, defaults, sweep
from learned_opt.bench.units import derive_seed, library_version, numeric_settings
from learned_opt.tasks.base import Problems

J = TypeVar("J")
R = TypeVar("R")

LARGEST_HESSIAN = 200
"""Parameters up to which the Newton oracle runs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work on one task.

    Attributes:
        kind: ``floor`` (`rule` is ``lbfgs`` or ``newton``), ``trials`` (times to the solve target
            on tuning instances, one row a setting) or ``runs`` (times to the targets on evaluation
            instances with one setting).
        entry: the task.
        rule: who runs.
        settings: hyperparameters, one dictionary a trial.
        seed: seed of the benchmark, whose instances these are.
        num_instances: instances.
    """

    kind: str
    entry: SuiteEntry
    rule: str
    settings: tuple[dict[str, float], ...] = ()
    seed: int
    num_instances: int

    def config(self) -> dict[str, Any]:
        """What the outcome is a function of."""
        versions = {"library": library_version("hand-made"), "torch": torch.__version__}
        return {**asdict(self), "settings": list(self.settings), "versions": versions}

    def path(self, folder: Path) -> Path:
        """Where the outcome lies."""
        return folder / f"{self.kind}-{config_hash(self.config())}.json"


def sample(entry: SuiteEntry, part: str, num_instances: int, seed: int) -> Problems:
    """The instances of a benchmark: `part` is ``evaluation`` or ``tuning``."""
    return entry.build().sample(
        num_instances, seed=derive_seed(seed, part, entry.label), dtype=torch.float64
    )


def run_job(job: Job) -> Floats:
    """Do the work.

    Args:
        job: what to do.

    Returns:
        Times: ``[T, n]``, for ``trials`` ``[settings, n]``; inf where not reached.
    """
    with numeric_settings():
        task = job.entry.build()
        part = "tuning" if job.kind == "trials" else "evaluation"
        problems = sample(job.entry, part, job.num_instances, job.seed)
        if job.kind == "floor":
            run = {"lbfgs": lbfgs_times, "newton": newton_times}[job.rule]
            return run(task, problems, budget=task.budget, events=EVENTS).numpy()
        # In groups, as tuning task by task runs large tasks: memory stays small.
        size = GROUP if task.dim > LARGE_DIM else len(job.settings)
        parts = []
        for start in range(0, len(job.settings), size):
            group = job.settings[start : start + size]
            events = race(
                task,
                sweep(job.rule, group, job.num_instances, "cpu"),
                problems.repeat(len(group)),
                budget=task.budget,
                seed=derive_seed(
                    job.seed, "trials" if part == "tuning" else "noise", job.entry.label
                ),
                leave=_is_solved if part == "tuning" else None,
            ).events
            if part == "evaluation":
                return torch.stack([events.time(event) for event in EVENTS]).numpy()
            parts.append(events.time("solve").reshape(len(group), -1))
        return torch.cat(parts).numpy()


def _is_solved(events: EventTracker, step: int) -> Tensor:
    """Runs that have nothing more to tell about the solve target."""
    del step
    return torch.isfinite(events.time("solve")) | events.diverged


def run_jobs(
    jobs: Sequence[Job], folder: Path, *, workers: int, on_done: Callable[[Job], None]
) -> list[Floats]:
    """The outcomes of `jobs`, in order; those that lie in `folder` are read.

    Args:
        jobs: what to do.
        folder: where outcomes are kept, made if missing.
        workers: processes.
        on_done: called after each job that ran.

    Returns:
        What `run_job` returns, for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not job.path(folder).exists()]
    for job, times in in_processes(run_job, missing, workers=workers):
        # JSON has no infinity.
        record = {"config": job.config(), "times": np.where(np.isfinite(times), times, -1).tolist()}
        text = json.dumps(record) + "\n"
        write_atomically(job.path(folder), lambda path, text=text: path.write_text(text))
        on_done(job)
    found = [np.array(json.loads(job.path(folder).read_text())["times"]) for job in jobs]
    return [np.where(times < 0, np.inf, times) for times in found]


def in_processes(
    work: Callable[[J], R],
    jobs: Sequence[J],
    *,
    workers: int,
    initializer: Callable[[], None] | None = None,
) -> Iterator[tuple[J, R]]:
    """Jobs with what `work` makes of them, in the order in which they end.

    Args:
        work: a function of a module.
        jobs: what it is given.
        workers: processes; with one, all is done in this one.
        initializer: called first in each process, this one excepted.
    """
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, work(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=initializer) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def floor_jobs(entries: Sequence[SuiteEntry], *, seed: int, num_instances: int) -> list[Job]:
    """L-BFGS on every deterministic task, the Newton oracle on those of few parameters."""
    jobs = []
    for entry in entries:
        task = entry.build()
        names = [] if task.is_stochastic else ["lbfgs"]
        names += ["newton"] if names and task.dim <= LARGEST_HESSIAN else []
        jobs += [
            Job(kind="floor", entry=entry, rule=name, seed=seed, num_instances=num_instances)
            for name in names
        ]
    return jobs


def complete(rule: str, points: Sequence[dict[str, float]]) -> tuple[dict[str, float], ...]:
    """The rule's defaults, then the defaults with each point put over them."""
    base = defaults(rule)
    return (base, *({**base, **point} for point in points))
