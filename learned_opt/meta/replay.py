r"""First-order meta-gradients from a random share of the coordinates.

A coordinatewise rule moves each coordinate by itself, and a first-order meta-gradient takes the
gradients that the rule sees as given. So the meta-gradient is a sum over coordinates,

$$ \frac{dM}{d\theta} = \sum_{t, n} \frac{\partial M}{\partial f_{t,n}}
   \sum_i g_{t,n,i} \frac{dx_{t,n,i}}{d\theta}, $$

and a uniformly drawn share of its terms, scaled up, is an unbiased estimate. The inner loop runs
once without a graph; then the rule alone is replayed on the chosen coordinates with one.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.meta.estimators import trainable
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Params, Tree, flatten, tree_map
from learned_opt.unroll import Carry, Unrolled, unroll


def unroll_with_gradients(
    task: Task,
    rule: Rule,
    problems: Problems,
    *,
    num_steps: int,
    rng: torch.Generator,
    carry: Carry | None = None,
) -> tuple[Unrolled, list[Tensor]]:
    """`unroll` without a graph, and the gradients along the way.

    Args:
        task: what the losses mean.
        rule: how to move.
        problems: the instances.
        num_steps: steps to take.
        rng: generator, advanced as by `unroll`.
        carry: where to go on from; None starts anew.

    Returns:
        Losses and carry, and ``num_steps + 1`` gradients ``[N, P]``, one for each loss.
    """
    gradients: list[Tensor] = []

    def observe(*, step: int, params: Params, grads: Params, losses: Tensor) -> None:
        del step, params, losses
        gradients.append(flatten(grads))

    # One evaluation more than steps: the run is stopped before it would move again.
    unrolled = unroll(
        task,
        rule,
        problems,
        num_steps=num_steps + 1,
        rng=rng,
        carry=carry,
        observe=observe,
        stop=lambda losses: len(gradients) > num_steps,
    )
    return unrolled, gradients


def replay(
    rule: Rule,
    state: Tree,
    gradients: list[Tensor],
    loss_weights: Tensor,
    *,
    share: float,
    rng: torch.Generator,
) -> tuple[Tensor, ...]:
    """The meta-gradient, estimated from a share of the coordinates.

    Args:
        rule: a rule with `Rule.coordinatewise`.
        state: its state before the first of the steps.
        gradients: ``T + 1`` gradients ``[N, P]``, see `unroll_with_gradients`.
        loss_weights: ``[N, T + 1]`` derivatives of the meta-objective by the losses.
        share: of the coordinates to use, in (0, 1]; at least one is.
        rng: CPU generator, advanced unless all are used.

    Returns:
        A gradient for each of `trainable`.

    Raises:
        LearnedOptError: if the rule moves no coordinate by itself, or `share` is out of range.
    """
    require(
        rule.coordinatewise,
        f"rule '{rule.name}' is not coordinatewise, so coordinate_share must be 1",
    )
    require(0 < share <= 1, f"coordinate_share must lie in (0, 1], got {share}")
    num_coordinates = gradients[0].shape[1]
    count = max(1, round(share * num_coordinates))
    if count < num_coordinates:
        chosen = torch.randperm(num_coordinates, generator=rng)[:count].to(gradients[0].device)
        gradients = [g[:, chosen] for g in gradients]
        # Leaves with one number a problem (a step count) have no coordinates to choose from.
        state = tree_map(lambda leaf: leaf[:, chosen] if leaf.dim() > 1 else leaf, state)
    # Where a coordinate lies does not matter to its derivative, only how it moved.
    moved = torch.zeros_like(gradients[0])
    total = moved.new_zeros(())
    for t, (seen, met) in enumerate(itertools.pairwise(gradients), start=1):
        updates, state = rule({"x": seen}, state, {"x": moved})
        moved = moved + updates["x"]
        total = total + (loss_weights[:, t : t + 1] * met * moved).sum()
    total = total * (num_coordinates / count)
    return torch.autograd.grad(total, trainable(rule), materialize_grads=True)
