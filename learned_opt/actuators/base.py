"""An update rule with its decisions left open."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError, unknown_name
from learned_opt.features import Feature, schema_hash
from learned_opt.trees import Tree

Noise: TypeAlias = Callable[[int], Tensor]
"""Draws standard normal numbers ``[N, n]``, once a step at most: ``n`` is the number of parameters,
or fewer of very many."""


@dataclass(frozen=True)
class ActionSpace:
    """What a policy may decide.

    Attributes:
        names: of the continuous controls, each in [-1, 1], or of the discrete choices.
        is_discrete: whether one of `names` is chosen, or a number given for each.
    """

    names: tuple[str, ...]
    is_discrete: bool

    @property
    def size(self) -> int:
        """How many numbers a policy network puts out."""
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an actuator made of a decision.

    Attributes:
        updates: ``[N, P]`` what to add to the parameters.
        state: the new state.
        kicked: ``[N]`` bool, which lanes were kicked; None where there is no such decision.
    """

    updates: Tensor
    state: Tree
    kicked: Tensor | None = None


class Actuator(ABC):
    """An update rule for ``N`` lanes at once whose decisions a policy makes.

    Parameters, gradients and updates are flat, ``[N, P]``. A step is `observe`, then a decision,
    then `act`. Observations and the effect of a decision do not change under ``f -> a f + b`` and
    ``x -> c x`` (with the initial step size scaled along), so a policy has no units to learn.

    Attributes:
        name: the registered name.
        features: what each observed number is.
        actions: what may be decided.
        per_coordinate: whether there is an observation and a decision for every coordinate.
        needs_loss: whether losses must be known. Otherwise NaN stands for one that is not.
        revision: counts changes of what the same decisions do, after which weights must be trained
            anew.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 0
    features: tuple[Feature, ...]
    actions: ActionSpace
    per_coordinate: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = True

    @abstractmethod
    def init(self, params: Tensor, *, learning_rate: Tensor, num_matrices: int = 0) -> Tree:
        """The state before the first step.

        Args:
            params: starting points ``[N, P]``.
            learning_rate: ``[N]`` the initial step size, in the caller's units.
            num_matrices: how many matrices the parameters are made of, 0 if none or not known.

        Returns:
            A tree of tensors ``[N, ...]``.
        """

    def restart(
        self, params: Tensor, *, learning_rate: Tensor, steps: Tensor, num_matrices: int = 0
    ) -> Tree:
        """The state of who takes over under way.

        Args:
            params: points ``[N, P]``.
            learning_rate: as for `init`.
            steps: ``[N]`` how many steps have led there, positive.
            num_matrices: as for `init`.

        Returns:
            A tree as from `init`; the same unless an actuator begins with long steps.
        """
        del steps
        return self.init(params, learning_rate=learning_rate, num_matrices=num_matrices)

    @abstractmethod
    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """Look at where the last step led.

        Args:
            grads: ``[N, P]`` gradients at `params`.
            loss: ``[N]`` losses at `params`.
            params: ``[N, P]`` current points.
            state: what `init` or `act` returned; not modified.

        Returns:
            Observations ``[N, F]``, or ``[N, P, F]`` if `per_coordinate`, and the state for `act`.
        """

    @abstractmethod
    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """Carry a decision out.

        Args:
            action: ``[N, A]`` numbers in [-1, 1] (``[N, P, A]`` if `per_coordinate`), or ``[N]``
                choices.
            grads: ``[N, P]`` gradients at `params`.
            params: ``[N, P]`` current points.
            state: what `observe` returned; not modified.
            noise: source of this step's random numbers.

        Returns:
            Updates, the new state, and which lanes were kicked.
        """

    def neutral(self) -> Tensor:
        """The decision that leaves all controls alone: 0-d choice, or ``[A]`` numbers."""
        if self.actions.is_discrete:
            return torch.zeros((), dtype=torch.int64)
        return torch.zeros(self.actions.size)

    def mask(self, state: Tree) -> Tensor | None:
        """Which choices are allowed, ``[N, A]`` bool; None if all always are."""
        del state
        return None

    def controls(self, state: Tree) -> dict[str, Tensor]:
        """The current settings by name, each ``[N]``, for logs and plots."""
        del state
        return {}

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""
        return {}

    @property
    def feature_schema(self) -> str:
        """Digest of observation, choices and revision; weights trained on others are refused."""
        seen = ((f.name, f.meaning, f.low, f.high) for f in self.features)
        revision = (self.revision,) if self.revision else ()
        return schema_hash(self.name, self.actions.names, *seen, *revision)


_REGISTRY: dict[str, type[Actuator]] = {}


def register_actuator(factory: type[Actuator]) -> type[Actuator]:
    """Class decorator: make an actuator available under its ``name``."""
    _REGISTRY[factory.name] = factory
    return factory


def get_actuator(name: str, **settings: Any) -> Actuator:
    """Build a registered actuator.

    Args:
        name: a registered name.
        settings: keyword arguments of its constructor.

    Returns:
        The actuator.

    Raises:
        LearnedOptError: if the name or a setting is unknown or a value out of range.

    Examples:
        >>> get_actuator("hyper_control").actions.names
        ('step size', 'momentum', 'noise')
    """
    if name not in _REGISTRY:
        raise unknown_name("actuator", name, _REGISTRY)
    try:
        return _REGISTRY[name](**settings)
    except TypeError as error:
        raise LearnedOptError(f"actuator '{name}': {error}") from error


def list_actuators() -> dict[str, str]:
    """Registered names with the first line of each actuator's docstring."""
    return {
        name: (factory.__doc__ or "").strip().splitlines()[0]
        for name, factory in sorted(_REGISTRY.items())
    }


def clip_to(values: Tensor, features: tuple[Feature, ...]) -> Tensor:
    """Observations ``[..., F]`` within the declared ranges; what is not finite becomes zero."""
    # Caches are not for compiled code, which makes constants of what it needs by itself.
    ranges = _ranges if torch.compiler.is_compiling() else _cached_ranges
    low, high = ranges(features, values.dtype, values.device)
    return values.clamp(low, high).nan_to_num(nan=0.0)


def _ranges(
    features: tuple[Feature, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    low = torch.tensor([f.low for f in features], dtype=dtype, device=device)
    return low, torch.tensor([f.high for f in features], dtype=dtype, device=device)


_cached_ranges = functools.cache(_ranges)
