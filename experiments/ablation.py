"""What does each part of the controller buy? Parts of trained weights are silenced, one at a time.

A decision is silenced by its row of the last layer, and then stays at its nominal value: the step
is that of the trust region left alone. Features are silenced by their columns of the first layer,
in groups; the LSTMs' memory by forgetting all; each of the two nets by a judge that always believes
in the other. One variant is not silenced but decides for each tensor by itself, where the
controller decides once for all of them (most tasks have only one). Nothing is trained anew, so a
number says how much the trained nets lean on a part, not how good the best ones without it would
be.

Two measures, above 1 where the part helps: the restricted mean number of steps to 0.1, 0.01 and
0.0001 of the starting gap on fresh instances of the benchmark's tasks, over that of the whole
controller, geometric mean; and the training loss of real networks with minibatches
(`_real_problems.py`) at their horizon, likewise, without guard.

    python experiments/ablation.py                # half an hour on one core
    python experiments/ablation.py --smoke        # a minute; shows that it runs

Writes results.json, table.md and ablation.png into --out.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from _capped import GROUPS, entries_of, mean_ratio, mean_solved, measure
from _race_report import markdown
from _real_problems import Problem, problems
from rich.console import Console
from rich.progress import track
from rich.table import Table

from learned_opt.cli.failures import run_script
from learned_opt.errors import require
from learned_opt.optim import LearnedOptimizer
from learned_opt.rules.controller import Controller
from learned_opt.rules.weights import read_metadata, resolve_rule

mpl.use("Agg")
import matplotlib.pyplot as plt

FEATURES = {
    "directions": ("turn", "along last step", "straightness", "adaptive", "spread", "persistence"),
    "gradient norms": ("gradient growth", "gradient since start", "gradient over least"),
    "prediction": ("decrease ratio", "unpredictability", "inside", "inside lately"),
    "radius": ("radius", "radius since start", "stride"),
    "curvature": ("known share", "unknown", "steepness", "lowest curvature", "lowest slope"),
    "loss": ("above best", "trend"),
    "time and size": ("time", "size"),
}
LOSS_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    rule: str = "controller"
    """Weights: a file or a bundled name."""
    suites: tuple[str, ...] = ("saddle-core", "plateau-core", "valley")
    """Suites to be measured on."""
    networks: tuple[str, ...] = ("digits, deep", "digits, wide", "breast cancer", "diabetes")
    """Real networks, see `_real_problems.py`."""
    num_instances: int = 10
    """Fresh instances of each task."""
    num_seeds: int = 3
    """Initial weights of each network."""
    seed: int = 0
    """Seed of instances."""
    out: Path = Path("runs/ablation")
    """Folder for results."""
    smoke: bool = False
    """Few tasks and steps, to see that it runs."""


def silenced(
    rule: Controller,
    *,
    decision: str = "",
    features: Sequence[str] = (),
    memory: bool = False,
    belief: float | None = None,
    prior: float | None = None,
) -> Controller:
    """A copy of the rule without some parts, or with a judge that always believes the same."""
    rule = copy.deepcopy(rule)
    if prior is not None or belief is not None or "size" in features:
        rule.prior = prior or 0.0
    names = [feature.name for feature in rule.actuator.features]
    nets = (rule, rule.amid_noise)
    with torch.no_grad():
        if decision:
            place = rule.actuator.actions.names.index(decision)
            for net in nets:
                net.layers[-1].weight[place] = 0  # type: ignore[index,operator]
                # Noise is drawn from -1 on: nominal is none.
                net.layers[-1].bias[place] = -1.0 if decision == "noise" else 0.0  # type: ignore[operator]
        for net in (*nets, rule.judge):
            first = net.layers[0].weight if net.lstm is None else net.lstm.weight_ih
            for place in map(names.index, features):
                first[:, place : place + 1] = 0  # type: ignore[index,operator]  # The judge has no column for the last.
            if memory and net.lstm is not None:
                net.lstm.bias_ih.chunk(4)[1].fill_(-1e3)  # The forget gate.
                net.lstm.weight_hh.zero_()
        if belief is not None:
            rule.judge.layers[-1].weight.zero_()  # type: ignore[operator]
            rule.judge.layers[-1].bias.fill_(belief)  # type: ignore[operator]
    return rule


def variants(rule: Controller) -> dict[str, Controller]:
    """The whole controller first, then all that lack something or decide otherwise."""
    found = {
        "whole": rule,
        "without memory (LSTMs)": silenced(rule, memory=True),
        "net for noise alone": silenced(rule, belief=30.0),
        "net for no noise alone": silenced(rule, belief=-30.0),
        "no prior by size": silenced(rule, prior=0.0),
        "a trust region for each tensor": copy.deepcopy(rule),
    }
    found["a trust region for each tensor"].scope = "tensor"
    for name in rule.actuator.actions.names:
        found[f"decision: {name}"] = silenced(rule, decision=name)
    for group, names in FEATURES.items():
        found[f"features: {group}"] = silenced(rule, features=names)
    return found


def final_loss(rule: Controller, problem: Problem, seed: int, num_steps: int) -> float:
    """Training loss after `num_steps` minibatches, at least `LOSS_FLOOR`; inf if not finite."""
    model = problem.model(seed)
    optimizer = LearnedOptimizer(model.parameters(), copy.deepcopy(rule).float(), guard=False)
    for _, batch in zip(range(num_steps), problem.batches(seed), strict=False):

        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = problem.loss(model(batch.inputs), batch.targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    with torch.no_grad():
        loss = problem.loss(model(problem.train.inputs), problem.train.targets).item()
    return max(loss, LOSS_FLOOR) if math.isfinite(loss) else math.inf


def main(settings: Settings) -> None:
    """Silence, measure, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(width=140)
    if settings.smoke:
        settings = replace(
            settings,
            suites=("quick",),
            networks=("diabetes",),
            num_instances=2,
            num_seeds=1,
            out=settings.out / "smoke",
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    rule = resolve_rule(settings.rule)
    require(
        isinstance(rule, Controller),
        f"--rule must be a controller, got '{settings.rule}'",
    )
    assert isinstance(rule, Controller)
    names = json.loads(read_metadata(settings.rule).get("tasks") or "[]")
    entries = entries_of(settings.suites, names)
    if settings.smoke:
        entries = dict(list(entries.items())[:1])
    networks = [p for p in problems() if p.name in settings.networks]
    members = {g: [label for label, (_, own) in entries.items() if own == g] for g in GROUPS}
    times, losses = {}, {}
    for name, variant in track(variants(rule).items(), console=console, description="variants"):
        times[name] = {
            label: measure(
                copy.deepcopy(variant),
                entry,
                num_instances=settings.num_instances,
                seed=settings.seed,
            )
            for label, (entry, _) in entries.items()
        }
        losses[name] = [
            final_loss(variant, p, seed, 20 if settings.smoke else p.num_steps)
            for p in networks
            for seed in range(settings.num_seeds)
        ]
    rows, numbers = [], {}
    for name, own in times.items():
        ratio = {g: mean_ratio(own, times["whole"], members[g]) for g in GROUPS}
        solved = mean_solved(own, list(entries))
        logs = np.log(losses[name]) - np.log(losses["whole"])
        loss = float(np.exp(np.mean(logs)))
        numbers[name] = {"steps": ratio, "solved": solved, "loss": loss}
        rows.append([name, *(f"{ratio[g]:.2f}" for g in GROUPS), f"{solved:.0%}", f"{loss:.2f}"])
    header = ["controller", "steps, trained", "steps, unseen", "solved", "loss of networks"]
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    (settings.out / "table.md").write_text(markdown([header, *rows]) + "\n")
    (settings.out / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    plot(numbers, settings.out / "ablation.png")
    console.print(f"files in {settings.out}")


def plot(numbers: dict[str, dict[str, Any]], path: Path) -> None:
    """Two bars a variant: steps on trained tasks and loss of networks, over the whole one's."""
    names = [name for name in numbers if name != "whole"]
    place = np.arange(len(names))
    figure, axis = plt.subplots(figsize=(7, 6), layout="constrained")
    series = (
        ("steps, trained tasks", [numbers[n]["steps"]["trained"] for n in names], "#0072B2"),
        ("training loss, real networks", [numbers[n]["loss"] for n in names], "#E69F00"),
    )
    for shift, (label, values, colour) in zip((-0.2, 0.2), series, strict=True):
        shown = np.minimum(np.nan_to_num(values, nan=1.0, posinf=100.0), 100.0)
        axis.barh(place + shift, shown - 1, 0.4, left=1, color=colour, label=label)
    axis.set(
        xscale="log",
        xlabel="over the whole controller's: above 1, the part helps",
        yticks=place,
        yticklabels=names,
    )
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.2)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
