"""What problems played side by side did, and how much better that was than expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from learned_opt.trees import Tree

_NOISY_SHARE = 0.2
"""Deviation of the advantages in lanes with noise: a change that is kept up makes their gradient
long and steady, and at 1 it drowns that of all other lanes."""


@final
@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What the lanes did for ``K`` steps.

    Attributes:
        memory: the network's memory before the first step, a tree of ``[N, ...]``.
        observations: ``[K, N, F]``.
        actions: ``[K, N, A]`` as drawn, before they were cut off.
        log_likelihoods: ``[K, N]`` of the actions.
        advantages: ``[K, N]`` standardised, see `standardised`; zero where a lane stood still, the
            same at all other steps of a lane with noise.
        fresh: ``[K, N]`` bool, an episode began before the step.
        weights: ``[K, N]`` 1 where a lane moved, 0 where it stood still.
    """

    memory: Tree
    observations: Tensor
    actions: Tensor
    log_likelihoods: Tensor
    advantages: Tensor
    fresh: Tensor
    weights: Tensor


def log_likelihood(action: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """Of independent normal decisions, less a constant; ``[..., A] -> [...]``."""
    return -0.5 * ((action - mean) / std).square().sum(-1)


def advantages(
    costs: Tensor,
    expected: Tensor,
    following: Tensor,
    over: Tensor,
    weights: Tensor,
    *,
    decay: float,
) -> Tensor:
    """Generalised advantages of costs, without discount, all ``[K, N]``."""
    surprises = costs + following - expected
    advantages = torch.zeros_like(costs)
    ahead = torch.zeros_like(costs[0])
    for k in reversed(range(len(costs))):
        ahead = (surprises[k] + decay * ahead * ~over[k]) * weights[k]
        advantages[k] = ahead
    return advantages


def beside_twins(total: Tensor, origins: Tensor) -> Tensor:
    """What lanes came to, less the mean of each and its twin.

    Noise, problem and place are the same for both, so most of what is luck falls out: the method
    of antithetic and common random numbers (Schulman et al. 2015, arXiv:1502.05477, on "vine"
    rollouts; Salimans et al. 2017, arXiv:1703.03864, on mirrored perturbations).

    Args:
        total: ``[N]``.
        origins: ``[N]`` the lane that each is a twin of, itself where there is none.

    Returns:
        ``[N]``, zero for lanes alone: they have nothing to be compared with.
    """
    count = torch.bincount(origins, minlength=len(total))
    mean = torch.zeros_like(total).index_add(0, origins, total) / count.clamp_min(1)
    return total - mean[origins]


def standardised(advantages: Tensor, is_stochastic: Tensor, weights: Tensor) -> Tensor:
    """Mean zero and deviation one, or `_NOISY_SHARE` in lanes with noise, apart from the others.

    Costs with noise have a scale of their own: problems take ten times as many steps there, and all
    that a rollout came to is one surplus. In one lot the scale of one kind would rule the other.

    Args:
        advantages: ``[K, N]``.
        is_stochastic: ``[N]`` bool.
        weights: ``[K, N]`` 1 where a lane moved, 0 where it stood still.

    Returns:
        ``[K, N]``, zero where a lane stood still.
    """
    standard = torch.zeros_like(advantages)
    for lanes, share in ((is_stochastic, _NOISY_SHARE), (~is_stochastic, 1.0)):
        known = advantages[:, lanes][weights[:, lanes].bool()]
        if len(known) > 1:
            scaled = (advantages[:, lanes] - known.mean()) / (known.std() + 1e-8)
            standard[:, lanes] = scaled * weights[:, lanes] * share
    return standard
