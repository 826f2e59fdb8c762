r"""Looking at a meta-loss: its shape along a line, and how well its gradient can be estimated.

Theta stands still here; nothing is trained. Where the inner loop is chaotic, the meta-loss of a
long horizon is jagged, the variance of back-propagation grows like $e^{2 \lambda T}$ with the
Lyapunov exponent $\lambda$, and evolution strategies see the smoothed meta-loss alone. Where a
truncation is short, estimates that know nothing of what came before it are biased.

References:
    Metz et al. 2019 (arXiv:1810.10180), section 2; Metz et al. 2021 (arXiv:2111.05803).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require, unknown_name
from learned_opt.meta.config import TrainConfig, stream_seed
from learned_opt.meta.configured import configured_estimator
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.estimators import flat_theta
from learned_opt.meta.evolution import EvolutionStrategies
from learned_opt.meta.horizons import Fixed
from learned_opt.meta.objectives import OVER_STEPS, get_objective, judge_steps
from learned_opt.meta.particles import Particles, fresh_particles, run_particles
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Task

_LANES_AT_ONCE = 4096
"""Thetas that move together; more would hold too many losses at once."""


@final
@dataclass(frozen=True, kw_only=True)
class Profile:
    """The meta-loss along a line through theta.

    Attributes:
        offsets: ``[K]`` how far along, in units of the direction.
        horizons: ``H`` numbers of inner steps.
        values: ``[H, K]`` meta-losses.
        smoothed: ``[H, K]`` the same, averaged over Gaussian noise on all of theta.
        sigma: standard deviation of that noise.
    """

    offsets: Tensor
    horizons: tuple[int, ...]
    values: Tensor
    smoothed: Tensor
    sigma: float


def meta_loss_profile(
    rule: Rule,
    task: Task,
    config: TrainConfig,
    *,
    direction: Tensor,
    offsets: Tensor,
    horizons: Sequence[int] = (5, 20, 80, 320),
    num_draws: int = 128,
) -> Profile:
    r"""The meta-loss $L_T(\theta + s d)$, and $E\,L_T(\theta + s d + \sigma \epsilon)$.

    All points meet the same problems, minibatches and noise draws; draws come in antithetic pairs.
    A draw whose meta-loss is not finite is left out of the mean, as evolution strategies do.

    Args:
        rule: the rule, whose theta is not modified.
        task: what it runs on.
        config: gives the objective, epsilon, sigma, the number of problems, type and seed.
        direction: ``[D]`` the line's direction.
        offsets: ``[K]`` where to look.
        horizons: numbers of inner steps.
        num_draws: noise draws at each point, even.

    Returns:
        Values, smoothed and not.

    Raises:
        LearnedOptError: if `horizons` is empty, or `num_draws` odd or not positive.
    """
    require(len(horizons) > 0, "horizons must hold at least one number of steps, got none")
    require(
        num_draws >= 2 and num_draws % 2 == 0,
        f"num_draws must be even and positive, got {num_draws}",
    )
    config = replace(config, horizon=Fixed(max(horizons)))
    theta = flat_theta(rule).to(config.torch_dtype)
    line = theta + offsets.to(theta)[:, None] * direction.to(theta)
    rng = torch.Generator().manual_seed(stream_seed("noise of a profile", config.seed))
    drawn = torch.randn(num_draws // 2, len(theta), generator=rng, dtype=torch.float64)
    noise = config.sigma * torch.cat((drawn, -drawn)).to(theta)
    total = line.new_zeros(len(horizons), len(line))
    count = torch.zeros_like(total)
    chunk = max(1, _LANES_AT_ONCE // len(line))
    for part in noise.split(chunk):
        thetas = (line + part[:, None]).flatten(0, 1)
        found = _meta_losses(rule, task, config, thetas, horizons).unflatten(1, (len(part), -1))
        is_finite = found.isfinite()
        total += torch.where(is_finite, found, 0.0).sum(1)
        count += is_finite.sum(1)
    return Profile(
        offsets=offsets,
        horizons=tuple(horizons),
        values=_meta_losses(rule, task, config, line, horizons),
        smoothed=total / count,
        sigma=config.sigma,
    )


def episode_gradients(rule: Rule, task: Task, config: TrainConfig) -> Tensor:
    """Independent samples of the meta-gradient of whole episodes.

    The estimates of an episode's truncations are put together as the meta-loss is, by their sum or
    mean. A sample comes from the group of problems that one pair has in training; for
    back-propagation, which has no pairs, from a group of the same size.

    Args:
        rule: the rule, whose theta is not modified.
        task: what it runs on.
        config: gives the estimator with its truncation and sigma, the objective, a horizon that
            does not vary, the number of samples (``num_pairs``) and of problems in all, type and
            seed.

    Returns:
        ``[num_pairs, D]`` gradients. A pair that is not finite gives a row of zeros, as in
        training; back-propagation may overflow.

    Raises:
        LearnedOptError: if the estimator has no such samples (``mixed``, ``ppo``), or the horizon
            varies or is no multiple of the truncation.
    """
    horizon = config.horizon.longest
    require(isinstance(config.horizon, Fixed), f"horizon must be fixed, got {config.horizon}")
    require(
        horizon % config.truncation == 0,
        f"horizon must be a multiple of truncation={config.truncation}, got {horizon}",
    )
    rng = torch.Generator().manual_seed(stream_seed("gradient samples", config.seed))
    num_truncations = horizon // config.truncation
    if config.estimator == "truncated_backpropagation":
        total = _slopes(rule, task, config, num_truncations, rng)
    else:
        estimator = configured_estimator(config, [task])
        require(
            isinstance(estimator, EvolutionStrategies),
            f"estimator must be truncated_backpropagation, es, pes, es_single or nres, "
            f"got '{config.estimator}'",
        )
        assert isinstance(estimator, EvolutionStrategies)
        (runner,) = estimator.runners
        population, total = None, torch.zeros(())
        for _ in range(num_truncations):
            outcome = runner.advance(rule, population, progress=0.0, rng=rng)
            population, total = outcome.population, total + outcome.evolution
    is_mean = OVER_STEPS[config.objective] == "mean"
    return total / num_truncations if is_mean else total


@final
@dataclass(frozen=True, kw_only=True)
class GradientQuality:
    """How well an estimator knows the gradient of a meta-loss.

    Attributes:
        name: of the estimator, a key of `ESTIMATES`.
        horizon: inner steps of an episode.
        truncation: inner steps of an estimate.
        mean: ``[D]`` mean over samples.
        standard_error: ``[D]`` of the mean.
        log10_variance: of one sample, summed over theta; its logarithm, for it may overflow.
        cosine: of means of `batch` samples to the reference, averaged.
        batch: samples in such a mean.
    """

    name: str
    horizon: int
    truncation: int
    mean: Tensor
    standard_error: Tensor
    log10_variance: float
    cosine: float
    batch: int


ESTIMATES: dict[str, dict[str, Any]] = {
    "back-propagation": {"estimator": "truncated_backpropagation", "second_order": True},
    "first order": {"estimator": "truncated_backpropagation", "second_order": False},
    "ES": {"estimator": "es", "second_order": False},
    "PES": {"estimator": "pes", "second_order": False},
    "NRES": {"estimator": "nres", "second_order": False},
}
"""Ways to estimate a gradient, by the names in figures: entries of `TrainConfig`."""


def quality(
    samples: Tensor,
    reference: Tensor,
    *,
    name: str,
    horizon: int,
    truncation: int,
    batch: int = 16,
) -> GradientQuality:
    """Summarise samples of a gradient.

    Args:
        samples: ``[R, D]``, independent; `R` a multiple of `batch`.
        reference: ``[D]`` what they should point along.
        name: see `GradientQuality`.
        horizon: see `GradientQuality`.
        truncation: see `GradientQuality`.
        batch: samples of a mean whose cosine is taken.

    Returns:
        The summary; NaN or infinite where samples are.

    Raises:
        LearnedOptError: if the number of samples is no multiple of `batch`, or below 2.

    Examples:
        >>> samples = torch.tensor([[1e200, 0.0], [-1e200, 0.0]], dtype=torch.float64)
        >>> found = quality(samples, torch.ones(2), name="", horizon=1, truncation=1, batch=1)
        >>> round(found.log10_variance, 3), abs(round(found.cosine, 3))
        (400.301, 0.0)
    """
    require(
        len(samples) >= 2 and len(samples) % batch == 0,
        f"samples must be a multiple of batch={batch} and at least 2, got {len(samples)}",
    )
    samples = samples.double()
    # Squares of exploded gradients overflow; those of their ratios to the largest do not.
    largest = samples.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    unit = samples / largest
    variance = unit.var(0).sum().item()
    directions = torch.nn.functional.normalize(unit.unflatten(0, (-1, batch)).mean(1), eps=0.0)
    aim = torch.nn.functional.normalize(reference.to(unit), dim=0)
    known = variance > 0 and math.isfinite(variance)
    return GradientQuality(
        name=name,
        horizon=horizon,
        truncation=truncation,
        mean=samples.mean(0),
        standard_error=unit.std(0) * largest / math.sqrt(len(samples)),
        log10_variance=math.log10(variance) + 2 * math.log10(largest) if known else math.inf,
        cosine=(directions @ aim).nanmean().item(),
        batch=batch,
    )


def quality_by_horizon(
    rule: Rule,
    task: Task,
    config: TrainConfig,
    *,
    horizons: Sequence[int] = (5, 20, 80, 320),
    names: Sequence[str] = ("back-propagation", "first order", "ES", "PES"),
    num_reference: int = 4096,
) -> list[GradientQuality]:
    """Variance and direction of estimates, the longer the episode.

    Back-propagation and ES take the whole episode at once; PES and NRES as ``config.truncation``
    says. The reference is the mean of many other pairs of full-horizon ES: the gradient of the
    smoothed meta-loss, the only one with a direction where the meta-loss is jagged.

    Args:
        rule: the rule.
        task: what it runs on.
        config: settings of `episode_gradients`; estimator and horizon are set here.
        horizons: inner steps of an episode.
        names: keys of `ESTIMATES`.
        num_reference: pairs of the reference.

    Returns:
        One entry for each horizon and name, in this order.

    Raises:
        LearnedOptError: if a name is unknown, or as `episode_gradients` has it.
    """
    found = []
    for horizon in horizons:
        whole = replace(config, horizon=Fixed(horizon), truncation=horizon)
        aim = reference_gradient(rule, task, whole, num_reference=num_reference)
        for name in names:
            is_cut = name in {"PES", "NRES"}
            settings = replace(whole, truncation=config.truncation) if is_cut else whole
            found.append(_measure(rule, task, settings, name, aim))
    return found


def quality_by_truncation(
    rule: Rule,
    task: Task,
    config: TrainConfig,
    *,
    truncations: Sequence[int],
    names: Sequence[str] = ("back-propagation", "ES", "PES"),
    num_reference: int = 4096,
) -> list[GradientQuality]:
    """Mean estimates of one gradient, the shorter the truncation.

    Args:
        rule: the rule.
        task: what it runs on.
        config: settings of `episode_gradients`; estimator and truncation are set here.
        truncations: inner steps of an estimate, each a divisor of the horizon.
        names: keys of `ESTIMATES`.
        num_reference: pairs of the reference.

    Returns:
        One entry for each truncation and name, in this order.

    Raises:
        LearnedOptError: if a name is unknown, or as `episode_gradients` has it.
    """
    aim = reference_gradient(rule, task, config, num_reference=num_reference)
    return [
        _measure(rule, task, replace(config, truncation=truncation), name, aim)
        for truncation in truncations
        for name in names
    ]


def reference_gradient(
    rule: Rule, task: Task, config: TrainConfig, *, num_reference: int
) -> Tensor:
    """The gradient ``[D]`` of the smoothed meta-loss, from full-horizon ES on other problems."""
    per_pair = config.num_problems // config.num_pairs
    settings = replace(
        config,
        **ESTIMATES["ES"],
        truncation=config.horizon.longest,
        num_pairs=num_reference,
        num_problems=num_reference * per_pair,
        seed=stream_seed("reference gradient", config.seed),
    )
    return episode_gradients(rule, task, settings).mean(0)


def _measure(
    rule: Rule, task: Task, config: TrainConfig, name: str, reference: Tensor
) -> GradientQuality:
    if name not in ESTIMATES:
        raise unknown_name("estimate", name, ESTIMATES)
    config = replace(config, **ESTIMATES[name])
    return quality(
        episode_gradients(rule, task, config),
        reference,
        name=name,
        horizon=config.horizon.longest,
        truncation=config.truncation,
        batch=math.gcd(16, config.num_pairs),
    )


def _slopes(
    rule: Rule, task: Task, config: TrainConfig, num_truncations: int, rng: torch.Generator
) -> Tensor:
    """Sums over truncations of what back-propagation says, ``[num_pairs, D]``."""
    # A theta for each group, so that one backward pass tells their gradients apart.
    theta = flat_theta(rule).to(config.device, config.torch_dtype)
    thetas = theta.repeat(config.num_pairs, 1, 1).requires_grad_()
    particles = _start(rule, task, config, thetas, rng)
    total = torch.zeros_like(thetas[:, 0])
    for _ in range(num_truncations):
        particles, losses = run_particles(
            particles,
            task,
            rule,
            thetas,
            num_steps=config.truncation,
            rng=rng,
            differentiable=True,
            second_order=config.second_order,
        )
        terms = _judge(config, particles, losses)
        is_over = bool(particles.steps[0] == particles.horizons[0])
        if OVER_STEPS[config.objective] == "last":
            values = terms[..., -1] if is_over else 0.0 * terms[..., -1]
        elif OVER_STEPS[config.objective] == "sum":
            values = terms.sum(-1)
        else:
            values = terms.mean(-1)
        (slopes,) = torch.autograd.grad(values.sum(), thetas, materialize_grads=True)
        total = total + slopes[:, 0]
        particles = replace(particles, carry=particles.carry.detach())
    return total


def _meta_losses(
    rule: Rule, task: Task, config: TrainConfig, thetas: Tensor, horizons: Sequence[int]
) -> Tensor:
    """``[H, K]`` meta-losses of ``[K, D]`` thetas, all on the same problems."""
    config = replace(config, num_pairs=1)
    rng = torch.Generator().manual_seed(stream_seed("problems of a profile", config.seed))
    thetas = thetas[None]
    particles = _start(rule, task, config, thetas, rng)
    particles, losses = run_particles(
        particles, task, rule, thetas, num_steps=max(horizons), rng=rng
    )
    terms = _judge(config, particles, losses)[0]
    over_steps = OVER_STEPS[config.objective]
    if over_steps == "last":
        return torch.stack([terms[:, horizon - 1] for horizon in horizons])
    sums = torch.stack([terms[:, :horizon].sum(1) for horizon in horizons])
    return sums if over_steps == "sum" else sums / torch.tensor(horizons).to(sums)[:, None]


def _start(
    rule: Rule, task: Task, config: TrainConfig, thetas: Tensor, rng: torch.Generator
) -> Particles:
    sampler = EpisodeSampler(
        tasks=[task],
        num_problems=config.num_problems,
        horizon=config.horizon,
        dtype=config.torch_dtype,
        device=config.device,
    )
    return fresh_particles(
        sampler,
        0,
        rule,
        thetas,
        num_problems=config.num_problems // config.num_pairs,
        progress=0.0,
        rng=rng,
    )


def _judge(config: TrainConfig, particles: Particles, losses: Tensor) -> Tensor:
    return judge_steps(
        get_objective(config.objective),
        losses,
        facts=particles.problems.facts,
        initial=particles.initial,
        epsilon=config.epsilon,
    )
