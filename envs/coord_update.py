"""`LearnedOpt/CoordUpdate-v0`: the update itself, one policy shared by all coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, CoordUpdate

_SETTINGS: Mapping[str, Any] = {"task": "strict_saddle", "learning_rate": (-2.5, -0.5)}


class CoordUpdateEnv(OptimizationEnv):
    """Write the step coordinate by coordinate, within a radius that is steered too."""

    actuator_class: ClassVar[type[Actuator]] = CoordUpdate
    default_settings = _SETTINGS


class CoordUpdateVectorEnv(OptimizationVectorEnv):
    """Many lanes of `CoordUpdateEnv`."""

    actuator_class: ClassVar[type[Actuator]] = CoordUpdate
    default_settings = _SETTINGS
