"""The leaderboard as a Markdown table, for a README or an issue."""

from __future__ import annotations

from learned_opt.bench.leaderboard import LeaderboardRow, leaderboard
from learned_opt.bench.results import Results
from learned_opt.bench.statistics import Interval


def leaderboard_markdown(results: Results, *, seed: int = 0) -> str:
    """One line per rule: hand-made ones at their largest tuning budget, learned ones as they are.

    Args:
        results: finished results.
        seed: seed of the bootstrap intervals.

    Returns:
        A Markdown table; columns per family hold the time to 0.1 % of the gap in units of the best
        tuned baseline.
    """
    families = results.families
    by_family = {
        (row.group, row.rule, row.tuning_trials): row
        for row in leaderboard(results, by="family", seed=seed)
    }
    overall = leaderboard(results, by="overall", seed=seed)
    most = max(row.tuning_trials for row in overall)
    header = ["rule", "solved %", "time / best baseline", *families]
    lines = [header, ["---"] * len(header)]
    for row in overall:
        is_learned = row.rule_kind == "learned"
        if is_learned or row.tuning_trials == most:
            cells = [by_family[family, row.rule, row.tuning_trials] for family in families]
            name = f"**{row.rule}**, untuned" if is_learned else row.rule
            lines.append([
                name,
                _told(row.success, scale=100, digits=0),
                _told(row.rmst_ratio, scale=1, digits=2),
                *[_short(cell) for cell in cells],
            ])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _told(interval: Interval, *, scale: float, digits: int) -> str:
    estimate, low, high = (scale * x for x in (interval.estimate, interval.low, interval.high))
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _short(row: LeaderboardRow) -> str:
    mark = "" if row.success.estimate > 0 else " (0 %)"
    return f"{row.rmst_ratio.estimate:.1f}{mark}"
