"""A frame from what is known of an episode: surface and path on the left, strips on the right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from envs.surfaces import FINEST, Floats, Plane, Trail, Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT, _DPI = 900, 540, 100
_INK, _FAINT, _GRID, _KICK, _BLUE = "#222222", "#666666", "#DDDDDD", "#D55E00", "#0072B2"
_MAP = "viridis"
_LOGARITHMIC = {"step size", "noise"}


def draw(
    trail: Trail,
    plane: Plane,
    window: Window,
    surface: Floats | None,
    *,
    task: str,
    target: float,
    has_diverged: bool,
) -> NDArray[np.uint8]:
    """The frame ``[H, W, 3]`` of an episode.

    Args:
        trail: the episode so far.
        plane: what the map shows.
        window: which piece of it.
        surface: relative gaps on a grid over the window, or None to draw the path alone.
        task: name of the task.
        target: relative gap at which the episode is won.
        has_diverged: whether the episode ended so.

    Returns:
        The picture.
    """
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
    if len(height) < FINEST:
        # Few values are joined smoothly: what they do not show is not there to be drawn.
        from scipy.interpolate import RectBivariateSpline

        coarse, fine = np.linspace(0, 1, len(height)), np.linspace(0, 1, FINEST)
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
