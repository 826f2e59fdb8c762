"""What the last steps tell about curvature, and the best step within a radius that follows.

A step ``s`` and the change of the gradient along it, ``y``, say how curved the loss is along ``s``,
and ``y`` against the other steps how the directions mix: in the span of a few past steps the
Hessian is known without a single product with it. Its eigenvalues there (Ritz values) show negative
curvature as soon as a step has a part in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.features import dot
from learned_opt.trees import Tree

_PARALLEL = 1e-2
"""Share of the largest eigenvalue of the steps' cosines below which directions count as spanned."""


class CurvatureModel(NamedTuple):
    """A quadratic model in the span of past steps.

    Attributes:
        basis: ``[N, m, P]`` orthonormal rows, the Ritz vectors; zero rows where there are fewer.
        curvatures: ``[N, m]`` second derivatives along them, ascending; zero for zero rows.
        is_known: ``[N, m]`` bool, whether the row is one.
    """

    basis: Tensor
    curvatures: Tensor
    is_known: Tensor


def init_memory(params: Tensor, size: int) -> Tree:
    """A memory without steps.

    Args:
        params: points ``[N, P]``.
        size: steps it will hold, ``m``.

    Returns:
        ``steps`` (unit vectors) and ``changes`` (of the gradient, over the step's length), each
        ``[N, m, P]``.

    Raises:
        LearnedOptError: if `size` is not positive.
    """
    require(size >= 1, f"size must be positive, got {size}")
    empty = params.new_zeros(params.shape[0], size, params.shape[1])
    return {"steps": empty, "changes": empty}


def remember(memory: Tree, step: Tensor, change: Tensor) -> Tree:
    """Put a step in the place of the oldest one; a step of length zero is forgotten at once.

    Args:
        memory: what `init_memory` or `remember` returned.
        step: ``[N, P]`` what was added to the parameters.
        change: ``[N, P]`` gradient after it minus gradient before.

    Returns:
        The new memory, without a graph.
    """
    m: dict[str, Tensor] = memory  # type: ignore[assignment]
    step, change = step.detach(), change.detach()
    length = step.norm(dim=1, keepdim=True)
    scale = torch.where(length > 0, 1 / length, torch.zeros_like(length))
    return {
        "steps": torch.cat((m["steps"][:, 1:], (step * scale)[:, None]), dim=1),
        "changes": torch.cat((m["changes"][:, 1:], (change * scale)[:, None]), dim=1),
    }


def curvature_model(memory: Tree) -> CurvatureModel:
    r"""Ritz values and vectors of the Hessian in the span of the remembered steps.

    With unit steps $S$ and changes $Y$, $S Y^T$ stands for $S H S^T$; its symmetric part is taken
    in an orthonormal basis of the span, from which directions that the others all but span are
    left out.

    Args:
        memory: what `remember` returned.

    Returns:
        The model, without a graph.

    References:
        Parlett 1998, "The symmetric eigenvalue problem", chapter 11 (Rayleigh-Ritz); Dauphin et al.
        2014 (arXiv:1406.2572) for the use of a Krylov subspace at saddles.
    """
    m: dict[str, Tensor] = memory  # type: ignore[assignment]
    steps, changes = m["steps"], m["changes"]
    is_there = dot(steps, steps) > 0.5
    both = is_there[:, :, None] & is_there[:, None, :]
    cosines = steps @ steps.mT
    mixed = steps @ changes.mT
    mixed = torch.where(both, (mixed + mixed.mT) / 2, torch.zeros_like(mixed))
    # Steps so large that their change overflowed say nothing, here and in eigenvalue routines.
    is_sound = torch.isfinite(mixed).flatten(1).all(1)
    mixed = torch.where(is_sound[:, None, None], mixed, torch.zeros_like(mixed))
    cosines = torch.where(both & is_sound[:, None, None], cosines, torch.zeros_like(cosines))
    spread, frame = torch.linalg.eigh(cosines)
    is_kept = spread > _PARALLEL * spread[:, -1:].clamp_min(_PARALLEL)
    scale = torch.where(is_kept, spread, torch.ones_like(spread)).rsqrt() * is_kept
    whiten = frame * scale[:, None]
    projected = whiten.mT @ mixed @ whiten
    values, vectors = torch.linalg.eigh(projected)
    basis = (whiten @ vectors).mT @ steps
    # Left-out directions are eigenvectors with the eigenvalue 0 and map to zero rows.
    is_known = dot(basis, basis) > 0.5
    return CurvatureModel(
        basis=basis * is_known[..., None],
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
        num_bisections: halvings of the interval of ``log mu``.

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
    floor = (-lowest).clamp_min(0) + torch.finfo(c.dtype).eps * largest[:, 0] + tiny
    low = floor.log()
    high = (floor + c.norm(dim=1) / radius.clamp_min(tiny)).log()
    for _ in range(num_bisections):
        middle = (low + high) / 2
        is_long = (c / (curvature + middle.exp()[:, None])).norm(dim=1) > radius
        low, high = torch.where(is_long, middle, low), torch.where(is_long, high, middle)
    shift = torch.where(is_inside, torch.zeros_like(high), high.exp())
    p = -c / (curvature + shift[:, None]).clamp_min(tiny)
    decrease = -(dot(slopes.detach(), p) + 0.5 * dot(curvature * p, p))
    return TrustedStep(p, decrease.clamp_min(0), is_inside)
