"""Vectors added up to a move, with noise on a part of very long ones."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_opt.actuators.base import Noise
from learned_opt.actuators.survey import product_with
from learned_opt.features import dot
from learned_opt.workspace import in_pieces, is_long

_RUNS = 32
"""Noise falls on one part in so many of a long vector at a step."""


def combined(
    vectors: list[Tensor], by: list[Tensor], *, last: int, run: tuple[int, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Add vectors up, and what is added to a run of coordinates of a long one.

    Returns:
        Their sum by weights, zero where it is not finite; and, without a graph, its length and its
        product with the vector at the place `last`.
    """

    def work(
        *vectors: Tensor, out: tuple[Tensor | None, ...]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        move = torch.mul(vectors[0], by[0][:, None], out=out[0])
        for vector, weight in zip(vectors[1:], by[1:], strict=True):
            move = torch.addcmul(move, vector, weight[:, None], out=out[0])
        if out[0] is None:
            move = torch.where(torch.isfinite(move), move, 0.0)
        known = move.detach()
        square = torch.linalg.vector_norm(known, dim=1).square()
        return [square, product_with(known[:, None], vectors[last])[:, 0]], (move,)

    (square, along), (move,) = in_pieces(work, *vectors, out=1)
    if run is not None:
        start, values = run
        own, other = (v[:, start : start + values.shape[1]] for v in (move, vectors[last]))
        square = (square + dot(values, 2 * own + values)).clamp_min(0)
        along = along + dot(values, other)
        own += values
    if is_long(move) and not bool(square.isfinite().all()):
        move = torch.where(torch.isfinite(move), move, 0.0)
        square = torch.linalg.vector_norm(move, dim=1).square()
        along = dot(move, vectors[last])
    return move, square.sqrt(), along


def drawn_run(size: Tensor, length: int, noise: Noise) -> tuple[int, Tensor]:
    """Noise on a run of coordinates by chance: where it starts, and ``[1, R]`` numbers.

    Every coordinate is as likely, and over time noise is as long and as isotropic, as if some fell
    on all of them, which takes longer to draw than the whole step.

    Args:
        size: ``[1]`` root mean square of the noise's length.
        length: of the vector.
        noise: source of random numbers.
    """
    width = -(-length // _RUNS)
    count = -(-length // width)
    drawn = noise(width + 1)
    # A normal number's place among all is uniform.
    place = min(int(count * torch.special.ndtr(drawn[0, -1].double())), count - 1)
    values = drawn[:, : min(width, length - width * place)]
    return width * place, values * (size * (count / length) ** 0.5)[:, None]
