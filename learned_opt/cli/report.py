"""``learned-opt report``: redraw the page from a results folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from learned_opt.bench.results import Results
from learned_opt.cli.options import Options
from learned_opt.report.markdown import leaderboard_markdown
from learned_opt.report.page import write_report


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the self-contained HTML page of finished results; runs nothing again."""

    results: tyro.conf.Positional[Path]
    """Folder that `learned-opt bench` or `run` wrote."""
    out: Path | None = None
    """Page to write; by default report.html in the results folder."""
    markdown: Path | None = None
    """File for the leaderboard as a Markdown table; none by default."""
    shared: Options = field(default_factory=Options)

    def main(self) -> None:
        """Write the page and say where it is."""
        self.shared.apply()
        path = self.out or self.results / "report.html"
        results = Results.load(self.results)
        if self.markdown is not None:
            self.markdown.write_text(leaderboard_markdown(results, seed=self.shared.seed))
        print(write_report(results, path, seed=self.shared.seed))
