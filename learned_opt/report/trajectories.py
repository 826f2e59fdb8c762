"""Paths of all rules from one start on a two-dimensional landscape, animated by the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learned_opt.report.charts import INK, Chart, axis, layout, rounded, rule_key
from learned_opt.report.field import Entrant, Field, TaskInfo
from learned_opt.report.landscape import Landscape, rebuild

Floats = NDArray[np.float64]

NUM_FRAMES = 60
GRID_POINTS = 81
LOWEST_GAP = 1e-4
"""Gaps below this share one contour colour."""

_COLOURS = [[0, "#8199b3"], [0.5, "#c9d5e1"], [1, "#fbfcfd"]]
_MARKS = {
    "minimum": ("star", "minimum"),
    "strict saddle": ("x-thin", "saddle"),
    "degenerate": ("x-thin", "degenerate point"),
    "maximum": ("triangle-up", "maximum"),
}


@dataclass(frozen=True)
class _Path:
    entrant: Entrant
    step: Floats
    points: Floats
    run: dict[str, Any]


def trajectory_chart(field: Field, task: TaskInfo) -> Chart | None:
    """Contours of a task with the paths of all rules, from the same start.

    Args:
        field: the race.
        task: which task.

    Returns:
        The chart with its motion; None if no run kept a path, as only 2-D tasks do.
    """
    paths = _paths(field, task)
    if not paths:
        return None
    landscape = rebuild(field.results, task, paths[0].run)
    low, high = _view(paths, landscape)
    data = [] if landscape is None else [_contour(landscape, paths[0].run, low, high)]
    if landscape is not None:
        data += _mark_traces(landscape, low, high)
    data.append(_start_trace(paths[0].points[0]))
    moving = []
    for path in sorted(paths, key=lambda p: p.entrant.is_learned):
        style = field.styles[path.entrant.rule]
        x, y = rounded(path.points[:, 0]), rounded(path.points[:, 1])
        shared = {
            "type": "scatter",
            "name": field.html(path.entrant),
            "legendgroup": rule_key(field.drawn_as(path.entrant)),
            "hovertemplate": "%{x:.3g}, %{y:.3g}<extra>%{fullData.name}</extra>",
        }
        drawn = {"color": style.colour, "width": style.width, "dash": style.dash}
        head = {
            "color": style.colour,
            "size": 13 if path.entrant.is_learned else 10,
            "symbol": style.marker,
            "line": {"color": "white", "width": 1.5},
        }
        moving.append({
            "line": len(data),
            "head": len(data) + 1,
            "step": rounded(path.step, 7),
            "x": x,
            "y": y,
        })
        data += [
            shared | {"mode": "lines", "x": x, "y": y, "line": drawn},
            shared | {"mode": "markers", "x": x[-1:], "y": y[-1:], "marker": head},
        ]
    return Chart(
        title=task.label,
        note=f"instance {paths[0].run['instance']}{_surface_note(landscape)}",
        data=data,
        layout=layout(
            axis("x", range=rounded((low[0], high[0])), showgrid=False),
            axis("y", range=rounded((low[1], high[1])), showgrid=False),
        ),
        height=420,
        motion={"times": _frame_times(paths), "paths": moving},
    )


def _surface_note(landscape: Landscape | None) -> str:
    if landscape is None:
        return "; its surface could not be rebuilt, paths alone are shown"
    return ""


def _paths(field: Field, task: TaskInfo) -> list[_Path]:
    """One path per rule, all from the same instance: at the largest tuning budget that kept one."""
    kept: dict[str, dict[int, _Path]] = {}
    for entrant in field.entrants:  # descending tuning budgets
        rows = field.rows(task.label, entrant)
        if task.dim != 2 or not len(rows):
            continue
        for run in field.results.runs.take(rows[:8]).to_pylist():
            if not run["path_x"]:
                continue
            points = np.array([run["path_x"], run["path_y"]], dtype=np.float64).T
            step = np.asarray(run["path_step"], dtype=np.float64)
            path = _Path(entrant, step, points, run)
            kept.setdefault(entrant.rule, {}).setdefault(run["instance"], path)
    if not kept:
        return []
    # The instance that most rules kept, the first of them at a tie.
    instances = sorted({i for by_instance in kept.values() for i in by_instance})
    chosen = max(instances, key=lambda i: (sum(i in b for b in kept.values()), -i))
    return [by_instance[chosen] for by_instance in kept.values() if chosen in by_instance]


def _view(paths: list[_Path], landscape: Landscape | None) -> tuple[Floats, Floats]:
    """Lower left and upper right corner: where healthy paths go, within reach of the solution."""
    start = paths[0].points[0]
    healthy = [p.points for p in paths if p.run["status"] != "diverged"] or [start[None, :]]
    points = np.concatenate(healthy)
    points = points[np.isfinite(points).all(axis=1)]
    reach = 2.0 * landscape.task.radius if landscape is not None else np.inf
    low = np.maximum(points.min(axis=0), start - reach)
    high = np.minimum(points.max(axis=0), start + reach)
    # No side shorter than a third of the other, so that straight lines still have a surface.
    size = np.maximum(high - low, max(float((high - low).max()) / 3, 1e-9))
    middle = (low + high) / 2
    return middle - 0.6 * size, middle + 0.6 * size


def _contour(
    landscape: Landscape, run: dict[str, Any], low: Floats, high: Floats
) -> dict[str, Any]:
    x, y = (np.linspace(low[i], high[i], GRID_POINTS) for i in (0, 1))
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    gap = (landscape(points) - run["minimum"]) / max(run["reference"] - run["minimum"], 1e-300)
    z = np.log10(np.maximum(gap, LOWEST_GAP)).reshape(GRID_POINTS, GRID_POINTS)
    top = float(np.nanquantile(z, 0.99))
    bottom = float(np.nanmin(z))
    ticks = list(range(math.ceil(bottom), math.floor(top) + 1))
    return {
        "type": "contour",
        "x": rounded(x),
        "y": rounded(y),
        "z": [rounded(row, 3) for row in z],
        "zmin": round(bottom, 3),
        "zmax": round(top, 3),
        "autocontour": False,
        "contours": {
            "start": round(bottom, 3),
            "end": round(top, 3),
            "size": round(max(top - bottom, 1e-3) / 14, 5),
        },
        "colorscale": _COLOURS,
        "line": {"width": 0.6, "color": "rgba(82,96,109,0.28)"},
        "hoverinfo": "skip",
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "title": {"text": "gap", "font": {"size": 14}},
            "tickvals": ticks,
            "ticktext": [f"{10.0**t:g}" for t in ticks],
            "tickfont": {"size": 14},
        },
    }


def _mark_traces(landscape: Landscape, low: Floats, high: Floats) -> list[dict[str, Any]]:
    traces = []
    seen = [m for m in landscape.marks() if low[0] <= m[0] <= high[0] and low[1] <= m[1] <= high[1]]
    for kind, (symbol, name) in _MARKS.items():
        mine = [mark for mark in seen if mark[2] == kind]
        if mine:
            thin = symbol == "x-thin"
            edge = {"color": INK if thin else "white", "width": 2 if thin else 1}
            traces.append({
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": rounded(m[0] for m in mine),
                "y": rounded(m[1] for m in mine),
                "marker": {"symbol": symbol, "size": 11, "color": INK, "line": edge},
                "hovertemplate": "%{x:.3g}, %{y:.3g}<extra>%{fullData.name}</extra>",
            })
    return traces


def _start_trace(start: Floats) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "start",
        "x": rounded(start[:1]),
        "y": rounded(start[1:]),
        "marker": {"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 1.5}},
        "hovertemplate": "%{x:.3g}, %{y:.3g}<extra>start</extra>",
    }


def _frame_times(paths: list[_Path]) -> list[float | None]:
    """Frame times, even in log step, up to when the last path has come to rest."""
    extent = max(float(np.ptp(p.points[np.isfinite(p.points).all(1)], axis=0).max()) for p in paths)
    rest = 1.0
    for path in paths:
        far = np.linalg.norm(path.points - path.points[-1], axis=1) > 0.005 * max(extent, 1e-12)
        if far.any():
            last = int(np.flatnonzero(far)[-1])
            rest = max(rest, float(path.step[min(last + 1, len(path.step) - 1)]))
    times = np.unique(np.round(np.geomspace(1, max(rest, 2.0), NUM_FRAMES - 1)))
    return rounded([0.0, *times], 7)
