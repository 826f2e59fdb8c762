"""The report: one HTML file that holds everything, opens offline and reads well on a phone."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from learned_opt.bench.alarm import checked_tasks, leakage_alarms
from learned_opt.bench.leaderboard import OVERALL, LeaderboardRow, leaderboard
from learned_opt.bench.results import Results
from learned_opt.bench.shards import write_atomically
from learned_opt.report.assets import CSS, SCRIPT
from learned_opt.report.charts import (
    Chart,
    curves_chart,
    ecdf_chart,
    profile_chart,
    rule_key,
    training_chart,
)
from learned_opt.report.field import Field
from learned_opt.report.tables import (
    divergence_table,
    factor,
    hyperparameter_table,
    leaderboard_table,
    percent,
    provenance,
    swatch,
)
from learned_opt.report.trajectories import trajectory_chart

_SECTIONS = {
    "leaderboard": "Leaderboard",
    "paths": "Paths",
    "targets": "Targets over time",
    "profiles": "Profiles",
    "curves": "Curves",
    "training": "Training",
    "settings": "Settings",
}


def write_report(
    results: Results,
    path: Path | str,
    *,
    title: str = "Optimizers at saddles and plateaus",
    seed: int = 0,
    training_history: Path | None = None,
) -> Path:
    """Write the page of finished results; runs nothing again.

    The same results, title, seed and history give the same bytes.

    Args:
        results: finished results.
        path: the HTML file to write; its folder is made.
        title: heading of the page.
        seed: seed of the bootstrap intervals.
        training_history: JSON lines with a meta-loss by outer step, drawn into the page; or None.

    Returns:
        Where the page is.

    Raises:
        LearnedOptError: if there are no runs, the training history cannot be read, or the page
            cannot be written.
    """
    field = Field(results)
    overall = leaderboard(results, by="overall", seed=seed)
    families = leaderboard(results, by="family", seed=seed)
    training = None if training_history is None else training_chart(Path(training_history))
    sections = dict(_sections(field, overall, families, training))
    text = _document(
        title=title,
        header=_header(field, overall, title=title, links=sections),
        body=_body(sections),
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return target


def _body(sections: dict[str, str]) -> str:
    """The legend stays in sight as long as there are charts to read, and no longer."""
    charts = [text for key, text in sections.items() if key not in {"leaderboard", "settings"}]
    return (
        f'{sections["leaderboard"]}\n<div class="with-legend">{"".join(charts)}</div>\n'
        f"{sections['settings']}"
    )


def _document(*, title: str, header: str, body: str) -> str:
    # plotly is only needed to write the page, and slow to import.
    from plotly.offline import get_plotlyjs

    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        # Without an icon of its own, a browser asks the server for one.
        '<link rel="icon" href="data:,">\n'
        f"<style>{CSS}</style></head>\n<body>\n{header}\n<main>\n{body}\n</main>\n"
        f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def _header(
    field: Field, overall: list[LeaderboardRow], *, title: str, links: Iterable[str]
) -> str:
    chips = "".join(f"<li>{text}</li>" for text in _chips(field))
    nav = "".join(f'<a href="#{key}">{_SECTIONS[key]}</a>' for key in links if key in _SECTIONS)
    return (
        f'<header class="top"><h1>{html.escape(title)}</h1>\n'
        f'<p class="lead">{_summary(field, overall)}</p>\n'
        f'<ul class="chips">{chips}</ul>\n{_alarm_box(field)}\n'
        f'<nav aria-label="Sections">{nav}</nav></header>'
    )


def _chips(field: Field) -> Iterator[str]:
    """Small facts of the race, inner HTML."""

    def span(values: Iterable[int]) -> str:
        low, high = min(values := list(values)), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    suites = sorted({task.suite for task in field.tasks})
    yield f"suite <b>{html.escape(', '.join(suites))}</b>"
    yield f"<b>{len(field.tasks)}</b> task{'s' if len(field.tasks) > 1 else ''}"
    yield f"<b>n = {span(t.num_instances for t in field.tasks)}</b> fresh instances a task"
    yield f"<b>B = {span(t.budget for t in field.tasks)}</b> gradient evaluations"
    trials = sorted({e.tuning_trials for e in field.entrants if not e.is_learned})
    if trials:
        yield f"<b>K = {', '.join(map(str, trials))}</b> tuning trials"
    if "dtype" in field.results.metadata:
        yield html.escape(str(field.results.metadata["dtype"]))


def _summary(field: Field, overall: list[LeaderboardRow]) -> str:
    """Who won, in plain words."""
    shown = {(e.rule, e.tuning_trials) for e in field.shown}
    rows = [row for row in overall if (row.rule, row.tuning_trials) in shown]
    learned = [row for row in rows if row.rule_kind == "learned"]
    hand_made = [row for row in rows if row.rule_kind == "hand-made"]
    sentences = []
    if learned:
        name = "The best learned rule" if len(learned) > 1 else "The learned rule"
        sentences.append(f"{name}, {_told(learned[0])}")
    if hand_made:
        sentences.append(f"The best hand-made rule, {_told(hand_made[0])}")
    if learned and hand_made:
        ratio = learned[0].rmst_ratio
        verdict = (
            "faster than the best hand-made rule of each task"
            if ratio.high < 1
            else "slower than the best hand-made rule of each task"
            if ratio.low > 1
            else "not distinguishable from the best hand-made rule of each task"
        )
        sentences.append(
            f"Over all tasks, <b>{html.escape(learned[0].rule)}</b> is {verdict} "
            f"(95 % interval of the ratio of times: {factor(ratio.low)} to {factor(ratio.high)})."
        )
    return " ".join(sentences)


def _told(row: LeaderboardRow) -> str:
    effort = ""
    if row.rule_kind == "hand-made":
        effort = (
            f" with {row.tuning_trials} tuning trials a task"
            if row.tuning_trials
            else " at its defaults"
        )
    cost = row.rmst_ratio.estimate
    times = "" if math.isnan(cost) else f" and takes {factor(cost)} times the best baseline's steps"
    return (
        f"<b>{html.escape(row.rule)}</b>{effort}, solves {percent(row.success.estimate)} of its "
        f"runs{times}."
    )


def _alarm_box(field: Field) -> str:
    alarms = leakage_alarms(field.results)
    if alarms:
        lines = "".join(f"<p>{html.escape(alarm.message)}.</p>" for alarm in alarms)
        return f'<div class="box bad" role="alert"><p><b>Sanity alarm.</b></p>{lines}</div>'
    if not checked_tasks(field.results):
        return (
            '<div class="box good"><p>Sanity check not applicable: tuned heavy ball did not run on '
            "any rotated strict saddle, so leakage cannot show there.</p></div>"
        )
    return (
        '<div class="box good"><p><b>Sanity check passed.</b> No rule beats tuned heavy ball on '
        "rotated strict saddles by more than theory allows.</p></div>"
    )


def _sections(
    field: Field,
    overall: list[LeaderboardRow],
    families: list[LeaderboardRow],
    training: Chart | None,
) -> Iterator[tuple[str, str]]:
    yield "leaderboard", _leaderboard_section(field, overall, families)
    yield "legend", _legend(field)
    charts = _Charts()
    paths = [chart for task in field.tasks if (chart := trajectory_chart(field, task))]
    if paths:
        yield (
            "paths",
            _section(
                "paths",
                "Every rule starts at the circle, on the same instance. Stars are minima, "
                "crosses saddles. Shades are powers of ten of the remaining gap; darker is lower.",
                charts.grid(paths),
            ),
        )
    by_family = [[t for t in field.tasks if t.family == f] for f in field.families]
    everything = ecdf_chart(field, field.tasks, title="All tasks", height=400)
    apart = [ecdf_chart(field, ts, title=ts[0].family) for ts in by_family if len(by_family) > 1]
    yield (
        "targets",
        _section(
            "targets",
            "Share of (task, instance, target) triples reached. Targets: leaving the saddle or "
            "plateau, half the way down from it, and gaps of 10⁻¹ to 10⁻⁴ to the minimum. Higher "
            "and further left is better.",
            charts.grid([everything], wide=True) + _by_family(charts, apart),
        ),
    )
    if (profile := profile_chart(field, field.tasks, title="All tasks", height=400)) is not None:
        apart = [
            chart
            for tasks in by_family
            if 1 < len(tasks) < len(field.tasks)
            and (chart := profile_chart(field, tasks, title=tasks[0].family))
        ]
        yield (
            "profiles",
            _section(
                "profiles",
                "Share of tasks that a rule solves within a factor of the cost of the best tuned "
                "hand-made rule of each task. Cost: expected gradient evaluations to the solve "
                "target, with restarts. Left of 1: faster than all of them.",
                charts.grid([profile], wide=True) + _by_family(charts, apart),
            ),
        )
    yield "curves", _curves_section(field, charts)
    if training is not None:
        text = "What the learned rule was trained on, as training went on."
        yield "training", _section("training", text, charts.grid([training], wide=True))
    yield "settings", _settings_section(field)


def _by_family(charts: _Charts, apart: list[Chart]) -> str:
    if not apart:
        return ""
    return (
        f'<details class="roomy" open><summary>By family ({len(apart)})</summary>'
        f"{charts.grid(apart, small=True)}</details>"
    )


def _section(key: str, hint: str, content: str) -> str:
    return (
        f'<section id="{key}"><h2>{_SECTIONS[key]}</h2>\n<p class="hint">{hint}</p>\n'
        f"{content}</section>"
    )


def _leaderboard_section(
    field: Field, overall: list[LeaderboardRow], families: list[LeaderboardRow]
) -> str:
    groups = {OVERALL: overall}
    for row in families:
        groups.setdefault(row.group, []).append(row)
    tabs = "".join(
        f'<button type="button">{"all tasks" if g == OVERALL else html.escape(g)}</button>'
        for g in groups
    )
    panels = "".join(
        f'<div class="panel">{leaderboard_table(field, rows, name=f"leaderboard, {group}")}</div>'
        for group, rows in groups.items()
    )
    hint = (
        "Solved: the gap to the minimum falls to a thousandth within the budget. Time: mean "
        "gradient evaluations to that point, counted up to the budget, over those of the "
        "best tuned hand-made rule of each task (below 1 is faster than all of them), "
        "geometric mean over tasks. Small numbers are 95 % intervals. Pale rows are defaults."
    )
    if field.common_trials:
        hint += f" Charts show the hand-made rules tuned with {field.common_trials} trials a task."
    return _section(
        "leaderboard",
        hint,
        f'<div class="tabs" data-panels="boards">{tabs}</div><div id="boards">{panels}</div>',
    )


def _legend(field: Field) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-rule="{html.escape(rule_key(e))}">'
        f"{swatch(field.styles[e.rule])}{field.html(e)}</button>"
        for e in field.shown
    )
    return (
        '<div class="legend" role="group" aria-label="Rules in the charts">'
        f'{buttons}<button type="button" class="all">all / none</button></div>'
    )


def _curves_section(field: Field, charts: _Charts) -> str:
    content = (
        '<div class="tabs"><button type="button" data-scale="log" aria-pressed="true">log steps'
        '</button><button type="button" data-scale="linear" aria-pressed="false">linear steps'
        "</button></div>"
    )
    for kind in dict.fromkeys(task.kind for task in field.tasks):
        drawn = [curves_chart(field, task) for task in field.tasks if task.kind == kind]
        content += f'<p class="family">{html.escape(kind)}</p>{charts.grid(drawn, steps=True)}'
    hint = (
        "Remaining gap (f \u2212 f*) / (f₀ \u2212 f*), with f₀ the level at which runs start: "
        "median over instances, quartiles as bands. Dashed grey lines are known plateau and saddle "
        "levels."
    )
    return _section("curves", hint, content)


def _settings_section(field: Field) -> str:
    return (
        f'<section id="settings"><h2>{_SECTIONS["settings"]}</h2>\n'
        '<div class="tall"><details><summary>Tuned hyperparameters</summary>'
        f"{hyperparameter_table(field)}</details>\n"
        f"<details open><summary>Divergences</summary>{divergence_table(field)}</details></div>\n"
        f"<details open><summary>How to repeat this</summary>{provenance(field.results)}</details>"
        "</section>"
    )


class _Charts:
    """Numbers the charts of a page and turns them into HTML."""

    def __init__(self) -> None:
        self._count = 0

    def grid(
        self,
        charts: Iterable[Chart],
        *,
        wide: bool = False,
        small: bool = False,
        steps: bool = False,
    ) -> str:
        """A grid of charts; `steps` marks those whose x-axis the page may switch."""
        figures = "".join(self._figure(chart, steps=steps) for chart in charts)
        kind = "charts wide" if wide else "charts small" if small else "charts"
        return f'<div class="{kind}">{figures}</div>' if figures else ""

    def _figure(self, chart: Chart, *, steps: bool) -> str:
        self._count += 1
        key = f"chart{self._count}"
        spec = {"data": chart.data, "layout": chart.layout, "motion": chart.motion}
        # "<" would let a name close the script element.
        text = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        title = html.escape(chart.title)
        player = (
            '<div class="player"><button type="button" disabled>▶ Play</button>'
            f'<input type="range" min="0" max="1" value="1" disabled aria-label="time, {title}">'
            "<output></output></div>"
        )
        return (
            f"<figure{' data-steps=true' if steps else ''}><figcaption><h3>{title}</h3>"
            f"<p>{html.escape(chart.note)}</p></figcaption>"
            f'<div class="plot" id="{key}" style="height:{chart.height}px" role="img" '
            f'aria-label="{title}"></div>{player if chart.motion else ""}'
            f'<script type="application/json" id="{key}-data">{text}</script></figure>\n'
        )
