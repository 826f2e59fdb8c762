"""The estimators of the meta-gradient as a `TrainConfig` asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from learned_opt.meta.augmentation import augmented
from learned_opt.meta.backpropagation import Backpropagation
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.estimators import MetaGradient
from learned_opt.meta.evolution import EvolutionStrategies
from learned_opt.meta.imitation import Imitation, WarmStart
from learned_opt.meta.mixed import Mixed
from learned_opt.meta.objectives import OVER_STEPS, get_objective
from learned_opt.meta.perturbations import Accumulated, NoiseSchedule, PerEpisode, PerTruncation
from learned_opt.meta.ppo import ProximalPolicy
from learned_opt.meta.truncated import TruncatedBackpropagation
from learned_opt.rules.base import get_rule
from learned_opt.tasks.base import Task


def configured_estimator(config: TrainConfig, tasks: Sequence[Task]) -> MetaGradient[Any]:
    """The estimator that `TrainConfig.estimator` names, on tasks as `augmented` has them.

    ``truncated_backpropagation``
        `TruncatedBackpropagation`.
    ``backpropagation``
        `Backpropagation`, through whole episodes.
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
    if config.estimator == "backpropagation":
        return Backpropagation(
            sampler=_sampler(config, tasks),
            objective=get_objective(config.objective),
            epsilon=config.epsilon,
            segment_length=config.segment_length,
            second_order=config.second_order,
        )
    if config.estimator == "ppo":
        return ProximalPolicy(
            tasks=augmented(config, tasks),
            task_weights=config.task_weights,
            num_lanes=config.num_problems,
            rollout_steps=config.truncation,
            horizon=config.horizon,
            epsilon=config.task_epsilons or config.epsilon,
            stochastic_stretch=config.stochastic_stretch,
            exploration=config.exploration,
            noise_exploration=config.noise_exploration,
            twins=config.twins,
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


def warm_started(
    config: TrainConfig, tasks: Sequence[Task], estimator: MetaGradient[Any]
) -> MetaGradient[Any]:
    """An estimator after as many steps of imitation as `config` asks for.

    Args:
        config: settings of the run.
        tasks: what to train on.
        estimator: what follows.

    Returns:
        `WarmStart`, or `estimator` itself if there is no imitation.
    """
    if config.imitation_steps == 0:
        return estimator
    teacher = get_rule(config.imitation_teacher, learning_rate=config.imitation_learning_rate)
    return WarmStart(
        imitation=Imitation(
            sampler=_sampler(config, tasks),
            teacher=teacher.to(config.device),
            truncation=config.truncation,
        ),
        estimator=estimator,
        imitation_steps=config.imitation_steps,
        num_outer_steps=config.num_outer_steps,
    )


def _sampler(config: TrainConfig, tasks: Sequence[Task]) -> EpisodeSampler:
    return EpisodeSampler(
        tasks=augmented(config, tasks),
        weights=config.task_weights,
        num_problems=config.num_problems,
        horizon=config.horizon,
        dtype=config.torch_dtype,
        device=config.device,
    )
