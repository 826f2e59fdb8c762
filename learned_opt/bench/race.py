"""One batch of runs: `unroll` in chunks, events and curves picked up on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learned_opt.bench.events import HUGE, EventTracker
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Params
from learned_opt.unroll import Carry, unroll

CHUNK = 100
"""Steps between two looks at the losses of a deterministic task."""

NUM_CURVE_POINTS = 64
NUM_PATH_POINTS = 200

RuleFactory = Callable[[Tensor | None], Rule]
"""Builds the rule for the runs at the given positions (None: all), with their hyperparameters."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """What came out of `race`, for ``N`` runs.

    Attributes:
        events: event times, divergence, best and final losses.
        curve_step: ``[C]`` steps of the curve, even in log step, with 0 and the last one.
        curve_loss: ``[N, C]`` losses there; NaN after an early end.
        path_step: ``[S]`` steps of the paths; empty unless the task has two coordinates.
        paths: run -> its ``[S, 2]`` points, for the runs whose path was asked for.
        zero_gradient_steps: ``[N]`` steps with a gradient component of exactly zero.
        seconds: wall time of the whole batch.
    """

    events: EventTracker
    curve_step: Tensor
    curve_loss: Tensor
    path_step: Tensor
    paths: dict[int, Tensor]
    zero_gradient_steps: Tensor
    seconds: float


def evaluate_every(task: Task, budget: int) -> int:
    """Steps between two evaluations of the loss that events are read from.

    A deterministic task is read at every step. A stochastic one is read on its full data a hundred
    times a run, at most 50 steps apart, because the loss of a minibatch says little; its event
    times are multiples of this number.

    Args:
        task: the task.
        budget: steps of a run.

    Returns:
        A positive number of steps.
    """
    return min(50, max(1, budget // 100)) if task.is_stochastic else 1


def log_grid(budget: int, num_points: int, *, multiple: int = 1) -> list[int]:
    """Steps from 0 to `budget`, even in log step, all but the last multiples of `multiple`.

    Examples:
        >>> log_grid(100, 6)
        [0, 1, 3, 10, 32, 100]
    """
    spaced = np.geomspace(multiple, budget, num_points - 1) / multiple
    inner = {min(round(float(x)) * multiple, budget) for x in spaced}
    return sorted({0, budget} | inner)


class _Watch:
    """Observer of every step: exact-zero gradients, and paths in the plane."""

    def __init__(self, problems: Problems, path_steps: list[int], path_rows: list[int]) -> None:
        self.zero_steps = torch.zeros(
            problems.num_problems, dtype=torch.int64, device=problems.facts.minimum.device
        )
        self.points: dict[int, Tensor] = {}
        self._path_steps, self._path_rows = set(path_steps), path_rows

    def __call__(self, *, step: int, params: Params, grads: Params, losses: Tensor) -> None:
        del losses
        has_zero: Tensor | None = None
        for grad in grads.values():
            zero = grad.reshape(grad.shape[0], -1).eq(0).any(dim=1)
            has_zero = zero if has_zero is None else has_zero | zero
        if has_zero is not None:
            self.zero_steps += has_zero
        self.see_point(step, params)

    def see_point(self, step: int, params: Params) -> None:
        if step in self._path_steps:
            parts = [p[self._path_rows].flatten(1).double() for p in params.values()]
            self.points[step] = torch.cat(parts, dim=1).cpu()


def race(
    task: Task,
    make_rule: RuleFactory,
    problems: Problems,
    *,
    budget: int,
    seed: int,
    path_rows: Sequence[int] = (),
    leave: Callable[[EventTracker, int], Tensor] | None = None,
) -> Race:
    """Run every problem to its budget.

    No run ends for lack of progress: the batch ends at the budget, or when all runs have diverged.

    Args:
        task: what is minimised.
        make_rule: builds the rule for some of the runs.
        problems: one instance per run.
        budget: gradient evaluations a run.
        seed: seed of minibatches and rule noise.
        path_rows: runs whose paths to keep if the task has two coordinates.
        leave: for tuning, where only event times are asked for: given the events and the step, the
            ``[N]`` runs that may leave the batch early. No curves, paths or zero gradients are kept
            then.

    Returns:
        The outcome of every run.
    """
    began = time.perf_counter()
    device = problems.facts.minimum.device
    rng = torch.Generator().manual_seed(seed)
    every = evaluate_every(task, budget)
    chunk = every if task.is_stochastic else CHUNK
    tracker = EventTracker(problems.facts)
    curve_step = [] if leave else log_grid(budget, NUM_CURVE_POINTS, multiple=every)
    curve = torch.full((problems.num_problems, len(curve_step)), math.nan, dtype=torch.float64)
    path_steps = _path_grid(budget) if task.dim == 2 and path_rows and not leave else []
    watch = None if leave else _Watch(problems, path_steps, list(path_rows))

    rows = torch.arange(problems.num_problems, device=device)
    rule, active = make_rule(None), problems
    carry: Carry | None = None
    step = 0
    while step < budget:
        num_steps = min(chunk, budget - step)
        out = unroll(task, rule, active, num_steps=num_steps, rng=rng, carry=carry, observe=watch)
        if task.is_stochastic:
            start = [_full_loss(task, active.params, active)] if step == 0 else []
            losses = torch.stack([*start, _full_loss(task, out.carry.params, active)], dim=1)
            steps = torch.tensor(([0] if step == 0 else []) + [step + num_steps])
        else:
            # Column 0 is the loss that the chunk before ended with.
            losses = out.losses if step == 0 else out.losses[:, 1:]
            steps = torch.arange(0 if step == 0 else step + 1, step + num_steps + 1)
        carry, step = out.carry, step + num_steps
        tracker.feed(losses, steps.to(device), rows)
        tracker.mark_diverged(rows[_is_far(carry.params, task.radius)], step)
        _fill_curve(curve, curve_step, losses, steps)
        done = (leave(tracker, step) if leave else tracker.diverged)[rows]
        if bool(done.all()):
            break
        # Fewer rows are cheaper only when a good part of them is gone.
        if leave and int(done.sum()) * 4 >= len(rows):
            keep = ~done
            rows, active, carry = rows[keep], active.select(keep), carry.select(keep)
            rule = make_rule(rows)
    if watch is not None and carry is not None:
        watch.see_point(step, carry.params)
    points = [] if watch is None else [watch.points[s] for s in path_steps if s in watch.points]
    paths = torch.stack(points, dim=1) if points else torch.zeros(0, 0, 2)
    return Race(
        events=tracker,
        curve_step=torch.tensor(curve_step, dtype=torch.int32),
        curve_loss=curve,
        path_step=torch.tensor(path_steps[: len(points)], dtype=torch.int32),
        paths=dict(zip(path_rows, paths, strict=False)),
        zero_gradient_steps=torch.zeros_like(rows) if watch is None else watch.zero_steps,
        seconds=time.perf_counter() - began,
    )


@torch.no_grad()
def _full_loss(task: Task, params: Params, problems: Problems) -> Tensor:
    return task.loss(params, problems, None)


def _is_far(params: Params, radius: float) -> Tensor:
    """``[n]`` whether a coordinate has left every reasonable neighbourhood."""
    largest = torch.stack([p.reshape(p.shape[0], -1).abs().amax(dim=1) for p in params.values()])
    return largest.amax(dim=0) > HUGE * max(1.0, radius)


def _fill_curve(curve: Tensor, curve_step: list[int], losses: Tensor, steps: Tensor) -> None:
    position = {int(s): i for i, s in enumerate(steps.tolist())}
    pairs = [(at, position[s]) for at, s in enumerate(curve_step) if s in position]
    if pairs:
        columns, sources = zip(*pairs, strict=True)
        curve[:, list(columns)] = losses[:, list(sources)].double().cpu()


def _path_grid(budget: int) -> list[int]:
    """Steps at which a path is kept: half of them even in log step, half even in step."""
    half = NUM_PATH_POINTS // 2
    even = {round(float(s)) for s in np.linspace(0, budget, half)}
    return sorted(even | set(log_grid(budget, half)))
