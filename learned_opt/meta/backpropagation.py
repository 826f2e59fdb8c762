"""Back-propagation through whole inner loops, in little memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.estimators import Estimate, MetaGradient, trainable
from learned_opt.meta.objectives import Objective
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Tree, leaves, tree_map
from learned_opt.unroll import Carry, Unrolled, unroll


@final
@dataclass(frozen=True, kw_only=True)
class Backpropagation(MetaGradient[None]):
    """Back-propagate through all inner steps of an episode, one episode an outer step.

    Nothing is truncated, so the gradient has no bias towards short-term gains; where the inner loop
    is chaotic it explodes (Metz et al. 2019, arXiv:1810.10180). Memory is that of
    `checkpointed_gradient`.

    Attributes:
        sampler: draws episodes.
        objective: what to minimise over an episode.
        epsilon: relative floor of logarithmic objectives.
        segment_length: inner steps whose graph is held at a time; None takes the root of the
            horizon.
        second_order: differentiate through the gradients that the rule sees.
    """

    sampler: EpisodeSampler
    objective: Objective
    epsilon: float = 1e-6
    segment_length: int | None = None
    second_order: bool = False

    def __post_init__(self) -> None:
        require(self.epsilon > 0, f"epsilon must be positive, got {self.epsilon}")
        require(
            self.segment_length is None or self.segment_length >= 1,
            f"segment_length must be positive or None, got {self.segment_length}",
        )

    def estimate(
        self, rule: Rule, state: None, *, progress: float, rng: torch.Generator
    ) -> Estimate[None]:
        """One episode; see `MetaGradient.estimate`."""
        del state
        episode = self.sampler.draw(progress, rng)
        facts = episode.problems.facts

        def judge(losses: Tensor) -> Tensor:
            initial = losses[:, 0].detach()
            return self.objective(losses, facts=facts, initial=initial, epsilon=self.epsilon)

        meta_loss, grads = checkpointed_gradient(
            self.sampler.tasks[episode.task],
            rule,
            episode.problems,
            judge,
            num_steps=episode.horizon,
            segment_length=self.segment_length or math.ceil(math.sqrt(episode.horizon)),
            second_order=self.second_order,
            rng=rng,
        )
        return Estimate(
            meta_loss=meta_loss,
            grads=grads,
            state=None,
            diagnostics={"task": float(episode.task), "horizon": float(episode.horizon)},
        )

    def pack(self, state: None) -> dict[str, Any]:
        """Nothing: every outer step begins anew."""
        del state
        return {}

    def unpack(self, packed: Mapping[str, Any]) -> None:
        """Undo `pack`."""
        del packed


@final
@dataclass(frozen=True, kw_only=True)
class _Segment:
    """Some consecutive inner steps, all that is needed to take them again.

    Attributes:
        carry: where they begin, in leaves of a graph of their own; None at the start.
        random: state of the generator there.
        num_steps: how many.
        is_last: whether the loss after them is theirs too.
    """

    carry: Carry | None
    random: Tensor
    num_steps: int
    is_last: bool

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What of the carry a gradient may flow into, by name."""
        return {} if self.carry is None else _differentiable(self.carry)


def checkpointed_gradient(
    task: Task,
    rule: Rule,
    problems: Problems,
    judge: Callable[[Tensor], Tensor],
    *,
    num_steps: int,
    segment_length: int,
    second_order: bool = False,
    rng: torch.Generator,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradient of a whole inner loop, with the graph of one segment in memory at a time.

    The loop is run once and only the places where segments begin are kept, with the state of the
    generator. Then segments are taken again, last first, each from its beginning and with the same
    minibatches and noise. This costs one more run of the inner loop and gives the same gradient as
    one graph for all steps, of which it holds ``segment_length`` at a time and
    ``num_steps / segment_length`` places: least for segments of ``sqrt(num_steps)`` steps.

    Args:
        task: what the losses mean.
        rule: whose theta the gradient is by.
        problems: ``N`` instances.
        judge: from ``[N, num_steps + 1]`` losses to the scalar to minimise.
        num_steps: inner steps.
        segment_length: inner steps of a segment; the last may be shorter.
        second_order: see `unroll`.
        rng: CPU generator, advanced as by one `unroll`.

    Returns:
        The scalar, detached, and a gradient for each of `trainable`.

    References:
        Griewank 1992, "Achieving logarithmic growth of temporal and spatial complexity in reverse
        automatic differentiation"; Chen et al. 2016 (arXiv:1604.06174) for the root.
    """

    def run(segment: _Segment, rng: torch.Generator) -> Unrolled:
        return unroll(
            task,
            rule,
            problems,
            num_steps=segment.num_steps,
            rng=rng,
            carry=segment.carry,
            differentiable=True,
            second_order=second_order,
            final_loss=segment.is_last,
        )

    segments: list[_Segment] = []
    losses: list[Tensor] = []
    carry: Carry | None = None
    for begin in range(0, num_steps, segment_length):
        end = min(begin + segment_length, num_steps)
        segments.append(
            _Segment(
                carry=carry,
                random=rng.get_state(),
                num_steps=end - begin,
                is_last=end == num_steps,
            )
        )
        # With a graph, though most are dropped: some rules round differently without one, and the
        # second run must meet the same numbers as the first.
        unrolled = run(segments[-1], rng)
        losses.append(unrolled.losses.detach())
        carry = _as_leaves(unrolled.carry)
        if not segments[-1].is_last:
            del unrolled  # and with it the graph, before the next one grows

    whole = torch.cat(losses, dim=1).requires_grad_()
    meta_loss = judge(whole)
    (weights,) = torch.autograd.grad(meta_loss, whole)
    theta = trainable(rule)
    total = [torch.zeros_like(parameter) for parameter in theta]
    slopes: dict[str, Tensor | None] = {}
    parts = weights.split([part.shape[1] for part in losses], dim=1)
    for segment, weight in zip(reversed(segments), reversed(parts), strict=True):
        if not segment.is_last:
            unrolled = run(segment, torch.Generator().set_state(segment.random))
        outputs, received = [unrolled.losses], [weight]
        for name, leaf in _differentiable(unrolled.carry).items():
            slope = slopes.get(name)
            if slope is not None:
                outputs.append(leaf)
                received.append(slope)
        found = _pull_back(outputs, received, [*theta, *segment.inputs.values()])
        for position, grad in enumerate(found[: len(theta)]):
            if grad is not None:
                total[position] = total[position] + grad
        slopes = dict(zip(segment.inputs, found[len(theta) :], strict=True))
    return meta_loss.detach(), tuple(total)


def _as_leaves(carry: Carry) -> Carry:
    """The same place, its numbers leaves of a new graph."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.is_floating_point())

    return Carry(
        params=tree_map(leaf, dict(carry.params)),  # type: ignore[arg-type]
        state=tree_map(leaf, carry.state),
        step=carry.step,
    )


def _differentiable(carry: Carry) -> dict[str, Tensor]:
    """The tensors of a carry that require gradients, by name."""
    tree: Tree = {"params": dict(carry.params), "state": carry.state}
    return {name: leaf for name, leaf in leaves(tree).items() if leaf.requires_grad}


def _pull_back(
    outputs: list[Tensor], received: list[Tensor], inputs: list[Tensor]
) -> list[Tensor | None]:
    """Vector-Jacobian product; None for inputs without influence, and if nothing has any."""
    pairs = [(y, slope) for y, slope in zip(outputs, received, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    known, slopes = zip(*pairs, strict=True)
    return list(torch.autograd.grad(known, inputs, slopes, allow_unused=True))
