"""What happened, lane by lane, kept until it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.core import OptimizationCore
from envs.drawing import draw
from envs.state import State
from envs.surfaces import FINEST, Floats, Plane, Trail, Window, plane_of, relative_gaps, window_of

# Surface values per frame, in parameters: a network gets a coarse map, a large one none.
_SURFACE_BUDGET, _COARSEST = 150_000, 8


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What is kept of a `State`, all lanes."""

    point: Tensor
    gap: Tensor
    kicks: Tensor
    steps: Tensor
    controls: dict[str, Tensor]


class Recorder:
    """Keeps the trajectories of lanes and draws them.

    A frame shows, left, the surface around the trajectory: the plane itself where there are two
    parameters, otherwise the plane through the current point along the trajectory's principal
    directions, onto which the rest is projected. Right, gap and controls over gradient evaluations.
    The same history gives the same pixels.

    Args:
        core: the decision process.
        num_lanes: how many trajectories.
    """

    def __init__(self, core: OptimizationCore, num_lanes: int) -> None:
        self.core, self.num_lanes = core, num_lanes
        self._records: list[_Record] = []
        self._first = np.zeros(num_lanes, np.int64)
        self._last: State | None = None
        self._surfaces: dict[int, tuple[tuple[int, Window], Floats]] = {}

    def start(self, state: State, mask: NDArray[np.bool_]) -> None:
        """Forget the lanes in `mask` and note their first points.

        Args:
            state: all lanes.
            mask: ``[N]`` which of them have just begun.
        """
        self._note(state, mask)

    def follow(self, before: State, after: State, *, restarted: NDArray[np.bool_]) -> None:
        """Note one step; lanes in `restarted` have begun a new episode instead.

        Args:
            before: the state that was left.
            after: the state that was reached.
            restarted: ``[N]``.
        """
        self._catch_up(before)
        self._note(after, restarted)

    def frame(self, state: State, lane: int) -> NDArray[np.uint8]:
        """A picture of one lane.

        Args:
            state: all lanes, as last noted; another one is drawn without a past.
            lane: which one.

        Returns:
            ``[H, W, 3]`` red, green, blue.
        """
        self._catch_up(state)
        trail = self.trail(lane)
        plane = plane_of(trail, state.grads[lane].double().numpy())
        window = window_of(plane.project(trail.points[trail.is_shown]), self.core.task.radius)
        return draw(
            trail,
            plane,
            window,
            self._surface(state, lane, plane, window),
            task=self.core.settings.task,
            target=self.core.settings.target,
            has_diverged=bool(state.has_diverged[lane]),
        )

    def trail(self, lane: int) -> Trail:
        """What happened to a lane since its episode began.

        Args:
            lane: which one.

        Returns:
            Its points and controls, oldest first.
        """
        records = self._records[self._first[lane] :]

        def history(entry: Callable[[_Record], Tensor]) -> NDArray[Any]:
            return np.asarray(torch.stack([entry(r)[lane] for r in records]).numpy())

        steps = history(lambda r: r.steps)
        # A partial reset notes all lanes once more; of equal steps one is kept.
        keep = np.diff(steps, prepend=-1) != 0
        kicks = history(lambda r: r.kicks)[keep]
        return Trail(
            points=history(lambda r: r.point)[keep].astype(np.float64),
            gap=history(lambda r: r.gap)[keep],
            kicked=np.diff(kicks, prepend=kicks[:1]) > 0,
            steps=steps[keep],
            controls={
                name: history(lambda r, name=name: r.controls[name])[keep].astype(np.float64)  # type: ignore[misc]
                for name in records[-1].controls
            },
        )

    def _note(self, state: State, begun: NDArray[np.bool_]) -> None:
        self._first[begun] = len(self._records)
        self._records.append(
            _Record(
                point=state.point,
                gap=state.gap,
                kicks=state.kicks,
                steps=state.steps,
                controls=self.core.actuator.controls(state.actuator),
            )
        )
        self._last = state
        past = int(self._first.min())
        del self._records[:past]
        self._first -= past

    def _catch_up(self, state: State) -> None:
        """A state that was put in place from elsewhere has no past."""
        if state is not self._last:
            self._note(state, np.ones(self.num_lanes, bool))

    def _surface(self, state: State, lane: int, plane: Plane, window: Window) -> Floats | None:
        """`relative_gaps` on the map; on a fixed plane only when instance or window are new."""
        resolution = min(FINEST, math.isqrt(_SURFACE_BUDGET // self.core.task.dim))
        if resolution < _COARSEST:
            return None
        if self.core.task.dim != 2:
            return relative_gaps(self.core, state, lane, plane, window, resolution=resolution)
        name = (int(state.keys[lane]), window)
        if lane not in self._surfaces or self._surfaces[lane][0] != name:
            found = relative_gaps(self.core, state, lane, plane, window, resolution=resolution)
            self._surfaces[lane] = (name, found)
        return self._surfaces[lane][1]
