"""The lanes of all tasks as one batch, whatever is played together and what apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from learned_opt.actuators import Actuator
from learned_opt.meta.arena import Arena, Outcome, Standing
from learned_opt.meta.horizons import Horizon
from learned_opt.tasks.base import Task
from learned_opt.tasks.mixture import Mixture


@final
@dataclass(frozen=True, kw_only=True)
class Arenas:
    """One arena for all deterministic tasks together, one for each with minibatches or noise.

    Where all lanes stand is a list of what the arenas call a standing. Tensors hold the lanes of
    the first arena, then those of the second, and so on.

    Attributes:
        parts: the arenas, that of the deterministic tasks first.
        num_tasks: how many tasks each of them plays.
    """

    parts: tuple[Arena, ...]
    num_tasks: tuple[int, ...]

    @classmethod
    def build(
        cls,
        tasks: Sequence[Task],
        *,
        weights: Sequence[float],
        epsilons: Sequence[float],
        actuator: Actuator,
        num_lanes: int,
        pool_size: int,
        pool_seed: int,
        horizon: Horizon,
        stochastic_stretch: float,
        twins: bool,
        dtype: torch.dtype,
    ) -> Self:
        """Draw pools and share out the lanes.

        Args:
            tasks: what to play on.
            weights: relative share of the lanes of each task.
            epsilons: the smallest relative gap that counts in each task.
            actuator: what decisions do.
            num_lanes: episodes side by side.
            pool_size: problems drawn, from which episodes draw.
            pool_seed: seed of them.
            horizon: how long episodes last.
            stochastic_stretch: those of tasks with noise last this many times longer.
            twins: whether lanes with noise come in twos.
            dtype: type of the problems.

        Returns:
            The arenas.
        """
        certain = [k for k, task in enumerate(tasks) if not task.is_stochastic]
        groups = [certain] if certain else []
        groups += [[k] for k, task in enumerate(tasks) if task.is_stochastic]
        shares = [sum(weights[k] for k in group) / sum(weights) for group in groups]
        counts = [max(1, round(share * num_lanes)) for share in shares]
        counts[counts.index(max(counts))] += num_lanes - sum(counts)
        parts = []
        for position, (group, count) in enumerate(zip(groups, counts, strict=True)):
            task, targets = tasks[group[0]], [epsilons[k] for k in group]
            if len(group) > 1:
                task = Mixture.of([tasks[k] for k in group], [weights[k] for k in group])
            elif isinstance(task, Mixture):  # its kinds have all the same target
                targets *= len(task.tasks)
            pool = task.sample(
                max(count, round(pool_size * shares[position])),
                seed=torch.Generator().manual_seed(pool_seed + position),
                dtype=dtype,
            )
            parts.append(
                Arena(
                    task=task,
                    pool=pool,
                    actuator=actuator,
                    num_lanes=count,
                    horizon=horizon,
                    stretch=stochastic_stretch if task.is_stochastic else 1.0,
                    has_twins=twins and task.is_stochastic,
                    epsilons=tuple(targets),
                )
            )
        return cls(parts=tuple(parts), num_tasks=tuple(map(len, groups)))

    @property
    def is_noisy(self) -> Tensor:
        """``[N]`` whether what a lane sees is noisy."""
        return torch.cat([
            torch.full((arena.num_lanes,), arena.task.is_stochastic) for arena in self.parts
        ])

    @property
    def origins(self) -> Tensor:
        """``[N]`` the lane that each is a twin of, itself where there is none."""
        first, origins = 0, []
        for arena in self.parts:
            origins.append(first + arena.origins)
            first += arena.num_lanes
        return torch.cat(origins)

    def kinds(self, standings: Sequence[Standing]) -> Tensor:
        """``[N]`` the number of each lane's task: deterministic ones first, then the others."""
        first, kinds = 0, []
        for arena, standing, number in zip(self.parts, standings, self.num_tasks, strict=True):
            # A mixture may also be a task that was asked for, and then it is one.
            own = arena.kinds(standing) if number > 1 else torch.zeros_like(standing["index"])
            kinds.append(first + own)
            first += number
        return torch.cat(kinds)

    def observation(self, standings: Sequence[Standing]) -> Tensor:
        """``[N, F]`` what the rule sees."""
        return torch.cat([standing["observation"] for standing in standings])

    def seen_by_critic(self, standings: Sequence[Standing]) -> Tensor:
        """``[N, F + C + tasks]``: the same, what `Arena.privileged` adds, and the task."""
        seen = [
            torch.cat((s["observation"], arena.privileged(s)), dim=1).float()
            for arena, s in zip(self.parts, standings, strict=True)
        ]
        kinds = F.one_hot(self.kinds(standings), sum(self.num_tasks)).float()
        return torch.cat((torch.cat(seen), kinds), dim=1)

    def start(self, progress: float, rng: torch.Generator) -> list[Standing]:
        """Fresh episodes in all lanes."""
        return [arena.start(progress, rng) for arena in self.parts]

    def refill(
        self, standings: Sequence[Standing], begins: bool, progress: float, rng: torch.Generator
    ) -> tuple[list[Standing], Tensor]:
        """Fresh episodes in lanes that ended.

        Args:
            standings: where the lanes stand.
            begins: whether a rollout begins: twins wait for that, since a fresh episode aligns them
                and so ends the comparison of the two.
            progress: the fraction of training done.
            rng: generator, advanced.

        Returns:
            Where they stand then, and which lanes are fresh, ``[N]`` bool.
        """
        after, is_fresh = [], []
        for arena, standing in zip(self.parts, standings, strict=True):
            if arena.has_twins and not begins:
                filled, new = standing, torch.zeros(arena.num_lanes, dtype=torch.bool)
            else:
                filled, new = arena.refill(standing, progress, rng)
            after.append(filled)
            is_fresh.append(new)
        return after, torch.cat(is_fresh)

    def step(
        self, standings: Sequence[Standing], action: Tensor, pace: Tensor, rng: torch.Generator
    ) -> tuple[list[Standing], Outcome]:
        """One step of all lanes, see `Arena.step`."""
        sizes = [arena.num_lanes for arena in self.parts]
        after, outcomes = [], []
        for arena, standing, own, paces in zip(
            self.parts, standings, action.split(sizes), pace.split(sizes), strict=True
        ):
            moved, outcome = arena.step(standing, own, paces, rng)
            after.append(moved)
            outcomes.append(outcome)
        joined = {
            entry.name: torch.cat([getattr(outcome, entry.name) for outcome in outcomes])
            for entry in fields(Outcome)
        }
        return after, Outcome(**joined)

    def pack(self, standings: Sequence[Standing]) -> list[dict[str, Any]]:
        """Plain tensors, for a checkpoint."""
        return [arena.pack(each) for arena, each in zip(self.parts, standings, strict=True)]

    def unpack(self, packed: Sequence[Mapping[str, Any]]) -> list[Standing]:
        """Undo `pack`."""
        return [arena.unpack(each) for arena, each in zip(self.parts, packed, strict=True)]
