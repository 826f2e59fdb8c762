"""Tables and the figure of the experiment on real training."""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from _real_measures import RATIOS, Curves, Run, over_problems, times

mpl.use("Agg")
import matplotlib.pyplot as plt

BASELINE, UNTUNED = "AdamW, tuned, cosine", "Adam, untuned"
NO_GUARD = ", no guard"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

Runs = dict[str, dict[str, list[Run]]]
"""By problem and optimizer, one run a seed."""


def compare(runs: Runs, horizons: dict[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Each optimizer on each problem: medians, ratios to the tuned baseline, counts."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for problem, entrants in runs.items():
        horizon = horizons[problem]
        baseline = Curves.of(entrants[BASELINE], horizon)
        pace = np.median([run.seconds_per_step for run in entrants[BASELINE]])
        for name, group in entrants.items():
            curves = Curves.of(group, horizon)
            overs = [t for run in group for t in run.handed_over if t < horizon]
            found.setdefault(problem, {})[name] = {
                **{key: ratio(curves, baseline) for key, ratio in RATIOS.items()},
                "reached": float(np.isfinite(times(curves, baseline)).mean()),
                "train loss": float(np.median(curves.train[:, curves.end])),
                "validation loss": float(np.median(curves.validation[:, curves.end])),
                "diverged": int(curves.diverged().sum()),
                "hand-overs": len(overs) / len(group),
                "fallback": float(np.mean([run.fallback_share(horizon) for run in group])),
                "pace": float(np.median([run.seconds_per_step for run in group]) / pace),
            }
    return found


def summarise(runs: Runs, horizons: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Each optimizer over all problems."""
    rows = compare(runs, horizons)
    names = list(next(iter(runs.values())))
    curves = {
        name: {problem: Curves.of(runs[problem][name], horizons[problem]) for problem in runs}
        for name in names
    }
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        mine = [entry[name] for entry in rows.values()]
        found[name] = {
            **{key: list(astuple(over_problems(curves[name], curves[BASELINE], key)))
               for key in RATIOS},
            **{key: float(np.mean([row[key] for row in mine]))
               for key in ("reached", "hand-overs", "fallback")},
            "time is a lower bound": any(row["reached"] <= 0.5 for row in mine),
            "diverged": sum(row["diverged"] for row in mine),
            "pace": float(np.exp(np.mean([np.log(row["pace"]) for row in mine]))),
        }  # fmt: skip
    return found


Text = tuple[str, list[str], list[list[str]]]
"""Title, header and lines of a table."""


def overall_table(overall: dict[str, dict[str, Any]]) -> Text:
    """Over all problems."""
    header = ["optimizer", "time to its loss", "reached it", "training loss", "validation loss"]
    header += [
        "validation at its loss",
        "diverged",
        "hand-overs a run",
        "steps by fallback",
        "CPU time a step",
    ]
    body = []
    for name, row in overall.items():
        is_self = name == BASELINE
        ratios = ["1" if is_self else _told(*row[key]) for key in RATIOS]
        if row["time is a lower bound"] and not is_self:
            ratios[0] = f"> {ratios[0]}"
        body.append([
            name,
            ratios[0],
            "" if is_self else f"{row['reached']:.0%}",
            *ratios[1:],
            str(row["diverged"]),
            f"{row['hand-overs']:.1f}",
            f"{row['fallback']:.0%}",
            f"{row['pace']:.2f}",
        ])
    return (
        f"Over {BASELINE} at its horizon: geometric means over problems of medians over seeds",
        header,
        body,
    )


def problem_table(rows: dict[str, dict[str, dict[str, float]]]) -> Text:
    """Each problem by itself."""
    header = ["problem", "optimizer", "time", "reached", "training loss", "ratio"]
    header += ["validation loss", "ratio", "at its loss", "diverged", "hand-overs", "fallback"]
    header += ["CPU time"]
    body = [
        [
            problem,
            name,
            "" if name == BASELINE else f"{'> ' if row['reached'] <= 0.5 else ''}{row['time']:.2f}",
            "" if name == BASELINE else f"{row['reached']:.0%}",
            f"{row['train loss']:.2e}",
            f"{row['train']:.2f}",
            f"{row['validation loss']:.3f}",
            f"{row['validation']:.2f}",
            "" if name == BASELINE else f"{row['validation there']:.2f}",
            str(row["diverged"]),
            f"{row['hand-overs']:.1f}",
            f"{row['fallback']:.0%}",
            f"{row['pace']:.2f}",
        ]
        for problem, entry in rows.items()
        for name, row in entry.items()
    ]
    title = (
        f"Medians over seeds, at the horizon or at its loss; ratios and CPU time over {BASELINE}"
    )
    return title, header, body


def tuning_table(tuning: dict[str, Any]) -> Text:
    """What was chosen for each problem."""
    body = []
    for problem, entry in tuning.items():
        scores = entry["final losses of all trials"]
        body.append([
            problem,
            f"{entry['lr']:.2g}",
            f"{entry['weight_decay']:g}",
            f"{scores[0]:.2e}",
            f"{np.median(scores):.2e}",
        ])
    header = ["problem", "learning rate", "weight decay", "training loss", "of the median trial"]
    return f"{BASELINE}: the best trial", header, body


def _told(estimate: float, low: float, high: float) -> str:
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def plot(runs: Runs, horizons: dict[str, int], path: Path) -> None:
    """Training loss against steps over the horizon: medians and quartiles."""
    columns = math.ceil(len(runs) / 2)
    colours = {BASELINE: "#000000", UNTUNED: "#999999"}
    for name in next(iter(runs.values())):
        colours.setdefault(name.removesuffix(NO_GUARD), COLOURS[len(colours) % len(COLOURS)])
    figure, axes = plt.subplots(
        2, columns, figsize=(4.2 * columns, 7), layout="constrained", squeeze=False
    )
    for axis, (problem, entrants) in zip(axes.flat, runs.items(), strict=False):
        for name, group in entrants.items():
            colour, dash = colours[name.removesuffix(NO_GUARD)], "--" if NO_GUARD in name else "-"
            curves = Curves.of(group, horizons[problem])
            # A run that diverges leaves the picture, not the others without room.
            shown = np.minimum(curves.train, 10 * curves.train[:, :1])
            low, middle, high = np.quantile(shown, (0.25, 0.5, 0.75), axis=0)
            place = curves.steps / curves.horizon
            axis.semilogy(place, middle, dash, color=colour, label=name, linewidth=1.5)
            axis.fill_between(place, low, high, color=colour, alpha=0.2, linewidth=0)
            if name == BASELINE:
                axis.axhline(middle[-1], color=colour, linestyle=":", linewidth=1)
        axis.axvline(1, color="#999999", linestyle=":", linewidth=1)
        axis.set(title=f"{problem}, {horizons[problem]} steps", xlabel="steps / horizon")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(runs) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("training loss")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
