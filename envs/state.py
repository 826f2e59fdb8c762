"""Where the lanes of an environment stand, and how single lanes are replaced."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.streams import Keys
from learned_opt.tasks.base import Facts, Problems
from learned_opt.trees import Tree


@dataclass(frozen=True, kw_only=True)
class State:
    """Where ``N`` lanes stand.

    Attributes:
        keys: ``[N]`` uint64 streams of what the lanes' episodes draw step by step.
        problems: the instances.
        point: ``[N, P]`` parameters.
        grads: ``[N, P]`` gradients there, as the actuator sees them.
        loss: ``[N]`` float64 losses there, without minibatch or gradient noise.
        actuator: the actuator's state, having observed `grads`.
        observation: ``[N, F]`` or ``[N, P, F]`` what the policy sees.
        unit: ``[N]`` float64 gap that gaps are relative to.
        ceiling: ``[N]`` float64 relative gap above which a run has diverged, a thousand times that
            of the start.
        gap: ``[N]`` float64 loss above the minimum, in units of `unit`.
        has_diverged: ``[N]`` bool, not finite or above the ceiling.
        best_gap: ``[N]`` float64 least gap so far.
        potential: ``[N]`` float64 what rewards are differences of.
        kicks: ``[N]`` kicks so far.
        steps: ``[N]`` int64 steps taken: gradients paid for.
    """

    keys: Keys
    problems: Problems
    point: Tensor
    grads: Tensor
    loss: Tensor
    actuator: Tree
    observation: Tensor
    unit: Tensor
    ceiling: Tensor
    gap: Tensor
    has_diverged: Tensor
    best_gap: Tensor
    potential: Tensor
    kicks: Tensor
    steps: Tensor


_NAMES = {kind: tuple(entry.name for entry in fields(kind)) for kind in (State, Problems, Facts)}


def write_lanes(
    state: State,
    index: NDArray[np.int64],
    source: State,
    source_index: NDArray[np.int64],
) -> None:
    """Overwrite lanes in place.

    A state's tensors may share memory with each other, as those of a fresh one do; both states must
    come from the same core, so that what is shared there gets the same values here.

    Args:
        state: whose lanes are written.
        index: ``[K]`` which of them.
        source: where the new ones come from.
        source_index: ``[K]`` which lanes of `source`, in the same order.
    """
    for name in _NAMES[State]:
        _write(getattr(state, name), index, getattr(source, name), source_index)


def copy_state(state: State) -> State:
    """A state that shares no memory with the other."""
    copied: State = _copy(state)
    return copied


def _write(
    target: Any, index: NDArray[np.int64], source: Any, source_index: NDArray[np.int64]
) -> None:
    # Through numpy, whose indexing of a few rows is several times cheaper than that of torch.
    if isinstance(target, Tensor):
        target.numpy()[index] = source.numpy()[source_index]
    elif isinstance(target, np.ndarray):
        target[index] = source[source_index]
    elif isinstance(target, dict):
        for key, leaf in target.items():
            _write(leaf, index, source[key], source_index)
    elif isinstance(target, (Problems, Facts)):
        for name in _NAMES[type(target)]:
            _write(getattr(target, name), index, getattr(source, name), source_index)


def _copy(target: Any) -> Any:
    if isinstance(target, Tensor):
        return target.clone()
    if isinstance(target, np.ndarray):
        return target.copy()
    if isinstance(target, dict):
        return {key: _copy(leaf) for key, leaf in target.items()}
    if isinstance(target, (State, Problems, Facts)):
        entries = fields(target)
        return replace(target, **{e.name: _copy(getattr(target, e.name)) for e in entries})
    return target
