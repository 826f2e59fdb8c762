"""Does an LSTM optimizer beat tuned hand-made ones on what it was trained for?

The headline of Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient
descent" (arXiv:1606.04474), on random 10-dimensional quadratics and on a small perceptron that
classifies digits (64-20-10, minibatches of 128), sigmoid and ReLU. For every meta-seed two LSTMs
are trained: one on quadratics, one on perceptrons of both activations with 5 hidden units instead
of 20, which cost a quarter, with random scaling of the coordinates. The baselines are SGD,
momentum, Nesterov, RMSProp and Adam, each tuned on a grid of learning rates and momenta, on other
instances than those reported. What is reported was drawn after all settings had been chosen.

    python experiments/l2l_headline.py            # about 20 minutes on one core
    python experiments/l2l_headline.py --smoke    # seconds; shows that it runs, not the result

Writes numbers.json, quadratics.png, digits.png and the weights into --out. An interrupted run goes
on from its checkpoints.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from learned_opt.cli.failures import run_script
from learned_opt.meta.estimators import MetaGradient
from learned_opt.meta.horizons import Fixed
from learned_opt.meta.parallel import desynchronised
from learned_opt.meta.trainer import TrainConfig, meta_train
from learned_opt.rules.base import Rule, get_rule
from learned_opt.rules.weights import load_rule
from learned_opt.tasks.base import Problems, Task, get_task
from learned_opt.tracking import open_tracker
from learned_opt.trees import Params
from learned_opt.unroll import unroll

mpl.use("Agg")
import matplotlib.pyplot as plt

NUM_STEPS = 100
TUNING_SEED, REPORT_SEED = 10_001, 71_001
"""Instances that baselines are tuned on, and those that are reported."""
RATES = tuple(float(f"{10**e:.4g}") for e in np.arange(-4, 0.76, 0.25))
MOMENTA = (0.5, 0.8, 0.9, 0.95, 0.99)
BASELINES: dict[str, dict[str, Sequence[float]]] = {
    "sgd": {"learning_rate": RATES},
    "momentum": {"learning_rate": RATES, "momentum": MOMENTA},
    "nesterov": {"learning_rate": RATES, "momentum": MOMENTA},
    "rmsprop": {"learning_rate": RATES, "decay": (0.9, 0.99, 0.999)},
    "adam": {"learning_rate": RATES, "beta1": MOMENTA},
}
SHOWN_STEPS = (10, 20, 40, 60, 95, 100)
# Weights that others published for this architecture, trained on MNIST: training loss on the
# sigmoid digits perceptron, means of five seeds.
PUBLISHED = {10: 0.47, 20: 0.21, 40: 0.12, 60: 0.079, 95: 0.037}

COLOURS = {
    "lstm": "#000000",
    "sgd": "#999999",
    "momentum": "#E69F00",
    "nesterov": "#56B4E9",
    "rmsprop": "#009E73",
    "adam": "#D55E00",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/l2l_headline")
    """Folder for numbers, figures, weights and checkpoints."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Meta-seeds; two LSTMs are trained for each."""
    quadratic_steps: int = 3000
    """Outer steps of training on quadratics."""
    digits_steps: int = 900
    """Outer steps of training on perceptrons."""
    num_quadratics: int = 4096
    """Fresh quadratics that are reported."""
    num_digits: int = 20
    """Fresh perceptrons of each activation that are reported."""
    wandb: str = "disabled"
    """Weights & Biases: offline, online or disabled."""
    smoke: bool = False
    """Tiny sizes, to see that it runs."""


@dataclass
class Clock:
    """Seconds spent, by part."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, part: str, work: Callable[[], object]) -> object:
        """Run `work` and add its wall time to `part`."""
        start = time.perf_counter()
        result = work()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return result


def sweep(name: str, num_instances: int) -> tuple[Rule, list[dict[str, float]]]:
    """A baseline at every point of its grid, each repeated for every instance."""
    grid = BASELINES[name]
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    columns = {
        key: torch.tensor([p[key] for p in points], dtype=torch.float64).repeat_interleave(
            num_instances
        )
        for key in grid
    }
    return get_rule(name, **columns), points


def curves(task: Task, rule: Rule, problems: Problems, *, seed: int, on_all_data: bool) -> Tensor:
    """Losses ``[N, NUM_STEPS + 1]``, of minibatches or of all data; not finite counts as inf."""
    rng = torch.Generator().manual_seed(seed)
    full: list[Tensor] = []

    def observe(*, step: int, params: Params, grads: Params, losses: Tensor) -> None:
        del step, grads, losses
        full.append(task.loss(params, problems))

    with torch.no_grad():
        run = unroll(
            task,
            rule,
            problems,
            num_steps=NUM_STEPS,
            rng=rng,
            observe=observe if on_all_data else None,
        )
        if on_all_data:
            full.append(task.loss(run.carry.params, problems))
    losses = torch.stack(full, 1) if on_all_data else run.losses
    return torch.where(torch.isfinite(losses), losses, torch.inf).double()


def tuned(
    task: Task,
    *,
    num_instances: int,
    criteria: dict[str, Callable[[Tensor], Tensor]],
) -> dict[tuple[str, str], dict[str, float]]:
    """For each baseline and criterion, the grid point with the lowest score on tuning instances.

    A criterion maps losses ``[points, instances, T + 1]`` to scores ``[points]``.
    """
    instances = task.sample(num_instances, seed=TUNING_SEED)
    chosen = {}
    for name in BASELINES:
        rule, points = sweep(name, num_instances)
        problems = instances.repeat(len(points))
        losses = curves(task, rule, problems, seed=TUNING_SEED + 1, on_all_data=False)
        losses = losses.reshape(len(points), num_instances, -1)
        for criterion, score in criteria.items():
            chosen[name, criterion] = points[int(score(losses).nan_to_num(nan=torch.inf).argmin())]
    return chosen


def hindsight(task: Task, problems: Problems) -> Tensor:
    """Final losses ``[N, 1]`` of the best momentum or Nesterov setting of each single problem.

    No rule could know these settings beforehand: a floor for anything of the momentum kind.
    """
    best = torch.full((problems.num_problems,), torch.inf, dtype=torch.float64)
    for name in ("momentum", "nesterov"):
        rule, points = sweep(name, problems.num_problems)
        losses = curves(
            task, rule, problems.repeat(len(points)), seed=REPORT_SEED + 1, on_all_data=False
        )
        final = losses[:, -1].nan_to_num(nan=torch.inf)
        best = torch.minimum(best, final.reshape(len(points), -1).amin(0))
    return best.unsqueeze(1)


def log10_of_mean(losses: Tensor) -> Tensor:
    """log10 of the mean final loss over instances (last axis but one)."""
    return losses[..., -1].mean(-1).log10()


def mean_of_log10(losses: Tensor) -> Tensor:
    """Mean of log10 of the final loss over instances."""
    return losses[..., -1].clamp_min(1e-12).log10().mean(-1)


def mean_over_run(losses: Tensor) -> Tensor:
    """Mean loss over instances and the steps after the first."""
    return losses[..., 1:].mean((-1, -2))


def late_loss(losses: Tensor) -> Tensor:
    """Mean loss over instances and the last ten steps."""
    return losses[..., -10:].mean((-1, -2))


def interval(values: Tensor, statistic: Callable[[Tensor], Tensor]) -> list[float]:
    """Estimate and 95 % percentile bootstrap interval over instances (rows)."""
    rng = torch.Generator().manual_seed(0)
    index = torch.randint(len(values), (2000, len(values)), generator=rng)
    draws = statistic(values[index])
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return [float(statistic(values)), low, high]


def trained(
    settings: Settings,
    part: str,
    tasks: Sequence[Task],
    config: TrainConfig,
    estimator: MetaGradient[Any] | None = None,
) -> Rule:
    """The LSTM of one meta-seed, trained or taken up where its training stopped."""
    out = settings.out / f"{part}-{config.seed}"
    tracker = open_tracker(
        settings.wandb,
        group="l2l-headline",
        name=out.name,
        directory=settings.out,
        x_axis="outer_step",
    )
    result = meta_train(
        get_rule("lstm", seed=config.seed),
        tasks,
        config=config,
        out=out,
        estimator=estimator,
        tracker=tracker,
        resume=True,
    )
    tracker.finish()
    # Best on held-out problems of the training's own kind, which are not those reported: training
    # drifts, and its last weights are often not its best.
    return load_rule(str(result.best))


def quadratics(settings: Settings, clock: Clock) -> dict:
    """Part one: random 10-dimensional quadratics."""
    task = get_task("random_quadratic")
    rules = {
        seed: clock.time(
            "training on quadratics",
            lambda seed=seed: trained(
                settings,
                "quadratics",
                [task],
                TrainConfig(
                    seed=seed,
                    horizon=Fixed(NUM_STEPS),
                    num_outer_steps=settings.quadratic_steps,
                    num_problems=64,
                    objective="balanced",
                    epsilon=1e-6,
                    learning_rate=1e-2,
                ),
            ),
        )
        for seed in settings.seeds
    }
    problems = task.sample(settings.num_quadratics, seed=REPORT_SEED)
    criteria = {"log10 of mean": log10_of_mean, "mean of log10": mean_of_log10}
    best = clock.time(
        "tuning baselines",
        lambda: tuned(task, num_instances=8 if settings.smoke else 2048, criteria=criteria),
    )
    numbers: dict = {"baselines": {}, "lstm": {}}
    lines: dict[str, list[Tensor]] = {}
    for (name, criterion), point in best.items():
        losses = curves(
            task, get_rule(name, **point), problems, seed=REPORT_SEED + 1, on_all_data=False
        )
        numbers["baselines"].setdefault(name, {})[criterion] = {
            "settings": point,
            "value": interval(losses, criteria[criterion]),
        }
        if criterion == "log10 of mean":
            lines[name] = [losses]
    floor = clock.time(
        "tuning baselines",
        lambda: hindsight(task, problems.select(torch.arange(min(512, settings.num_quadratics)))),
    )
    numbers["momentum tuned for each instance in hindsight"] = {
        criterion: interval(floor, statistic) for criterion, statistic in criteria.items()
    }
    for seed, rule in rules.items():
        losses = curves(task, rule, problems, seed=REPORT_SEED + 1, on_all_data=False)
        lines.setdefault("lstm", []).append(losses)
        numbers["lstm"][seed] = {
            criterion: interval(losses, statistic) for criterion, statistic in criteria.items()
        }
    for criterion in criteria:
        rival = min(entry[criterion]["value"][0] for entry in numbers["baselines"].values())
        numbers[f"best baseline, {criterion}"] = rival
        numbers[f"margin, {criterion}"] = [
            rival - numbers["lstm"][seed][criterion][0] for seed in settings.seeds
        ]
    _plot(
        {"random quadratics, 10-d": lines},
        settings.out / "quadratics.png",
        ylabel="mean loss over instances",
    )
    return numbers


def digits(settings: Settings, clock: Clock) -> dict:
    """Part two: the digits perceptron, sigmoid and ReLU."""
    batch, activations = 128, ("sigmoid", "relu")
    # A quarter of the coordinates at a quarter of the cost; the size that is reported stays unseen.
    small = [get_task("digits_mlp", activation=a, hidden=(5,)) for a in activations]

    def train(seed: int) -> Rule:
        config = TrainConfig(
            seed=seed,
            horizon=Fixed(NUM_STEPS),
            num_outer_steps=settings.digits_steps,
            num_problems=4,
            objective="log_gap",
            epsilon=1e-3,
            random_scaling=1.0,
            coordinate_share=0.3,
            learning_rate=6e-3,
            warmup_steps=50,
            second_moment_decay=0.999,
            num_eval_problems=8,
            evaluate_every=150,
        )
        # Both activations, early and late steps in every update: with one after the other, theta
        # drifts from each to the next.
        estimator = desynchronised(config, small, num_clocks=2)
        return trained(settings, "digits", small, config, estimator)

    rules = {
        seed: clock.time("training on perceptrons", lambda seed=seed: train(seed))
        for seed in settings.seeds
    }
    criteria = {"mean over run": mean_over_run, "last ten steps": late_loss}
    numbers: dict = {}
    panels: dict[str, dict[str, list[Tensor]]] = {}
    for activation in activations:
        task = get_task("digits_mlp", activation=activation, batch_size=batch)
        problems = task.sample(settings.num_digits, seed=REPORT_SEED)
        best = clock.time(
            "tuning baselines",
            lambda task=task: tuned(
                task, num_instances=1 if settings.smoke else 5, criteria=criteria
            ),
        )
        lines: dict[str, list[Tensor]] = {}
        mine = numbers.setdefault(activation, {"baselines": {}, "lstm": {}})
        for (name, criterion), point in best.items():
            losses = curves(
                task, get_rule(name, **point), problems, seed=REPORT_SEED + 1, on_all_data=True
            )
            lines.setdefault(name, []).append(losses)
            mine["baselines"][f"{name}, tuned for {criterion}"] = {
                "settings": point,
                "loss": _at_steps(losses),
            }
        for seed, rule in rules.items():
            losses = curves(task, rule, problems, seed=REPORT_SEED + 1, on_all_data=True)
            lines.setdefault("lstm", []).append(losses)
            mine["lstm"][seed] = {"loss": _at_steps(losses)}
        # The hardest rival: at every step the best of all baselines in all their tunings.
        rivals = torch.stack([
            x.mean(0) for name, runs in lines.items() if name != "lstm" for x in runs
        ]).amin(0)
        ours = torch.stack([x.mean(0) for x in lines["lstm"]])
        window = slice(10, NUM_STEPS + 1)
        mine["best baseline at each step"] = {str(t): float(rivals[t]) for t in SHOWN_STEPS}
        mine["share of steps 10 to 100 below every baseline, by seed"] = [
            float((mean[window] < rivals[window]).double().mean()) for mean in ours
        ]
        panels[f"digits, {activation}"] = {
            name: runs if name == "lstm" else runs[:1] for name, runs in lines.items()
        }
    numbers["sigmoid"]["published weights"] = PUBLISHED
    _plot(panels, settings.out / "digits.png", ylabel="training loss, all 1,500 examples")
    return numbers


def _at_steps(losses: Tensor) -> dict[str, list[float]]:
    return {str(t): interval(losses[:, t], lambda values: values.mean(-1)) for t in SHOWN_STEPS}


def _plot(panels: dict[str, dict[str, list[Tensor]]], path: Path, *, ylabel: str) -> None:
    """Mean loss against steps on a log scale; every meta-seed is a line of its own."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4), layout="constrained", squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, runs in lines.items():
            for i, losses in enumerate(runs):
                axis.semilogy(
                    losses.mean(0).numpy(),
                    color=COLOURS[name],
                    linewidth=2.2 if name == "lstm" else 1.4,
                    label=None if i else ("LSTM, one line a seed" if name == "lstm" else name),
                    zorder=3 if name == "lstm" else 2,
                )
        if "sigmoid" in title:
            axis.plot(*zip(*PUBLISHED.items(), strict=True), "k^", label="published LSTM (MNIST)")
        axis.set(title=title, xlabel="gradient evaluations", ylabel=ylabel)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _tables(numbers: dict, settings: Settings) -> None:
    console = Console(width=110)
    part = numbers["quadratics"]
    table = Table("rule", "log10 of mean", "mean of log10", title="Quadratics after 100 steps")
    for name, entry in part["baselines"].items():
        table.add_row(f"{name} (tuned for each)", *[_brief(v["value"]) for v in entry.values()])
    oracle = part["momentum tuned for each instance in hindsight"]
    table.add_row("momentum, best for each instance", *[_brief(v) for v in oracle.values()])
    for seed in settings.seeds:
        table.add_row(
            f"LSTM, seed {seed}", *[_brief(v) for v in part["lstm"][seed].values()], style="bold"
        )
    console.print(table)
    for activation, part in numbers["digits"].items():
        table = Table(
            "rule", *[f"step {t}" for t in SHOWN_STEPS], title=f"Digits, {activation}: loss"
        )
        for name, entry in part["baselines"].items():
            table.add_row(name, *[f"{v[0]:.3f}" for v in entry["loss"].values()])
        if "published weights" in part:
            cells = [f"{PUBLISHED[t]:.3f}" if t in PUBLISHED else "" for t in SHOWN_STEPS]
            table.add_row("published LSTM, trained on MNIST", *cells)
        for seed in settings.seeds:
            cells = [f"{v[0]:.3f}" for v in part["lstm"][seed]["loss"].values()]
            table.add_row(f"LSTM, seed {seed}", *cells, style="bold")
        console.print(table)
        shares = part["share of steps 10 to 100 below every baseline, by seed"]
        console.print(f"share of steps 10 to 100 below every baseline, by seed: {shares}")


def _brief(value: Sequence[float]) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def main(settings: Settings) -> None:
    """Train, tune, race, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if settings.smoke:
        settings = Settings(
            out=settings.out,
            seeds=settings.seeds[:1],
            quadratic_steps=10,
            digits_steps=4,
            num_quadratics=16,
            num_digits=2,
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    numbers = {"quadratics": quadratics(settings, clock), "digits": digits(settings, clock)}
    numbers["seconds"] = {part: round(seconds, 1) for part, seconds in clock.seconds.items()}
    text = json.dumps(numbers, indent=1, default=str, allow_nan=True)
    (settings.out / "numbers.json").write_text(text + "\n")
    _tables(numbers, settings)
    print(f"wall time by part: {numbers['seconds']}")
    print(f"total {math.fsum(clock.seconds.values()) / 60:.1f} minutes; files in {settings.out}")


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
