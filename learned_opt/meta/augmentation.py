"""Training tasks as a `TrainConfig` augments them; evaluation sees the tasks themselves."""

from __future__ import annotations

from collections.abc import Sequence

from learned_opt.meta.config import TrainConfig
from learned_opt.tasks.augmentations import ConvexTerm, RandomDimension, Reparametrised
from learned_opt.tasks.base import Task
from learned_opt.tasks.transforms import NoisyGradient, RandomlyScaled


def augmented(config: TrainConfig, tasks: Sequence[Task]) -> list[Task]:
    """The tasks that every estimator trains on.

    From the inside out: noise, which belongs to a problem as that of minibatches does and so is in
    its units; dimension; the convex term, whose coordinates are scaled with the others; and the
    units, in which the rule sees it all.

    Args:
        config: settings of the run.
        tasks: what to train on.

    Returns:
        The same tasks, within what `config` asks for.
    """
    return [_augmented(config, task) for task in tasks]


def _augmented(config: TrainConfig, task: Task) -> Task:
    if config.gradient_noise is not None:
        task = NoisyGradient(task, noise=config.gradient_noise)
    if config.dimension_factor is not None:
        task = RandomDimension(task, factor=config.dimension_factor)
    if config.convex_term is not None:
        task = ConvexTerm(task, weight=config.convex_term)
    if config.reparametrisation is not None:
        task = Reparametrised(
            task, level=config.reparametrisation, scale_range=config.reparametrisation_range
        )
    if config.random_scaling is not None:
        task = RandomlyScaled(task, log_range=config.random_scaling)
    return task
