"""Truncated back-propagation through the inner loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from learned_opt.errors import require
from learned_opt.meta.episodes import Episode, EpisodeSampler
from learned_opt.meta.estimators import Estimate, MetaGradient, trainable
from learned_opt.meta.objectives import Objective
from learned_opt.rules.base import Rule
from learned_opt.unroll import unroll


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
    """

    sampler: EpisodeSampler
    objective: Objective
    epsilon: float = 1e-6
    truncation: int = 20
    second_order: bool = False

    def __post_init__(self) -> None:
        require(self.truncation >= 1, f"truncation must be positive, got {self.truncation}")
        require(self.epsilon > 0, f"epsilon must be positive, got {self.epsilon}")

    def estimate(
        self, rule: Rule, state: Episode | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[Episode]:
        """One truncation; see `MetaGradient.estimate`."""
        episode = self.sampler.draw(progress, rng) if state is None else state
        task, problems = self.sampler.tasks[episode.task], episode.problems
        unrolled = unroll(
            task,
            rule,
            problems,
            num_steps=min(self.truncation, episode.horizon - episode.step),
            rng=rng,
            carry=episode.carry,
            differentiable=True,
            second_order=self.second_order,
        )
        initial = unrolled.losses[:, 0].detach() if episode.initial is None else episode.initial
        meta_loss = self.objective(
            unrolled.losses, facts=problems.facts, initial=initial, epsilon=self.epsilon
        )
        # A parameter that this truncation did not use (a learned initial state, say) gets zeros.
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

    def pack(self, state: Episode) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        return state.pack()

    def unpack(self, packed: Mapping[str, Any]) -> Episode:
        """See `MetaGradient.unpack`."""
        return Episode.unpack(packed)
