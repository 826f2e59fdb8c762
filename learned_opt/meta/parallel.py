"""Several estimators at once, at different points of their episodes.

One estimator sees one task, and one part of an episode, for several updates in a row, and theta
drifts with it. The mean over tasks and over early and late steps is a much quieter gradient than as
many updates one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from learned_opt.errors import require
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.configured import truncated_backpropagation
from learned_opt.meta.estimators import Estimate, MetaGradient
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Task


@final
@dataclass(frozen=True, kw_only=True)
class Parallel(MetaGradient[list[Any]]):
    """The mean of several estimates, each with a state of its own.

    Attributes:
        estimators: what to average.
        head_starts: estimates by which each estimator is ahead when training starts; what these
            say of the gradient is not used.
    """

    estimators: Sequence[MetaGradient[Any]]
    head_starts: Sequence[int]

    def __post_init__(self) -> None:
        require(len(self.estimators) >= 1, "estimators must hold at least one, got none")
        require(
            len(self.head_starts) == len(self.estimators) and min(self.head_starts) >= 0,
            f"head_starts must be {len(self.estimators)} numbers that are not negative, "
            f"got {list(self.head_starts)}",
        )

    def estimate(
        self, rule: Rule, state: list[Any] | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[list[Any]]:
        """One estimate of each; see `MetaGradient.estimate`."""
        if state is None:
            state = [None] * len(self.estimators)
            for i, (estimator, lead) in enumerate(
                zip(self.estimators, self.head_starts, strict=True)
            ):
                for _ in range(lead):
                    state[i] = estimator.estimate(rule, state[i], progress=progress, rng=rng).state
        estimates = [
            estimator.estimate(rule, own, progress=progress, rng=rng)
            for estimator, own in zip(self.estimators, state, strict=True)
        ]
        grads = zip(*[e.grads for e in estimates], strict=True)
        return Estimate(
            meta_loss=torch.stack([e.meta_loss for e in estimates]).mean(),
            grads=tuple(torch.stack(each).mean(0) for each in grads),
            state=[e.state for e in estimates],
            diagnostics={
                f"{name} {i}": value
                for i, e in enumerate(estimates)
                for name, value in e.diagnostics.items()
            },
            metrics={
                f"{name} {i}": value
                for i, e in enumerate(estimates)
                for name, value in e.metrics.items()
            },
        )

    def pack(self, state: list[Any]) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        pairs = zip(self.estimators, state, strict=True)
        return {"lanes": [None if own is None else e.pack(own) for e, own in pairs]}

    def unpack(self, packed: Mapping[str, Any]) -> list[Any]:
        """Undo `pack`."""
        pairs = zip(self.estimators, packed["lanes"], strict=True)
        return [None if own is None else e.unpack(own) for e, own in pairs]


def desynchronised(config: TrainConfig, tasks: Sequence[Task], *, num_clocks: int = 2) -> Parallel:
    """Truncated back-propagation on every task at once, at several points of its episodes.

    Args:
        config: settings of the run; `TrainConfig.num_problems` counts for each task and clock, and
            task weights play no part.
        tasks: what to train on.
        num_clocks: points of the episode for each task, evenly spaced if the horizon is fixed.

    Returns:
        The estimator, for `meta_train`.

    Raises:
        LearnedOptError: if `num_clocks` is not positive, or `config` asks for another estimator:
            those run every task at once, at several points of its episodes, by themselves.
    """
    require(
        config.estimator == "truncated_backpropagation",
        f"estimator must be 'truncated_backpropagation', got '{config.estimator}'",
    )
    require(num_clocks >= 1, f"num_clocks must be positive, got {num_clocks}")
    per_episode = -(-config.horizon.longest // config.truncation)
    lanes = [(task, clock) for clock in range(num_clocks) for task in tasks]
    config = replace(config, task_weights=None)
    alone = {id(task): truncated_backpropagation(config, [task]) for task in tasks}
    return Parallel(
        estimators=[alone[id(task)] for task, _ in lanes],
        head_starts=[clock * per_episode // num_clocks for _, clock in lanes],
    )
