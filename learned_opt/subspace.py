"""What the last steps tell about curvature, and the best step within a radius that follows.

A step ``s`` and the change of the gradient along it, ``y``, say how curved the loss is along ``s``,
and ``y`` against the other steps how the directions mix: in the span of a few past steps the
Hessian is known without a single product with it. Its eigenvalues there (Ritz values) show negative
curvature as soon as a step has a part in it.

Long vectors are kept as they are, each by itself, and never copied: products between them are
entered into small matrices, one row and one column a step. Those of very long ones are estimated
from a sample of their coordinates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.features import dot
from learned_opt.trees import Tree

_PARALLEL = 1e-2
"""Share of the largest eigenvalue of the steps' cosines below which directions count as spanned."""

SAMPLE = 1 << 18
"""Numbers of a vector that products are taken from."""

_RUN = 16

_FEW = 512
"""For so few numbers an interval is halved three times at once, for those of a single problem ten
times: fewer calls cost less than more numbers."""


class CurvatureModel(NamedTuple):
    """A quadratic model in the span of past steps.

    Attributes:
        frame: ``[N, m, m]`` orthonormal rows, the Ritz vectors, as combinations of the steps, the
            oldest first; zero rows where there are fewer.
        curvatures: ``[N, m]`` second derivatives along them, ascending; zero for zero rows.
        is_known: ``[N, m]`` bool, whether the row is one.
    """

    frame: Tensor
    curvatures: Tensor
    is_known: Tensor


class Products(NamedTuple):
    """Inner products with what is remembered, the oldest first.

    Attributes:
        steps_step: ``[N, m]`` of each step and the newest one.
        steps_change: ``[N, m]`` of each step and the new change of the gradient.
        changes_step: ``[N, m - 1]`` of each change that stays and the newest step.
    """

    steps_step: Tensor
    steps_change: Tensor
    changes_step: Tensor


def sampled(vectors: Tensor) -> Tensor:
    """What products are taken from: all of short vectors, about `SAMPLE` numbers of longer ones.

    Every k-th run of 16 coordinates, which lie in one line of the cache, for a prime k, so that
    widths of layers have no part in it; lengthened so that products are what they would be. That of
    vectors with independent coordinates is then off by one part in 500 of the product of their
    lengths.

    Args:
        vectors: ``[N, P]``.

    Returns:
        ``[N, S]``, the same coordinates of all vectors equally long.
    """
    length = vectors.shape[1]
    if length <= SAMPLE:
        return vectors
    stride = -(-length // SAMPLE)
    while any(stride % divisor == 0 for divisor in range(2, math.isqrt(stride) + 1)):
        stride += 1
    runs = length // (_RUN * stride)
    chosen = vectors[:, : runs * _RUN * stride].view(-1, runs, _RUN * stride)[:, :, :_RUN]
    chosen = chosen.reshape(-1, runs * _RUN)
    return chosen * math.sqrt(length / chosen.shape[1])


def init_memory(params: Tensor, size: int) -> Tree:
    """A memory without steps.

    Args:
        params: points ``[N, P]``.
        size: steps it will hold, ``m``.

    Returns:
        ``steps``, ``m`` vectors ``[N, P]``; ``changes`` of the gradient, ``m`` as `sampled`;
        ``lengths`` of the steps, ``[N, m]``; and of the steps over their lengths the ``cosines``
        and the products with the changes, ``mixed``, each ``[N, m, m]``.

    Raises:
        LearnedOptError: if `size` is not positive.
    """
    require(size >= 1, f"size must be positive, got {size}")
    empty = torch.zeros_like(params)
    unchanged = torch.zeros_like(sampled(params))
    square = params.new_zeros(params.shape[0], size, size)
    return {
        "steps": {str(k): empty for k in range(size)},
        "changes": {str(k): unchanged for k in range(size)},
        "lengths": square[:, 0],
        "cosines": square,
        "mixed": square,
    }


def rows(memory: Tree, name: str) -> list[Tensor]:
    """``steps`` or ``changes``, the oldest first."""
    vectors = memory[name]
    assert isinstance(vectors, dict)
    return list(vectors.values())  # type: ignore[arg-type]


def add_step(memory: Tree, step: Tensor) -> Tree:
    """Put a step in the place of the oldest one; `remember` is due when its change is known.

    Args:
        memory: what `init_memory` or `remember` returned.
        step: ``[N, P]`` what was added to the parameters.

    Returns:
        The new memory, without a graph.
    """
    return {**memory, "steps": _numbered([*rows(memory, "steps")[1:], step.detach()])}


def remember(memory: Tree, change: Tensor, entries: Products) -> Tree:
    """Take note of what the newest step did; one of length zero is forgotten at once.

    Args:
        memory: what `add_step` returned.
        change: gradient after the newest step minus gradient before, as `sampled`.
        entries: products of steps and changes, see `Products`.

    Returns:
        The new memory, without a graph.
    """
    m: dict[str, Tensor] = memory  # type: ignore[assignment]
    length = entries.steps_step[:, -1:].sqrt()
    lengths = torch.cat((m["lengths"][:, 1:], length), dim=1)
    scale = _inverse(lengths)
    cosines = entries.steps_step * scale * scale[:, -1:]
    column = entries.steps_change * scale * scale[:, -1:]
    row = entries.changes_step * scale[:, :-1] * scale[:, -1:]
    return {
        "steps": m["steps"],
        "changes": _numbered([*rows(memory, "changes")[1:], change.detach()]),
        "lengths": lengths,
        "cosines": _bordered(m["cosines"], cosines[:, :-1], cosines),
        "mixed": _bordered(m["mixed"], row, column),
    }


def _bordered(matrices: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Without the first row and column, with a last row (but its end) and a last column."""
    upper = torch.cat((matrices[:, 1:, 1:], row[:, None]), dim=1)
    return torch.cat((upper, column[:, :, None]), dim=2)


def _inverse(lengths: Tensor) -> Tensor:
    """``1 / lengths``, zero for what is not positive."""
    is_there = lengths > 0
    return torch.where(is_there, lengths, 1.0).reciprocal() * is_there


def _numbered(vectors: list[Tensor]) -> Tree:
    return {str(k): vector for k, vector in enumerate(vectors)}


def curvature_model(memory: Tree) -> CurvatureModel:
    r"""Ritz values and vectors of the Hessian in the span of the remembered steps.

    With unit steps $S$ and changes $Y$ over the steps' lengths, $S Y^T$ stands for $S H S^T$; its
    symmetric part is taken in an orthonormal basis of the span, from which directions that the
    others all but span are left out.

    Args:
        memory: what `remember` returned.

    Returns:
        The model, without a graph.

    References:
        Parlett 1998, "The symmetric eigenvalue problem", chapter 11 (Rayleigh-Ritz); Dauphin et al.
        2014 (arXiv:1406.2572) for the use of a Krylov subspace at saddles.
    """
    m: dict[str, Tensor] = memory  # type: ignore[assignment]
    cosines, mixed = m["cosines"], m["mixed"]
    is_there = m["lengths"] > 0
    both = is_there[:, :, None] & is_there[:, None, :]
    mixed = torch.where(both, (mixed + mixed.mT) / 2, 0.0)
    # Steps so large that they or their change overflowed say nothing, here and in eigenvalue
    # routines.
    is_sound = torch.isfinite(mixed + cosines).flatten(1).all(1)
    mixed = torch.where(is_sound[:, None, None], mixed, 0.0)
    cosines = torch.where(both & is_sound[:, None, None], cosines, 0.0)
    spread, frame = torch.linalg.eigh(cosines)
    is_kept = spread > _PARALLEL * spread[:, -1:].clamp_min(_PARALLEL)
    scale = torch.where(is_kept, spread, 1.0).rsqrt() * is_kept
    whiten = frame * scale[:, None]
    projected = whiten.mT @ mixed @ whiten
    values, vectors = torch.linalg.eigh(projected)
    basis = (whiten @ vectors).mT
    # Left-out directions are eigenvectors with the eigenvalue 0 and map to zero rows.
    is_known = dot(basis @ cosines, basis) > 0.5
    return CurvatureModel(
        frame=basis * (is_known[..., None] * _inverse(m["lengths"])[:, None]),
        curvatures=values * is_known,
        is_known=is_known,
    )


class TrustedStep(NamedTuple):
    """The minimiser of a diagonal quadratic model in a ball.

    Attributes:
        coefficients: ``[N, k]`` along each direction.
        decrease: ``[N]`` predicted decrease of the loss, not negative.
        is_inside: ``[N]`` bool, whether the ball did not matter.
    """

    coefficients: Tensor
    decrease: Tensor
    is_inside: Tensor


def trust_region_step(
    slopes: Tensor, curvatures: Tensor, radius: Tensor, *, num_bisections: int = 30
) -> TrustedStep:
    r"""Minimise $c \cdot p + \tfrac12 \sum \lambda_i p_i^2$ over $|p| \le \Delta$.

    The minimiser is $p_i = -c_i / (\lambda_i + \mu)$ with the least $\mu \ge \max(0, -\lambda_1)$
    that keeps it in the ball; with negative curvature it lies on the boundary. Where the slope
    along the most negative direction vanishes (the hard case) it gets a thousandth of the whole
    slope, which is what breaks the tie at a saddle.

    Args:
        slopes: ``[N, k]`` first derivatives ``c``.
        curvatures: ``[N, k]`` second derivatives ``lambda``.
        radius: ``[N]`` the ball's, positive.
        num_bisections: halvings of the interval of ``log(mu + min(0, lambda_1))``.

    Returns:
        The step, without a graph.

    References:
        Nocedal and Wright 2006, theorem 4.1 and section 4.3; Conn, Gould and Toint 2000.
    """
    c, curvature, radius = slopes.detach(), curvatures.detach(), radius.detach()
    tiny = torch.finfo(c.dtype).tiny
    whole = c.norm(dim=1, keepdim=True)
    largest = curvature.abs().amax(1, keepdim=True)
    lowest = curvature.amin(1)
    is_hard = (curvature < -1e-12 * largest) & (c.abs() < 1e-3 * whole)
    c = torch.where(is_hard, torch.where(c >= 0, 1e-3, -1e-3).to(c) * whole, c)
    newton = c / curvature.clamp_min(tiny)
    is_inside = (lowest > 0) & (newton.norm(dim=1) <= radius)
    # Counted from the lowest curvature, so that it cannot cancel however small the slope is there.
    base = (-lowest).clamp_min(0)
    gaps = curvature + base[:, None]
    reach = radius.clamp_min(tiny)
    lowest_slope = (c * (gaps == 0)).norm(dim=1)
    low = torch.where(base > 0, lowest_slope / reach, torch.finfo(c.dtype).eps * largest[:, 0])
    high = c.norm(dim=1) / reach + torch.where(base > 0, 0.0, low)
    low, high = (end.clamp(tiny, torch.finfo(c.dtype).max).log() for end in (low, high))
    if c.numel() <= _FEW:
        at_once = 10 if len(c) == 1 else 3
        for _ in range(-(-num_bisections // at_once)):
            low, high = _cut(c, gaps, radius, low, high, num_parts=2**at_once)
    else:
        for _ in range(num_bisections):
            middle = (low + high) / 2
            is_long = (c / (gaps + middle.exp()[:, None])).norm(dim=1) > radius
            low, high = torch.where(is_long, middle, low), torch.where(is_long, high, middle)
    shift = torch.where(is_inside, torch.zeros_like(high), high.exp())
    p = -c / (gaps + shift[:, None]).clamp_min(tiny)
    # Slopes so small that their squares are zero must not lead further either.
    p = torch.minimum(torch.maximum(p, -radius[:, None]), radius[:, None])
    p = p * (radius / p.norm(dim=1).clamp_min(tiny)).clamp_max(1)[:, None]
    decrease = -(dot(slopes.detach(), p) + 0.5 * dot(curvature * p, p))
    return TrustedStep(p, decrease.clamp_min(0), is_inside)


def _cut(
    c: Tensor, curvature: Tensor, radius: Tensor, low: Tensor, high: Tensor, *, num_parts: int
) -> tuple[Tensor, Tensor]:
    """The part of an interval in which the step is as long as the radius."""
    inner = torch.arange(1, num_parts, dtype=c.dtype, device=c.device) / num_parts
    width = high - low
    shift = (low[:, None] + width[:, None] * inner).exp()[..., None]
    length = torch.linalg.vector_norm(c[:, None] / (curvature[:, None] + shift), dim=2)
    is_long = length > radius[:, None]
    above = is_long.to(c.dtype).sum(1) / num_parts
    low = low + width * above
    return low, torch.where(is_long[:, -1], high, low + width / num_parts)
