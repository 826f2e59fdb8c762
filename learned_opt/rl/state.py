"""The state of a training run as tensors, numbers and strings: what a checkpoint may hold."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(value: Any) -> Any:
    """Nested records, dictionaries and arrays as dictionaries of tensors and numbers.

    Args:
        value: what to pack.

    Returns:
        What `unpack` undoes.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        # torch knows no unsigned arithmetic, but the bits are safe in its signed integers.
        bits = value.view(np.int64) if value.dtype == np.uint64 else value
        return torch.from_numpy(bits.copy())
    if is_dataclass(value):
        return {entry.name: pack(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: pack(item) for key, item in value.items()}
    return value


def unpack(packed: Any, like: Any) -> Any:
    """Undo `pack`.

    Args:
        packed: what `pack` returned.
        like: a value of the same kinds, with other contents.

    Returns:
        The value.
    """
    if isinstance(like, np.ndarray):
        return packed.numpy().copy().view(like.dtype)
    if is_dataclass(like) and not isinstance(like, type):
        changes = {key: unpack(item, getattr(like, key)) for key, item in packed.items()}
        return replace(like, **changes)
    if isinstance(like, Mapping):
        return {key: unpack(item, like.get(key)) for key, item in packed.items()}
    return packed


def generators(action_space: Any) -> dict[str, Any]:
    """The states of all random generators that stable-baselines3 draws from."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, second = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": json.dumps([kind, np.asarray(keys).tolist(), position, has_gauss, gauss]),
        "python": json.dumps([version, words, second]),
        "actions": json.dumps(action_space.np_random.bit_generator.state),
    }


def set_generators(saved: Mapping[str, Any], action_space: Any) -> None:
    """Go on from what `generators` returned."""
    torch.set_rng_state(saved["torch"])
    kind, keys, position, has_gauss, gauss = json.loads(saved["numpy"])
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, words, second = json.loads(saved["python"])
    random.setstate((version, tuple(words), second))
    action_space.np_random.bit_generator.state = json.loads(saved["actions"])


@contextmanager
def own_generators() -> Iterator[None]:
    """Leave the process's global random generators as they were found."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
