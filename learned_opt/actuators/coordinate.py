"""One decision per coordinate becomes one number to add."""

from __future__ import annotations

import torch
from torch import Tensor


def additive(decision: Tensor, *, scale: float) -> Tensor:
    """The decision itself, scaled: the action of L2L's LSTM (arXiv:1606.04474).

    Args:
        decision: ``[...]`` one number per coordinate.
        scale: length of a unit decision.

    Returns:
        ``[...]`` updates.
    """
    return decision * scale


def bounded(decision: Tensor, *, scale: float) -> Tensor:
    """A step of at most `scale` per coordinate: the action of RNNProp (arXiv:1703.03633).

    Args:
        decision: ``[...]`` one number per coordinate.
        scale: largest step.

    Returns:
        ``[...]`` updates.
    """
    return scale * torch.tanh(decision)
