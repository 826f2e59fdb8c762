"""Fixed settings of gradient descent with momentum, and the best of them in hindsight.

`sweep` runs them on the instances, from the starts and with the minibatches of the same lanes, so
that its numbers stand beside those of policies that `learned_opt.rl.episodes.play` lets play.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from envs.core import OptimizationCore, episode_keys
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import ActionSpace, Actuator
from learned_opt.actuators.base import Noise, Step
from learned_opt.errors import require
from learned_opt.trees import Tree

_LANES_AT_ONCE = 8192


class FixedSetting(NamedTuple):
    """Gradient descent with momentum that nobody steers.

    Attributes:
        multiplier: step size, in units of the episode's initial one.
        momentum: decay of the running sum of gradients.
    """

    multiplier: float
    momentum: float


GRID = tuple(
    FixedSetting(10 ** (half_decades / 2), momentum)
    for half_decades in range(-3, 7)
    for momentum in (0.0, 0.5, 0.7, 0.8, 0.9)
)
"""Fifty settings: multipliers from 0.03 to 1000 in half decades times five momenta."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How fixed settings fared.

    Attributes:
        settings: what was tried, ``S`` of them.
        log10_gaps: ``[S, N]`` of each setting on each instance, at the end, as `Episodes` has them.
    """

    settings: tuple[FixedSetting, ...]
    log10_gaps: NDArray[np.float64]

    @property
    def best_index(self) -> int:
        """Position of the setting with the lowest median over instances."""
        return int(np.median(self.log10_gaps, axis=1).argmin())

    @property
    def best_constant(self) -> FixedSetting:
        """The setting with the lowest median over instances."""
        return self.settings[self.best_index]


def sweep(
    make_env: Callable[[], VectorEnv[Any, Any, Any]],
    settings: Sequence[FixedSetting] = GRID,
    *,
    seed: int = 0,
) -> Sweep:
    r"""Run fixed settings on the first episode of every lane.

    $$ m' = \beta m + g, \qquad x' = x - \eta_0 c\, m' $$

    with multiplier $c$ and momentum $\beta$ constant for the whole episode. Everything else is the
    environment's own: instances, starts, initial step sizes $\eta_0$, minibatches, the ends of
    episodes by target, divergence or budget, and the score. The environment's actuator and its
    limits on controls play no part.

    Args:
        make_env: makes the vector environment, whose lanes are the instances.
        settings: what to try.
        seed: of the lanes, ``seed + i``.

    Returns:
        Gaps of every setting on every instance.

    Raises:
        LearnedOptError: if there are no settings, one is out of range, or the environment is not
            one of this package's.
    """
    require(len(settings) >= 1, "settings must name at least one setting, got none")
    for setting in settings:
        require(
            0 <= setting.multiplier < math.inf and 0 <= setting.momentum < 1,
            f"settings must have a finite multiplier and a momentum in [0, 1), got {setting}",
        )
    env = make_env()
    inner = env.unwrapped
    require(
        isinstance(inner, OptimizationVectorEnv),
        f"make_env must make a vector environment of this package, got {type(inner).__name__}",
    )
    assert isinstance(inner, OptimizationVectorEnv)
    core = OptimizationCore(inner.core.settings, _FixedHeavyBall())
    n, num_steps = inner.num_envs, inner.max_episode_steps
    env.close()
    seeds = np.arange(seed, seed + n).astype(np.uint64)
    grid = torch.tensor(settings, dtype=core.dtype)
    at_once = max(1, _LANES_AT_ONCE // n)
    rows = [
        _final_potentials(core, seeds, chunk, num_steps=num_steps) for chunk in grid.split(at_once)
    ]
    potentials = np.concatenate(rows)
    return Sweep(settings=tuple(settings), log10_gaps=-potentials / math.log(10))


def best_constant(
    make_env: Callable[[], VectorEnv[Any, Any, Any]],
    settings: Sequence[FixedSetting] = GRID,
    *,
    seed: int = 0,
) -> tuple[FixedSetting, NDArray[np.float64]]:
    """The one setting, shared by all instances, with the lowest median gap.

    It is chosen on the instances it is reported on; for a fair figure choose with one `seed` and
    look up `Sweep.best_index` in the sweep of another.

    Args:
        make_env: see `sweep`.
        settings: what to try.
        seed: of the lanes.

    Returns:
        The setting and its ``[N]`` log10 gaps.
    """
    swept = sweep(make_env, settings, seed=seed)
    return swept.best_constant, swept.log10_gaps[swept.best_index]


def hindsight_oracle(
    make_env: Callable[[], VectorEnv[Any, Any, Any]],
    settings: Sequence[FixedSetting] = GRID,
    *,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The best setting of every single instance, which nobody can know beforehand.

    Args:
        make_env: see `sweep`.
        settings: what to try.
        seed: of the lanes.

    Returns:
        ``[N]`` log10 gaps.
    """
    lowest: NDArray[np.float64] = sweep(make_env, settings, seed=seed).log10_gaps.min(0)
    return lowest


@final
class _FixedHeavyBall(Actuator):
    """A heavy ball whose action is its setting: step-size multiplier and momentum, unbounded."""

    name: ClassVar[str] = "fixed_heavy_ball"

    def __init__(self) -> None:
        self.features = ()
        self.actions = ActionSpace(("multiplier", "momentum"), is_discrete=False)

    def init(self, params: Tensor, *, learning_rate: Tensor, num_matrices: int = 0) -> Tree:
        """See `Actuator.init`."""
        del num_matrices
        return {"learning_rate": learning_rate.to(params), "momentum": torch.zeros_like(params)}

    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """Nothing is looked at."""
        del loss, params
        return grads.new_zeros(len(grads), 0), state

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        del params, noise
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        momentum = torch.addcmul(grads, s["momentum"], action[:, 1:])
        step_size = s["learning_rate"] * action[:, 0]
        return Step(updates=momentum * -step_size[:, None], state={**state, "momentum": momentum})


def _final_potentials(
    core: OptimizationCore, seeds: NDArray[np.uint64], settings: Tensor, *, num_steps: int
) -> NDArray[np.float64]:
    """``[S, N]`` potentials at the ends of the first episodes."""
    n, s = len(seeds), len(settings)
    keys = np.tile(episode_keys(seeds, np.zeros(n, np.int64)), s)
    action = settings.repeat_interleave(n, dim=0)
    state = core.initial(keys)
    potential, is_open = state.potential.clone(), torch.ones(len(keys), dtype=torch.bool)
    for _ in range(num_steps):
        state = core.transition(state, action)
        potential = torch.where(is_open, state.potential, potential)
        is_open = is_open & ~core.terminal(state)
        if not is_open.any():
            break
    return potential.reshape(s, n).numpy()
