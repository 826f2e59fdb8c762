"""The gymnasium spaces of a decision process."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from envs.core import OptimizationCore


def observation_space(core: OptimizationCore) -> spaces.Box:
    """Bounds of every feature, repeated for each coordinate where the policy is per coordinate."""
    dtype = np.dtype(core.settings.dtype)
    low = np.array([f.low for f in core.actuator.features], dtype)
    high = np.array([f.high for f in core.actuator.features], dtype)
    shape = core.observation_shape
    return spaces.Box(
        np.broadcast_to(low, shape).copy(), np.broadcast_to(high, shape).copy(), dtype=dtype.type
    )


def action_space(core: OptimizationCore) -> spaces.Box | spaces.Discrete:
    """One choice, or numbers in [-1, 1]."""
    if core.actuator.actions.is_discrete:
        return spaces.Discrete(core.actuator.actions.size)
    return spaces.Box(-1.0, 1.0, core.action_shape, np.dtype(core.settings.dtype).type)
