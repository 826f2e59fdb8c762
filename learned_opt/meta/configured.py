"""The estimators of the meta-gradient as a `TrainConfig` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from learned_opt.meta.config import TrainConfig
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.estimators import MetaGradient
from learned_opt.meta.evolution import EvolutionStrategies
from learned_opt.meta.mixed import Mixed
from learned_opt.meta.objectives import OVER_STEPS, get_objective
from learned_opt.meta.perturbations import Accumulated, NoiseSchedule, PerEpisode, PerTruncation
from learned_opt.meta.ppo import ProximalPolicy
from learned_opt.meta.truncated import TruncatedBackpropagation
from learned_opt.tasks.base import Task
from learned_opt.tasks.transforms import RandomlyScaled


def configured_estimator(config: TrainConfig, tasks: Sequence[Task]) -> MetaGradient[Any]:
    """The estimator that `TrainConfig.estimator` names.

    ``truncated_backpropagation``
        `TruncatedBackpropagation`.
    ``es``
        Truncated ES; full-horizon ES if a truncation is as long as the longest episode.
    ``pes``
        Persistent ES, pairs spread over the episode.
    ``es_single``
        One perturbation an episode, all pairs at the same place of it.
    ``nres``
        One perturbation an episode, pairs spread over it.
    ``mixed``
        Truncated back-propagation and truncated ES, weighted by inverse variance.
    ``ppo``
        `ProximalPolicy`.

    Args:
        config: settings of the run.
        tasks: what to train on.

    Returns:
        The estimator, for `meta_train`.

    Raises:
        LearnedOptError: if the numbers of problems, pairs and tasks do not fit together.
    """
    if config.estimator == "truncated_backpropagation":
        return truncated_backpropagation(config, tasks)
    if config.estimator == "ppo":
        return ProximalPolicy(
            tasks=_scaled(config, tasks),
            task_weights=config.task_weights,
            num_lanes=config.num_problems,
            rollout_steps=config.truncation,
            horizon=config.horizon,
            epsilon=config.task_epsilons or config.epsilon,
            exploration=config.exploration,
            epochs=config.epochs,
            minibatches=config.minibatches,
            dtype=config.torch_dtype,
        )
    whole = config.truncation >= config.horizon.longest
    schedules: dict[str, NoiseSchedule] = {
        "es": PerEpisode() if whole else PerTruncation(),
        "pes": Accumulated(),
        "es_single": PerEpisode(),
        "nres": PerEpisode(),
        "mixed": PerTruncation(),
    }
    evolution = EvolutionStrategies(
        sampler=_sampler(config, tasks),
        objective=get_objective(config.objective),
        over_steps=OVER_STEPS[config.objective],
        schedule=schedules[config.estimator],
        sigma=config.sigma,
        num_pairs=config.num_pairs,
        truncation=config.truncation,
        is_staggered=config.estimator != "es_single",
        epsilon=config.epsilon,
    )
    if config.estimator == "mixed":
        return Mixed(evolution=evolution, second_order=config.second_order)
    return evolution


def truncated_backpropagation(config: TrainConfig, tasks: Sequence[Task]) -> MetaGradient[Any]:
    """Truncated back-propagation, whatever `TrainConfig.estimator` names.

    Args:
        config: settings of the run.
        tasks: what to train on.

    Returns:
        Truncated back-propagation on episodes drawn as `config` says.
    """
    return TruncatedBackpropagation(
        sampler=_sampler(config, tasks),
        objective=get_objective(config.objective),
        epsilon=config.epsilon,
        truncation=config.truncation,
        second_order=config.second_order,
        coordinate_share=config.coordinate_share,
    )


def _scaled(config: TrainConfig, tasks: Sequence[Task]) -> list[Task]:
    if config.random_scaling is None:
        return list(tasks)
    return [RandomlyScaled(task, log_range=config.random_scaling) for task in tasks]


def _sampler(config: TrainConfig, tasks: Sequence[Task]) -> EpisodeSampler:
    return EpisodeSampler(
        tasks=_scaled(config, tasks),
        weights=config.task_weights,
        num_problems=config.num_problems,
        horizon=config.horizon,
        dtype=config.torch_dtype,
        device=config.device,
    )
