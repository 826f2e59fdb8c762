"""How many times faster one rule reaches a target than another: numbers from event times.

Pure functions of arrays. Times are gradient evaluations, inf where a target was not reached, with
the axes ``[targets, instances]``, for the learned rule ``[meta-seeds, targets, instances]``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from learned_opt.bench.statistics import Interval, interval_of_draws
from learned_opt.tasks import get_task
from learned_opt.tasks.base import Task

Floats = NDArray[np.float64]

EVENTS = ("gap1", "gap2", "gap4")
TARGETS = ("1e-1", "1e-2", "1e-4")
"""Target gaps in units of the starting one, and the names of their events."""

NEVER_TRAINED = ("octopus", "phase_retrieval", "soft_committee")
"""Families held out from every mixture of the experiments; so are deep linear nets of 3 layers."""


@dataclass(frozen=True, kw_only=True)
class TaskTimes:
    """What a comparison on one task is made from.

    Attributes:
        label: the task.
        family: its family.
        group: ``trained`` or ``unseen``.
        budget: gradient evaluations after which a run is censored.
        rivals: baseline -> times ``[T, n]``.
        rule: times ``[S, T, n]`` of the learned rule on the same instances.
    """

    label: str
    family: str
    group: str
    budget: int
    rivals: Mapping[str, Floats]
    rule: Floats


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A learned rule against the best baseline of each target of one task.

    Attributes:
        label: the task.
        family: its family.
        group: ``trained`` or ``unseen``.
        best: the best baseline of each target.
        rival_rmst: ``[T]`` its restricted mean time.
        rule_rmst: ``[T]`` that of the rule, mean over meta-seeds.
        rival_success: ``[T]`` share of instances on which it reaches the target.
        rule_success: ``[T]`` the same for the rule.
        is_reached: ``[T]`` whether any baseline or the rule ever reaches the target. Where nobody
            does the ratio is 1 by construction and says nothing: means leave it out.
        log_ratio: ``[T]`` log of baseline's time over rule's; positive where the rule is faster.
        log_draws: ``[R, T]`` the same for bootstrap resamples.
    """

    label: str
    family: str
    group: str
    best: tuple[str, ...]
    rival_rmst: Floats
    rule_rmst: Floats
    rival_success: Floats
    rule_success: Floats
    is_reached: NDArray[np.bool_]
    log_ratio: Floats
    log_draws: Floats

    @property
    def is_less_solved(self) -> bool:
        """Whether the rule reaches some target on fewer instances than the best baseline."""
        return bool((self.rule_success < self.rival_success - 1e-12).any())


def restricted(times: ArrayLike, budget: int) -> Floats:
    """Times in [1, budget]: a run that starts at its target pays for one gradient.

    Examples:
        >>> restricted([0.0, 7.0, float("inf")], 10).tolist()
        [1.0, 7.0, 10.0]
    """
    values = np.asarray(times, dtype=np.float64)
    return np.clip(np.where(np.isnan(values), np.inf, values), 1, budget)


def best_rival(rivals: Mapping[str, Floats], budget: int, target: int) -> str:
    """The baseline of least restricted mean time to a target; the earlier one of equals."""
    return min(rivals, key=lambda name: restricted(rivals[name][target], budget).mean())


def seed_weights(num_seeds: int, repetitions: int, *, seed: int) -> Floats:
    """``[R, S]`` share of each meta-seed in each resample; one draw of meta-seeds for all tasks."""
    return _shares(num_seeds, repetitions, np.random.default_rng([seed, 0]))


def _shares(size: int, repetitions: int, rng: np.random.Generator) -> Floats:
    return rng.multinomial(size, [1 / size] * size, size=repetitions) / size


def _rng_of(label: str, seed: int) -> np.random.Generator:
    """Draws of instances: tasks apart, whoever runs on the same task together."""
    return np.random.default_rng([seed, 1, zlib.crc32(label.encode())])


def compare(task: TaskTimes, weights: Floats, *, seed: int) -> Comparison:
    """Race the rule against the best baseline of each target.

    The bootstrap draws instances, the same for both sides, and meta-seeds. The best baseline is
    found once, on the data as they are: the table names it.

    Args:
        task: the times.
        weights: what `seed_weights` returned.
        seed: seed of the draws of instances.

    Returns:
        The comparison.
    """
    num_targets, num_instances = task.rule.shape[1:]
    best = tuple(best_rival(task.rivals, task.budget, k) for k in range(num_targets))
    raw = np.stack([task.rivals[name][k] for k, name in enumerate(best)])
    rival, rule = restricted(raw, task.budget), restricted(task.rule, task.budget)
    shares = _shares(num_instances, len(weights), _rng_of(task.label, seed))
    rule_draws = np.einsum("rs,stn,rn->rt", weights, rule, shares)
    everyone = np.concatenate([np.stack(list(task.rivals.values())), task.rule])
    reached = np.asarray(np.isfinite(everyone).any(axis=(0, 2)))
    return Comparison(
        label=task.label,
        family=task.family,
        group=task.group,
        best=best,
        rival_rmst=rival.mean(axis=1),
        rule_rmst=rule.mean(axis=(0, 2)),
        rival_success=np.isfinite(raw).mean(axis=1),
        rule_success=np.isfinite(task.rule).mean(axis=(0, 2)),
        is_reached=reached,
        log_ratio=np.log(rival.mean(axis=1) / rule.mean(axis=(0, 2))),
        log_draws=np.log(shares @ rival.T / rule_draws),
    )


def mean_ratio(
    comparisons: Sequence[Comparison], *, target: int | None = None, by_family: bool = False
) -> Interval | None:
    """Geometric mean over tasks of baseline's time over rule's, with its bootstrap interval.

    Args:
        comparisons: one a task.
        target: which one; None takes, task by task, the geometric mean over those reached.
        by_family: average the tasks of a family first, so that each family counts once.

    Returns:
        Above 1 where the rule is faster. None if nobody reaches any such target.
    """
    strata: dict[str, list[tuple[float, Floats]]] = {}
    for c in comparisons:
        used = c.is_reached.copy()
        if target is not None:
            used &= np.arange(len(used)) == target
        if used.any():
            pair = (float(c.log_ratio[used].mean()), c.log_draws[:, used].mean(axis=1))
            strata.setdefault(c.family if by_family else c.label, []).append(pair)
    if not strata:
        return None
    estimate = np.mean([np.mean([pair[0] for pair in pairs]) for pairs in strata.values()])
    draws = np.mean(
        [np.mean([pair[1] for pair in pairs], axis=0) for pairs in strata.values()], axis=0
    )
    return interval_of_draws(float(np.exp(estimate)), np.exp(draws))


def best_overall(rivals: Mapping[str, Mapping[str, Floats]], budgets: Mapping[str, int]) -> str:
    """The baseline of least geometric mean, over tasks and targets, of restricted mean times.

    Args:
        rivals: task -> baseline -> times ``[T, n]``; the same baselines everywhere.
        budgets: task -> its budget.

    Returns:
        Its name.
    """

    def score(name: str) -> float:
        means = [restricted(r[name], budgets[task]).mean(axis=1) for task, r in rivals.items()]
        return float(np.log(means).mean())

    return min(next(iter(rivals.values())), key=score)


def families_of(names: Sequence[str]) -> set[str] | None:
    """Families of the tasks that a weight file's header lists, wrappers stripped.

    Args:
        names: such as ``rotated(strict_saddle)``.

    Returns:
        The families; None if they cannot be known, because the header lists a mixture or nothing.

    Examples:
        >>> sorted(families_of(["rotated(strict_saddle)", "monkey_saddle"]))
        ['re_zn', 'strict_saddle']
    """
    bare = [name.rsplit("(", 1)[-1].rstrip(")") for name in names]
    if not bare or "mixture" in bare:
        return None
    return {get_task(name).family for name in bare}


def group_of(task: Task, names: Sequence[str]) -> str:
    """Whether a task's family was in the training that a header describes.

    Mixtures hide what they hold. With one in the header, everything counts as trained except what
    no mixture of the experiments holds (`NEVER_TRAINED`, deep linear networks of three or more
    layers) and networks that the header does not name: in doubt a task is not called unseen.

    Args:
        task: a task of a suite.
        names: task names of the header.

    Returns:
        ``trained`` or ``unseen``.
    """
    innermost = task
    while hasattr(innermost, "inner"):
        innermost = innermost.inner
    if getattr(innermost, "depth", 0) >= 3 and task.family == "deep_linear":
        return "unseen"
    named = families_of([name for name in names if "mixture" not in name]) or set()
    if task.family in named:
        return "trained"
    is_network = task.family.endswith("_mlp")
    hides = families_of(names) is None
    return "trained" if hides and task.family not in NEVER_TRAINED and not is_network else "unseen"
