"""The one interface of this package: a Task is a distribution of problems.

Every tensor carries the problem axis first: ``N`` independent problems move together through each
call, and a loss never mixes problems. A task says what is minimised and what is known about it; it
knows nothing of rules, budgets or statistics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError, require, unknown_name
from learned_opt.trees import Params, Tree, repeat, select, tree_map


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of each problem's levels; the ground truth of every event and log gap.

    Attributes:
        minimum: ``[N]`` the infimum of the loss, or a lower bound where `is_lower_bound` says so.
        reference: ``[N]`` the value of the saddle or plateau at which the problem starts.
        next_level: ``[N]`` the next critical value below `reference` (the minimum if none).
        levels: ``[N, L]`` all known critical values, descending, drawn into loss curves; ``L`` may
            be 0.
        is_lower_bound: whether `minimum` bounds the loss without being attained.
    """

    minimum: Tensor
    reference: Tensor
    next_level: Tensor
    levels: Tensor
    is_lower_bound: bool = False


@dataclass(frozen=True, kw_only=True)
class Problems:
    """``N`` sampled problems.

    Attributes:
        params: starting points, each ``[N, *shape]``.
        constants: what distinguishes the instances, a tree of ``[N, ...]`` tensors.
        facts: known levels of each problem.
    """

    params: Params
    constants: Tree
    facts: Facts

    @property
    def num_problems(self) -> int:
        """The length of the problem axis."""
        return self.facts.minimum.shape[0]

    def _map(self, function: Callable[[Tree], Tree]) -> Problems:
        f = self.facts
        facts: Tree = {
            "minimum": f.minimum,
            "reference": f.reference,
            "next_level": f.next_level,
            "levels": f.levels,
        }
        return Problems(
            params=function(self.params),  # type: ignore[arg-type]
            constants=function(self.constants),
            facts=replace(f, **function(facts)),  # type: ignore[arg-type]
        )

    def select(self, index: Tensor) -> Problems:
        """The problems named by a boolean mask or integer positions."""
        return self._map(lambda tree: select(tree, index))

    def repeat(self, num_repeats: int) -> Problems:
        """The whole batch `num_repeats` times over: problem ``i`` goes to ``i + k N``."""
        return self._map(lambda tree: repeat(tree, num_repeats))

    def to(self, *, dtype: torch.dtype, device: torch.device | str) -> Problems:
        """Move to a device and cast every floating-point tensor."""
        return self._map(
            lambda tree: tree_map(
                lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device), tree
            )
        )


@dataclass(frozen=True, kw_only=True)
class CriticalPoint:
    """A critical point of a task's canonical function, with its exact spectrum.

    Attributes:
        x: ``[d]`` the point, float64.
        value: the function's value there.
        eigenvalues: ``[d]`` the Hessian's eigenvalues, ascending, float64.
    """

    x: Tensor
    value: float
    eigenvalues: Tensor

    @property
    def kind(self) -> str:
        """``minimum``, ``maximum``, ``strict saddle`` or ``degenerate`` (none negative, some 0)."""
        scale = max(1.0, float(self.eigenvalues.abs().max()))
        low, high = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        if low > 1e-9 * scale:
            return "minimum"
        if low >= -1e-9 * scale:
            return "degenerate"
        return "maximum" if high < -1e-9 * scale else "strict saddle"


class Task(ABC):
    """A distribution of problems and what is known about them.

    Attributes:
        name: the registered name.
        family: the name under which results are aggregated; tasks that differ in dimension or
            conditioning alone share it.
        kind: ``saddle``, ``plateau``, ``valley``, ``quadratic``, ``multimodal`` or ``net``.
        shapes: name of each parameter tensor -> its shape without the problem axis.
        budget: gradient evaluations after which the benchmark censors a run.
        smoothness: a typical largest curvature, the unit of gradient-type learning rates.
        radius: a typical distance from start to solution, the unit of sign-type learning rates.
    """

    name: ClassVar[str]
    family: str
    kind: str
    shapes: dict[str, tuple[int, ...]]
    budget: int = 1000
    smoothness: float = 1.0
    radius: float = 1.0

    @property
    def dim(self) -> int:
        """Number of scalar parameters of one problem."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes.values())

    def sample(
        self,
        num_problems: int,
        *,
        seed: int | torch.Generator = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Problems:
        """Draw problems.

        Everything is drawn on the CPU in float64 and then cast, so a seed names the same problems
        in every dtype and on every device.

        Args:
            num_problems: how many, positive.
            seed: an integer, or a CPU generator that is advanced.
            dtype: floating-point type of all tensors.
            device: where they live.

        Returns:
            The problems, with starting points, constants and facts.

        Raises:
            LearnedOptError: if `num_problems` is not positive.
        """
        require(num_problems >= 1, f"num_problems must be positive, got {num_problems}")
        rng = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        return self._sample(num_problems, rng).to(dtype=dtype, device=device)

    @abstractmethod
    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        """Draw problems in float64 on the CPU."""

    @abstractmethod
    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The loss of each problem; pure and differentiable.

        Args:
            params: where to evaluate, each ``[N, *shape]``.
            problems: the instances.
            batch: what `batch` drew, or None for the deterministic loss on all data.

        Returns:
            ``[N]`` losses; problem ``i`` depends on row ``i`` of every argument alone.
        """

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree | None:
        """Draw what is random about one evaluation (minibatch, noise); None if nothing is.

        Args:
            problems: the instances.
            rng: a CPU generator that is advanced.

        Returns:
            A tree of ``[N, ...]`` tensors for `loss`, or None.
        """
        del problems, rng
        return None

    def used(self, problems: Problems) -> Tensor | None:
        """Which coordinates each loss depends on, ``[N, dim]`` bool; None if all are used.

        Args:
            problems: the instances.

        Returns:
            The mask, over parameters flattened in order.
        """
        del problems
        return None

    @property
    def is_stochastic(self) -> bool:
        """Whether `batch` returns anything."""
        return type(self).batch is not Task.batch


class ClosedFormTask(Task):
    """A task with a formula: a canonical function on a flat vector, and its critical points."""

    minimum: float

    @abstractmethod
    def function(self, x: Tensor) -> Tensor:
        """The canonical single problem.

        Args:
            x: ``[..., d]`` points.

        Returns:
            ``[...]`` values.
        """

    @abstractmethod
    def critical_points(self) -> list[CriticalPoint]:
        """Known critical points of `function` with exact values and spectra.

        All of them where they are few and known; otherwise a documented selection, lowest last.
        """


_REGISTRY: dict[str, Callable[..., Task]] = {}


def register_task(factory: Callable[..., Task]) -> Callable[..., Task]:
    """Class decorator: make a task available to `get_task` under its ``name``."""
    name: str = factory.name  # type: ignore[attr-defined]
    known = _REGISTRY.get(name)
    # A module that is imported twice (reload, doctest collection) registers the same class again.
    if known is not None and known.__qualname__ != factory.__qualname__:
        raise LearnedOptError(f"task '{name}' is registered twice")
    _REGISTRY[name] = factory
    return factory


def get_task(name: str, **settings: object) -> Task:
    """Build a registered task.

    Args:
        name: one of `list_tasks`.
        settings: keyword arguments of the task's constructor, such as ``dim=16``.

    Returns:
        The task.

    Raises:
        LearnedOptError: if the name is unknown (the nearest match is suggested) or a setting is.

    Examples:
        >>> get_task("strict_saddle", dim=16).dim
        16
    """
    if name not in _REGISTRY:
        raise unknown_name("task", name, _REGISTRY)
    try:
        return _REGISTRY[name](**settings)
    except TypeError as error:
        raise LearnedOptError(f"task '{name}': {error}") from error


def list_tasks() -> dict[str, str]:
    """Registered names with the first line of each task's docstring."""
    return {
        name: (factory.__doc__ or "").strip().splitlines()[0]
        for name, factory in sorted(_REGISTRY.items())
    }
