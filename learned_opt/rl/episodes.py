"""One episode in every lane of an environment, whatever decides, and how the episodes ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

Decide: TypeAlias = Callable[[NDArray[Any], dict[str, Any]], NDArray[Any]]
"""From ``[N, ...]`` observations and the infos that came with them to ``[N, ...]`` actions."""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """One episode in each lane.

    Attributes:
        log10_gaps: ``[N]`` what rewards measure, at the end: log10 of the relative gap plus target
            (the best one with ``best_so_far``), and for a diverged lane one e-fold above the
            largest gap that is allowed.
        returns: ``[N]`` sums of rewards, in the environment's units.
        lengths: ``[N]`` steps: gradients paid for.
        losses: ``[N]`` losses at the end.
        solved: ``[N]`` whether the target was reached.
        diverged: ``[N]`` whether the run diverged.
        kicks: ``[N]`` kicks.
    """

    log10_gaps: NDArray[np.float64]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    losses: NDArray[np.float64]
    solved: NDArray[np.bool_]
    diverged: NDArray[np.bool_]
    kicks: NDArray[np.int64]


def play(
    env: VectorEnv[Any, Any, Any],
    policy: Decide,
    *,
    seed: int = 0,
    look: Callable[[], None] | None = None,
) -> Episodes:
    """Play the first episode of every lane.

    Args:
        env: an environment of the package `envs`, wrapped or not, in any autoreset mode; reset
            here.
        policy: what decides. If it has a method ``reset``, this is called with a mask ``[N]`` of
            all lanes at the start, and of those that ended after each step in which some did.
        seed: lane ``i`` plays the first episode of seed ``seed + i``.
        look: called at the start and after each step.

    Returns:
        How the episodes ended.
    """
    n = env.num_envs
    is_open = np.ones(n, bool)
    returns, losses, log10_gaps = np.zeros(n), np.zeros(n), np.zeros(n)
    lengths, kicks = np.zeros(n, np.int64), np.zeros(n, np.int64)
    solved, diverged = np.zeros(n, bool), np.zeros(n, bool)
    tell: Callable[[NDArray[np.bool_]], None] = getattr(policy, "reset", lambda _: None)
    observation, info = env.reset(seed=seed)
    tell(is_open.copy())
    if look is not None:
        look()
    while is_open.any():
        observation, rewards, terminations, truncations, info = env.step(policy(observation, info))
        if look is not None:
            look()
        returns += np.where(is_open, rewards, 0.0)
        ended = (terminations | truncations) & is_open
        if not ended.any():
            continue
        last = info["final_info"]["opt"] if "final_info" in info else info["opt"]
        log10_gaps[ended] = last["log10_gap"][ended]
        lengths[ended] = last["num_gradients"][ended]
        losses[ended] = last["loss"][ended]
        diverged[ended] = last["diverged"][ended]
        solved[ended] = terminations[ended] & ~diverged[ended]
        kicks[ended] = last["kicks"][ended]
        is_open &= ~ended
        tell(ended)
    return Episodes(
        log10_gaps=log10_gaps,
        returns=returns,
        lengths=lengths,
        losses=losses,
        solved=solved,
        diverged=diverged,
        kicks=kicks,
    )
