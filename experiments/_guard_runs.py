"""Runs of guard_price.py: hopeless rules, the count of hand-overs, and outcomes kept as JSON."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _jobs import in_processes, sample
from _ratios import EVENTS, Floats
from torch import Tensor

from learned_opt import optim
from learned_opt.bench.events import EVENTS as ALL_EVENTS
from learned_opt.bench.events import event_thresholds
from learned_opt.bench.race import CHUNK, evaluate_every
from learned_opt.bench.shards import config_hash, write_atomically
from learned_opt.bench.suites import SuiteEntry
from learned_opt.bench.units import derive_seed, library_version, numeric_settings
from learned_opt.rules import get_rule, guarded, supervision
from learned_opt.rules.base import Rule
from learned_opt.rules.guarded import Guarded
from learned_opt.rules.weights import resolve_rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Params, Tree, flatten
from learned_opt.unroll import Carry, unroll

GUARDS: dict[str, dict[str, Any]] = {"LearnedOptimizer": optim.GUARD_TERMS, "Guarded": {}}
"""Whose terms a guard has, and what differs from the defaults of `Guarded`."""

KINDS = ("freezes", "climbs", "leaps", "breaks", "crawls")
UNTRAINED = "lstm, untrained"
STRIDE = 0.01
LEAP = 1e4
BREAK_EVERY = 37
CRAWL = 0.15
"""Share of the fallback's learning rate: more than `LearnedOptimizer` demands, if not by much."""


class Hopeless(Rule):
    """Rules that should never have been let loose, each row one of `KINDS`.

    They freeze: no update; climb: `STRIDE` along the signs of the gradient; leap: gradient descent
    of step `LEAP`; break: `STRIDE` against the signs, but NaN or infinite every `BREAK_EVERY`
    steps; crawl: `CRAWL` of a learning rate against the signs.

    Args:
        kinds: ``[N]`` positions in `KINDS`.
        rates: ``[N]`` learning rates that those who crawl take their share of.
    """

    name = "hopeless"

    def __init__(self, kinds: Tensor, rates: Tensor) -> None:
        super().__init__()
        self.kinds, self.rates = kinds, rates

    def init(self, params: Params) -> Tree:
        """Steps taken since it took charge."""
        return {"step": torch.zeros(len(next(iter(params.values()))), dtype=torch.int64)}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step; see `Rule.forward`."""
        del params, loss, rng
        step: Tensor = state["step"]  # type: ignore[assignment]
        nth = (step + 1) // BREAK_EVERY
        broken = torch.where(nth % 2 == 1, torch.nan, torch.inf).double()
        breaks = broken.where((step + 1) % BREAK_EVERY == 0, -STRIDE)
        updates = {}
        for name, g in grads.items():
            kinds, rates, shifts = (
                x.reshape(-1, *[1] * (g.dim() - 1)) for x in (self.kinds, self.rates, breaks)
            )
            sign = torch.where(g < 0, -1.0, 1.0).to(g)
            moves = (0 * g, STRIDE * sign, -LEAP * g, shifts * sign, -CRAWL * rates * sign)
            update = moves[0]
            for kind, move in enumerate(moves):
                update = torch.where(kinds == kind, move, update)
            updates[name] = update
        return updates, {"step": step + 1}


class Counted(Rule):
    """A rule whose state counts, problem by problem, what the experiment asks about.

    ``nonfinite``: parameters that its updates made infinite or NaN, added up over steps; ``overs``
    and ``backs``: how often a guard handed over to the fallback and back; trials are neither.
    """

    name = "counted"

    def __init__(self, inner: Rule) -> None:
        super().__init__()
        self.inner = inner

    @property
    def sweep_size(self) -> int | None:
        """That of the rule."""
        return self.inner.sweep_size

    def init(self, params: Params) -> Tree:
        """The rule's state, nothing counted."""
        none = torch.zeros(len(next(iter(params.values()))), dtype=torch.int64)
        counts = dict.fromkeys(("nonfinite", "overs", "backs"), none)
        return {"inner": self.inner.init(params), **counts}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step; see `Rule.forward`."""
        old: dict[str, Any] = state
        updates, inner = self.inner(grads, old["inner"], params, loss=loss, rng=rng)
        broken = ~(flatten(params) + flatten(updates)).isfinite()
        new = {**old, "inner": inner, "nonfinite": old["nonfinite"] + broken.sum(1)}
        if "book" in inner:
            was, acts = _in_charge(old["inner"]["book"]), _in_charge(inner["book"])
            new |= {"overs": old["overs"] + (was & ~acts), "backs": old["backs"] + (acts & ~was)}
        return updates, new


def _in_charge(book: supervision.Book) -> Tensor:
    """``[N]`` whether the rule acts, and not on trial."""
    return book["is_rule"] & ~book["is_trial"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """All runs of one contender on a task; each learning rate is a variant, for `Hopeless` twice.

    Attributes:
        entry: the task.
        contender: ``tuning`` or ``fallback`` for Adam alone, ``hopeless`` for all `KINDS`,
            `UNTRAINED`, or a learned rule.
        guard: a key of `GUARDS`; empty for runs without guard.
        rates: learning rates of Adam, alone or as fallback; empty if there is none.
        digest: what else the outcome depends on, see `digest`.
        budget: gradients a run.
        num_instances: instances.
        seed: seed of instances and noise.
    """

    entry: SuiteEntry
    contender: str
    guard: str = ""
    rates: tuple[float, ...] = ()
    digest: str = ""
    budget: int
    num_instances: int
    seed: int

    def path(self, folder: Path) -> Path:
        """Where the outcome lies."""
        versions = {"library": library_version(), "torch": torch.__version__}
        return folder / f"{config_hash({**asdict(self), 'versions': versions})}.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a `Job`.

    Attributes:
        times: ``[V, T, n]`` gradients of each variant to each target, inf where not reached; for
            ``hopeless`` variants are kinds times rates, kinds first.
        nonfinite: ``[V, n]`` parameters that were infinite or NaN, added up over steps.
        overs: ``[V, n]`` hand-overs to the fallback.
        backs: ``[V, n]`` hand-backs to the rule.
    """

    times: Floats
    nonfinite: Floats
    overs: Floats
    backs: Floats

    def to_json(self) -> str:
        """As text, where infinity is -1."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({k: np.where(np.isfinite(v), v, -1).tolist() for k, v in found.items()})

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Undo `to_json`."""
        found = {k: np.array(v, dtype=np.float64) for k, v in json.loads(text).items()}
        return cls(**{k: np.where(v < 0, np.inf, v) for k, v in found.items()})


def digest(contender: str, guard: str) -> str:
    """Of a contender's theta, and of a guard's terms and source: outcomes go stale with them."""
    found = hashlib.sha256()
    if guard:
        sources = [inspect.getsource(module) for module in (guarded, supervision)]
        found.update(json.dumps([GUARDS[guard], *sources]).encode())
    if contender not in {"tuning", "fallback", "hopeless", UNTRAINED}:
        for name, value in resolve_rule(contender).state_dict().items():
            found.update(name.encode() + value.detach().numpy().tobytes())
    return found.hexdigest()[:16]


def contestant(contender: str, kinds: Tensor, rates: Tensor) -> Rule:
    """The rule of a `Job` for the given rows, without guard."""
    if contender in {"tuning", "fallback"}:
        return get_rule("adam", learning_rate=rates)
    if contender == "hopeless":
        return Hopeless(kinds, rates)
    if contender == UNTRAINED:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rule = get_rule("lstm")
        return rule.double().requires_grad_(requires_grad=False).eval()
    return resolve_rule(contender).double()


def hush() -> None:
    """No message for every hand-over: they are counted."""
    logging.getLogger(guarded.__name__).setLevel(logging.ERROR)


def run_job(job: Job) -> Outcome:
    """Do the work."""
    with numeric_settings():
        task, size = job.entry.build(), job.num_instances
        is_tuning = job.contender == "tuning"
        part = "tuning" if is_tuning else "evaluation"
        rates = torch.tensor(job.rates or (0.0,), dtype=torch.float64).repeat_interleave(size)
        num_kinds = len(KINDS) if job.contender == "hopeless" else 1
        kinds = torch.arange(num_kinds).repeat_interleave(len(rates))
        rates = rates.repeat(num_kinds)

        def make(rows: Tensor) -> Rule:
            rule = contestant(job.contender, kinds[rows], rates[rows])
            if job.guard:
                adam = get_rule("adam", learning_rate=rates[rows])
                rule = Guarded(rule, adam, **GUARDS[job.guard])
            return Counted(rule)

        problems = sample(job.entry, part, size, job.seed).repeat(len(rates) // size)
        seed = derive_seed(job.seed, "trials" if is_tuning else "noise", job.entry.label)
        times, counts = play(task, make, problems, budget=job.budget, seed=seed)
        return Outcome(
            times=times.T.reshape(len(EVENTS), -1, size).transpose(0, 1).numpy(),
            **{name: found.double().reshape(-1, size).numpy() for name, found in counts.items()},
        )


@torch.no_grad()
def play(
    task: Task, make: Callable[[Tensor], Rule], problems: Problems, *, budget: int, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run every problem until it reaches the last target or its budget ends.

    Unlike in `race`, no run counts as diverged: a guard undoes excursions, however far.

    Args:
        task: what is minimised.
        make: builds the `Counted` rule for the runs at the given positions.
        problems: one instance a run.
        budget: gradients a run.
        seed: seed of minibatches and rule noise.

    Returns:
        ``[N, T]`` times, the first of two evaluations in a row that meet the target, inf where
        there is none; and the counts, each ``[N]``.
    """
    columns = [ALL_EVENTS.index(event) for event in EVENTS]
    levels = event_thresholds(problems.facts)[:, columns]
    rng = torch.Generator().manual_seed(seed)
    every = evaluate_every(task, budget)
    times = torch.full_like(levels, torch.inf)
    counts: dict[str, Tensor] = {}
    rows = torch.arange(len(levels))
    rule, active = make(rows), problems
    carry: Carry | None = None
    step, held = 0, torch.zeros_like(levels, dtype=torch.bool)
    while step < budget and len(rows):
        size = min(every if task.is_stochastic else CHUNK, budget - step)
        out = unroll(task, rule, active, num_steps=size, rng=rng, carry=carry)
        carry = out.carry
        if task.is_stochastic:
            points = [active.params] * (step == 0) + [carry.params]
            losses = torch.stack([task.loss(point, active, None) for point in points], dim=1)
            clock = torch.tensor([0] * (step == 0) + [step + size]).double()
        else:
            # Column 0 is the loss that the chunk before ended with.
            losses = out.losses[:, step > 0 :]
            clock = step + torch.arange(step > 0, size + 1).double()
        met = losses[:, :, None] <= levels[rows][:, None]
        twice = met & torch.cat([held[:, None], met[:, :-1]], 1)
        when = torch.cat([clock.new_tensor([step]), clock[:-1]])[twice.int().argmax(1)]
        times[rows] = times[rows].minimum(when.where(twice.any(1), torch.inf))
        held, step = met[:, -1], step + size
        state: dict[str, Any] = carry.state
        for name, found in state.items():
            if name != "inner":
                counts.setdefault(name, torch.zeros(len(levels), dtype=torch.int64))[rows] = found
        # What is not finite stays so: without a guard nothing more can come of it.
        keep = times[rows, -1].isinf() & flatten(carry.params).isfinite().all(1)
        if int(keep.sum()) <= 0.75 * len(rows):
            rows, active, carry = rows[keep], active.select(keep), carry.select(keep)
            held, rule = held[keep], make(rows)
    return times, counts


def run_jobs(
    jobs: Sequence[Job], folder: Path, *, workers: int, on_done: Callable[[Job], None]
) -> list[Outcome]:
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
    for job, outcome in in_processes(run_job, missing, workers=workers, initializer=hush):
        text = outcome.to_json() + "\n"
        write_atomically(job.path(folder), lambda path, text=text: path.write_text(text))
        on_done(job)
    return [Outcome.from_json(job.path(folder).read_text()) for job in jobs]
