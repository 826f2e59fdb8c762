"""The pairs of one task: one truncation of all of them, and what each says of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.estimators import flat_theta
from learned_opt.meta.lanes import perturbed
from learned_opt.meta.objectives import Objective, OverSteps, judge_steps
from learned_opt.meta.particles import Particles, fresh_particles, run_particles
from learned_opt.meta.perturbations import Noise, NoiseSchedule
from learned_opt.rules.base import Rule


@final
@dataclass(frozen=True, kw_only=True)
class Population:
    """The pairs of one task, between truncations.

    Attributes:
        particles: their episodes.
        noise: their perturbations.
    """

    particles: Particles
    noise: Noise

    def ended(self, which: Tensor) -> Population:
        """The same with the episodes of some pairs, ``[P]`` bool on the CPU, declared over."""
        horizons = torch.where(which, self.particles.steps, self.particles.horizons)
        return replace(self, particles=replace(self.particles, horizons=horizons))

    def pack(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers, as a checkpoint holds them."""
        return {"particles": self.particles.pack(), "noise": dict(vars(self.noise))}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Population:
        """Undo `pack`."""
        particles = Particles.unpack(packed["particles"])
        return cls(particles=particles, noise=Noise(**packed["noise"]))


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the pairs of one task say after a truncation.

    Attributes:
        evolution: ``[P, D]`` gradients from differences of losses; 0 for pairs that are not finite.
        backpropagation: ``[P, D]`` gradients of the same losses, 0 likewise; None unless asked for.
            An entry may be infinite or NaN where the losses are not.
        meta_losses: ``[P]`` means over the two signs; 0 likewise.
        is_finite: ``[P]`` whether all losses of a pair were finite.
        population: where the pairs stand; those that are not finite begin anew.
    """

    evolution: Tensor
    backpropagation: Tensor | None
    meta_losses: Tensor
    is_finite: Tensor
    population: Population


@final
@dataclass(frozen=True, kw_only=True)
class PairRunner:
    """Runs the pairs of one task.

    Attributes:
        sampler: the tasks and the horizon.
        task: position of the task in the sampler's list.
        num_pairs: ``P``.
        num_problems: ``M``, problems a pair.
        objective: what to minimise, judged on each step alone.
        over_steps: how steps add up to the meta-loss of a truncation.
        schedule: when noise is drawn and what it is credited with.
        sigma: standard deviation of the noise.
        truncation: inner steps.
        epsilon: relative floor of logarithmic objectives.
    """

    sampler: EpisodeSampler
    task: int
    num_pairs: int
    num_problems: int
    objective: Objective
    over_steps: OverSteps
    schedule: NoiseSchedule
    sigma: float
    truncation: int
    epsilon: float

    def head_start(self, rule: Rule, *, progress: float, rng: torch.Generator) -> Population | None:
        """Pairs at evenly spaced places of their episodes, or None if one truncation is an episode.

        Args:
            rule: whose theta is perturbed.
            progress: the fraction of outer steps done.
            rng: CPU generator, advanced.

        Returns:
            The pairs, after as many truncations as the foremost is ahead.
        """
        per_episode = -(-self.sampler.horizon.longest // self.truncation)
        leads = torch.arange(self.num_pairs) * per_episode // self.num_pairs
        population, last = None, int(leads.max())
        for done in range(1, last + 1):
            outcome = self.advance(rule, population, progress=progress, rng=rng)
            # Who shall be `last - done` ahead in the end begins (anew) now.
            population = outcome.population.ended(leads == last - done)
        return population

    def advance(
        self,
        rule: Rule,
        population: Population | None,
        *,
        progress: float,
        rng: torch.Generator,
        differentiable: bool = False,
        second_order: bool = False,
    ) -> Outcome:
        """Run every pair for one truncation.

        Args:
            rule: whose theta is perturbed.
            population: where the pairs stand; None starts them.
            progress: the fraction of outer steps done.
            rng: CPU generator, advanced.
            differentiable: also back-propagate through each pair's runs.
            second_order: in that, differentiate through the gradients that the rule sees.

        Returns:
            What each pair says, and where it stands.
        """
        theta, lanes = flat_theta(rule), self.schedule.lanes

        def draw(count: int) -> Tensor:
            drawn = torch.randn(count, len(theta), generator=rng, dtype=theta.dtype)
            return self.sigma * drawn.to(theta.device)

        zeros = theta.new_zeros(self.num_pairs, len(theta))
        if population is None:
            particles, noise = None, Noise(current=zeros, credit=zeros)
        else:
            particles, noise = population.particles, population.noise
            if 0 in lanes:
                particles = particles.gathered(lanes.index(0))
        noise = self.schedule.at_truncation(noise, draw)
        # A theta for each pair, so that one backward pass tells their gradients apart.
        centres = theta.repeat(self.num_pairs, 1).requires_grad_(differentiable)
        evolution, total = zeros, zeros[:, 0]
        is_finite = torch.ones_like(total, dtype=torch.bool)
        left = self.truncation
        while left:
            over = torch.arange(self.num_pairs) if particles is None else particles.over
            if len(over):
                where = over.to(theta.device)
                noise = self.schedule.at_episode(noise, where, draw)
                thetas = perturbed(centres[where], noise.current[where], lanes)
                fresh = fresh_particles(
                    self.sampler,
                    self.task,
                    rule,
                    thetas,
                    num_problems=self.num_problems,
                    progress=progress,
                    rng=rng,
                )
                particles = fresh if particles is None else particles.replaced(over, fresh)
            assert particles is not None
            num_steps = min(left, particles.longest_run)
            particles, losses = run_particles(
                particles,
                self.sampler.tasks[self.task],
                rule,
                perturbed(centres, noise.current, lanes),
                num_steps=num_steps,
                rng=rng,
                differentiable=differentiable,
                second_order=second_order,
            )
            values, is_sound = self._judge(particles, losses)
            is_finite = is_finite & is_sound
            difference = (values[:, 0] - values[:, 1]).detach() / (2 * self.sigma**2)
            evolution = evolution + difference[:, None] * noise.credit
            total = total + values.mean(1)
            left -= num_steps
        assert particles is not None
        particles = replace(particles, carry=particles.carry.detach())
        slopes = None
        if differentiable:
            (slopes,) = torch.autograd.grad(total[is_finite].sum(), centres)
            slopes = torch.where(is_finite[:, None], slopes, 0.0)
        return Outcome(
            evolution=torch.where(is_finite[:, None], evolution, 0.0),
            backpropagation=slopes,
            meta_losses=torch.where(is_finite, total.detach(), 0.0),
            is_finite=is_finite,
            population=Population(particles=particles, noise=noise).ended(~is_finite.cpu()),
        )

    def _judge(self, particles: Particles, losses: Tensor) -> tuple[Tensor, Tensor]:
        """What some steps add to the meta-losses of both signs, ``[P, 2]``, and who is finite."""
        terms = judge_steps(
            self.objective,
            losses,
            facts=particles.problems.facts,
            initial=particles.initial,
            epsilon=self.epsilon,
        )
        is_finite = terms.isfinite().flatten(1).all(1)
        if self.over_steps == "last":
            is_end = (particles.steps == particles.horizons).to(terms.device)[:, None]
            values = torch.where(is_end, terms[:, :2, -1], 0.0)
        elif self.over_steps == "sum":
            values = terms[:, :2].sum(-1)
        else:
            values = terms[:, :2].sum(-1) / self.truncation
        return values, is_finite
