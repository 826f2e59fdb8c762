"""Run a suite: units in processes, shards on disk, and going on where an earlier run stopped."""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from learned_opt.bench.entrants import Entrant
from learned_opt.bench.folder import FAILURES, log_failure, open_folder
from learned_opt.bench.results import Results
from learned_opt.bench.search_spaces import BASELINES
from learned_opt.bench.shards import DiskFullError
from learned_opt.bench.suites import SuiteEntry, get_suite
from learned_opt.bench.units import DTYPES, Unit, run_unit
from learned_opt.errors import LearnedOptError, require

TUNING_TRIALS = (0, 4, 16, 64)
"""Default tuning budgets: the rule's defaults, and 4, 16 and 64 Sobol points beyond them."""


@final
@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `run_benchmark` reports after each unit.

    Attributes:
        done: units finished so far, skipped and failed ones included.
        total: units in all.
        task: label of the unit's task.
        rule: name of its rule.
        status: ``finished``, ``skipped`` (its shard existed) or ``failed``.
        seconds: wall time since the benchmark began.
    """

    done: int
    total: int
    task: str
    rule: str
    status: str
    seconds: float


@final
@dataclass(frozen=True)
class _Outcome:
    """What became of a unit: failure is data, for it comes from another process."""

    unit: Unit
    error: str = ""
    details: str = ""
    is_disk_full: bool = False


def run_benchmark(
    suite: str | Sequence[str | SuiteEntry],
    *,
    rules: Sequence[str | Path] | None = None,
    out: str | Path,
    seed: int = 0,
    num_instances: int = 25,
    num_tuning_instances: int = 8,
    tuning_trials: Sequence[int] = TUNING_TRIALS,
    workers: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    budget_scale: float = 1.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Race rules on a suite; hand-made ones are tuned on each task, learned ones run as they are.

    Every pair of task and rule is a unit whose shard in `out` is a pure function of its config:
    running again skips what exists, and the number of workers changes no number. With more than
    one worker, call it from under ``if __name__ == "__main__":``, since processes are spawned.

    Args:
        suite: a name of `SUITES`, or several, or entries of one's own.
        rules: hand-made rules by name, bundled learned rules by name, or paths of weight files;
            all baselines by default.
        out: the results folder, made if missing. It may hold an earlier run with the same settings
            and other rules.
        seed: seed of instances, tuning and noise.
        num_instances: fresh instances a task is run on.
        num_tuning_instances: instances that tuning sees; never those that are reported.
        tuning_trials: tuning budgets to report, each the rule's defaults and the first ``K`` points
            of one Sobol sequence.
        workers: processes.
        device: ``cpu`` or ``cuda``.
        dtype: ``torch.float64`` or ``torch.float32``.
        budget_scale: factor on every task's budget.
        on_progress: called after each unit, in this process.

    Returns:
        Everything in the folder, read back.

    Raises:
        LearnedOptError: if an argument is wrong, the folder belongs to another benchmark, the disk
            is full, or units failed (the others are kept, and the folder's failures.jsonl says
            why).
        KeyboardInterrupt: if interrupted; finished units are kept and the message says how to go
            on.
    """
    folder = Path(out)
    units = _plan(
        suite,
        BASELINES if rules is None else rules,
        seed=seed,
        num_instances=num_instances,
        num_tuning_instances=num_tuning_instances,
        tuning_trials=tuning_trials,
        budget_scale=budget_scale,
        device=device,
        dtype=dtype,
    )
    require(workers >= 1, f"workers must be positive, got {workers}")
    open_folder(folder, units, workers)
    began = time.perf_counter()
    total, done = len(units), 0

    def report(unit: Unit, status: str) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(
                Progress(
                    done=done,
                    total=total,
                    task=unit.entry.label,
                    rule=unit.entrant.name,
                    status=status,
                    seconds=time.perf_counter() - began,
                )
            )

    missing = []
    for unit in units:
        if unit.path(folder).exists():
            report(unit, "skipped")
        else:
            missing.append(unit)
    failures = []
    try:
        for outcome in _outcomes(missing, folder, min(workers, max(1, len(missing)))):
            if outcome.is_disk_full:
                raise LearnedOptError(outcome.error)
            if outcome.error:
                failures.append(outcome)
                log_failure(folder, outcome.unit, error=outcome.error, details=outcome.details)
            report(outcome.unit, "failed" if outcome.error else "finished")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {done} of {total} units, which are kept in {folder}; "
            "run the same command again to go on from there"
        ) from None
    if failures:
        first = failures[0]
        raise LearnedOptError(
            f"{len(failures)} of {total} units failed, the first being {first.unit.entrant.name} "
            f"on {first.unit.entry.label} ({first.error}); the others are kept in {folder}, and "
            f"{folder / FAILURES} has the details"
        )
    return Results.load(folder)


def _plan(
    suite: str | Sequence[str | SuiteEntry],
    rules: Sequence[str | Path],
    *,
    seed: int,
    num_instances: int,
    num_tuning_instances: int,
    tuning_trials: Sequence[int],
    budget_scale: float,
    device: str,
    dtype: torch.dtype,
) -> list[Unit]:
    """Check every argument, then one unit for each task and rule."""
    require(num_instances >= 1, f"num_instances must be positive, got {num_instances}")
    require(
        num_tuning_instances >= 1,
        f"num_tuning_instances must be positive, got {num_tuning_instances}",
    )
    require(
        len(tuning_trials) > 0 and min(tuning_trials) >= 0,
        f"tuning_trials must be counts of trials, got {tuple(tuning_trials)}",
    )
    require(budget_scale > 0, f"budget_scale must be positive, got {budget_scale}")
    names = {value: key for key, value in DTYPES.items()}
    require(dtype in names, f"dtype must be torch.float32 or torch.float64, got {dtype}")
    chosen = _entries([suite] if isinstance(suite, str) else suite)
    labels = [entry.label for _, entry in chosen]
    require(len(chosen) > 0, "suite must hold at least one task, got none")
    require(len(set(labels)) == len(labels), f"task labels must be unique, got {labels}")
    for _, entry in chosen:
        entry.build()
    entrants = [Entrant.of(rule) for rule in dict.fromkeys(map(str, rules))]
    names_of_rules = [entrant.name for entrant in entrants]
    require(len(entrants) > 0, "rules must name at least one rule, got none")
    require(
        len(set(names_of_rules)) == len(entrants),
        f"rule names must be unique, got {names_of_rules}",
    )
    return [
        Unit(
            suite=name,
            entry=entry,
            entrant=entrant,
            seed=seed,
            num_instances=num_instances,
            num_tuning_instances=num_tuning_instances,
            tuning_trials=tuple(sorted(set(tuning_trials))),
            budget_scale=float(budget_scale),
            dtype=names[dtype],
            device=device,
        )
        for name, entry in chosen
        for entrant in entrants
    ]


def _entries(suite: Sequence[str | SuiteEntry]) -> list[tuple[str, SuiteEntry]]:
    """Each entry with the name of its suite; one that several suites share counts once."""
    chosen: list[tuple[str, SuiteEntry]] = []
    for part in suite:
        named = (
            [(part, e) for e in get_suite(part)] if isinstance(part, str) else [("custom", part)]
        )
        chosen += [(name, e) for name, e in named if e not in [known for _, known in chosen]]
    return chosen


def _outcomes(units: Sequence[Unit], folder: Path, workers: int) -> Iterator[_Outcome]:
    """Outcomes in the order of completion."""
    if workers == 1:
        for unit in units:
            yield _attempt(unit, folder)
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    try:
        futures = {executor.submit(_attempt, unit, folder): unit for unit in units}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool as error:
                raise LearnedOptError(
                    "a worker process died (out of memory?); finished units are kept in "
                    f"{folder}, run the same command again with fewer workers to go on"
                ) from error
    except BaseException:
        # Whatever stops the parent must not wait for units that may take minutes; a shard exists
        # whole or not at all, so killing a worker loses its unit alone.
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    executor.shutdown()


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; the parent alone decides what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _attempt(unit: Unit, folder: Path) -> _Outcome:
    try:
        run_unit(unit, folder)
    except DiskFullError as error:
        return _Outcome(unit, str(error), is_disk_full=True)
    except Exception as error:  # one bad unit must not cost the others
        message = str(error).splitlines()[0] if str(error) else ""
        summary = (
            message if isinstance(error, LearnedOptError) else f"{type(error).__name__}: {message}"
        )
        return _Outcome(unit, summary, traceback.format_exc())
    return _Outcome(unit)
