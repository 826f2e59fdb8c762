"""What happened, drawn: surface, trajectory and controls as one frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.core import OptimizationCore, State


class Recorder:
    """Keeps the trajectories of lanes and draws them.

    Args:
        core: the decision process.
        num_lanes: how many trajectories.
    """

    def __init__(self, core: OptimizationCore, num_lanes: int) -> None:
        self.core, self.num_lanes = core, num_lanes

    def start(self, state: State, mask: NDArray[np.bool_]) -> None:
        """Forget the lanes in `mask` and note their first points."""

    def follow(self, before: State, after: State, *, restarted: NDArray[np.bool_]) -> None:
        """Note one step; lanes in `restarted` have begun a new episode instead."""

    def frame(self, state: State, lane: int) -> NDArray[np.uint8]:
        """A picture ``[H, W, 3]`` of one lane."""
        return np.zeros((64, 64, 3), np.uint8)
