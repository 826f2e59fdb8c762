"""``learned-opt diagnose``: what is wrong with a meta-training run, and what to try."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from learned_opt.cli.options import Options
from learned_opt.report.diagnosis import health_figure
from learned_opt.report.health import PAGE, findings, read_run


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Read the history of a meta-training run, name its symptoms and draw them; trains nothing."""

    run: tyro.conf.Positional[Path]
    """Folder that `learned-opt train` wrote, or is writing."""
    out: Path | None = None
    """Picture to write; by default health.png in that folder."""
    shared: Options = field(default_factory=Options)

    def main(self) -> None:
        """Print findings and say where the picture is."""
        self.shared.apply()
        run = read_run(self.run)
        found = findings(run)
        for finding in found:
            print(f"- {finding.symptom}\n  try: {finding.remedy}")
        if found:
            print(f"causes and plots: {PAGE}")
        else:
            print("nothing conspicuous")
        print(health_figure(run, self.out or self.run / "health.png"))
