"""Is a loss a spike? And what of it is rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_opt.actuators.survey import FAST
from learned_opt.features import safe_ratio

_SPIKE = 2.0
"""Usual changes of the loss that make a spike of a loss, above the highest so far."""


def look_for_spike(s: dict[str, Tensor], loss: Tensor, fallen: Tensor) -> dict[str, Tensor]:
    """Whether the loss is far higher than ever, by its usual change.

    That is the mean size of the changes so far, this one included, so the first two can be none;
    or what was promised, if that is more. Changes of the loss, not of what gradients say, which
    know nothing of its noise. After a spike the step is undone, so what follows is none.

    Args:
        s: state.
        loss: ``[N]``.
        fallen: ``[N]`` by how much it fell; NaN if that is not known.

    Returns:
        New entries of the state, ``[N]`` each.
    """
    highest, size = s["highest_loss"], fallen.abs()
    # What drowns in rounding is no change: on a plateau none is usual.
    is_told = size.isfinite() & (size > rounding(highest))
    jitter = torch.where(is_told, torch.lerp(s["jitter"], size, 1 - FAST), s["jitter"])
    jitters = torch.where(
        is_told, torch.lerp(s["jitters"], torch.ones_like(size), 1 - FAST), s["jitters"]
    )
    usual = torch.maximum(safe_ratio(jitter, jitters), s["predicted"])
    is_far = (is_told & (loss - highest > _SPIKE * usual)) | (fallen == -torch.inf)
    is_spike = is_far & (s["is_spike"] == 0)
    # Neither the way up nor the way back is usual.
    is_calm = ~is_spike & (s["is_spike"] == 0)
    return {
        "highest_loss": torch.fmax(highest, loss.where(loss.isfinite(), torch.nan)),
        "jitter": torch.where(is_calm, jitter, s["jitter"]),
        "jitters": torch.where(is_calm, jitters, s["jitters"]),
        "is_spike": is_spike.to(loss),
    }


def rounding(loss: Tensor) -> Tensor:
    """Changes of a loss that mean nothing."""
    return 16 * torch.finfo(loss.dtype).eps * loss.abs()
