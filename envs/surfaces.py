"""Where a trajectory runs: a plane through it, a window on that plane, the surface above."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from envs.core import OptimizationCore
from envs.state import State
from learned_opt.trees import unflatten

Floats = NDArray[np.float64]

# Points this many times above the start are left outside the map; they would shrink all the rest.
_SHOWN_GAP = 10.0
FINEST = 48
"""Points along a side of the finest map."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A plane in parameter space.

    Attributes:
        origin: ``[P]`` float64 a point on it.
        axes: ``[2, P]`` float64 orthonormal directions; zeros where parameters are too few.
        labels: what the two directions are.
    """

    origin: Floats
    axes: Floats
    labels: tuple[str, str]

    def project(self, points: Floats) -> Floats:
        """Coordinates ``[T, 2]`` of the feet of the perpendiculars from `points` ``[T, P]``."""
        with np.errstate(all="ignore"):
            return np.asarray((points - self.origin) @ self.axes.T)

    def lift(self, xy: Floats) -> Floats:
        """Points ``[T, P]`` at coordinates ``[T, 2]``."""
        return self.origin + xy @ self.axes


@dataclass(frozen=True, kw_only=True)
class Window:
    """A square piece of a plane.

    Attributes:
        x: middle, first coordinate.
        y: middle, second coordinate.
        side: length of an edge.
    """

    x: float
    y: float
    side: float

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top."""
        half = self.side / 2
        return self.x - half, self.x + half, self.y - half, self.y + half

    def ticks(self, resolution: int) -> tuple[Floats, Floats]:
        """Evenly spaced coordinates along the two edges, from end to end."""
        offsets = np.linspace(-0.5, 0.5, resolution) * self.side
        return self.x + offsets, self.y + offsets


@dataclass(frozen=True, kw_only=True)
class Trail:
    """One lane's episode so far; ``T`` points.

    Attributes:
        points: ``[T, P]`` float64.
        gap: ``[T]`` relative gap.
        kicked: ``[T]`` bool, whether a kick led to the point.
        steps: ``[T]`` gradient evaluations paid for before the point.
        controls: the actuator's settings behind the step to each point, ``[T]`` each.
    """

    points: Floats
    gap: Floats
    kicked: NDArray[np.bool_]
    steps: NDArray[np.int64]
    controls: dict[str, Floats]

    @property
    def is_shown(self) -> NDArray[np.bool_]:
        """``[T]`` which points decide what the map covers."""
        return np.isfinite(self.points).all(1) & (self.gap <= _SHOWN_GAP)

    @property
    def colours(self) -> Floats:
        """``[T]`` what the path is coloured by: step size, or length where it is no control."""
        if "step size" in self.controls:
            return self.controls["step size"]
        with np.errstate(all="ignore"):
            moved = np.linalg.norm(np.diff(self.points, axis=0, prepend=self.points[:1]), axis=1)
        return np.asarray(moved)


def plane_of(trail: Trail, grads: Floats) -> Plane:
    """The plane to look at: all there is in two dimensions, else the one the trajectory spans.

    Args:
        trail: the trajectory.
        grads: ``[P]`` the gradient at its end, for a trajectory that spans no plane.

    Returns:
        The plane, through the last point that is not far above the start. Axes point from the
        start to there.
    """
    dim = trail.points.shape[1]
    if dim == 2:
        return Plane(origin=np.zeros(2), axes=np.eye(2), labels=("parameter 0", "parameter 1"))
    points = trail.points[trail.is_shown]
    if len(points) == 0:
        points = np.nan_to_num(trail.points[:1], posinf=0.0, neginf=0.0)
    directions, shares = _principal_directions(points)
    candidates = [
        (direction, f"principal direction {i + 1}, {100 * share:.3g} % of the variance")
        for i, (direction, share) in enumerate(zip(directions, shares, strict=True))
    ]
    candidates.append((np.nan_to_num(grads, posinf=0.0, neginf=0.0), "along the gradient"))
    # Two of three coordinate axes complete whatever came before.
    candidates += [(axis, f"parameter {i}") for i, axis in enumerate(np.eye(min(3, dim), dim))]
    axes: list[Floats] = []
    labels: list[str] = []
    for candidate, label in candidates:
        size = np.abs(candidate).max()
        rest = candidate / size if size > 0 else candidate
        length = np.linalg.norm(rest)
        # Twice is enough to be orthogonal to rounding (Kahan's rule, Parlett 1980, section 6.9).
        for axis in axes * 2:
            rest = rest - (rest @ axis) * axis
        if len(axes) < 2 and np.linalg.norm(rest) > 1e-6 * length > 0:
            axes.append(_point_along(rest / np.linalg.norm(rest), points[-1] - points[0]))
            labels.append(label)
    while len(axes) < 2:
        axes.append(np.zeros(dim))
        labels.append("nothing varies")
    return Plane(origin=points[-1], axes=np.stack(axes), labels=(labels[0], labels[1]))


def _principal_directions(points: Floats) -> tuple[Floats, Floats]:
    """Up to two principal directions ``[K, P]`` and their shares of the variance ``[K]``."""
    centred = points - points.mean(0)
    size = np.abs(centred).max()
    if not size > 0:
        return np.zeros((0, points.shape[1])), np.zeros(0)
    centred = centred / size
    if len(points) <= points.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        directions = vectors[:, ::-1].T[:2] @ centred
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        directions = vectors[:, ::-1].T[:2]
    shares = values[::-1][:2] / values.sum()
    # Below this a direction is rounding.
    keep = shares > 1e-10
    return directions[keep], shares[keep]


def _point_along(axis: Floats, way: Floats) -> Floats:
    """The axis or its opposite, so that neighbouring frames agree."""
    along = float(axis @ way)
    if abs(along) <= 1e-9 * float(np.linalg.norm(way)):
        along = float(axis[np.abs(axis).argmax()])
    return axis if along >= 0 else -axis


def window_of(xy: Floats, radius: float) -> Window:
    """The square that holds points with a margin.

    Its side and middle move in notches, so that a film of frames does not tremble.

    Args:
        xy: ``[T, 2]`` points.
        radius: the scale at which to look at a single point.

    Returns:
        The square.
    """
    if len(xy) == 0:
        xy = np.zeros((1, 2))
    low, high = xy.min(0), xy.max(0)
    # A quarter more than the points need, and never so little that rounding is what is seen.
    need = max(1.25 * float((high - low).max()), 1e-2 * radius, 1e-5 * float(np.abs(xy).max()))
    if len(xy) == 1:
        need = 2 * radius
    side = 2 ** (math.ceil(2 * math.log2(need)) / 2)
    middle = np.round((low + high) / 2 / (side / 8)) * (side / 8)
    return Window(x=float(middle[0]), y=float(middle[1]), side=side)


def relative_gaps(
    core: OptimizationCore,
    state: State,
    lane: int,
    plane: Plane,
    window: Window,
    *,
    resolution: int,
) -> Floats:
    """A lane's loss over a piece of a plane, above the minimum and relative to the start.

    Args:
        core: the decision process.
        state: where its lanes stand.
        lane: whose surface.
        plane: which plane.
        window: which piece of it.
        resolution: number ``R`` of values along each edge.

    Returns:
        ``[R, R]`` values at `Window.ticks`, row by row from the bottom.
    """
    x, y = window.ticks(resolution)
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    points = torch.from_numpy(plane.lift(xy))
    # In float32 the surroundings of a saddle are a map of rounding.
    problems = state.problems.select(torch.tensor([lane])).repeat(len(points))
    problems = problems.to(dtype=torch.float64, device="cpu")
    with torch.no_grad():
        loss = core.task.loss(unflatten(points, problems.params), problems).double()
    gaps = (loss - problems.facts.minimum) / state.unit[lane]
    return np.asarray(gaps.numpy().reshape(resolution, resolution))
