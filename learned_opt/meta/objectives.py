"""What meta-training minimises: one number from the losses of ``N`` inner loops.

The loss before the first step is not the rule's doing, so column 0 never counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from learned_opt.errors import unknown_name
from learned_opt.tasks.base import Facts


class Objective(Protocol):
    """A meta-objective."""

    def __call__(self, losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float) -> Tensor:
        """Judge one truncation.

        Args:
            losses: ``[N, T + 1]`` losses; column ``t`` is the loss after ``t`` steps of it.
            facts: known levels of the problems.
            initial: ``[N]`` losses before the first step of the whole episode.
            epsilon: relative floor inside logarithms, positive.

        Returns:
            The scalar to minimise.
        """


def gap_unit(*, facts: Facts, initial: Tensor) -> Tensor:
    """What counts as a gap of one, ``[N]``: the fall from the saddle or plateau to the minimum.

    A start may lie far above the saddle that it runs into; in units of the start's own gap, leaving
    the saddle would hardly count. Where the level of the saddle is not known to lie above the
    minimum, the gap of the start it is.

    Args:
        facts: known levels of the problems.
        initial: ``[N]`` losses before the first step of the episode.

    Returns:
        ``[N]`` positive numbers.
    """
    fall = facts.reference - facts.minimum
    return torch.where(fall > 0, fall, initial - facts.minimum)


def relative_gaps(losses: Tensor, *, facts: Facts, initial: Tensor) -> Tensor:
    r"""Distance above the minimum, $(f_t - f^*)_+$, in units of `gap_unit`.

    Invariant under ``f -> a f + b``. A minibatch loss below the minimum counts as no gap.

    Args:
        losses: ``[N, T]`` losses.
        facts: known levels of the problems.
        initial: ``[N]`` losses before the first step of the episode.

    Returns:
        ``[N, T]`` relative gaps.
    """
    unit = gap_unit(facts=facts, initial=initial)
    return (losses - facts.minimum[:, None]).clamp_min(0) / unit[:, None]


def summed(losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float) -> Tensor:
    """Sum over steps, mean over problems: all weights one, as Andrychowicz et al. 2016, eq. 3."""
    del facts, initial, epsilon
    return losses[:, 1:].sum(1).mean()


def final(losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float) -> Tensor:
    """The last loss alone, mean over problems."""
    del facts, initial, epsilon
    return losses[:, -1].mean()


def log_relative(losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float) -> Tensor:
    r"""Mean of $\log(f_t / f_0 + \epsilon)$, for losses that are never negative.

    The objective of Wichrowska et al. 2017 (arXiv:1703.04813), with a floor so that a solved
    problem does not rule the mean.
    """
    del facts
    return torch.log(losses[:, 1:] / initial[:, None] + epsilon).mean()


def log_gap(losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float) -> Tensor:
    r"""Mean of $\log(\text{gap}_t + \epsilon)$; see `relative_gaps`."""
    gaps = relative_gaps(losses[:, 1:], facts=facts, initial=initial)
    return torch.log(gaps + epsilon).mean()


def log_mean_gap(losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float) -> Tensor:
    r"""Mean over steps of $\log(\overline{f_t - f^*} / \bar u + \epsilon)$, $u$ the `gap_unit`.

    The bar is the mean over problems, so the hardest problem of the batch weighs most, where
    `log_gap` lets the easiest gain without limit.
    """
    unit = gap_unit(facts=facts, initial=initial).mean()
    gaps = (losses[:, 1:] - facts.minimum[:, None]).clamp_min(0).mean(0)
    return torch.log(gaps / unit + epsilon).mean()


def balanced(losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float) -> Tensor:
    """Half `log_gap`, half `log_mean_gap`: good on most problems, bad on none."""
    typical = log_gap(losses, facts=facts, initial=initial, epsilon=epsilon)
    worst = log_mean_gap(losses, facts=facts, initial=initial, epsilon=epsilon)
    return 0.5 * (typical + worst)


OBJECTIVES: dict[str, Objective] = {
    "sum": summed,
    "final": final,
    "log": log_relative,
    "log_gap": log_gap,
    "log_mean_gap": log_mean_gap,
    "balanced": balanced,
}
"""Meta-objectives by name."""

OverSteps: TypeAlias = Literal["sum", "mean", "last"]
"""How an episode's objective comes from that of each step alone."""

OVER_STEPS: dict[str, OverSteps] = {
    "sum": "sum",
    "final": "last",
    "log": "mean",
    "log_gap": "mean",
    "log_mean_gap": "mean",
    "balanced": "mean",
}
"""The same for each meta-objective by name."""


def get_objective(name: str) -> Objective:
    """The meta-objective called `name`.

    Raises:
        LearnedOptError: if there is none; the nearest name is suggested.

    Examples:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> facts = Facts(minimum=zero, reference=zero, next_level=zero, levels=torch.zeros(1, 0))
        >>> losses = torch.tensor([[4.0, 2.0, 1.0]])
        >>> get_objective("sum")(losses, facts=facts, initial=losses[:, 0], epsilon=1e-6).item()
        3.0
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def judge_steps(
    objective: Objective, losses: Tensor, *, facts: Facts, initial: Tensor, epsilon: float
) -> Tensor:
    """What an objective says of each step alone, for many groups of problems.

    Args:
        objective: the meta-objective.
        losses: ``[P, S, M, T + 1]`` losses of ``P`` groups of ``M`` problems in ``S`` versions;
            column ``t`` is the loss after ``t`` steps.
        facts: known levels of the ``P M`` problems.
        initial: ``[P, M]`` losses before the first step of the episode.
        epsilon: relative floor inside logarithms, positive.

    Returns:
        ``[P, S, T]`` values.
    """
    groups = initial.shape
    known = {
        name: value.unflatten(0, groups)
        for name, value in vars(facts).items()
        if isinstance(value, Tensor)
    }

    def one(losses: Tensor, known: dict[str, Tensor], initial: Tensor) -> Tensor:
        own = replace(facts, **known)  # type: ignore[arg-type]
        return objective(losses, facts=own, initial=initial, epsilon=epsilon)

    over_steps = vmap(one, in_dims=(1, None, None))
    over_versions = vmap(over_steps, in_dims=(0, None, None))
    judged: Tensor = vmap(over_versions)(losses.unfold(-1, 2, 1), known, initial)
    return judged
