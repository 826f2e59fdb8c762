"""Interactive charts as plain plotly specifications: data, layout, nothing drawn yet."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learned_opt.bench.statistics import ecdf, ert, performance_profile
from learned_opt.errors import LearnedOptError, require
from learned_opt.report.field import TARGETS, Entrant, Field, TaskInfo

INK, FAINT, GRID = "#1f2933", "#52606d", "#e4e7eb"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What plotly draws; traces of a rule carry its key as ``legendgroup``.

    Attributes:
        title: plain text above the chart.
        note: plain text under the title, or empty.
        data: traces.
        layout: plotly layout.
        height: in pixels.
        motion: what the page animates: ``times`` of the frames, and ``paths``, each with its
            ``line`` and ``head`` trace and its ``step``, ``x``, ``y``; None for a still chart.
    """

    title: str
    note: str = ""
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 340
    motion: dict[str, Any] | None = None


def rounded(values: Iterable[float], digits: int = 4) -> list[float | None]:
    """Numbers cut to some significant digits, None where not finite: small and valid JSON."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in map(float, values)]


def rule_key(entrant: Entrant) -> str:
    """What legend and traces of an entrant share."""
    return f"{entrant.rule}@{entrant.tuning_trials}"


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """A quiet plotly axis."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 15}},
        "gridcolor": GRID,
        "linecolor": FAINT,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": FAINT,
        "automargin": True,
        "fixedrange": True,
        **settings,
    }


def log_axis(title: str, low: float, high: float, **settings: Any) -> dict[str, Any]:
    """A logarithmic axis over ``[low, high]`` that labels powers of ten alone."""
    decades = math.log10(high / low)
    return axis(
        title,
        type="log",
        range=[round(math.log10(low), 3), round(math.log10(high), 3)],
        dtick=max(1, math.ceil(decades / 6)),
        exponentformat="power",
        tickfont={"size": 12},  # plotly draws powers a quarter larger than it is told
        **settings,
    )


def layout(x: dict[str, Any], y: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The layout that all charts share."""
    return {
        "xaxis": x,
        "yaxis": y,
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 56, "r": 12, "t": 10, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 14, "color": INK},
        "hoverlabel": {"font": {"size": 14}, "namelength": -1},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        **settings,
    }


def line(
    field: Field, entrant: Entrant, x: Sequence[Any], y: Sequence[Any], **settings: Any
) -> dict[str, Any]:
    """A rule's line."""
    style = field.styles[entrant.rule]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": field.html(entrant),
        "legendgroup": rule_key(entrant),
        "x": list(x),
        "y": list(y),
        "line": {"color": style.colour, "dash": style.dash, "width": style.width, **settings},
    }


def _drawn(field: Field) -> list[Entrant]:
    """Hand-made rules first, so that learned ones lie on top."""
    return sorted(field.shown, key=lambda e: e.is_learned)


def ecdf_chart(field: Field, tasks: Sequence[TaskInfo], *, title: str, height: int = 280) -> Chart:
    """Share of (task, instance, target) triples reached, over gradient evaluations.

    Hansen et al. 2016, arXiv:1605.03560.

    Args:
        field: the race.
        tasks: which tasks to count, each with the same weight.
        title: of the chart.
        height: in pixels.

    Returns:
        The chart, one line per shown entrant; who did not run on every task is left out.
    """
    budget = max(task.budget for task in tasks)
    grid = np.unique(np.round(np.geomspace(1, budget, 80)))
    traces = []
    for entrant in _drawn(field):
        times = [
            np.stack([field.times(target, task.label, entrant) for target in TARGETS])
            for task in tasks
        ]
        if all(t.size for t in times):
            share = np.mean([ecdf(t, grid) for t in times], axis=0)
            traces.append(
                line(field, entrant, rounded(grid), rounded(share, 3), shape="hv")
                | {"hovertemplate": "%{y:.0%} by %{x} gradients<extra>%{fullData.name}</extra>"}
            )
    return Chart(
        title=title,
        note=f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}",
        data=traces,
        layout=layout(
            log_axis("gradient evaluations", 1, budget),
            axis("targets reached", range=[0, 1.02], tickformat=".0%"),
        ),
        height=height,
    )


RATIOS = 2.0 ** (np.arange(-24, 49) / 8)
"""Where performance profiles are evaluated: eight to the doubling, exact at powers of two."""


REFERENCE_RULES = frozenset({"sgd", "momentum", "adam", "perturbed_gd"})
"""The frozen set that performance profiles are relative to."""


def profile_chart(
    field: Field, tasks: Sequence[TaskInfo], *, title: str, height: int = 280
) -> Chart | None:
    """Share of tasks solved within a factor of the reference rules' best expected running time.

    Dolan & Moré 2002 (arXiv:cs/0102001), with a frozen `REFERENCE_RULES` instead of all that took
    part: adding a rule leaves the other curves as they were, and any rule may lie left of 1.

    Args:
        field: the race.
        tasks: which tasks to count.
        title: of the chart.
        height: in pixels.

    Returns:
        The chart, or None if no reference rule ran on all tasks.
    """
    drawn = [
        entrant
        for entrant in _drawn(field)
        if all(len(field.rows(task.label, entrant)) for task in tasks)
    ]
    costs = np.array([
        [ert(field.times("t_solve", task.label, entrant), task.budget) for task in tasks]
        for entrant in drawn
    ])
    reference = np.array([entrant.rule in REFERENCE_RULES for entrant in drawn], dtype=bool)
    if not reference.any():
        return None
    # A start that already meets the target costs nothing; half an evaluation keeps ratios finite.
    costs = np.maximum(costs, 0.5)
    shares = performance_profile(costs, costs[reference], RATIOS)
    return Chart(
        title=title,
        note=f"{len(tasks)} tasks; reference: the best of "
        + ", ".join(e.rule for e, is_in in zip(drawn, reference, strict=True) if is_in),
        data=[
            line(field, entrant, rounded(RATIOS), rounded(share, 3), shape="hv")
            | {
                "hovertemplate": "within %{x:.2f}x on %{y:.0%} of tasks"
                "<extra>%{fullData.name}</extra>"
            }
            for entrant, share in zip(drawn, shares, strict=True)
        ],
        layout=layout(
            axis(
                "cost / best reference",
                type="log",
                range=[round(math.log10(1 / 8), 3), round(math.log10(64), 3)],
                tickvals=[0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64],
                ticktext=["⅛", "¼", "½", "1", "2", "4", "8", "16", "32", "64"],
            ),
            axis("tasks", range=[0, 1.02], tickformat=".0%"),
            shapes=[_rule_of(x0=1, x1=1, y0=0, y1=1, yref="paper")],
        ),
        height=height,
    )


def _rule_of(**position: Any) -> dict[str, Any]:
    return {
        "type": "line",
        "layer": "below",
        "line": {"color": FAINT, "width": 1, "dash": "dash"},
        **position,
    }


def curves_chart(field: Field, task: TaskInfo) -> Chart:
    """Remaining gap over gradient evaluations: medians, quartile bands, known levels.

    Args:
        field: the race.
        task: which task.

    Returns:
        The chart; both axes are logarithmic, and the start (0 gradients) is left out.
    """
    bands: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    lowest, highest = 0.1, 2.0
    for entrant in _drawn(field):
        band = field.gap_band(task.label, entrant)
        keep = band.steps >= 1
        if not keep.any():
            continue
        steps = rounded(band.steps[keep])
        low, median, high = (rounded(v[keep], 3) for v in (band.low, band.median, band.high))
        lowest = min(lowest, float(band.median[keep].min()))
        highest = max(highest, float(band.median[keep][0]))
        hidden = {"width": 0}
        shared: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines",
            "line": hidden,
            "hoverinfo": "skip",
            "legendgroup": rule_key(entrant),
            "x": steps,
        }
        bands += [
            shared | {"y": low},
            shared
            | {"y": high, "fill": "tonexty", "fillcolor": field.styles[entrant.rule].rgba(0.12)},
        ]
        lines.append(
            line(field, entrant, steps, median)
            | {"hovertemplate": "gap %{y:.2g} after %{x}<extra>%{fullData.name}</extra>"}
        )
    # The last target is a gap of 1e-4; deeper down, rounding would squeeze the plateaus together.
    bottom = max(lowest / 3, 1e-6)
    levels = field.levels(task.label)
    inside = [level for level in levels if level > bottom]
    return Chart(
        title=task.label,
        note=_task_note(task),
        data=bands + lines,
        layout=layout(
            log_axis("gradient evaluations", 1, task.budget),
            log_axis("remaining gap", bottom, min(2 * highest, 1e6)),
            shapes=[_rule_of(x0=0, x1=1, xref="paper", y0=g, y1=g) for g in rounded(inside, 3)],
        ),
    )


def _task_note(task: TaskInfo) -> str:
    turned = ", randomly rotated" if task.is_rotated else ""
    return f"{task.kind}, {task.dim} parameter{'s' if task.dim > 1 else ''}{turned}"


def read_history(path: Path) -> tuple[str, list[float], list[float]]:
    """A meta-loss by outer step from JSON lines such as ``{"step": 3, "meta_loss": 0.5}``.

    Args:
        path: the file; lines without a step, and other metrics, are passed over.

    Returns:
        The metric's name (``meta_loss``, else the first that ends in ``loss``), steps, values.

    Raises:
        LearnedOptError: if the file is missing, no JSON lines, or holds no loss by step.
    """
    require(path.is_file(), f"training history {path} does not exist")
    try:
        lines = [json.loads(text) for text in path.read_text("utf-8").splitlines() if text.strip()]
    except ValueError as error:
        raise LearnedOptError(f"training history {path} is not JSON lines ({error})") from error
    steps = [entry for entry in lines if isinstance(entry, dict) and "step" in entry]
    names = [name for entry in steps for name in entry if name.endswith("loss")]
    require(bool(names), f"training history {path} holds no loss by step")
    name = "meta_loss" if "meta_loss" in names else names[0]
    points = [(float(e["step"]), float(e[name])) for e in steps if name in e]
    return name, [step for step, _ in points], [value for _, value in points]


def training_chart(path: Path) -> Chart:
    """The meta-loss over outer steps, raw and as a running median.

    Args:
        path: the training history, JSON lines.

    Returns:
        The chart.
    """
    name, steps, values = read_history(path)
    at, loss = np.asarray(steps), np.asarray(values)
    half = max(1, len(loss) // 40)
    smooth = [np.nanmedian(loss[max(0, i - half) : i + half + 1]) for i in range(len(loss))]
    thin = slice(None, None, max(1, len(loss) // 600))
    label = html.escape(name.replace("_", "-"))
    raw = {"color": "#9aa5b1", "width": 1}
    bold = {"color": "#D55E00", "width": 3}
    shared: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": rounded(at[thin], 6)}
    return Chart(
        title="Meta-training",
        note=f"{name.replace('_', '-')} by outer step; the thick line is a running median",
        data=[
            shared | {"y": rounded(loss[thin]), "line": raw, "hoverinfo": "skip"},
            shared
            | {
                "y": rounded(np.asarray(smooth)[thin]),
                "line": bold,
                "hovertemplate": "%{y:.4g} at step %{x}<extra></extra>",
            },
        ],
        layout=layout(axis("outer step"), axis(label)),
    )
