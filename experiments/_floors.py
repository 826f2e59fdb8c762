"""What optimizers reach that a rule on gradients can hardly beat: L-BFGS and a Newton oracle.

Float64, deterministic tasks. Times count gradients paid before the first point at or below a
target was known; inf where none was within the budget.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from learned_opt.bench.events import EVENTS, event_thresholds
from learned_opt.subspace import trust_region_step
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import flatten, unflatten
from learned_opt.unroll import loss_and_grads

MAX_RADIUS = 1e3
"""Largest trust radius, in typical distances from start to solution."""


class _Solved(Exception):
    """Thrown from within a line search once nothing is left to find out."""


def thresholds(problems: Problems, events: tuple[str, ...]) -> Tensor:
    """``[N, T]`` losses at or below which each of `events` holds."""
    return event_thresholds(problems.facts)[:, [EVENTS.index(event) for event in events]]


def lbfgs_times(
    task: Task, problems: Problems, *, budget: int, events: tuple[str, ...], memory: int = 20
) -> Tensor:
    """L-BFGS with a strong Wolfe line search; each evaluation of the closure is one gradient.

    Points of the line search count as known, also those that it then rejects.

    Args:
        task: what is minimised.
        problems: the instances, one after the other.
        budget: gradients of a run.
        events: names of targets.
        memory: steps remembered.

    Returns:
        ``[T, N]`` times.
    """
    levels = thresholds(problems, events)
    columns = [
        _lbfgs_run(task, problems.select(torch.tensor([n])), levels[n], budget, memory)
        for n in range(problems.num_problems)
    ]
    return torch.stack(columns, dim=1)


def _lbfgs_run(task: Task, problem: Problems, levels: Tensor, budget: int, memory: int) -> Tensor:
    x = flatten(problem.params).clone().requires_grad_()
    times = torch.full_like(levels, torch.inf)
    paid = 0

    def closure() -> Tensor:
        nonlocal paid
        loss, grads = loss_and_grads(task, unflatten(x.detach(), problem.params), problem, None)
        if not bool(torch.isfinite(loss).all()):
            raise _Solved
        times[torch.isinf(times) & (loss <= levels)] = paid
        paid += 1
        if bool(torch.isfinite(times).all()) or paid > budget:
            raise _Solved
        x.grad = flatten(grads)
        return loss[0]

    # One call for the whole run: between calls it would pay for the same point twice, and a limit
    # of one iteration would leave its line search no evaluation.
    optimizer = torch.optim.LBFGS(
        [x],
        lr=1,
        max_iter=budget,
        max_eval=2 * budget,
        history_size=memory,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    with suppress(_Solved):
        optimizer.step(closure)
    return times


def newton_times(task: Task, problems: Problems, *, budget: int, events: tuple[str, ...]) -> Tensor:
    """Trust-region Newton with the whole Hessian, which is free; a step costs one gradient.

    The radius follows the usual ratio of actual to predicted decrease: below a quarter it becomes a
    quarter of the step, above three quarters at the boundary it doubles. Rejected steps are paid.

    Args:
        task: what is minimised.
        problems: the instances, which move together.
        budget: steps of a run.
        events: names of targets.

    Returns:
        ``[T, N]`` times.

    References:
        Nocedal and Wright 2006, algorithm 4.1.
    """
    levels = thresholds(problems, events)
    times = torch.full_like(levels, torch.inf)
    rows, active = torch.arange(problems.num_problems), problems
    x = flatten(problems.params)
    radius = x.new_full((len(x),), task.radius)
    loss, slope = _value(task, x, active)
    times[loss[:, None] <= levels] = 0
    for step in range(1, budget + 1):
        values, vectors = torch.linalg.eigh(_hessian(task, x, active))
        model = trust_region_step(torch.einsum("np,npk->nk", slope, vectors), values, radius)
        move = torch.einsum("npk,nk->np", vectors, model.coefficients)
        new_loss, new_slope = _value(task, x + move, active)
        gain = torch.where(torch.isfinite(new_loss), loss - new_loss, -torch.inf)
        ratio = gain / model.decrease.clamp_min(torch.finfo(x.dtype).tiny)
        length = move.norm(dim=1)
        grown = torch.where(model.is_inside, radius, 2 * radius)
        radius = torch.where(ratio > 0.75, grown.clamp_max(MAX_RADIUS * task.radius), radius)
        radius = torch.where(ratio < 0.25, length / 4, radius)
        is_taken = ratio > 1e-4
        x = torch.where(is_taken[:, None], x + move, x)
        slope = torch.where(is_taken[:, None], new_slope, slope)
        loss = torch.where(is_taken, new_loss, loss)
        is_new = torch.isinf(times[rows]) & (loss[:, None] <= levels[rows])
        times[rows] = torch.where(is_new, float(step), times[rows])
        # A radius of nothing means that rounding has eaten the gain: the run stands still.
        is_open = torch.isinf(times[rows]).any(dim=1) & (radius > 1e-14 * task.radius)
        if not bool(is_open.any()):
            break
        if not bool(is_open.all()):
            rows, active = rows[is_open], active.select(is_open)
            x, slope, loss, radius = (a[is_open] for a in (x, slope, loss, radius))
    return times.T


def _value(task: Task, x: Tensor, problems: Problems) -> tuple[Tensor, Tensor]:
    loss, grads = loss_and_grads(task, unflatten(x, problems.params), problems, None)
    return loss, flatten(grads)


def _hessian(task: Task, x: Tensor, problems: Problems) -> Tensor:
    """``[N, P, P]``, a row a backward pass for all problems together."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        loss = task.loss(unflatten(point, problems.params), problems)
        (slope,) = torch.autograd.grad(loss.sum(), point, create_graph=True)
        rows = [
            torch.autograd.grad(slope[:, j].sum(), point, retain_graph=True)[0]
            for j in range(x.shape[1])
        ]
    hessian = torch.stack(rows, dim=1)
    return (hessian + hessian.mT) / 2
