"""Tables of the page: leaderboards with small interval plots, settings, divergences, provenance."""

from __future__ import annotations

import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from learned_opt.bench.leaderboard import LeaderboardRow
from learned_opt.bench.results import Results
from learned_opt.bench.statistics import Interval
from learned_opt.report.field import Field
from learned_opt.report.styles import Style

_DASH = "\u2013"
_MINI = '<svg class="mini" width="84" height="16" viewBox="-2 0 84 16" aria-hidden="true">'

Cell = tuple[str, float | str]
"""Inner HTML of a table cell and the value it is sorted by."""


def number(value: float, digits: int = 3) -> str:
    """A number for people: few digits, thousands apart, a dash for NaN.

    Examples:
        >>> number(0.07312), number(48213.7), number(float("inf")), number(float("nan"))
        ('0.0731', '48,214', '∞', '–')
    """
    if math.isnan(value):
        return _DASH
    if math.isinf(value):
        return "∞" if value > 0 else "\u2212∞"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("-", "\u2212")


def factor(value: float) -> str:
    """A ratio with two decimals below ten, fewer above.

    Examples:
        >>> factor(1.6), factor(11.02), factor(432.1), factor(float("inf"))
        ('1.60', '11.0', '432', '∞')
    """
    if not math.isfinite(value) or value >= 100:
        return number(value)
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def percent(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f}\u202f%"


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]], *, name: str) -> str:
    """A table that sorts when a heading is clicked and scrolls sideways inside its own box.

    Args:
        columns: headings, plain text.
        rows: CSS class of each row and its cells.
        name: accessible name, plain text.

    Returns:
        HTML.
    """
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(c)}</button></th>' for c in columns
    )
    body = "".join(
        f'<tr class="{kind}">'
        + "".join(f'<td data-sort="{html.escape(str(key))}">{cell}</td>' for cell, key in cells)
        + "</tr>\n"
        for kind, cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(name)}">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def swatch(style: Style) -> str:
    """The line that stands for a rule, as in the charts."""
    dash = f' stroke-dasharray="{style.svg_dash}"' if style.svg_dash else ""
    return (
        '<svg class="swatch" width="30" height="12" aria-hidden="true">'
        f'<line x1="1" x2="29" y1="6" y2="6" stroke="{style.colour}" '
        f'stroke-width="{style.width + 0.4:g}"{dash}/></svg>'
    )


def leaderboard_table(field: Field, rows: Sequence[LeaderboardRow], *, name: str) -> str:
    """Leaderboard rows, ranked as they come.

    Args:
        field: the race, for styles and for which entrants are shown.
        rows: rows of one group.
        name: accessible name of the table.

    Returns:
        HTML; entrants are those shown in charts, and hand-made rules at their defaults.
    """
    shown = {(e.rule, e.tuning_trials) for e in field.shown}
    body = []
    for row in rows:
        is_shown = (row.rule, row.tuning_trials) in shown
        if not is_shown and row.tuning_trials != 0:
            continue
        style = field.styles[row.rule]
        learned = row.rule_kind == "learned"
        kind = "learned" if learned else "shown" if is_shown else "muted"
        body.append((kind, _leaderboard_cells(row, style)))
    headings = (
        "rule",
        "trials",
        "solved",
        "time / best baseline",
        "log10 final gap",
        "targets over time",
        "gradients to solve",
        "diverged",
        "milliseconds a run",
        "zero gradients",
    )
    return table(headings, body, name=name)


def _leaderboard_cells(row: LeaderboardRow, style: Style) -> list[Cell]:
    learned = row.rule_kind == "learned"
    pill = ' <span class="pill">learned</span>' if learned else ""
    effort = "none" if learned else "defaults" if row.tuning_trials == 0 else row.tuning_trials
    lost = percent(row.num_diverged / row.num_runs) if row.num_diverged else "none"
    return [
        (f'<span class="who">{swatch(style)}{html.escape(row.rule)}{pill}</span>', row.rule),
        (str(effort), row.tuning_trials),
        (_share_plot(row.success, style), -row.success.estimate),
        (_ratio_plot(row.rmst_ratio, style), _sort_key(row.rmst_ratio.estimate)),
        (_with_interval(row.log_gap), _sort_key(row.log_gap.estimate)),
        (percent(row.ecdf_area), -row.ecdf_area),
        (number(row.ert), _sort_key(row.ert)),
        (lost, row.num_diverged / row.num_runs),
        (number(1e3 * row.median_seconds, 2), row.median_seconds),
        (percent(row.underflow) if row.underflow else "none", row.underflow),
    ]


def _sort_key(value: float) -> float:
    return 1e300 if math.isnan(value) or value == math.inf else value


def _with_interval(interval: Interval) -> str:
    low, mid, high = (
        # Adding zero turns the minus zero of a rounded small number into zero.
        f"{round(v, 1) + 0.0:.1f}".replace("-", "\u2212")
        for v in (interval.low, interval.estimate, interval.high)
    )
    return f'<span class="num">{mid}<small>{low} to {high}</small></span>'


def _share_plot(interval: Interval, style: Style) -> str:
    low, mid, high = (80 * v for v in (interval.low, interval.estimate, interval.high))
    svg = (
        f"{_MINI}"
        '<rect x="0" y="4" width="80" height="8" fill="#e4e7eb"/>'
        f'<rect x="0" y="4" width="{mid:.1f}" height="8" fill="{style.colour}" opacity=".75"/>'
        f'<path d="M{low:.1f} 8H{high:.1f}M{low:.1f} 4V12M{high:.1f} 4V12" stroke="#1f2933" '
        'fill="none"/></svg>'
    )
    text = f"{percent(interval.low)} to {percent(interval.high)}"
    return f'{svg}<span class="num">{percent(interval.estimate)}<small>{text}</small></span>'


def _ratio_plot(interval: Interval, style: Style) -> str:
    if math.isnan(interval.estimate):
        return _DASH
    low, mid, high = (
        40 + 40 * max(-1.0, min(1.0, math.log(max(v, 1e-9)) / math.log(16)))
        for v in (interval.low, interval.estimate, interval.high)
    )
    svg = (
        f"{_MINI}"
        '<path d="M0 8H80" stroke="#d9dfe5"/><path d="M40 1V15" stroke="#52606d"/>'
        f'<path d="M{low:.1f} 8H{high:.1f}" stroke="{style.colour}" stroke-width="3"/>'
        f'<circle cx="{mid:.1f}" cy="8" r="4" fill="{style.colour}"/></svg>'
    )
    ends = f"{factor(interval.low)} to {factor(interval.high)}"
    return f'{svg}<span class="num">{factor(interval.estimate)}<small>{ends}</small></span>'


def hyperparameter_table(field: Field) -> str:
    """What tuning chose, per task and shown hand-made rule."""
    rows = []
    for task in field.tasks:
        for entrant in field.shown:
            runs = field.rows(task.label, entrant)
            if entrant.is_learned or not len(runs):
                continue
            settings = json.loads(str(field.column("hyperparameters", runs)[0]))
            text = ", ".join(f"{key} = {_setting(value)}" for key, value in settings.items())
            cells: list[Cell] = [
                (html.escape(task.label), task.label),
                (html.escape(entrant.rule), entrant.rule),
                (html.escape(entrant.effort), entrant.tuning_trials),
                (f"<code>{html.escape(text)}</code>", text),
            ]
            rows.append(("", cells))
    return table(("task", "rule", "tuning", "chosen"), rows, name="tuned hyperparameters")


def _setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def divergence_table(field: Field) -> str:
    """Who diverged where, over all tuning budgets; a sentence if nobody did."""
    rows = []
    for task in field.tasks:
        for entrant in field.entrants:
            runs = field.rows(task.label, entrant)
            lost = int(np.sum(field.column("status", runs) == "diverged")) if len(runs) else 0
            if lost:
                cells: list[Cell] = [
                    (html.escape(task.label), task.label),
                    (html.escape(entrant.rule), entrant.rule),
                    (html.escape(entrant.effort), entrant.tuning_trials),
                    (f"{lost} of {len(runs)}", -lost / len(runs)),
                ]
                rows.append(("", cells))
    if not rows:
        return "<p>No run diverged.</p>"
    return table(("task", "rule", "tuning", "diverged runs"), rows, name="divergences")


def fingerprint(results: Results) -> str:
    """Digest of the configs of all units; two reports with the same one show the same runs."""
    hashes = "\n".join(results.unique("config_hash"))
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def provenance(results: Results) -> str:
    """How the results came to be, from their metadata, as a definition list."""
    facts: dict[str, Any] = {}
    for key, value in results.metadata.items():
        if key == "versions":
            facts |= {f"{package} version": number for package, number in value.items()}
        elif key == "command":
            facts[key] = " ".join(map(str, value))
        elif key != "entries":
            facts[key.replace("_", " ")] = (
                ", ".join(map(str, value)) if isinstance(value, list) else value
            )
    facts["config fingerprint"] = fingerprint(results)
    return (
        '<dl class="facts">'
        + "".join(
            f"<div><dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd></div>"
            for k, v in facts.items()
        )
        + "</dl>"
    )
