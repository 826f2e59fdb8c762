"""Truncated back-propagation through the inner loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.meta.episodes import Episode, EpisodeSampler
from learned_opt.meta.estimators import Estimate, MetaGradient, trainable
from learned_opt.meta.objectives import Objective
from learned_opt.meta.replay import replay, unroll_with_gradients
from learned_opt.rules.base import Rule
from learned_opt.unroll import Unrolled, start, unroll


@final
@dataclass(frozen=True, kw_only=True)
class TruncatedBackpropagation(MetaGradient[Episode]):
    """Back-propagate through `truncation` inner steps, then go on from there, detached.

    Every outer step sees one truncation; an episode that reaches its horizon is followed by fresh
    problems. The estimate ignores what theta did before the truncation, so it is biased towards
    short-term gains (Wu et al. 2018, arXiv:1803.02021).

    Attributes:
        sampler: draws episodes.
        objective: what to minimise over a truncation.
        epsilon: relative floor of logarithmic objectives.
        truncation: inner steps an outer step, 20 in Andrychowicz et al. 2016 (arXiv:1606.04474).
        second_order: differentiate through the gradients that the rule sees.
        coordinate_share: share of the coordinates, drawn anew each time, that a first-order
            gradient of a coordinatewise rule is estimated from; 1 uses all. With a tenth, an outer
            step on a network costs about a third, and the gradient stays unbiased.
    """

    sampler: EpisodeSampler
    objective: Objective
    epsilon: float = 1e-6
    truncation: int = 20
    second_order: bool = False
    coordinate_share: float = 1.0

    def __post_init__(self) -> None:
        require(self.truncation >= 1, f"truncation must be positive, got {self.truncation}")
        require(self.epsilon > 0, f"epsilon must be positive, got {self.epsilon}")
        require(
            0 < self.coordinate_share <= 1,
            f"coordinate_share must lie in (0, 1], got {self.coordinate_share}",
        )
        require(
            self.coordinate_share == 1 or not self.second_order,
            "second_order=True needs coordinate_share=1, for second derivatives tie coordinates "
            f"together; got {self.coordinate_share}",
        )

    def estimate(
        self, rule: Rule, state: Episode | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[Episode]:
        """One truncation; see `MetaGradient.estimate`."""
        episode = self.sampler.draw(progress, rng) if state is None else state
        task, problems = self.sampler.tasks[episode.task], episode.problems
        num_steps = min(self.truncation, episode.horizon - episode.step)
        if self.coordinate_share < 1:
            unrolled, meta_loss, grads, initial = self._replay(
                rule, episode, num_steps=num_steps, rng=rng
            )
        else:
            unrolled = unroll(
                task,
                rule,
                problems,
                num_steps=num_steps,
                rng=rng,
                carry=episode.carry,
                differentiable=True,
                second_order=self.second_order,
            )
            meta_loss, initial = self._judge(unrolled.losses, episode)
            # A parameter that this truncation did not use (a learned initial state) gets zeros.
            grads = torch.autograd.grad(meta_loss, trainable(rule), materialize_grads=True)
        episode = replace(episode, carry=unrolled.carry.detach(), initial=initial)
        return Estimate(
            meta_loss=meta_loss.detach(),
            grads=grads,
            state=episode if episode.step < episode.horizon else None,
            diagnostics={
                "task": float(episode.task),
                "inner_step": float(episode.step),
                "horizon": float(episode.horizon),
            },
        )

    def _judge(self, losses: Tensor, episode: Episode) -> tuple[Tensor, Tensor]:
        """The meta-loss of a truncation, and the losses at the start of its episode."""
        initial = losses[:, 0].detach() if episode.initial is None else episode.initial
        meta_loss = self.objective(
            losses, facts=episode.problems.facts, initial=initial, epsilon=self.epsilon
        )
        return meta_loss, initial

    def _replay(
        self, rule: Rule, episode: Episode, *, num_steps: int, rng: torch.Generator
    ) -> tuple[Unrolled, Tensor, tuple[Tensor, ...], Tensor]:
        """The same from a share of the coordinates; see `learned_opt.meta.replay`."""
        task = self.sampler.tasks[episode.task]
        carry = start(rule, episode.problems) if episode.carry is None else episode.carry
        unrolled, gradients = unroll_with_gradients(
            task, rule, episode.problems, num_steps=num_steps, rng=rng, carry=carry
        )
        losses = unrolled.losses.requires_grad_()
        meta_loss, initial = self._judge(losses, episode)
        (loss_weights,) = torch.autograd.grad(meta_loss, losses)
        grads = replay(
            rule, carry.state, gradients, loss_weights, share=self.coordinate_share, rng=rng
        )
        return unrolled, meta_loss, grads, initial

    def pack(self, state: Episode) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        return state.pack()

    def unpack(self, packed: Mapping[str, Any]) -> Episode:
        """See `MetaGradient.unpack`."""
        return Episode.unpack(packed)
