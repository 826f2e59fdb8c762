"""A unit of work: one rule on one task, tuned and then run on fresh instances.

A unit is a pure function of its config; which process or machine computes it changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from learned_opt.bench.entrants import Entrant
from learned_opt.bench.events import EVENTS
from learned_opt.bench.race import Race, RuleFactory, race
from learned_opt.bench.shards import FORMAT_VERSION, config_hash, shard_path, write_shard
from learned_opt.bench.statistics import log_gap
from learned_opt.bench.suites import SuiteEntry
from learned_opt.bench.tuning import Trial, defaults, select_trial, sweep, tune
from learned_opt.rules.base import Rule
from learned_opt.rules.weights import load_rule
from learned_opt.tasks.base import Problems, Task

NUM_PATHS = 4
"""Instances of a two-dimensional task whose paths are kept."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


HAND_MADE_SOURCES = (
    "trees.py",
    "workspace.py",
    "unroll.py",
    "tasks",
    "bench",
    "rules/adaptive.py",
    "rules/base.py",
    "rules/classic.py",
    "rules/noisy.py",
    "rules/norms.py",
    "rules/perturbed.py",
)
"""All that the numbers of hand-made rules come from."""

_LEARNED_SOURCES = ("actuators", "features.py", "rules", "subspace.py")


@cache
def library_version(rule_kind: str = "learned") -> str:
    """Version and digest of the sources that numbers come from: results of others are other units.

    Reports and the command line are left out, since they change no number, and for hand-made rules
    what learned rules are made of: baselines need not run again when a learned rule has changed.

    Args:
        rule_kind: see `Entrant`; whose numbers.
    """
    try:
        number = version("learned_opt")
    except PackageNotFoundError:  # a source tree that was never installed
        number = "0"
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    others = () if rule_kind == "hand-made" else _LEARNED_SOURCES
    for part in (*HAND_MADE_SOURCES, *others):
        path = root / part
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return f"{number}+{digest.hexdigest()[:8]}"


@final
@dataclass(frozen=True, kw_only=True)
class Unit:
    """One rule on one task, with everything its numbers depend on.

    Attributes:
        suite: name of the suite.
        entry: the task.
        entrant: the rule.
        seed: seed of the benchmark.
        num_instances: fresh instances of the evaluation.
        num_tuning_instances: instances that tuning sees.
        tuning_trials: budgets ``K`` to report, ascending; a learned rule has 0 alone.
        budget_scale: factor on the task's own budget.
        dtype: ``float64`` or ``float32``.
        device: where tensors live.
    """

    suite: str
    entry: SuiteEntry
    entrant: Entrant
    seed: int
    num_instances: int
    num_tuning_instances: int
    tuning_trials: tuple[int, ...]
    budget_scale: float
    dtype: str
    device: str

    @property
    def num_trials(self) -> int:
        """Sobol points that tuning tries; 0 means that nothing is tuned."""
        return max(self.tuning_trials) if self.entrant.rule_kind == "hand-made" else 0

    def tuning_config(self) -> dict[str, Any]:
        """What the tuning shard is a function of."""
        return {
            "kind": "tuning",
            "format_version": FORMAT_VERSION,
            "library_version": library_version(self.entrant.rule_kind),
            "torch_version": torch.__version__,
            "suite": self.suite,
            "entry": asdict(self.entry),
            "rule": self.entrant.name,
            "weights_hash": self.entrant.weights_hash,
            "seed": self.seed,
            "num_tuning_instances": self.num_tuning_instances,
            "num_trials": self.num_trials,
            "budget_scale": self.budget_scale,
            "dtype": self.dtype,
            "device": torch.device(self.device).type,
        }

    def config(self) -> dict[str, Any]:
        """What the evaluation shard is a function of."""
        hand_made = self.entrant.rule_kind == "hand-made"
        return {
            **self.tuning_config(),
            "kind": "runs",
            "num_instances": self.num_instances,
            "tuning_trials": list(self.tuning_trials) if hand_made else [0],
        }

    def path(self, folder: Path) -> Path:
        """Where its evaluation shard lies."""
        return shard_path(folder, "runs", config_hash(self.config()))


def derive_seed(*parts: object) -> int:
    """A seed that is a function of `parts` alone, below 2^62."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


@contextmanager
def numeric_settings() -> Iterator[None]:
    """One thread and flushed denormals, so that numbers do not depend on who computes them."""
    threads = torch.get_num_threads()
    # torch can set this flag and not read it: a denormal that survives a product says it is off.
    was_flushing = float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0.0
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(was_flushing)


def run_unit(unit: Unit, folder: Path) -> None:
    """Tune, evaluate and write the shards of a unit; a tuning shard that exists is read instead.

    Args:
        unit: what to do.
        folder: the results folder, which exists.
    """
    with numeric_settings():
        task = unit.entry.build()
        budget = max(2, round(task.budget * unit.budget_scale))
        problems = task.sample(
            unit.num_instances,
            seed=derive_seed(unit.seed, "evaluation", unit.entry.label),
            dtype=DTYPES[unit.dtype],
            device=unit.device,
        )
        if unit.entrant.rule_kind == "learned":
            chosen: dict[int, Trial | None] = {0: None}
        else:
            trials = _tuned(unit, task, folder, budget)
            chosen = {k: select_trial(trials, k) for k in unit.tuning_trials}
        rows = _evaluate(unit, task, problems, chosen, budget)
        write_shard(folder, "runs", unit.config(), rows)


def _tuned(unit: Unit, task: Task, folder: Path, budget: int) -> list[Trial]:
    """The trials, from the shard of an earlier run if there is one."""
    rule = unit.entrant.source
    if unit.num_trials == 0:
        nothing = Trial(
            index=0, hyperparameters=defaults(rule), rmst=0, success=0, diverged=0, log_gap=0
        )
        return [nothing]
    config = unit.tuning_config()
    path = shard_path(folder, "tuning", config_hash(config))
    if path.exists():
        return [Trial.from_row(row) for row in pq.read_table(path, partitioning=None).to_pylist()]
    label = unit.entry.label
    problems = task.sample(
        unit.num_tuning_instances,
        seed=derive_seed(unit.seed, "tuning", label),
        dtype=DTYPES[unit.dtype],
        device=unit.device,
    )
    trials = tune(
        task,
        rule,
        problems,
        num_trials=unit.num_trials,
        budget=budget,
        # The same for every rule of equal dimension of search: they share Sobol points.
        seed=derive_seed(unit.seed, "trials", label),
    )
    shared = {
        "suite": unit.suite,
        "task": label,
        "rule": unit.entrant.name,
        "num_instances": unit.num_tuning_instances,
        "budget": budget,
    }
    write_shard(folder, "tuning", config, [{**shared, **trial.row()} for trial in trials])
    return trials


def _evaluate(
    unit: Unit, task: Task, problems: Problems, chosen: dict[int, Trial | None], budget: int
) -> list[dict[str, Any]]:
    """Rows of the evaluation, one per tuning budget and instance."""
    # Budgets that chose the same trial share its runs.
    distinct = list({None if t is None else t.index: t for t in chosen.values()}.values())
    outcome = race(
        task,
        _factory(unit, distinct),
        problems.repeat(len(distinct)),
        budget=budget,
        seed=derive_seed(unit.seed, "noise", unit.entry.label),
        path_rows=[
            block * unit.num_instances + instance
            for block in range(len(distinct))
            for instance in range(min(NUM_PATHS, unit.num_instances))
        ],
    )
    table = _Table(outcome, problems, len(distinct))
    rows: list[dict[str, Any]] = []
    for tuning_trials, trial in chosen.items():
        block = distinct.index(trial)
        settings = "{}" if trial is None else json.dumps(trial.hyperparameters, sort_keys=True)
        shared = {
            "suite": unit.suite,
            "task": unit.entry.label,
            "family": task.family,
            "kind": task.kind,
            "dim": task.dim,
            "rotated": unit.entry.rotate,
            "rule": unit.entrant.name,
            "rule_kind": unit.entrant.rule_kind,
            "tuning_trials": tuning_trials,
            "seed": unit.seed,
            "budget": budget,
            "hyperparameters": settings,
        }
        rows += [{**shared, **table.row(block, i)} for i in range(unit.num_instances)]
    return rows


def _factory(unit: Unit, distinct: Sequence[Trial | None]) -> RuleFactory:
    settings = [trial.hyperparameters for trial in distinct if trial is not None]
    if settings:
        return sweep(unit.entrant.source, settings, unit.num_instances, unit.device)
    rule = load_rule(unit.entrant.source).to(device=unit.device, dtype=DTYPES[unit.dtype])

    def make(rows: Tensor | None) -> Rule:
        del rows
        return rule

    return make


class _Table:
    """The outcome of a batch, run by run; run ``block * num_instances + i`` is instance ``i``."""

    def __init__(self, outcome: Race, problems: Problems, num_blocks: int) -> None:
        events, facts = outcome.events, problems.facts
        self._num_instances = problems.num_problems
        self._outcome = outcome
        self._times = events.times.cpu().numpy()
        self._diverged = events.diverged.cpu().numpy()
        self._final = events.final.cpu().numpy()
        self._best = events.best.cpu().numpy()
        self._zero_steps = outcome.zero_gradient_steps.cpu().numpy()
        self._minimum = facts.minimum.double().cpu().numpy()
        self._reference = facts.reference.double().cpu().numpy()
        self._next_level = facts.next_level.double().cpu().numpy()
        self._levels = facts.levels.double().cpu().numpy()
        gap = log_gap(
            self._final, np.tile(self._minimum, num_blocks), np.tile(self._reference, num_blocks)
        )
        self._log_gap = np.where(self._diverged, 1.0, gap)
        self._seconds = outcome.seconds / len(self._final)

    def row(self, block: int, instance: int) -> dict[str, Any]:
        run = block * self._num_instances + instance
        times = {f"t_{name}": float(t) for name, t in zip(EVENTS, self._times[run], strict=True)}
        status = "diverged" if self._diverged[run] else "censored"
        if np.isfinite(times["t_solve"]):
            status = "solved"
        path = self._outcome.paths.get(run, torch.zeros(0, 2)).numpy()
        return {
            **times,
            "instance": instance,
            "status": status,
            "final_loss": float(self._final[run]),
            "best_loss": float(self._best[run]),
            "log_gap": float(self._log_gap[run]),
            "minimum": float(self._minimum[instance]),
            "reference": float(self._reference[instance]),
            "next_level": float(self._next_level[instance]),
            "levels": self._levels[instance].tolist(),
            "zero_gradient_steps": int(self._zero_steps[run]),
            "seconds": self._seconds,
            "curve_step": self._outcome.curve_step.tolist(),
            "curve_loss": self._outcome.curve_loss[run].tolist(),
            "path_step": self._outcome.path_step.tolist() if len(path) else [],
            "path_x": path[:, 0].tolist(),
            "path_y": path[:, 1].tolist(),
        }
