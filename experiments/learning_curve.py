"""How fast does the controller learn: its pace against the time spent on training.

Reads the history of a run of `learned-opt train controller --preset zoo`. The pace is the mean
number of steps to a target, geometric mean over the training tasks, explored decisions included;
the score is the mean log10 gap on held-out problems. Histories hold no times, so that resumed runs
repeat to the last bit: the core-minutes of the whole run are given by hand.

    python experiments/learning_curve.py runs/zoo-controller --core-minutes 55
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import tyro
from numpy.typing import NDArray

from learned_opt.cli.failures import run_script
from learned_opt.errors import require

mpl.use("Agg")
import matplotlib.pyplot as plt

PACE, SCORE = "estimator/pace", "eval/score"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to draw."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    core_minutes: float
    """What the whole run took on one core."""
    out: Path | None = None
    """The picture; learning_curve.png in the run's folder by default."""


def curve(history: Path, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outer steps and values of one entry of a history."""
    lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    known = [(line["step"], line[name]) for line in lines if name in line]
    require(len(known) > 1, f"'{history}' must hold '{name}' at two steps or more")
    steps, values = np.array(known, dtype=np.float64).T
    return steps, values


def settled_at(
    steps: NDArray[np.float64], values: NDArray[np.float64], *, within: float = 1.1
) -> float:
    """The first step from which on values stay below `within` times the mean of the last tenth."""
    last = values[-max(1, len(values) // 10) :].mean()
    above = np.flatnonzero(values > within * last)
    return float(steps[min(above[-1] + 1, len(steps) - 1)]) if len(above) else float(steps[0])


def main(settings: Settings) -> None:
    """Draw the curve and say when it has settled."""
    require(
        settings.core_minutes > 0, f"--core-minutes must be positive, got {settings.core_minutes}"
    )
    history = settings.run / "history.jsonl"
    steps, pace = curve(history, PACE)
    tested, score = curve(history, SCORE)
    rate = settings.core_minutes / max(steps[-1], tested[-1])
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axis.plot(steps * rate, pace, color="#1f6f8b")
    axis.set(xlabel="core-minutes", ylabel="mean steps to a target", yscale="log")
    for level in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        level(matplotlib.ticker.StrMethodFormatter("{x:.0f}"))
    axis.grid(visible=True, which="both", alpha=0.2)
    other = axis.twinx()
    other.plot(tested * rate, score, "o--", color="#c2571a", markersize=4)
    other.set_ylabel("held-out mean log10 gap", color="#c2571a")
    path = settings.out or settings.run / "learning_curve.png"
    figure.savefig(path, dpi=110)
    minutes = settled_at(steps, pace) * rate
    print(
        f"pace {pace[0]:.1f} -> {pace[-1]:.1f} steps; within 10 % of its end after "
        f"{minutes:.0f} core-minutes"
    )
    print(path)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
