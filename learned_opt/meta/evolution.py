r"""Evolution strategies: the meta-gradient from what pairs of perturbed thetas lose.

For each pair $i$ a perturbation $\epsilon_i \sim N(0, \sigma^2 I)$ is added to theta in one run and
taken off in another, on the same problems with the same random numbers. The differences of their
meta-losses estimate the gradient of the meta-loss smoothed by the noise; nothing is differentiated,
so chaos, plateaus and decisions cost variance instead of everything.

The meta-loss of a truncation is made of its steps, each judged alone, so how an episode is cut into
truncations does not change what they add up to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.estimators import Estimate, MetaGradient, like_theta
from learned_opt.meta.objectives import Objective, OverSteps
from learned_opt.meta.perturbations import NoiseSchedule
from learned_opt.meta.populations import Outcome, PairRunner, Population
from learned_opt.rules.base import Rule


@final
@dataclass(frozen=True, kw_only=True)
class EvolutionState:
    """Where evolution strategies stand.

    Attributes:
        populations: one for each task.
        gradient: ``[D]`` the last estimate; None before the first.
    """

    populations: tuple[Population, ...]
    gradient: Tensor | None = None


@final
@dataclass(frozen=True, kw_only=True)
class EvolutionStrategies(MetaGradient[EvolutionState]):
    """ES, PES, ES-Single or NRES, as the schedule of the noise says.

    Every pair has a group of problems and a clock of its own, and all pairs of a task move as one
    batch. A pair whose episode ends within a truncation begins the next one there and then. A pair
    with a loss that is not finite is left out, both its runs, counted, and begins anew.

    Attributes:
        sampler: the tasks; its ``num_problems`` counts the problems of all pairs together. Each
            task has pairs of its own, by its weight but at least one.
        objective: what to minimise, judged on each step alone.
        schedule: when noise is drawn and what it is credited with.
        over_steps: how steps add up: their ``sum`` or ``mean`` over a truncation, or the ``last``
            one of an episode, which alone counts in the truncation where it falls.
        sigma: standard deviation of the noise, in units of theta.
        num_pairs: pairs; each has an equal part of the problems.
        truncation: inner steps an estimate.
        is_staggered: spread the clocks of a task's pairs over the episode, so that every estimate
            sees all parts of it; the first estimate runs up to an episode ahead for that. Otherwise
            all pairs start together.
        epsilon: relative floor of logarithmic objectives.

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Metz et al. 2019 (arXiv:1810.10180) for ES in meta-training; see `perturbations` for the
        variants.
    """

    sampler: EpisodeSampler
    objective: Objective
    schedule: NoiseSchedule
    over_steps: OverSteps = "mean"
    sigma: float = 0.01
    num_pairs: int = 16
    truncation: int = 20
    is_staggered: bool = True
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        require(self.truncation >= 1, f"truncation must be positive, got {self.truncation}")
        require(self.epsilon > 0, f"epsilon must be positive, got {self.epsilon}")
        require(self.sigma > 0, f"sigma must be positive, got {self.sigma}")
        require(self.num_pairs >= 1, f"num_pairs must be positive, got {self.num_pairs}")
        require(
            self.sampler.num_problems % self.num_pairs == 0,
            f"num_problems must be a multiple of num_pairs={self.num_pairs}, "
            f"got {self.sampler.num_problems}",
        )
        require(
            self.num_pairs >= len(self.shares),
            f"num_pairs must be at least the number of tasks, {len(self.shares)}, "
            f"got {self.num_pairs}",
        )

    @property
    def shares(self) -> dict[int, float]:
        """What each task weighs in the meta-loss, by its position; those of weight 0 are absent."""
        weights = self.sampler.weights or (1.0,) * len(self.sampler.tasks)
        return {task: weight / sum(weights) for task, weight in enumerate(weights) if weight > 0}

    @property
    def runners(self) -> list[PairRunner]:
        """One for each task of `shares`: a pair each, and the rest where most are missing."""
        shares = self.shares
        counts = dict.fromkeys(shares, 1)
        for _ in range(self.num_pairs - len(counts)):
            missing = {task: shares[task] * self.num_pairs - counts[task] for task in counts}
            counts[max(missing, key=missing.__getitem__)] += 1
        return [
            PairRunner(
                sampler=self.sampler,
                task=task,
                num_pairs=count,
                num_problems=self.sampler.num_problems // self.num_pairs,
                objective=self.objective,
                over_steps=self.over_steps,
                schedule=self.schedule,
                sigma=self.sigma,
                truncation=self.truncation,
                epsilon=self.epsilon,
            )
            for task, count in counts.items()
        ]

    def estimate(
        self, rule: Rule, state: EvolutionState | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[EvolutionState]:
        """One truncation of every pair; see `MetaGradient.estimate`."""
        outcomes = self.outcomes(rule, state, progress=progress, rng=rng)
        weights = self.weights(outcomes)
        gradient, variance = weighted_mean(torch.cat([o.evolution for o in outcomes]), weights)
        return summary(rule, state, outcomes, weights, gradient=gradient, variance=variance)

    def outcomes(
        self,
        rule: Rule,
        state: EvolutionState | None,
        *,
        progress: float,
        rng: torch.Generator,
        differentiable: bool = False,
        second_order: bool = False,
    ) -> list[Outcome]:
        """Run every pair of every task for one truncation; see `PairRunner.advance`.

        Args:
            rule: whose theta is perturbed.
            state: where the pairs stand; None starts them.
            progress: the fraction of outer steps done.
            rng: CPU generator, advanced.
            differentiable: also back-propagate.
            second_order: in that, differentiate through the gradients that the rule sees.

        Returns:
            What the pairs of each task say.
        """
        populations: list[Population | None]
        if state is not None:
            populations = list(state.populations)
        elif self.is_staggered:
            populations = [r.head_start(rule, progress=progress, rng=rng) for r in self.runners]
        else:
            populations = [None] * len(self.shares)
        return [
            runner.advance(
                rule,
                population,
                progress=progress,
                rng=rng,
                differentiable=differentiable,
                second_order=second_order,
            )
            for runner, population in zip(self.runners, populations, strict=True)
        ]

    def weights(self, outcomes: list[Outcome]) -> Tensor:
        """What each pair weighs in the estimate.

        Args:
            outcomes: what `outcomes` returned.

        Returns:
            ``[P]`` numbers summing to 1: the finite pairs of a task share alike what it weighs,
            the others weigh nothing, nor does a task without a finite pair. All are NaN where no
            pair is finite, so that the trainer takes notice.
        """
        parts = []
        for share, outcome in zip(self.shares.values(), outcomes, strict=True):
            is_finite = outcome.is_finite.to(outcome.meta_losses)
            parts.append(share * is_finite / is_finite.sum().clamp_min(1))
        weights = torch.cat(parts)
        return weights / weights.sum()

    def pack(self, state: EvolutionState) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        return {
            "populations": [population.pack() for population in state.populations],
            "gradient": state.gradient,
        }

    def unpack(self, packed: Mapping[str, Any]) -> EvolutionState:
        """See `MetaGradient.unpack`."""
        return EvolutionState(
            populations=tuple(Population.unpack(each) for each in packed["populations"]),
            gradient=packed["gradient"],
        )


def weighted_mean(samples: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""The mean of independent samples and an estimate of its variance.

    $$ \bar x = \sum_i w_i x_i, \qquad
       \widehat{\mathrm{Var}}(\bar x) = \frac{\sum_i w_i^2 (x_i - \bar x)^2}{1 - \sum_i w_i^2} $$

    Args:
        samples: ``[P, D]``.
        weights: ``[P]``, summing to 1.

    Returns:
        Mean and variance of the mean, each ``[D]``; the variance is NaN if one sample has all the
        weight.

    Examples:
        >>> samples = torch.tensor([[1.0], [3.0], [100.0]])
        >>> [x.item() for x in weighted_mean(samples, torch.tensor([0.5, 0.5, 0.0]))]
        [2.0, 1.0]
    """
    mean = weights @ samples
    squares = weights.square()
    return mean, squares @ (samples - mean).square() / (1 - squares.sum())


def summary(
    rule: Rule,
    state: EvolutionState | None,
    outcomes: list[Outcome],
    weights: Tensor,
    *,
    gradient: Tensor,
    variance: Tensor,
    metrics: Mapping[str, float] | None = None,
) -> Estimate[EvolutionState]:
    """An estimate, with what is worth knowing about it.

    Args:
        rule: whose gradient it is.
        state: where the estimator stood.
        outcomes: what the pairs say.
        weights: ``[P]`` what they weigh.
        gradient: ``[D]`` the estimate.
        variance: ``[D]`` its variance.
        metrics: what else to log.

    Returns:
        The estimate. Its metrics: ``gradient_std``, the root of the total variance, to be compared
        with the gradient's norm; ``nonfinite_pairs``, left out; ``clock_spread``, the standard
        deviation of the places in the episode, from 0 (all alike) to 0.29 (evenly spread) and
        beyond; ``cosine_to_last``, of the gradient and the one before. What is not known is absent.
    """
    meta_losses = torch.cat([outcome.meta_losses for outcome in outcomes])
    particles = [outcome.population.particles for outcome in outcomes]
    clocks = torch.cat([(p.steps % p.horizons).double() / p.horizons for p in particles])
    found = {
        "nonfinite_pairs": float(sum((~o.is_finite).sum().item() for o in outcomes)),
        "clock_spread": clocks.std(correction=0).item(),
        "gradient_std": variance.sum().sqrt().item(),
        **(metrics or {}),
    }
    if state is not None and state.gradient is not None:
        found["cosine_to_last"] = torch.cosine_similarity(gradient, state.gradient, dim=0).item()
    return Estimate(
        meta_loss=weights @ meta_losses,
        grads=like_theta(gradient, rule),
        state=EvolutionState(
            populations=tuple(outcome.population for outcome in outcomes), gradient=gradient
        ),
        diagnostics=found,
        metrics={name: value for name, value in found.items() if math.isfinite(value)},
    )
