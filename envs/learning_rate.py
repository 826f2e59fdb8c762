"""`LearnedOpt/LearningRate-v0`: the learning rate of a real network, up, down or kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, LearningRate

_SETTINGS: Mapping[str, Any] = {
    "task": "digits_mlp",
    "learning_rate": (-2.0, 0.5),
    "num_instances": 256,
    "target": 1e-3,
}


class LearningRateEnv(OptimizationEnv):
    """Turn the learning rate of a network's training up or down, or keep it."""

    actuator_class: ClassVar[type[Actuator]] = LearningRate
    default_settings = _SETTINGS


class LearningRateVectorEnv(OptimizationVectorEnv):
    """Many lanes of `LearningRateEnv`."""

    actuator_class: ClassVar[type[Actuator]] = LearningRate
    default_settings = _SETTINGS
