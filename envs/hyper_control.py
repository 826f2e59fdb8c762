"""`LearnedOpt/HyperControl-v0`: step size, momentum and noise, turned while the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, HyperControl

_SETTINGS: Mapping[str, Any] = {"task": "strict_saddle", "learning_rate": (-2.5, 0.5)}


class HyperControlEnv(OptimizationEnv):
    """Turn the step size, momentum and noise of a heavy ball while it minimises a function."""

    actuator_class: ClassVar[type[Actuator]] = HyperControl
    default_settings = _SETTINGS


class HyperControlVectorEnv(OptimizationVectorEnv):
    """Many lanes of `HyperControlEnv`."""

    actuator_class: ClassVar[type[Actuator]] = HyperControl
    default_settings = _SETTINGS
