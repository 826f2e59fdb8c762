"""Observe: what a learned rule or an agent sees of a trajectory."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.trees import Tree
from learned_opt.workspace import in_pieces, is_long

LOG_AND_SIGN_RANGE = 5.0
"""The ``p`` of Andrychowicz et al. 2016, appendix A, as their code sets it (``k = 5``)."""


def schema_hash(*parts: object) -> str:
    """Digest of what a network was trained to see; weights of another schema are refused.

    Args:
        parts: names of the features, in order, with the constants that shape them.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def log_and_sign(grads: Tensor, *, log_range: float = LOG_AND_SIGN_RANGE) -> Tensor:
    r"""Magnitude on a log scale, and a sign that stays informative for tiny gradients.

    $$ \left( \max\left(\tfrac{\log |g|}{p}, -1\right),\; \mathrm{clip}(e^{p} g, -1, 1) \right) $$

    Args:
        grads: ``[...]`` gradients.
        log_range: ``p`` of the formula, positive.

    Returns:
        ``[..., 2]`` features.

    Raises:
        LearnedOptError: if `log_range` is not positive.

    References:
        Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent",
        appendix A (arXiv:1606.04474).

    Examples:
        >>> log_and_sign(torch.tensor([1.0, -1e-3])).tolist()  # a thousandth is below exp(-5)
        [[0.0, 1.0], [-1.0, -0.14841316640377045]]
    """
    require(log_range > 0, f"log_range must be positive, got {log_range}")
    # The smallest normal number keeps log finite at an exactly zero gradient; it is clamped anyway.
    tiny = torch.finfo(grads.dtype).tiny
    magnitude = (grads.abs() + tiny).log().div(log_range).clamp_min(-1.0)
    sign = (grads * math.exp(log_range)).clamp(-1.0, 1.0)
    return torch.stack((magnitude, sign), dim=-1)


def moment_ratios(first: Tensor, second: Tensor, grads: Tensor, *, epsilon: float) -> Tensor:
    r"""Gradient and momentum in units of the root mean square gradient.

    $$ \left( g / (\sqrt{\hat v} + \epsilon),\; \hat m / (\sqrt{\hat v} + \epsilon) \right) $$

    Args:
        first: ``[...]`` bias-corrected first moment.
        second: ``[...]`` bias-corrected second moment.
        grads: ``[...]`` gradients.
        epsilon: floor of the denominator; 0/0 counts as 0.

    Returns:
        ``[..., 2]`` features.

    References:
        Lv, Jiang and Li 2017, "Learning gradient descent: better generalization and longer
        horizons" (arXiv:1703.03633), section 4.1.
    """
    scale = second.sqrt() + epsilon
    return torch.stack((grads / scale, first / scale), dim=-1)


TIME_SCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Steps around which each of `time_features` turns from -1 to 1."""

NORMALIZER_FLOOR = 1e-5
"""What `rms_normalized` adds to the mean square, as its authors' code does."""


def time_features(steps: Tensor, *, dtype: torch.dtype) -> Tensor:
    r"""Where in a run one is, on a log scale: ``tanh(t / T - 1)`` for each ``T`` of `TIME_SCALES`.

    Args:
        steps: ``[N]`` steps taken so far.
        dtype: type of the features.

    Returns:
        ``[N, 11]`` features.

    References:
        Metz et al. 2022 (arXiv:2203.11860), appendix; the time features of ``mlp_lopt.py`` in
        google/learned_optimization.
    """
    scales = torch.tensor(TIME_SCALES, dtype=torch.float64, device=steps.device)
    return (steps.double().unsqueeze(1) / scales - 1).tanh().to(dtype)


def rms_normalized(features: Tensor) -> Tensor:
    r"""Every feature in units of its root mean square over the coordinates of one tensor.

    $$ x / \sqrt{10^{-5} + \mathrm{mean}(x^2)} $$

    Args:
        features: ``[N, P, F]``, for the ``P`` coordinates of one tensor.

    Returns:
        ``[N, P, F]``.

    References:
        Metz et al. 2019 (arXiv:1810.10180), appendix; Metz et al. 2022 (arXiv:2203.11860).
    """
    mean_square = features.square().mean(dim=1, keepdim=True)
    return features * (mean_square + NORMALIZER_FLOOR).rsqrt()


@dataclass(frozen=True)
class Feature:
    """One observed number.

    Attributes:
        name: what it is called in tables.
        meaning: the formula or a phrase.
        low: smallest value; smaller ones are clipped.
        high: largest value.
    """

    name: str
    meaning: str
    low: float
    high: float


TRAJECTORY_FEATURES = (
    Feature("turn", "cosine of the last two gradients", -1, 1),
    Feature("along momentum", "cosine of gradient and momentum", -1, 1),
    Feature("gradient growth", "log of gradient norm over the last one", -3, 3),
    Feature("gradient since start", "log of gradient norm over the first one, over 5", -3, 3),
    Feature("persistence", "log of momentum's norm over the gradient's", -5, 5),
    Feature("decrease ratio", "tanh of actual over predicted decrease of the loss", -1, 1),
    Feature(
        "curvature", "signed log(1 + |.|) of step size times curvature along the last step", -5, 5
    ),
    Feature("regret", "tanh of loss above the best, in units of its recent change", -1, 1),
    Feature("straightness", "log of distance from the start over path length", -5, 0),
    Feature("stride", "log of the last step's length over the mean one", -3, 3),
    Feature("time", "log(1 + steps) / 7", 0, 3),
    Feature("waiting", "steps since the best loss, over 32", 0, 1),
)
"""What `observe_trajectory` returns, in order. Nothing in it has a unit."""

_CHANGE_DECAY = 0.9


def init_trajectory(params: Tensor) -> Tree:
    """Statistics before the first step.

    Args:
        params: starting points ``[N, P]``.

    Returns:
        The state of `observe_trajectory` and `follow_trajectory`.
    """
    vector, scalar = torch.zeros_like(params), params.new_zeros(len(params))
    vectors = ("grads", "update", "displacement")
    scalars = (
        "loss",
        "best_loss",
        "change",
        "first_norm",
        "norm",
        "path",
        "step_size",
        "steps",
        "waiting",
        "predicted",
    )
    return {**dict.fromkeys(vectors, vector), **dict.fromkeys(scalars, scalar)}


def observe_trajectory(
    grads: Tensor, loss: Tensor, momentum: Tensor, state: Tree, *, momentum_decay: Tensor
) -> tuple[list[Tensor], Tree]:
    r"""See one more point of a trajectory, in numbers without units.

    Every feature is a cosine, a ratio of like quantities or a count: unchanged under
    ``f -> a f + b`` and ``x -> c x`` if the step size is scaled along. At the first point, where
    nothing has happened yet, all but the persistence are zero.

    Args:
        grads: ``[N, P]`` gradients at the new point.
        loss: ``[N]`` losses there.
        momentum: ``[N, P]`` running sum of the gradients before this one.
        state: what `init_trajectory` or `follow_trajectory` returned.
        momentum_decay: ``[N]`` or 0-d decay of `momentum`.

    Returns:
        ``[N]`` numbers in the order of `TRAJECTORY_FEATURES`, not yet clipped, and the new state.

    References:
        The choice follows the unit-free inputs of Almeida et al. 2021, "A generalizable approach
        to learning optimizers" (arXiv:2106.00958), and the ratio of actual to predicted decrease
        of trust-region methods (Nocedal and Wright 2006, eq. 4.4).
    """
    s: dict[str, Tensor] = state  # type: ignore[assignment]
    update, displacement = s["update"], s["displacement"]
    is_first = s["steps"] == 0
    # Like quantities are stacked: at these sizes it is calls that cost, not numbers.
    squares = torch.stack((
        dot(grads, grads),
        dot(momentum, momentum),
        dot(update, update),
        dot(displacement, displacement),
    ))
    norm, momentum_norm, stride, distance = safe_sqrt(squares)
    first_norm, last_norm = torch.where(is_first, norm, torch.stack((s["first_norm"], s["norm"])))
    path = s["path"] + stride
    sizes = torch.stack((
        norm,
        norm,
        (1 - momentum_decay) * momentum_norm,
        distance,
        stride * s["steps"],
        last_norm,
        first_norm,
        norm,
        path,
        path,
    ))
    logs = (sizes + torch.finfo(sizes.dtype).tiny).log()
    growth, since_start, persistence, straightness, relative_stride = logs[:5] - logs[5:]

    decrease = (s["loss"] - loss).masked_fill(is_first, 0)
    size = decrease.abs()
    change = torch.lerp(size, torch.where(s["steps"] <= 1, size, s["change"]), _CHANGE_DECAY)
    is_best = is_first | (loss < s["best_loss"])
    best = torch.where(is_best, loss, s["best_loss"])
    waiting = (s["waiting"] + 1).masked_fill(is_best, 0)
    above = torch.stack((
        dot(grads, s["grads"]),
        dot(grads, momentum),
        decrease,
        # d . (g_new - g_old) / d . d is the curvature along the step; 2 is the edge of stability.
        s["step_size"] * (dot(grads, update) - s["predicted"]),
        loss - best,
    ))
    below = torch.stack((
        norm * s["norm"],
        norm * momentum_norm,
        s["predicted"].abs(),
        squares[2],
        change,
    ))
    turn, along_momentum, decrease_ratio, curvature, regret = safe_ratio(above, below)
    features = [
        turn,
        along_momentum,
        growth,
        since_start / 5,
        persistence,
        decrease_ratio.tanh(),
        curvature.sign() * curvature.abs().log1p(),
        regret.tanh(),
        straightness,
        relative_stride,
        s["steps"].log1p() / 7,
        waiting / 32,
    ]
    new: Tree = {
        "grads": grads,
        "update": update,
        "displacement": s["displacement"],
        "loss": loss,
        "best_loss": best,
        "change": change,
        "first_norm": first_norm,
        "norm": norm,
        "path": path,
        "step_size": s["step_size"],
        "steps": s["steps"],
        "waiting": waiting,
        "predicted": s["predicted"],
    }
    return features, new


def follow_trajectory(update: Tensor, state: Tree, *, step_size: Tensor) -> Tree:
    """Take note of a step.

    Args:
        update: ``[N, P]`` what is added to the parameters.
        state: what `observe_trajectory` returned.
        step_size: ``[N]`` the step size behind it, the unit of curvature.

    Returns:
        The new state.
    """
    s: dict[str, Tensor] = state  # type: ignore[assignment]
    return {
        **s,
        "update": update,
        "displacement": s["displacement"] + update,
        "predicted": dot(s["grads"], update),
        "step_size": step_size,
        "steps": s["steps"] + 1,
    }


def safe_sqrt(squares: Tensor) -> Tensor:
    """Square roots whose derivative at zero is zero instead of infinite."""
    is_zero = squares == 0
    return squares.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def safe_ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``, zero with a derivative of zero where `below` is zero."""
    is_zero = below == 0
    return (above / below.masked_fill(is_zero, 1)).masked_fill(is_zero, 0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, ``[N, P] -> [N]``."""
    if is_long(a):
        (total,), _ = in_pieces(_dot, a, b, out=0)
        return total
    products: Tensor = torch.linalg.vecdot(a, b)
    return products


def _dot(
    a: Tensor, b: Tensor, *, out: tuple[Tensor | None, ...]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The product of two pieces."""
    del out
    return [torch.dot(a[0], b[0])[None]], ()
