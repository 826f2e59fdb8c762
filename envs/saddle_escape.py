"""`LearnedOpt/SaddleEscape-v0`: when to kick, how hard, when to speed up, when to go back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, SaddleEscape

_SETTINGS: Mapping[str, Any] = {
    "task": "strict_saddle",
    "learning_rate": (-1.5, -0.5),
    "best_so_far": True,
    "kick_cost": 0.02,
}


class SaddleEscapeEnv(OptimizationEnv):
    """Choose, step by step: continue, speed up, brake, kick or go back."""

    actuator_class: ClassVar[type[Actuator]] = SaddleEscape
    default_settings = _SETTINGS


class SaddleEscapeVectorEnv(OptimizationVectorEnv):
    """Many lanes of `SaddleEscapeEnv`."""

    actuator_class: ClassVar[type[Actuator]] = SaddleEscape
    default_settings = _SETTINGS
