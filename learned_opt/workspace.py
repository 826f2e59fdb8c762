"""Room for long vectors: where one caller owns all that a rule keeps, buffers are used again.

Memory fresh from the operating system costs several times what filling it costs, and a pass over
long vectors costs what it moves through the caches. Rules are pure functions, so by themselves they
can avoid neither. Inside of a `Workspace` they may: vectors that nobody refers to any more are
written over, and work is done piece by piece. What is computed stays the same, but for random
numbers: what nobody wants is not drawn, and of a long vector not every coordinate gets noise at
every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeAlias, final

import torch
from torch import Tensor

PIECE = 1 << 16
"""Numbers of a piece: few enough for the caches, so many that calls cost little beside them."""

Piecework: TypeAlias = Callable[..., tuple[list[Tensor], tuple[Tensor, ...]]]
"""Takes columns of vectors, and places for results by the name ``out`` (None where there are none);
returns tensors that are sums over columns, and vectors."""

_CURRENT: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


@final
class Workspace:
    """Long CPU vectors of one owner.

    Inside of `use` there is no graph and no `torch.func` transform, so code may branch on values.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._is_taken: list[bool] = []

    def take(self, like: Tensor) -> Tensor:
        """A vector with undefined values, contiguous; used again after `settle`."""
        for k, buffer in enumerate(self._buffers):
            if (
                not self._is_taken[k]
                and buffer.shape == like.shape
                and buffer.dtype == like.dtype
                and buffer.device == like.device
            ):
                self._is_taken[k] = True
                return buffer
        buffer = torch.empty_like(like, memory_format=torch.contiguous_format)
        self._buffers.append(buffer)
        self._is_taken.append(True)
        return buffer

    def settle(self, kept: Iterable[Tensor]) -> None:
        """Free all that was taken but what `kept` (or a view in it) still needs."""
        if not self._buffers:
            return
        needed = {leaf.untyped_storage().data_ptr() for leaf in kept}
        self._is_taken = [b.untyped_storage().data_ptr() in needed for b in self._buffers]

    def forget(self) -> None:
        """Leave all vectors to others, who may keep them as long as they like."""
        self._buffers, self._is_taken = [], []

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Let code inside take vectors."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


def workspace() -> Workspace | None:
    """The one in use."""
    return _CURRENT.get()


def empty_like(vector: Tensor) -> Tensor:
    """Like `torch.empty_like`, out of the workspace if there is one."""
    space = workspace()
    if space is None or vector.numel() <= PIECE:
        return torch.empty_like(vector, memory_format=torch.contiguous_format)
    return space.take(vector)


def is_long(vector: Tensor) -> bool:
    """Whether work on ``[N, P]`` is done in pieces."""
    return (
        workspace() is not None
        and vector.device.type == "cpu"
        and vector.shape[0] == 1
        and vector.shape[1] > PIECE
    )


def in_pieces(
    work: Piecework, *vectors: Tensor, out: int, stacks: tuple[int, ...] = ()
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Do `work` on vectors ``[N, P]``: at once, or column by column where they are long.

    Args:
        work: what to do.
        vectors: its arguments, equally long.
        out: how many vectors it returns.
        stacks: heights of stacks that it makes on the way; it gets places for them after those for
            its results, because temporaries of this size come fresh from the operating system, too.

    Returns:
        Sums and vectors, as `work` does.
    """
    first = vectors[0]
    if not is_long(first):
        return work(*vectors, out=(None,) * (out + len(stacks)))
    results = tuple(empty_like(first) for _ in range(out))
    room = [empty_like(first[:, None, :PIECE].expand(-1, rows, -1)) for rows in stacks]
    sums = []
    for start in range(0, first.shape[1], PIECE):
        width = min(PIECE, first.shape[1] - start)
        given = [v.narrow(1, start, width) for v in vectors]
        places = [v.narrow(1, start, width) for v in results]
        places += [stack.narrow(2, 0, width) for stack in room]
        sums.append(work(*given, out=tuple(places))[0])
    # Many pieces are added up: in double precision, so that this does not show.
    totals = [torch.stack(parts).sum(0, dtype=torch.float64) for parts in zip(*sums, strict=True)]
    return [t.to(first.dtype) for t in totals], results
