"""Nested dictionaries of tensors that all carry the problem axis first.

Parameters, rule states and problem constants are such trees. Because every leaf is ``[N, ...]``,
one function each suffices to detach, select, move, flatten or stack them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from learned_opt.workspace import empty_like, workspace

Params: TypeAlias = dict[str, Tensor]
"""Named parameter tensors, each ``[N, *shape]``."""

Tree: TypeAlias = dict[str, "Tensor | Tree"]
"""Nested dictionary whose leaves are tensors ``[N, ...]``."""


def tree_map(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply `function` to every leaf of `tree`, keeping its structure.

    Args:
        function: what to do with a leaf.
        tree: the tree to map.

    Returns:
        A new tree.
    """
    return {
        key: tree_map(function, value) if isinstance(value, dict) else function(value)
        for key, value in tree.items()
    }


def detach(tree: Tree) -> Tree:
    """Cut every leaf from the autograd graph."""
    return tree_map(torch.Tensor.detach, tree)


def select(tree: Tree, index: Tensor) -> Tree:
    """Keep the problems that `index` (boolean mask or integer positions) names."""
    return tree_map(lambda leaf: leaf[index], tree)


def replace_rows(tree: Tree, index: Tensor, rows: Tree) -> Tree:
    """Put other problems in the places that `index` (integer positions) names.

    Args:
        tree: leaves ``[N, ...]``.
        index: ``[K]`` different positions.
        rows: a tree of the same structure, leaves ``[K, ...]``.

    Returns:
        A new tree.
    """
    replaced: Tree = {}
    for key, value in tree.items():
        new = rows[key]
        if isinstance(value, Tensor) and isinstance(new, Tensor):
            replaced[key] = value.index_copy(0, index, new)
        else:
            assert isinstance(value, dict) and isinstance(new, dict)
            replaced[key] = replace_rows(value, index, new)
    return replaced


def choose(mask: Tensor, yes: Tree, no: Tree) -> Tree:
    """Problem by problem, the leaf of `yes` where `mask` ``[N]`` holds, else that of `no`."""
    chosen: Tree = {}
    for key, leaf in yes.items():
        other = no[key]
        if isinstance(leaf, dict):
            assert isinstance(other, dict)
            chosen[key] = choose(mask, leaf, other)
        else:
            assert isinstance(other, Tensor)
            chosen[key] = torch.where(per_row(mask, leaf), leaf, other)
    return chosen


def per_row(mask: Tensor, like: Tensor) -> Tensor:
    """Shape an ``[N]`` mask so that it selects rows of `like` ``[N, ...]``."""
    return mask.reshape(-1, *([1] * (like.dim() - 1)))


def repeat(tree: Tree, num_repeats: int) -> Tree:
    """Repeat the whole batch `num_repeats` times: problem ``i`` goes to ``i + k N``."""
    return tree_map(lambda leaf: leaf.repeat(num_repeats, *([1] * (leaf.dim() - 1))), tree)


def leaves(tree: Tree, prefix: str = "") -> dict[str, Tensor]:
    """The leaves by dotted path, in insertion order."""
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(leaves(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """Concatenate parameters to one matrix ``[N, P]``: tensors in order, each row-major."""
    parts = [p.flatten(1) if p.dim() > 1 else p.unsqueeze(1) for p in params.values()]
    if len(parts) == 1:
        return parts[0]
    if workspace() is not None:
        whole = _joined(parts)
        if whole is not None:
            return whole
        if len(parts[0]) == 1:
            size = sum(part.shape[1] for part in parts)
            return torch.cat(parts, dim=1, out=empty_like(parts[0][:, :1].expand(1, size)))
    return torch.cat(parts, dim=1)


def _joined(parts: list[Tensor]) -> Tensor | None:
    """What `unflatten` split, a single row, without a copy; None if it was something else."""
    first = parts[0]
    end, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for part in parts:
        if (
            part.shape[0] != 1
            or part.storage_offset() != end
            or part.dtype != first.dtype
            or part.untyped_storage().data_ptr() != storage
            or not part.is_contiguous()
        ):
            return None
        end += part.shape[1]
    size = end - first.storage_offset()
    return first.as_strided((1, size), (size, 1))


def unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> Params:
    """Undo `flatten`: split ``[N, P]`` into tensors shaped as those of `like`."""
    sizes = [p[0].numel() for p in like.values()]
    parts = flat.split(sizes, dim=1)
    return {
        name: part.reshape(part.shape[0], *p.shape[1:])
        for (name, p), part in zip(like.items(), parts, strict=True)
    }


def per_problem(values: Tensor, like: Tensor) -> Tensor:
    """Shape a scalar or ``[N]`` tensor so that it multiplies `like` ``[N, ...]``, in its dtype."""
    values = values.to(like.dtype)
    return values.reshape(-1, *([1] * (like.dim() - 1))) if values.dim() else values


_PRODUCT_BYTES = 1 << 24


def batched_product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """One matrix times one vector for each problem, ``[N, r, c]`` and ``[N, c]`` to ``[N, r]``.

    As a product and a sum, which for small batches is up to three times faster, gradient included,
    than a batched matrix product with one column; beyond what the allocator keeps at hand, as that.

    Examples:
        >>> batched_product(torch.eye(2).expand(3, 2, 2), torch.ones(3, 2)).shape
        torch.Size([3, 2])
    """
    if matrices.numel() * matrices.element_size() <= _PRODUCT_BYTES:
        return (matrices * vectors.unsqueeze(1)).sum(2)
    return torch.bmm(matrices, vectors.unsqueeze(2)).squeeze(2)


def squared_norm(tree: Mapping[str, Tensor]) -> Tensor:
    """Squared Euclidean norm over all tensors of each problem, ``[N]``."""
    terms = [p.square().flatten(1).sum(1) if p.dim() > 1 else p.square() for p in tree.values()]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def num_matrices(params: Mapping[str, Tensor]) -> int:
    """How many of the tensors ``[N, ...]`` have two axes or more beside the batch's."""
    return sum(p.dim() > 2 for p in params.values())


def num_problems(tree: Mapping[str, Tensor]) -> int:
    """The length of the problem axis."""
    return next(iter(tree.values())).shape[0]
