r"""A cost per step whose sum over an episode is the time to the targets, family by family relative.

Optimizers are compared by ratios of mean times: the geometric mean over families, of the arithmetic
mean over problems. Its logarithm falls by $\sum_f d\bar T_f / \bar T_f$, so a step on a problem of
the family $f$ costs $1 / \bar T_f$ for the share of the targets not yet reached, where $\bar T_f$,
the pace of the family, is followed as the rule improves.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_GAP = 10.0
"""Relative gap above which nothing gets worse."""

_WEIGHT_OF_BEST = 0.7
_MOST_PACES = 20.0


def unreached(gaps: Tensor, *, epsilon: float | Tensor) -> Tensor:
    r"""Share of the targets between 1 and `epsilon`, even in log, that lie below the gap.

    Args:
        gaps: relative gaps, any shape.
        epsilon: the smallest target, in (0, 1), one for all or for each.

    Returns:
        0 at `epsilon` and below, 1 at a gap of 1, above 1 for larger ones.

    Examples:
        >>> unreached(torch.tensor([1.0, 1e-2, 1e-5]), epsilon=1e-4).tolist()
        [1.0, 0.5, 0.0]
    """
    least = torch.as_tensor(epsilon, dtype=gaps.dtype, device=gaps.device)
    inside = torch.maximum(gaps, least).clamp_max(LARGEST_GAP)
    return (inside / least).log() / -least.log()


def step_cost(
    best: Tensor, gaps: Tensor, steps: Tensor, pace: Tensor, *, epsilon: float | Tensor
) -> Tensor:
    """What one step costs.

    Seven tenths are for targets that were never reached, three tenths for those that the current
    point lies above, so that what was won is not thrown away. After twenty paces nothing is lost
    any more: one hopeless problem must not outweigh a hundred.

    Args:
        best: ``[N]`` least relative gaps so far, the current one included.
        gaps: ``[N]`` current relative gaps.
        steps: ``[N]`` steps taken, from 1 on.
        pace: ``[N]`` of the problem's family, in steps.
        epsilon: the smallest target, one for all or ``[N]``.

    Returns:
        ``[N]`` costs, not negative.
    """
    never, now = unreached(best, epsilon=epsilon), unreached(gaps, epsilon=epsilon)
    cost = (_WEIGHT_OF_BEST * never + (1 - _WEIGHT_OF_BEST) * now) / pace
    return torch.where(steps <= _MOST_PACES * pace, cost, torch.zeros_like(cost))


def divergence_cost(
    steps: Tensor, horizon: Tensor, pace: Tensor, *, epsilon: float | Tensor
) -> Tensor:
    """What a run pays that diverged: more than it could have lost by standing still.

    Args:
        steps: ``[N]`` steps taken, from 1 on.
        horizon: ``[N]`` steps of the episode.
        pace: ``[N]`` of the problem's family, in steps.
        epsilon: the smallest target, one for all or ``[N]``.

    Returns:
        ``[N]`` costs.
    """
    worst = unreached(torch.full_like(pace, LARGEST_GAP), epsilon=epsilon)
    return 1 + worst * ((horizon - steps) / pace).clamp(0, _MOST_PACES)
