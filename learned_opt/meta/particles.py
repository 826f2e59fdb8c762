"""Pairs of inner loops under opposite perturbations, each at its own place in its own episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.meta.episodes import EpisodeSampler, pack_problems, unpack_problems
from learned_opt.meta.lanes import Lanes, SharedDraws
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.trees import Tree, replace_rows, tree_map
from learned_opt.unroll import Carry, start, unroll


@final
@dataclass(frozen=True, kw_only=True)
class Particles:
    """``P`` pairs on one task; each has ``M`` problems, and ``S`` lanes on all of them.

    Attributes:
        problems: the ``P M`` instances, pair by pair.
        carry: where the ``P S M`` loops stand, ordered by pair, lane and problem; its own count of
            steps says nothing.
        initial: ``[P, M]`` losses before the first step of each episode.
        steps: ``[P]`` inner steps taken in each episode, on the CPU.
        horizons: ``[P]`` steps after which each ends, on the CPU.
    """

    problems: Problems
    carry: Carry
    initial: Tensor
    steps: Tensor
    horizons: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pairs, lanes and problems: ``(P, S, M)``."""
        num_pairs, num_problems = self.initial.shape
        num_rows = len(next(iter(self.carry.params.values())))
        return num_pairs, num_rows // (num_pairs * num_problems), num_problems

    @property
    def over(self) -> Tensor:
        """Positions of the pairs whose episode has ended."""
        return (self.steps >= self.horizons).nonzero().flatten()

    @property
    def longest_run(self) -> int:
        """Steps that all pairs can take before an episode ends."""
        return int((self.horizons - self.steps).min())

    def gathered(self, lane: int) -> Particles:
        """All lanes of a pair where its `lane` stands."""

        def spread(leaf: Tensor) -> Tensor:
            lanes: Tensor = leaf.unflatten(0, self.shape)
            return lanes[:, lane : lane + 1].expand_as(lanes).flatten(0, 2)

        carry = tree_map(spread, _as_tree(self.carry))
        return replace(self, carry=Carry(**carry))  # type: ignore[arg-type]

    def replaced(self, index: Tensor, fresh: Particles) -> Particles:
        """Put fresh episodes in the places of the pairs that `index` names."""
        where = index.to(self.initial.device)
        _, num_lanes, num_problems = self.shape
        problems = _rows_of(where, num_problems)
        carry = replace_rows(
            _as_tree(self.carry), _rows_of(where, num_lanes * num_problems), _as_tree(fresh.carry)
        )
        old, new = self.problems, fresh.problems
        facts = replace_rows(_tensors(old.facts), problems, _tensors(new.facts))
        return Particles(
            problems=Problems(
                params=replace_rows(old.params, problems, new.params),  # type: ignore[arg-type]
                constants=replace_rows(old.constants, problems, new.constants),
                facts=Facts(
                    **facts,  # type: ignore[arg-type]
                    is_lower_bound=old.facts.is_lower_bound or new.facts.is_lower_bound,
                ),
            ),
            carry=Carry(**carry),  # type: ignore[arg-type]
            initial=self.initial.index_copy(0, where, fresh.initial),
            steps=self.steps.index_copy(0, index, fresh.steps),
            horizons=self.horizons.index_copy(0, index, fresh.horizons),
        )

    def pack(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers, as a checkpoint holds them."""
        return {
            **pack_problems(self.problems),
            "carry": dict(vars(self.carry)),
            "initial": self.initial,
            "steps": self.steps,
            "horizons": self.horizons,
        }

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Particles:
        """Undo `pack`."""
        return cls(
            problems=unpack_problems(packed),
            carry=Carry(**packed["carry"]),
            initial=packed["initial"],
            steps=packed["steps"].cpu(),
            horizons=packed["horizons"].cpu(),
        )


def fresh_particles(
    sampler: EpisodeSampler,
    task: int,
    rule: Rule,
    thetas: Tensor,
    *,
    num_problems: int,
    progress: float,
    rng: torch.Generator,
) -> Particles:
    """Draw an episode for each of some pairs.

    Args:
        sampler: the tasks and the horizon.
        task: position of the task in the sampler's list.
        rule: the rule.
        thetas: ``[K, S, D]`` what the lanes run with.
        num_problems: ``M``, problems a pair.
        progress: the fraction of outer steps done.
        rng: CPU generator, advanced.

    Returns:
        ``K`` pairs before their first step.
    """
    num_pairs, num_lanes, _ = thetas.shape
    horizons = torch.tensor([sampler.horizon.draw(progress, rng) for _ in range(num_pairs)])
    problems = sampler.tasks[task].sample(
        num_pairs * num_problems, seed=rng, dtype=sampler.dtype, device=sampler.device
    )
    rows = _problem_rows((num_pairs, num_lanes, num_problems), device=thetas.device)
    return Particles(
        problems=problems,
        carry=start(Lanes(rule, thetas), problems.select(rows)),
        initial=problems.facts.minimum.new_zeros(num_pairs, num_problems),
        steps=torch.zeros_like(horizons),
        horizons=horizons,
    )


def run_particles(
    particles: Particles,
    task: Task,
    rule: Rule,
    thetas: Tensor,
    *,
    num_steps: int,
    rng: torch.Generator,
    differentiable: bool = False,
    second_order: bool = False,
) -> tuple[Particles, Tensor]:
    """Let all pairs take some steps, none beyond its horizon.

    Args:
        particles: where they stand.
        task: what the losses mean.
        rule: the rule.
        thetas: ``[P, S, D]`` what the lanes run with.
        num_steps: inner steps.
        rng: CPU generator, advanced.
        differentiable: keep the graph from `thetas` to the losses.
        second_order: also through the gradients that the rule sees.

    Returns:
        Where the pairs stand now, and their losses ``[P, S, M, num_steps + 1]``.
    """
    rows = _problem_rows(particles.shape, device=thetas.device)
    unrolled = unroll(
        SharedDraws(task, particles.problems, rows),
        Lanes(rule, thetas),
        particles.problems.select(rows),
        num_steps=num_steps,
        rng=rng,
        carry=particles.carry,
        differentiable=differentiable,
        second_order=second_order,
    )
    losses = unrolled.losses.unflatten(0, particles.shape)
    begins = (particles.steps == 0).to(losses.device)[:, None]
    initial = torch.where(begins, losses[:, 0, :, 0].detach(), particles.initial)
    steps = particles.steps + num_steps
    return replace(particles, carry=unrolled.carry, initial=initial, steps=steps), losses


def _problem_rows(shape: tuple[int, int, int], *, device: torch.device) -> Tensor:
    """For each row ``[P S M]`` of a batch the position of its problem among ``[P M]``."""
    num_pairs, _, num_problems = shape
    problems = torch.arange(num_pairs * num_problems, device=device)
    return problems.view(num_pairs, 1, num_problems).expand(shape).flatten()


def _rows_of(pairs: Tensor, size: int) -> Tensor:
    """The rows of some pairs where each pair has `size` of them."""
    return (pairs[:, None] * size + torch.arange(size, device=pairs.device)).flatten()


def _tensors(facts: Facts) -> Tree:
    return {name: value for name, value in vars(facts).items() if isinstance(value, Tensor)}


def _as_tree(carry: Carry) -> Tree:
    return {"params": dict(carry.params), "state": carry.state}
