"""Environments by name: the library never imports them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from learned_opt.errors import LearnedOptError, require, unknown_name

NAMES = ("CoordUpdate-v0", "HyperControl-v0", "LearningRate-v0", "SaddleEscape-v0")
"""Short names of the bundled environments."""

_PREFIX = "envs:LearnedOpt/"


def resolve_environment(name: str) -> str:
    """The full id of an environment.

    Args:
        name: a short name such as ``HyperControl-v0``, or a full id with a slash or colon in it.

    Returns:
        The id that `gymnasium.make_vec` understands.

    Raises:
        LearnedOptError: if a short name is unknown.

    Examples:
        >>> resolve_environment("HyperControl-v0")
        'envs:LearnedOpt/HyperControl-v0'
    """
    short = name.removeprefix("envs:").removeprefix("LearnedOpt/")
    if short in NAMES:
        return _PREFIX + short
    if "/" in short or ":" in short:
        return name
    raise unknown_name("environment", name, NAMES)


def make_lanes(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    num_lanes: int,
    autoreset: str = "SameStep",
) -> VectorEnv[Any, Any, Any]:
    """Make a native vector environment.

    Args:
        name: as for `resolve_environment`.
        settings: keyword arguments of the environment.
        num_lanes: number of lanes.
        autoreset: ``SameStep``, ``NextStep`` or ``Disabled``.

    Returns:
        The environment.

    Raises:
        LearnedOptError: if there is no such environment, or it has no lanes of this library's kind.
    """
    require(num_lanes >= 1, f"num_lanes must be positive, got {num_lanes}")
    full = resolve_environment(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            lanes = gym.make_vec(
                full,
                num_envs=num_lanes,
                vectorization_mode="vector_entry_point",
                autoreset_mode=autoreset,
                **(settings or {}),
            )
    except LearnedOptError:
        raise
    except (gym.error.Error, ImportError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LearnedOptError(f"environment '{name}' cannot be made: {reason}") from error
    require(
        hasattr(lanes.unwrapped, "core") and hasattr(lanes.unwrapped, "get_state"),
        f"environment '{name}' is not one of learned_opt's: it has no decision process `core`",
    )
    return lanes
