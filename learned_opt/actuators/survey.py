"""What a trust region sees of vectors: means and products, for as few passes as can be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learned_opt.subspace import CurvatureModel, Products, rows, sampled
from learned_opt.trees import Tree, batched_product
from learned_opt.workspace import in_pieces, is_long

FAST, SLOW = 0.9, 0.99
"""Decays of the means of gradients and of their squares."""
_ROUNDING = 100.0
"""In units of the type's precision; less of a vector outside of a span is not a direction."""
_MUCH = 0.05
"""Share of a squared length that is told by subtraction."""


class Seen(NamedTuple):
    """Products of the vectors at a point, each ``[N]`` but the first two.

    Attributes:
        entries: for the memory.
        table: ``[N, m + 2, 2]`` of steps, gradient and Adam's direction with the last two.
        along_last: gradient and last step.
        old_along_last: last gradient and last step.
        turn: gradient and last gradient.
        along_adaptive: gradient and Adam's direction.
        adaptive: length of that direction.
        size: length of the parameters.
        momentum: length of the mean of the gradients.
        active: how many parameters have a gradient.
    """

    entries: Products
    table: Tensor
    along_last: Tensor
    old_along_last: Tensor
    turn: Tensor
    along_adaptive: Tensor
    adaptive: Tensor
    size: Tensor
    momentum: Tensor
    active: Tensor


def averages(g: Tensor, state: Tree, mean_square: Tensor, active: Tensor) -> tuple[Tensor, ...]:
    """New means of the gradient and of its square, and Adam's direction, up to its length."""
    s: dict[str, Tensor] = state  # type: ignore[assignment]
    # Relative to the coordinates that have a gradient: others must not count as small ones.
    floor = 1e-2 * (mean_square * g.shape[1] / active).sqrt()
    floor = floor.clamp_min(torch.finfo(g.dtype).tiny)[:, None]
    forgets = s["forgets"][:, None]

    def work(
        g: Tensor, momentum: Tensor, square: Tensor, *, out: tuple[Tensor | None, ...]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        momentum = torch.lerp(momentum, g, forgets, out=out[0])
        square = torch.lerp(square, torch.square(g, out=out[2]), 1 - SLOW, out=out[1])
        root = torch.add(torch.sqrt(square, out=out[2]), floor, out=out[2])
        return [], (momentum, square, torch.div(momentum, root, out=out[2]))

    return in_pieces(work, g, s["momentum"], s["square"], out=3)[1]


def count_active(g: Tensor, length: int) -> Tensor:
    """How many of `length` coordinates have a gradient, at least 1; `g` as `sampled`."""
    # Counting all of one long vector takes a tenth of the time of counting along an axis.
    count = torch.count_nonzero(g)[None] if is_long(g) else (g != 0).sum(1)
    return (count * (length / g.shape[1])).clamp_min(1).to(g)


def survey(
    g: Tensor, x: Tensor, momentum: Tensor, adaptive: Tensor, state: Tree, active: Tensor
) -> tuple[Seen, Tensor]:
    """Products, and the change of the gradient; all vectors as `sampled`."""
    s: dict[str, Tensor] = state  # type: ignore[assignment]
    memory = state["memory"]
    assert isinstance(memory, dict)
    steps = [sampled(step) for step in rows(memory, "steps")]
    changes = rows(memory, "changes")[1:]
    m = len(steps)

    def work(
        g: Tensor,
        old: Tensor,
        x: Tensor,
        momentum: Tensor,
        adaptive: Tensor,
        *remembered: Tensor,
        out: tuple[Tensor | None, ...],
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        change = torch.sub(g, old, out=out[0])
        stack = torch.stack((*remembered[:m], g, adaptive, change, old), dim=1, out=out[1])
        table = stack @ stack[:, m - 1 : -1].mT
        sums = [
            table,
            torch.linalg.vector_norm(x, dim=1).square(),
            torch.linalg.vector_norm(momentum, dim=1).square(),
        ]
        if m > 1:
            others = torch.stack(remembered[m:], dim=1, out=out[2])
            sums.append(product_with(others, remembered[m - 1]))
        return sums, (change,)

    (table, size, mean, *mixed), (change,) = in_pieces(
        work,
        *(g, s["grads"], x, momentum, adaptive, *steps, *changes),
        out=1,
        stacks=(m + 4, m - 1)[: 1 + (m > 1)],
    )
    # Columns: last step, gradient, Adam's direction, change.
    last, slope, direction, changed = table.unbind(2)
    entries = Products(last[:, :m], changed[:, :m], mixed[0] if mixed else last[:, :0])
    seen = Seen(
        entries=entries,
        table=table[:, : m + 2, 1:3],
        along_last=last[:, m],
        old_along_last=last[:, -1],
        turn=slope[:, -1],
        along_adaptive=slope[:, m + 1],
        adaptive=direction[:, m + 1].sqrt(),
        size=size.sqrt(),
        momentum=mean.sqrt(),
        active=active,
    )
    return seen, change


class Rest(NamedTuple):
    """What lies outside of the span: the rests of the gradient and of Adam's direction.

    Attributes:
        slopes: ``[N, m]`` of the gradient along the known directions.
        inside: ``[N, 2, m]`` what lies in the span of either, as weights of the steps.
        products: ``[N, 2, 3]`` of the rests with both rests and with the gradient.
        norm: ``[N]`` length of the gradient's rest.
    """

    slopes: Tensor
    inside: Tensor
    products: Tensor
    norm: Tensor


def outside(g: Tensor, adaptive: Tensor, memory: Tree, model: CurvatureModel, seen: Seen) -> Rest:
    """Take what is known off the gradient and off Adam's direction."""
    m = len(rows(memory, "steps"))
    along = (model.frame @ seen.table[:, :m]).mT
    inside = along @ model.frame
    if is_long(g):
        # Pythagoras saves a pass over all vectors, as long as little cancels.
        whole = seen.table[:, m:]
        products = whole - along @ along.mT
        shares = products.diagonal(dim1=1, dim2=2) / whole.diagonal(dim1=1, dim2=2)
        if bool((shares > _MUCH).all()):
            products = torch.cat((products, products[:, :, :1]), dim=2)
            return Rest(along[:, 0], inside, products, products[:, 0, 0].sqrt())

    steps = [sampled(step) for step in rows(memory, "steps")]

    def work(
        g: Tensor, adaptive: Tensor, *steps: Tensor, out: tuple[Tensor | None, ...]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        del out
        rests = torch.stack((g, adaptive), dim=1) - inside @ torch.stack(steps, dim=1)
        return [rests @ torch.cat((rests, g[:, None]), dim=1).mT], ()

    (products,), _ = in_pieces(work, g, adaptive, *steps, out=0)
    squares = products.diagonal(dim1=1, dim2=2)
    whole = seen.table[:, m:].diagonal(dim1=1, dim2=2)
    is_there = squares > (_ROUNDING * torch.finfo(g.dtype).eps) ** 2 * whole
    products = torch.where(is_there[:, :, None], products, 0.0)
    products = torch.cat(
        (torch.where(is_there[:, None], products[:, :, :2], 0.0), products[:, :, 2:]), dim=2
    )
    return Rest(along[:, 0], inside, products, products[:, 0, 0].sqrt())


def product_with(matrices: Tensor, vectors: Tensor) -> Tensor:
    """``[N, r, c]`` and ``[N, c]`` to ``[N, r]``; a single one without a temporary."""
    if len(matrices) == 1:
        return torch.mv(matrices[0], vectors[0])[None]
    return batched_product(matrices, vectors)
