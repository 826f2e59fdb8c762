"""The one inner loop: a rule trains ``N`` problems for some steps.

Meta-training, benchmarks, environments and analysis all call `unroll`; nothing else loops over
inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Params, Tree, detach, select


@dataclass(frozen=True, kw_only=True)
class Carry:
    """Where ``N`` inner loops stand; all that is needed to go on.

    Attributes:
        params: current points, each ``[N, *shape]``.
        state: the rule's state, a tree of ``[N, ...]``.
        step: number of steps taken so far.
    """

    params: Params
    state: Tree
    step: int = 0

    def detach(self) -> Carry:
        """The same place, cut from the autograd graph (the truncation of truncated BPTT)."""
        return Carry(params=detach(self.params), state=detach(self.state), step=self.step)  # type: ignore[arg-type]

    def select(self, index: Tensor) -> Carry:
        """Keep the problems that `index` names."""
        return Carry(
            params=select(self.params, index),  # type: ignore[arg-type]
            state=select(self.state, index),
            step=self.step,
        )


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """What `unroll` returns.

    Attributes:
        losses: ``[N, num_steps + 1]`` losses, one less without the final one; column ``t`` is the
            loss after ``t`` of these steps, so ``t`` is also the number of gradients paid for.
        carry: where the loops stand now.
    """

    losses: Tensor
    carry: Carry


class Observer(Protocol):
    """Called once a step with detached values, before the update is applied."""

    def __call__(self, *, step: int, params: Params, grads: Params, losses: Tensor) -> None:
        """See one step.

        Args:
            step: steps taken before this one, over the whole run.
            params: current points.
            grads: gradients there.
            losses: ``[N]`` losses there.
        """


class _LossWithKnownGradient(torch.autograd.Function):
    """Losses whose gradient is already known: nothing of the task's own graph is kept."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, num_tensors: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[num_tensors:])
        ctx.num_tensors = num_tensors
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        grads = tuple(
            grad_output.reshape(-1, *([1] * (g.dim() - 1))) * g for g in ctx.saved_tensors
        )
        return (None, None, *grads, *([None] * ctx.num_tensors))


def start(rule: Rule, problems: Problems) -> Carry:
    """The carry before the first step.

    Raises:
        LearnedOptError: if the rule is a sweep over another number of problems.
    """
    require(
        rule.sweep_size in {None, problems.num_problems},
        f"rule '{rule.name}' holds hyperparameters for {rule.sweep_size} problems, "
        f"got {problems.num_problems}",
    )
    return Carry(params=dict(problems.params), state=rule.init(problems.params))


def unroll(
    task: Task,
    rule: Rule,
    problems: Problems,
    *,
    num_steps: int,
    rng: torch.Generator,
    carry: Carry | None = None,
    differentiable: bool = False,
    second_order: bool = False,
    final_loss: bool = True,
    observe: Observer | None = None,
    stop: Callable[[Tensor], bool] | None = None,
) -> Unrolled:
    """Let `rule` train `problems` for `num_steps` steps.

    Args:
        task: what the losses mean.
        rule: how to move.
        problems: the instances, with their starting points.
        num_steps: steps to take, positive.
        rng: CPU generator for minibatches and rule noise, advanced.
        carry: where to go on from; None starts anew.
        differentiable: keep the graph from theta to the losses.
        second_order: with `differentiable`, also differentiate through the gradients that the rule
            sees. Dropped by default, as in Andrychowicz et al. 2016 (arXiv:1606.04474).
        final_loss: also evaluate the loss where the last step led. Without it there are `num_steps`
            losses, and a call that goes on from there continues as if never interrupted.
        observe: called once a step.
        stop: called with the ``[N]`` losses of each step; True ends the loop early.

    Returns:
        Losses and carry. Without `differentiable` both are detached.

    Raises:
        LearnedOptError: if `num_steps` is not positive, `problems` do not fit the task, or second
            order is asked for without `differentiable`.
    """
    require(num_steps >= 1, f"num_steps must be positive, got {num_steps}")
    found = {name: tuple(p.shape[1:]) for name, p in problems.params.items()}
    require(
        found == task.shapes,
        f"problems must hold parameters of shapes {task.shapes} for the task '{task.name}', "
        f"got {found}",
    )
    require(
        differentiable or not second_order, "second_order=True needs differentiable=True, got False"
    )
    carry = start(rule, problems) if carry is None else carry
    params, state, step = carry.params, carry.state, carry.step
    losses: list[Tensor] = []
    for _ in range(num_steps):
        batch = task.batch(problems, rng)
        loss, grads = loss_and_grads(
            task, params, problems, batch, differentiable=differentiable, second_order=second_order
        )
        losses.append(loss)
        if observe is not None:
            observe(step=step, params=detach(params), grads=detach(grads), losses=loss.detach())  # type: ignore[arg-type]
        if stop is not None and stop(loss.detach()):
            break
        with torch.set_grad_enabled(differentiable):
            updates, state = rule(
                grads,
                state,
                params,
                loss=loss if second_order else loss.detach(),
                rng=rng,
            )
            params = {name: p + updates[name] for name, p in params.items()}
        step += 1
    else:
        if final_loss:
            batch = task.batch(problems, rng)
            with torch.set_grad_enabled(differentiable):
                if differentiable and not second_order:
                    last, _ = loss_and_grads(
                        task, params, problems, batch, differentiable=True, second_order=False
                    )
                else:
                    last = task.loss(params, problems, batch)
            losses.append(last)
    carry = Carry(params=params, state=state, step=step)
    stacked = torch.stack(losses, dim=1)
    if not differentiable:
        return Unrolled(losses=stacked.detach(), carry=carry.detach())
    return Unrolled(losses=stacked, carry=carry)


def loss_and_grads(
    task: Task,
    params: Params,
    problems: Problems,
    batch: Tree | None,
    *,
    differentiable: bool = False,
    second_order: bool = False,
) -> tuple[Tensor, Params]:
    """What one evaluation of a task gives.

    Args:
        task: what the losses mean.
        params: where, each ``[N, *shape]``.
        problems: the instances.
        batch: what `Task.batch` drew, or None.
        differentiable: keep the losses attached to `params`.
        second_order: also keep the graph of the gradients.

    Returns:
        Losses ``[N]`` and gradients, each ``[N, *shape]``.
    """
    with torch.enable_grad():
        if second_order:
            points = {
                k: p if p.requires_grad else p.detach().requires_grad_() for k, p in params.items()
            }
        else:
            points = {k: p.detach().requires_grad_() for k, p in params.items()}
        loss = task.loss(points, problems, batch)
        slopes = torch.autograd.grad(
            loss, list(points.values()), torch.ones_like(loss), create_graph=second_order
        )
        grads = dict(zip(points, slopes, strict=True))
    if second_order:
        return loss, grads
    loss = loss.detach()
    if differentiable:
        tensors = (*params.values(), *grads.values())
        loss = _LossWithKnownGradient.apply(loss, len(grads), *tensors)
    return loss, grads
