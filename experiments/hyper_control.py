"""Can an agent turn the knobs of a heavy ball better than any fixed setting?

PPO learns to steer step size, momentum and noise on rippled quadratics of 16 dimensions with
condition numbers from 10 to 1000, rotated, whose initial step size is off by up to three decades.
On held-out instances it is compared with the best fixed setting that all instances share (chosen on
other instances; once as a factor on the initial step size, once as an absolute step size, which
knows what the agent has to find out), with the best of 50 factors and momenta, or of 170 step sizes
and momenta, for each instance in hindsight, with itself when it sees nothing (state-blind), and
with its own mean schedule (replay).
Then with more steps and in other dimensions than it was trained for.

    python experiments/hyper_control.py            # about 6 minutes on one core
    python experiments/hyper_control.py --smoke    # seconds; shows that it runs, not the result

Writes numbers.json, hyper_control.png and the exported agents into --out. An interrupted run goes
on from its checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from envs.fixed_settings import GRID, FixedSetting, Sweep, sweep
from learned_opt.cli.failures import run_script
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.evaluate import evaluate_with_controls
from learned_opt.rl.train import train_agent
from learned_opt.rules.weights import load_rule
from learned_opt.tracking import open_tracker

mpl.use("Agg")
import matplotlib.pyplot as plt

ENVIRONMENT = "HyperControl-v0"
TARGET = 1e-6
CHOICE_SEED, REPORT_SEED = 31_001, 41_001
"""Pools of instances: fixed settings are chosen on the first, everything is reported on the second;
training and its evaluations use neither."""

# The optimum is sharp in both, so that a coarse grid would flatter the agent.
FINE_GRID = tuple(
    FixedSetting(float(10**decade), momentum)
    for decade in np.arange(-1, 0.65, 0.1)
    for momentum in (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
)
"""Step sizes from 0.1 to 4 over the typical curvature, times ten momenta."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/hyper_control")
    """Folder for numbers, figure, agents and checkpoints."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training."""
    total_steps: int = 4_000_000
    """Steps of training for each seed."""
    num_instances: int = 1024
    """Held-out episodes that are reported."""
    dims: tuple[int, ...] = (2, 16, 100, 1000)
    """Dimensions that are reported; training is in 16."""
    horizons: tuple[int, ...] = (64, 256, 1024)
    """Steps that are reported; training has 64."""
    wandb: str = "disabled"
    """Weights & Biases: offline, online or disabled."""
    smoke: bool = False
    """Tiny sizes, to see that it runs."""


def environment(dim: int, *, instance_seed: int, num_instances: int) -> dict[str, Any]:
    """Keyword arguments of the environment."""
    # A rotation of 1000 dimensions is a matrix of a million numbers for every instance. The heavy
    # ball does not see rotations, so beyond 100 dimensions it is left out.
    return {
        "task": "rippled_quadratic",
        "task_settings": {"dim": dim},
        "transforms": [{"name": "rotated"}] if dim <= 100 else [],
        "instance_seed": instance_seed,
        "num_instances": num_instances,
        "target": TARGET,
    }


def held_out(dim: int, pool: int, num_episodes: int) -> dict[str, Any]:
    """The same for instances that are not trained on; one episode in sixteen shares its own."""
    return environment(dim, instance_seed=pool, num_instances=16 * num_episodes)


def train(settings: Settings, seed: int) -> Path:
    """The exported agent of one seed."""
    out = settings.out / f"seed-{seed}"
    config = AgentConfig.for_algorithm(
        "ppo",
        env=ENVIRONMENT,
        env_settings=environment(16, instance_seed=0, num_instances=4096),
        total_steps=settings.total_steps,
        seed=seed,
        **({"num_lanes": 64, "num_eval_lanes": 16} if settings.smoke else {}),
    )
    tracker = open_tracker(
        settings.wandb, group="hyper-control", name=out.name, directory=settings.out, x_axis="step"
    )
    result = train_agent(config, out=out, tracker=tracker, resume=True)
    tracker.finish()
    return result.best


def interval(values: NDArray[np.float64], statistic: Callable[..., Any] = np.median) -> list[float]:
    """Median over instances with a 95 % percentile bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = statistic(values[rng.integers(len(values), size=(2000, len(values)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(statistic(values)), float(low), float(high)]


def share_solved(log10_gaps: NDArray[np.float64]) -> float:
    """Share of episodes at the target; medians say little where most are."""
    return float((log10_gaps <= np.log10(2 * TARGET)).mean())


def fixed_settings(settings: Settings, dim: int, horizon: int) -> dict[str, Any]:
    """What settings that nobody steers reach on the reported instances."""

    def swept(pool: int, decades: tuple[float, float] | None) -> Sweep:
        kwargs = held_out(dim, pool, settings.num_instances)
        if decades is not None:
            kwargs["learning_rate"] = decades

        def make() -> Any:
            return gym.make_vec(
                f"envs:LearnedOpt/{ENVIRONMENT}",
                num_envs=settings.num_instances,
                vectorization_mode="vector_entry_point",
                max_episode_steps=horizon,
                **kwargs,
            )

        grid = GRID if decades is None else FINE_GRID
        return sweep(make, grid, seed=pool)

    found: dict[str, Any] = {"solved": {}}
    # The pools of instances do not depend on the step size that an episode starts with.
    for name, decades in (("relative", None), ("absolute", (0.0, 0.0))):
        chosen = swept(CHOICE_SEED, decades).best_index
        reported = swept(REPORT_SEED, decades)
        for label, gaps in (
            (f"best constant, {name} step size", reported.log10_gaps[chosen]),
            (f"hindsight oracle, {name} step size", reported.log10_gaps.min(0)),
        ):
            found[label] = interval(gaps)
            found["solved"][label] = share_solved(gaps)
    return found


def main(settings: Settings) -> None:
    """Train, compare, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if settings.smoke:
        settings = replace(
            settings,
            seeds=settings.seeds[:1],
            total_steps=4096,
            num_instances=16,
            dims=(2, 16),
            horizons=(64,),
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    rules = {seed: load_rule(train(settings, seed)) for seed in settings.seeds}
    cells = [(dim, settings.horizons[0]) for dim in settings.dims]
    cells += [(16, horizon) for horizon in settings.horizons[1:]]
    numbers: dict[str, Any] = {"trained on": {"dim": 16, "steps": 64}, "results": []}
    for dim, horizon in cells:
        entry: dict[str, Any] = {"dim": dim, "steps": horizon}
        # The first comparison is the one that matters; the others show trends.
        is_main = (dim, horizon) == (16, settings.horizons[0])
        count = settings.num_instances if is_main else min(128, settings.num_instances)
        entry |= fixed_settings(replace(settings, num_instances=count), dim, horizon)
        for seed, rule in rules.items():
            played = evaluate_with_controls(
                rule,
                ENVIRONMENT,
                held_out(dim, REPORT_SEED, count),
                num_lanes=count,
                seed=REPORT_SEED,
                num_steps=horizon,
            )
            entry[f"seed {seed}"] = {
                name: {
                    "median": interval(episodes.log10_gaps),
                    "solved": share_solved(episodes.log10_gaps),
                    "diverged": float(episodes.diverged.mean()),
                }
                for name, episodes in played.items()
            }
        numbers["results"].append(entry)
    text = json.dumps(numbers, indent=1)
    (settings.out / "numbers.json").write_text(text + "\n")
    show(numbers, settings)
    plot(numbers, settings)


def show(numbers: dict[str, Any], settings: Settings) -> None:
    """The table."""
    table = Table(
        "dim",
        "steps",
        "fixed, relative",
        "fixed, absolute",
        "hindsight, relative",
        "hindsight, absolute",
        *[f"agent {seed}" for seed in settings.seeds],
        "blind",
        "replay",
        title="Median log10 gap on held-out instances",
    )
    for entry in numbers["results"]:
        agents = [entry[f"seed {seed}"] for seed in settings.seeds]
        table.add_row(
            str(entry["dim"]),
            str(entry["steps"]),
            brief(entry["best constant, relative step size"]),
            brief(entry["best constant, absolute step size"]),
            brief(entry["hindsight oracle, relative step size"]),
            brief(entry["hindsight oracle, absolute step size"]),
            *[brief(agent["policy"]["median"]) for agent in agents],
            " ".join(f"{agent['state-blind']['median'][0]:.2f}" for agent in agents),
            " ".join(f"{agent['replay']['median'][0]:.2f}" for agent in agents),
        )
    console = Console(width=210)
    console.print(table)
    fixed = (
        "best constant, relative step size",
        "best constant, absolute step size",
        "hindsight oracle, relative step size",
        "hindsight oracle, absolute step size",
    )
    table = Table("dim", "steps", *fixed, *[f"agent {seed}" for seed in settings.seeds])
    table.title = "Share of instances solved, to a relative gap of 1e-6"
    for entry in numbers["results"]:
        shares = [entry["solved"][label] for label in fixed]
        shares += [entry[f"seed {seed}"]["policy"]["solved"] for seed in settings.seeds]
        table.add_row(str(entry["dim"]), str(entry["steps"]), *[f"{s:.0%}" for s in shares])
    console.print(table)


def brief(value: list[float]) -> str:
    """Estimate and interval."""
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def plot(numbers: dict[str, Any], settings: Settings) -> None:
    """Bars of medians, one group for each dimension and horizon."""
    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    colours = {"fixed": "#999999", "absolute": "#E69F00", "hindsight": "#009E73"}
    results = numbers["results"]
    num_bars = 3 + len(settings.seeds)
    for i, entry in enumerate(results):
        bars = [
            (entry["best constant, relative step size"], colours["fixed"], "fixed factor, shared"),
            (entry["best constant, absolute step size"], colours["absolute"], "fixed step, shared"),
            (
                entry["hindsight oracle, absolute step size"],
                colours["hindsight"],
                "best of 170 for each instance, hindsight",
            ),
        ] + [
            (entry[f"seed {seed}"]["policy"]["median"], "#0072B2", "agent, one bar a seed")
            for seed in settings.seeds
        ]
        for j, (value, colour, label) in enumerate(bars):
            axis.bar(
                i + (j - num_bars / 2) * 0.8 / num_bars,
                value[0],
                0.8 / num_bars,
                yerr=[[value[0] - value[1]], [value[2] - value[0]]],
                color=colour,
                label=label if i == 0 and j <= 3 else None,
            )
    axis.set_xticks(
        range(len(results)), [f"{entry['dim']}-d\n{entry['steps']} steps" for entry in results]
    )
    axis.set(
        ylabel="median log10 relative gap", title="Steering a heavy ball on rippled quadratics"
    )
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    axis.grid(alpha=0.3, axis="y")
    figure.savefig(settings.out / "hyper_control.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
