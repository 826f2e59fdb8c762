"""Many episodes of a policy's rule side by side, each with a clock of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.actuators import Actuator
from learned_opt.meta.hitting_time import divergence_cost, step_cost, unreached
from learned_opt.meta.horizons import Horizon
from learned_opt.meta.objectives import gap_unit
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Tree, flatten, num_matrices, replace_rows, select, unflatten
from learned_opt.unroll import loss_and_grads

_DIVERGENCE = 1e4
_PATIENCE = 30.0
_HIDDEN_LOSSES = 0.2


@final
@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where the lanes of an `Arena` stand.

    Attributes:
        problems: what each lane works on.
        tree: everything else, tensors of ``[N, ...]``: ``index`` of the problem in the pool,
            ``horizon``, ``time``, ``over``, ``solved_for``, ``point``, ``grads``, ``unit``,
            ``first``, ``gap``, ``best``, ``observation`` and the ``actuator``'s state.
    """

    problems: Problems
    tree: Tree

    def __getitem__(self, name: str) -> Tensor:
        value = self.tree[name]
        assert isinstance(value, Tensor)
        return value


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step of an `Arena` led to, ``[N]`` each.

    Attributes:
        cost: see `step_cost`.
        waited: share of the targets that were waited for.
        reached: share of the targets that were reached.
        over: whether the episode ended, by itself or at its horizon.
    """

    cost: Tensor
    waited: Tensor
    reached: Tensor
    over: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Arena:
    """Lanes in which an actuator moves on problems of one task.

    An episode ends at its horizon, where it is cut; or a while after the smallest target is
    reached, so that staying there is learned too; or when it diverges. Until `refill` nothing
    counts that is computed for ended lanes. One lane in five never sees its loss if the actuator
    can do without.

    Attributes:
        task: what is minimised.
        pool: problems that episodes draw from.
        actuator: what decisions do.
        num_lanes: episodes side by side.
        horizon: how long they last.
        epsilons: the smallest relative gap that counts for each kind of task, see `kinds`.
        stretch: they last this many times longer.
        has_twins: whether two lanes stand at the same place after `align` and see the same noise
            from then on, so that they differ by their decisions alone.
    """

    task: Task
    pool: Problems
    actuator: Actuator
    num_lanes: int
    horizon: Horizon
    epsilons: tuple[float, ...]
    stretch: float = 1.0
    has_twins: bool = False

    @property
    def origins(self) -> Tensor:
        """``[N]`` the lane that each is a twin of, itself where there are none.

        Lanes of the second half are twins of those of the first, whose last one is alone if lanes
        are odd in number.
        """
        lanes = torch.arange(self.num_lanes)
        return lanes % (self.num_lanes - self.num_lanes // 2) if self.has_twins else lanes

    def align(self, standing: Standing) -> Standing:
        """Put twins where their origins stand."""
        return self.unpack({"tree": self._alike(standing.tree)}) if self.has_twins else standing

    def _alike(self, drawn: Tree) -> Tree:
        """What was drawn for each lane, the same for twins."""
        return select(drawn, self.origins) if self.has_twins else drawn

    def start(self, progress: float, rng: torch.Generator) -> Standing:
        """Fresh episodes in all lanes."""
        return self.align(self._fresh(self.num_lanes, progress, rng))

    def refill(
        self, standing: Standing, progress: float, rng: torch.Generator
    ) -> tuple[Standing, Tensor]:
        """Fresh episodes in the lanes that have ended; twins are aligned first.

        Args:
            standing: where the lanes stand.
            progress: the fraction of training done.
            rng: generator, advanced.

        Returns:
            The new standing, and which lanes are fresh, ``[N]`` bool.
        """
        standing = self.align(standing)
        over = standing["over"]
        lanes = over.nonzero()[:, 0]
        if len(lanes) == 0:
            return standing, over
        fresh = self._fresh(len(lanes), progress, rng, lanes=lanes)
        tree = replace_rows(standing.tree, lanes, fresh.tree)
        return self.align(self.unpack({"tree": tree})), over

    def step(
        self, standing: Standing, action: Tensor, pace: Tensor, rng: torch.Generator
    ) -> tuple[Standing, Outcome]:
        """Carry one decision out in every lane.

        Args:
            standing: where the lanes stand.
            action: ``[N, A]`` numbers in [-1, 1].
            pace: ``[N]`` steps that problems of its kind take on average.
            rng: generator, advanced.

        Returns:
            The new standing, and what happened.
        """
        s, point = standing, standing["point"]

        used = self.task.used(s.problems)

        def noise(size: int) -> Tensor:
            drawn = torch.randn((len(point), size), generator=rng, dtype=point.dtype)
            if self.has_twins:
                drawn = drawn[self.origins]
            if used is None:
                return drawn
            # Actuators divide by the root of the number of coordinates: all of them, used or not.
            return drawn * used * (used.shape[1] / used.sum(1, keepdim=True)).sqrt()

        moved = self.actuator.act(action, s["grads"], point, s.tree["actuator"], noise)  # type: ignore[arg-type]
        point, time = point + moved.updates, s["time"] + 1
        batch = self.task.batch(s.problems, rng)
        batch = batch if batch is None else self._alike(batch)
        seen, gap, grads = self._evaluate(point, s.problems, s["unit"], batch)
        lanes = torch.arange(len(point))
        observation, actuator = self.actuator.observe(
            grads, self._shown(seen, lanes), point, moved.state
        )
        has_diverged = ~(gap <= _DIVERGENCE * s["first"].clamp_min(1))
        has_diverged |= ~torch.isfinite(grads).all(1)
        gap = torch.where(has_diverged, s["gap"], gap)
        best = torch.minimum(s["best"], gap)
        epsilon = self._epsilon(standing)
        cost = torch.where(
            has_diverged,
            divergence_cost(time, s["horizon"], pace, epsilon=epsilon),
            step_cost(best, gap, time, pace, epsilon=epsilon),
        )
        waited = unreached(best, epsilon=epsilon)
        reached = unreached(s["best"], epsilon=epsilon) - waited
        solved_for = s["solved_for"] + (best <= epsilon)
        # Nothing is expected beyond a horizon: the horizons drawn weigh early steps more.
        over = has_diverged | (solved_for > s["patience"]) | (time >= s["horizon"])
        tree: Tree = {
            **s.tree,
            "point": point,
            "grads": grads,
            "time": time,
            "gap": gap,
            "best": best,
            "solved_for": solved_for,
            "observation": observation,
            "actuator": actuator,
            "over": s["over"] | over,
        }
        outcome = Outcome(cost=cost, waited=waited, reached=reached, over=over)
        return replace(standing, tree=tree), outcome

    def privileged(self, standing: Standing) -> Tensor:
        """What a critic may know beside the observation, ``[N, C]``: gaps and time."""
        time = standing["time"] + 1
        epsilon = self._epsilon(standing)
        gaps = (unreached(standing[name], epsilon=epsilon) for name in ("gap", "best"))
        return torch.stack((*gaps, time.log() / 5, 1 / time), dim=1)

    def kinds(self, standing: Standing) -> Tensor:
        """``[N]`` which task of a mixture each lane works on; zeros elsewhere."""
        kind = standing.problems.constants.get("kind")
        return kind if isinstance(kind, Tensor) else torch.zeros_like(standing["index"])

    def _epsilon(self, standing: Standing) -> Tensor:
        """``[N]`` the smallest gap that counts in each lane."""
        return torch.tensor(self.epsilons, dtype=torch.float64)[self.kinds(standing)]

    def pack(self, standing: Standing) -> dict[str, Any]:
        """Plain tensors, for a checkpoint."""
        return {"tree": standing.tree}

    def unpack(self, packed: Mapping[str, Any]) -> Standing:
        """Undo `pack`."""
        tree = packed["tree"]
        return Standing(problems=self.pool.select(tree["index"]), tree=tree)

    def _fresh(
        self, num_lanes: int, progress: float, rng: torch.Generator, lanes: Tensor | None = None
    ) -> Standing:
        index = torch.randint(self.pool.num_problems, (num_lanes,), generator=rng)
        horizon = torch.tensor([self.horizon.draw(progress, rng) for _ in range(num_lanes)])
        horizon = (self.stretch * horizon).round().long().clamp_min(1)
        problems = self.pool.select(index)
        point = flatten(problems.params)
        with torch.no_grad():
            exact = self.task.loss(problems.params, problems).double()
        unit = gap_unit(facts=problems.facts, initial=exact)
        unit = unit.clamp_min(torch.finfo(torch.float32).tiny)
        batch = self.task.batch(problems, rng)
        seen, gap, grads = self._evaluate(point, problems, unit, batch)
        lanes = torch.arange(num_lanes) if lanes is None else lanes
        observation, actuator = self.actuator.observe(
            grads,
            self._shown(seen, lanes),
            point,
            self.actuator.init(
                point,
                learning_rate=seen.new_full((num_lanes,), 1e-2),
                num_matrices=num_matrices(problems.params),
            ),
        )
        zeros = torch.zeros(num_lanes, dtype=torch.float64)
        return Standing(
            problems=problems,
            tree={
                "index": index,
                "horizon": horizon,
                "patience": _PATIENCE * torch.rand(num_lanes, generator=rng),
                "time": zeros,
                "solved_for": zeros,
                "over": zeros.bool(),
                "point": point,
                "grads": grads,
                "unit": unit,
                "first": gap,
                "gap": gap,
                "best": gap,
                "observation": observation,
                "actuator": actuator,
            },
        )

    def _evaluate(
        self, point: Tensor, problems: Problems, unit: Tensor, batch: Tree | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss that the actuator sees, the exact gap in float64, and gradients ``[N, P]``."""
        params = unflatten(point, problems.params)
        loss, grads = loss_and_grads(self.task, params, problems, batch)
        exact = loss
        if batch is not None:
            with torch.no_grad():
                exact = self.task.loss(params, problems)
        gap = (exact.double() - problems.facts.minimum.double()).clamp_min(0) / unit
        return loss, gap, flatten(grads)

    def _shown(self, losses: Tensor, lanes: Tensor) -> Tensor:
        """Losses as the actuator sees them: NaN where they are hidden."""
        if self.actuator.needs_loss:
            return losses
        stride = round(1 / _HIDDEN_LOSSES)
        return losses.masked_fill(self.origins[lanes] % stride == 0, torch.nan)
