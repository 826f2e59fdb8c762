"""What happened, drawn: surface, trajectory and controls as one frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.core import OptimizationCore, State
from learned_opt.trees import unflatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_WIDTH, _HEIGHT, _DPI = 900, 540, 100
_INK, _FAINT, _GRID, _KICK, _BLUE = "#222222", "#666666", "#DDDDDD", "#D55E00", "#0072B2"
_MAP = "viridis"
# Points this many times above the start are left outside the map; they would shrink all the rest.
_SHOWN_GAP = 10.0
# Surface values per frame, in parameters: a network gets a coarse map, a large one none.
_SURFACE_BUDGET, _FINEST, _COARSEST = 150_000, 48, 8
_LOGARITHMIC = {"step size", "noise"}


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
        return _draw(
            trail,
            plane,
            window,
            self._surface(state, lane, plane, window),
            task=self.core.settings.task,
            target=self.core.settings.target,
            has_diverged=bool(self.core.diverged(state)[lane]),
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
        resolution = min(_FINEST, math.isqrt(_SURFACE_BUDGET // self.core.task.dim))
        if resolution < _COARSEST:
            return None
        if self.core.task.dim != 2:
            return relative_gaps(self.core, state, lane, plane, window, resolution=resolution)
        name = (int(state.keys[lane]), window)
        if lane not in self._surfaces or self._surfaces[lane][0] != name:
            found = relative_gaps(self.core, state, lane, plane, window, resolution=resolution)
            self._surfaces[lane] = (name, found)
        return self._surfaces[lane][1]


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
    gaps = (loss - problems.facts.minimum) / state.initial_gap[lane]
    return np.asarray(gaps.numpy().reshape(resolution, resolution))


def _draw(
    trail: Trail,
    plane: Plane,
    window: Window,
    surface: Floats | None,
    *,
    task: str,
    target: float,
    has_diverged: bool,
) -> NDArray[np.uint8]:
    # matplotlib takes most of a second to import, and most environments are never looked at.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    best = trail.gap[np.isfinite(trail.gap)].min(initial=np.inf)
    parts = [
        f"{task}, {trail.points.shape[1]} parameters",
        f"step {trail.steps[-1]}",
        f"gap {trail.gap[-1]:.2e}",
        f"best {best:.2e}",
    ]
    if trail.kicked.any():
        parts.append(f"{int(trail.kicked.sum())} kicks")
    if has_diverged:
        parts.append("diverged")
    elif trail.gap[-1] <= target:
        parts.append("target reached")
    figure.text(0.065, 0.96, "   |   ".join(parts), va="center", fontsize=11, color=_INK)
    _draw_map(figure, trail, plane, window, surface, target=target)
    _draw_strips(figure, trail, target=target)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_map(
    figure: Figure,
    trail: Trail,
    plane: Plane,
    window: Window,
    surface: Floats | None,
    *,
    target: float,
) -> None:
    """The surface in grey, the path on it in colours of the step size."""
    width = 0.425
    axes = figure.add_axes((0.065, 0.175, width, width * _WIDTH / _HEIGHT))
    left, right, bottom, top = window.extent
    axes.set(xlim=(left, right), ylim=(bottom, top))
    _plain(axes, *plane.labels)
    if surface is None:
        axes.set_title("path alone, the surface is costly", fontsize=9, loc="left", y=1.0, pad=4)
    else:
        axes.set_title("log10 relative gap", fontsize=9, loc="left", y=1.0, pad=4)
        _draw_surface(axes, surface, window, floor=target)
    xy = plane.project(trail.points)
    # Far outside, coordinates overflow the rasteriser; a hundred windows away is far enough.
    reach = 100 * window.side
    with np.errstate(all="ignore"):
        xy = np.clip(xy, (left - reach, bottom - reach), (right + reach, top + reach))
    _draw_path(figure, axes, trail, xy)
    _draw_marks(axes, trail, xy, window)


def _draw_surface(axes: Axes, surface: Floats, window: Window, *, floor: float) -> None:
    height = np.log10(np.maximum(np.nan_to_num(surface, nan=np.inf), 0) + floor)
    height = np.minimum(height, height[np.isfinite(height)].max(initial=np.log10(floor)))
    if len(height) < _FINEST:
        # Few values are joined smoothly: what they do not show is not there to be drawn.
        from scipy.interpolate import RectBivariateSpline

        coarse, fine = np.linspace(0, 1, len(height)), np.linspace(0, 1, _FINEST)
        height = RectBivariateSpline(coarse, coarse, height)(fine, fine)
    from matplotlib.colors import LinearSegmentedColormap

    left, right, bottom, top = window.extent
    # Values sit at the middles of pixels, the outermost ones on the frame.
    half = window.side / (len(height) - 1) / 2
    axes.imshow(
        height,
        extent=(left - half, right + half, bottom - half, top + half),
        origin="lower",
        aspect="auto",
        cmap=LinearSegmentedColormap.from_list("greys", ("#8A8A8A", "#FAFAFA")),
        interpolation="bilinear",
    )
    axes.set(xlim=(left, right), ylim=(bottom, top))
    low, high = float(height.min()), float(height.max())
    if high - low > 1e-9:
        levels = np.linspace(low, high, 14)[1:-1]
        ticks = window.ticks(len(height))
        axes.contour(*ticks, height, levels, colors="#6A6A6A", linewidths=0.5, linestyles="solid")


def _draw_path(figure: Figure, axes: Axes, trail: Trail, xy: Floats) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm

    colours = trail.colours
    usable = colours[np.isfinite(colours) & (colours > 0)]
    low, high = (float(usable.min()), float(usable.max())) if len(usable) else (1.0, 1.0)
    # At least a decade, so that small changes look small.
    widen = max(1.0, math.sqrt(10 * (low / high)))
    norm = LogNorm(low / widen, high * widen)
    is_drawn = np.asarray(np.isfinite(xy).all(1))
    whole = is_drawn[1:] & is_drawn[:-1]
    segments = list(np.stack((xy[:-1], xy[1:]), axis=1)[whole])
    outline = LineCollection(segments, colors=_INK, linewidths=3.4, capstyle="round", zorder=2.9)
    path = LineCollection(segments, cmap=_MAP, norm=norm, linewidths=2, capstyle="round", zorder=3)
    path.set_array(np.clip(np.nan_to_num(colours[1:][whole], nan=low), low, high))
    axes.add_collection(outline, autolim=False)
    axes.add_collection(path, autolim=False)
    axes.plot(*xy[is_drawn].T, ".", color=_INK, markersize=2.5, zorder=3.1)
    place = figure.add_axes((0.065, 0.075, 0.425, 0.02))
    bar = figure.colorbar(path, cax=place, orientation="horizontal")
    bar.outline.set_visible(False)  # type: ignore[operator]
    name = "step size" if "step size" in trail.controls else "length of the step"
    _plain(bar.ax, f"{name}, the colour of the path", "")
    place.xaxis.set_label_coords(0.5, -1.7)
    _log_ticks(bar.ax, "x", low / widen, high * widen)


def _draw_marks(axes: Axes, trail: Trail, xy: Floats, window: Window) -> None:
    """Start, kicks, best and current point."""
    left, right, bottom, top = window.extent
    is_drawn = np.asarray(np.isfinite(xy).all(1))
    best = int(np.where(np.isfinite(trail.gap) & is_drawn, trail.gap, np.inf).argmin())
    now = np.clip(xy[-1:], (left, bottom), (right, top))
    is_outside = bool((now != xy[-1:]).any())
    marks: list[tuple[str, Floats, str, float, str]] = [
        ("start", xy[:1], "s", 7, "white"),
        ("kick", xy[trail.kicked], "^", 7, _KICK),
        ("best", xy[best : best + 1], "*", 13, "#F0E442"),
        ("now, outside" if is_outside else "now", now, "o", 6.5, "#CC79A7"),
    ]
    for order, (name, points, marker, size, colour) in enumerate(marks):
        shown = points[np.isfinite(points).all(1)]
        if len(shown):
            axes.plot(
                *shown.T,
                linestyle="none",
                marker=marker,
                markersize=size,
                markerfacecolor=colour,
                markeredgecolor=_INK,
                zorder=4 + order,
                clip_on=not name.startswith("now"),
                label=name,
            )
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.02, 0.99),
        ncols=4,
        fontsize=8,
        frameon=False,
        borderpad=0,
        handletextpad=0,
        columnspacing=0.7,
    )


def _draw_strips(figure: Figure, trail: Trail, *, target: float) -> None:
    """Gap and controls over gradient evaluations."""
    names = ["relative gap", *trail.controls]
    bottom, top, between = 0.075, 0.883, 0.05
    height = (top - bottom + between) / len(names) - between
    last = 16 * math.ceil((int(trail.steps[-1]) + 1) / 16)
    for i, name in enumerate(names):
        low = top - height - i * (height + between)
        axes = figure.add_axes((0.57, low, 0.415, height))
        is_last = i == len(names) - 1
        _plain(axes, "gradient evaluations" if is_last else "", "")
        axes.xaxis.set_label_coords(0.5, -0.032 / height)
        axes.grid(color=_GRID, linewidth=0.6, axis="y")
        axes.set_xlim(0, last)
        # Ticks are what takes longest to draw, so the others go without.
        quarters = [last * k // 4 for k in range(5)]
        axes.set_xticks(quarters if is_last else [])
        axes.vlines(
            quarters,
            0,
            1,
            transform=axes.get_xaxis_transform(),
            color=_GRID,
            linewidth=0.6,
            zorder=0.5,
        )
        for step in trail.steps[trail.kicked]:
            axes.axvline(step, color=_KICK, linewidth=1, zorder=1)
        if i == 0:
            _draw_gap(axes, trail, target=target)
        else:
            _draw_control(axes, name, trail.steps, trail.controls[name])
        title = name if i else f"{name}  (dashed: target, dotted: best so far)"
        axes.set_title(title, fontsize=9, loc="left", y=1.0, pad=3)


def _draw_gap(axes: Axes, trail: Trail, *, target: float) -> None:
    # What is not finite is as far up as the strip goes.
    gap = np.clip(np.nan_to_num(trail.gap, nan=np.inf), target / 10, 1e4)
    axes.axhline(target, color="#009E73", linewidth=1.2, linestyle=(0, (4, 2)))
    axes.plot(
        trail.steps, np.minimum.accumulate(gap), color=_INK, linewidth=0.9, linestyle=(0, (1, 1.5))
    )
    axes.plot(trail.steps, gap, color=_INK, linewidth=1.3, marker=".", markersize=3)
    low = min(target / 2, float(gap.min()) / 2)
    _log_ticks(axes, "y", low, max(4.0, 2 * float(gap.max())))


def _draw_control(axes: Axes, name: str, steps: NDArray[np.int64], values: Floats) -> None:
    is_logarithmic = name in _LOGARITHMIC
    usable = values[np.isfinite(values)]
    if is_logarithmic:
        usable = usable[usable > 0]
    if len(usable) == 0:
        return
    low, high = float(usable.min()), float(usable.max())
    if is_logarithmic:
        widen = max(1.6, math.sqrt(10 * (low / high)))
        _log_ticks(axes, "y", low / widen, high * widen)
    elif low >= 0 and high <= 1:
        axes.set_ylim(-0.05, 1.08)
        axes.set_yticks([0, 0.5, 1])
    else:
        room = 0.1 * max(abs(low), abs(high))
        axes.set_ylim(min(0.0, low) - room, max(0.0, high) + room)
        axes.locator_params(axis="y", nbins=4, integer=bool((usable == usable.round()).all()))
    # A control holds for the step that leads to its point.
    axes.step(steps, values, where="pre", color=_BLUE, linewidth=1.4)
    axes.plot(steps[-1:], values[-1:], "o", color=_BLUE, markersize=4)


def _log_ticks(axes: Axes, which: str, low: float, high: float) -> None:
    """A logarithmic axis with a handful of ticks that are short to write."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    digits = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    ticks = [digit * 10.0**k for k in range(first, last + 1) if k % stride == 0 for digit in digits]
    shown = [tick for tick in ticks if low <= tick <= high]
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_ticks(shown, [f"{tick:.4g}" for tick in shown])
    axis.minorticks_off()


def _plain(axes: Axes, x_label: str, y_label: str) -> None:
    """Few lines, small labels, and none that matplotlib would have to find a place for."""
    axes.tick_params(labelsize=7, colors=_FAINT, length=2, pad=2)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(_FAINT)
    axes.set_xlabel(x_label, fontsize=8, color=_INK)
    axes.set_ylabel(y_label, fontsize=8, color=_INK)
    axes.xaxis.set_label_coords(0.5, -0.045)
    axes.yaxis.set_label_coords(-0.1, 0.5)
