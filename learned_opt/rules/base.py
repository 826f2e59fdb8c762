"""The one interface of this package: a Rule is an update rule, hand-made or learned.

A rule is an `nn.Module` without any state of its own: what it remembers travels through `forward`.
Its parameters are the meta-parameters theta; a hand-made rule's hyperparameters are parameters too
and may carry the problem axis, so that a whole sweep moves as one batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from learned_opt.errors import LearnedOptError, require, unknown_name
from learned_opt.trees import Params, Tree


class Rule(nn.Module, ABC):
    """An update rule for ``N`` problems at once; pure apart from the generator it is handed.

    Attributes:
        name: the registered name.
        needs_loss: whether `forward` must be given the loss.
        needs_rng: whether `forward` must be given a generator.
        coordinatewise: whether each coordinate moves by its own gradient and state alone, whatever
            tensor it lies in and wherever: every leaf of the state is ``[N]`` or ``[N, P, ...]``
            over the flattened coordinates.
        feature_schema: digest of what a learned rule sees; empty for a hand-made one.

    A module inside a rule may carry ``learning_rate_factor``, a positive number: meta-training
    moves its parameters at that many times the learning rate of the settings; and, for its own
    bias on top of that, ``bias_learning_rate_factor``.
    """

    name: ClassVar[str]
    needs_loss: ClassVar[bool] = False
    needs_rng: ClassVar[bool] = False
    coordinatewise: ClassVar[bool] = False
    feature_schema: ClassVar[str] = ""

    @abstractmethod
    def init(self, params: Params) -> Tree:
        """The state before the first step.

        Args:
            params: starting points, each ``[N, *shape]``.

        Returns:
            A tree of tensors ``[N, ...]`` (every leaf carries the problem axis first).
        """

    def restart(self, params: Params, steps: Tensor) -> Tree:
        """The state of a rule that takes over under way.

        Args:
            params: points, each ``[N, *shape]``.
            steps: ``[N]`` how many steps have led there, positive.

        Returns:
            A tree as from `init`; the same unless a rule begins with long steps.
        """
        del steps
        return self.init(params)

    @abstractmethod
    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step.

        Args:
            grads: gradients, each ``[N, *shape]``.
            state: what `init` or the last `forward` returned; not modified.
            params: current points; not modified.
            loss: ``[N]`` losses at `params`, if known.
            rng: source of this step's random numbers, drawn as one tensor per parameter for the
                whole batch: a noise stream belongs to a batch, not to a problem.

        Returns:
            ``(updates, state)``: what to add to each parameter, and the new state.
        """

    @property
    def sweep_size(self) -> int | None:
        """Number of problems that theta is made for, or None if it serves any number."""
        return None

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Type that parameters must have; None for a rule that takes any."""
        return next((p.dtype for p in self.parameters()), torch.float32)

    def returns(self, state: Tree) -> Tensor | None:
        """Whether the last updates go back to where a problem was, rather than on from where it is.

        Factors on the steps, such as a scheduled learning rate, do not apply to these.

        Args:
            state: what the last `forward` returned.

        Returns:
            ``[N]`` truth values, or None for a rule that never goes back.
        """
        del state
        return None

    def reach(self, state: Tree) -> Tensor | None:
        """How large coordinates may be after the last updates.

        Args:
            state: what the last `forward` returned.

        Returns:
            ``[N]`` length of the point plus that of the update, infinite where the update goes
            back, or None for a rule that does not know.
        """
        del state
        return None

    def config(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able, that rebuild this rule's structure (without theta)."""
        return {}


class HandMade(Rule):
    """A rule whose theta are named scalar hyperparameters, each a 0-d or ``[N]`` float64 parameter.

    Args:
        hyperparameters: name -> value, or ``[N]`` values for a sweep.

    Raises:
        LearnedOptError: if a value is negative or not finite.
    """

    def __init__(self, **hyperparameters: float | Tensor) -> None:
        super().__init__()
        for key, value in hyperparameters.items():
            tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
            require(
                bool(torch.isfinite(tensor).all()) and bool((tensor >= 0).all()),
                f"{self.name}: {key} must be finite and not negative, got {value}",
            )
            require(tensor.dim() <= 1, f"{self.name}: {key} must be a scalar or [N], got {value!r}")
            setattr(self, key, nn.Parameter(tensor))

    @property
    def sweep_size(self) -> int | None:
        """Length of the hyperparameters that carry the problem axis; None if all are scalars."""
        return max((p.shape[0] for p in self.parameters() if p.dim()), default=None)

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Any: hyperparameters take the type of what they multiply."""
        return None

    def config(self) -> dict[str, Any]:
        """The hyperparameters as plain numbers (lists for a sweep)."""
        return {key: value.detach().tolist() for key, value in self.named_parameters()}


_REGISTRY: dict[str, type[Rule]] = {}


def register_rule(factory: type[Rule]) -> type[Rule]:
    """Class decorator: make a rule available to `get_rule` and weight files under its ``name``."""
    known = _REGISTRY.get(factory.name)
    # A module that is imported twice (reload, doctest collection) registers the same class again.
    if known is not None and known.__qualname__ != factory.__qualname__:
        raise LearnedOptError(f"rule '{factory.name}' is registered twice")
    _REGISTRY[factory.name] = factory
    return factory


def get_rule(name: str, **settings: Any) -> Rule:
    """Build a registered rule with fresh theta.

    Args:
        name: a registered name.
        settings: keyword arguments of its constructor.

    Returns:
        The rule.

    Raises:
        LearnedOptError: if the name or a setting is unknown or a value out of range.

    Examples:
        >>> get_rule("sgd", learning_rate=0.5).learning_rate.item()
        0.5
    """
    if name not in _REGISTRY:
        raise unknown_name("rule", name, _REGISTRY)
    try:
        return _REGISTRY[name](**settings)
    except TypeError as error:
        raise LearnedOptError(f"rule '{name}': {error}") from error


def build_rule(what: Rule | str | Mapping[str, Any]) -> Rule:
    """A part of a composed rule, from whatever names it.

    Args:
        what: a rule, which is taken as it is; a registered name, which gives fresh theta; or what
            `describe_rule` returned.

    Returns:
        The rule.

    Raises:
        LearnedOptError: if it describes nothing, or the name or a setting is unknown.

    Examples:
        >>> build_rule({"name": "sgd", "config": {"learning_rate": 0.5}}).learning_rate.item()
        0.5
    """
    if isinstance(what, Rule):
        return what
    if isinstance(what, str):
        return get_rule(what)
    require(
        set(what) <= {"name", "config"} and "name" in what,
        f"a rule is described by 'name' and 'config', got {what!r}",
    )
    return get_rule(what["name"], **what.get("config", {}))


def describe_rule(rule: Rule) -> dict[str, Any]:
    """Name and settings, JSON-able, from which `build_rule` makes the rule anew (without theta).

    Examples:
        >>> describe_rule(get_rule("sgd", learning_rate=0.5))
        {'name': 'sgd', 'config': {'learning_rate': 0.5}}
    """
    return {"name": rule.name, "config": rule.config()}


def registered_rules() -> dict[str, str]:
    """Registered names with the first line of each rule's docstring."""
    return {
        name: (factory.__doc__ or "").strip().splitlines()[0]
        for name, factory in sorted(_REGISTRY.items())
    }
