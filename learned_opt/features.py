"""Observe: what a learned rule or an agent sees of a trajectory."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from learned_opt.errors import require

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
