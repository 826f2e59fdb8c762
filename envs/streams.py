"""Random numbers that belong to a lane, whatever other lanes run beside it.

A lane's number is a hash of its key, its episode and a counter, so that lane ``i`` of any batch
draws what a single environment with the same seed draws.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TABLE_SIZE = 1 << 20
_OFFSET_SHIFT = np.uint64(64 - 20)


def mix(values: Keys) -> Keys:
    """The finaliser of SplitMix64: a bijection of 64-bit numbers that scrambles them.

    References:
        Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 15.
    """
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def combine(keys: Keys, counter: Keys | int) -> Keys:
    """Keys of the streams below `keys` that `counter` numbers."""
    with np.errstate(over="ignore"):
        return mix(keys + _GOLDEN * (np.asarray(counter, dtype=np.uint64) + np.uint64(1)))


def uniform(keys: Keys) -> NDArray[np.float64]:
    """One number in [0, 1) for every key."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


@functools.cache
def _table(dim: int) -> Tensor:
    """Standard normal numbers ``[R, dim]`` that all lanes share; rows overlap."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(_TABLE_SIZE + dim - 1, generator=rng).unfold(0, dim, 1)


def normal(keys: Keys, dim: int) -> Tensor:
    """Standard normal numbers ``[N, dim]``: a piece of a fixed table for every key.

    Reading a shared table at random offsets is what makes noise cheap (Salimans et al. 2017,
    arXiv:1703.03864, section 2.1); there are a million offsets.
    """
    offsets = torch.from_numpy((keys >> _OFFSET_SHIFT).astype(np.int64))
    return _table(dim).index_select(0, offsets)
