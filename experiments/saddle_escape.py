"""When does a trained agent kick, and does it escape saddles sooner than perturbed descent?

A masked PPO agent learns SaddleEscape-v0 on a mixture of saddles (strict ones in a random frame,
degenerate ones of third and fourth order) and decoys (convex bowls, flat plateaus), where kicks are
wasted. Exported, it runs in the benchmark, untuned, beside perturbed and noisy gradient descent,
each tuned with 64 trials on each task. Then, on saddles and decoys: what does it cost or gain to be
allowed to kick, and at which gradient norms and lowest Hessian eigenvalues do kicks happen?

    python experiments/saddle_escape.py            # about 40 minutes on one core
    python experiments/saddle_escape.py --smoke    # a minute; shows that it runs, not the result

Writes numbers.json, kicks.png, the benchmark's shards and the exported agents into --out. An
interrupted run goes on from its checkpoints.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from learned_opt.bench.leaderboard import leaderboard
from learned_opt.bench.runner import run_benchmark
from learned_opt.bench.suites import SuiteEntry
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.train import train_agent
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import load_rule
from learned_opt.tracking import open_tracker
from learned_opt.trees import unflatten

mpl.use("Agg")
import matplotlib.pyplot as plt

ENVIRONMENT = "SaddleEscape-v0"
KICKS = slice(4, 8)
REPORT_SEED = 61_001
TARGET = 1e-3
MAX_STEPS = 512

ROTATED = [{"name": "rotated"}]
TRAINING: list[dict[str, Any]] = [
    {
        "task": "strict_saddle",
        "task_settings": {"dim": 10, "spread": 0.5, "start_radius": 1e-3},
        "transforms": ROTATED,
        "weight": 2,
    },
    {
        "task": "strict_saddle",
        "task_settings": {"dim": 24, "index": 4, "largest_escape": 0.1, "spread": 0.5},
        "transforms": ROTATED,
        "weight": 2,
    },
    {"task": "monkey_saddle", "transforms": ROTATED},
    {"task": "re_zn", "task_settings": {"degree": 4}, "transforms": ROTATED},
    {"task": "x2_y4_y2", "transforms": ROTATED},
    {"task": "rippled_quadratic", "task_settings": {"dim": 10, "ripple": 0.0}},
    {"task": "geman_mcclure"},
    {"task": "rosenbrock", "task_settings": {"dim": 4}},
]
DECOYS: dict[str, dict[str, Any]] = {
    "convex bowl": {"task": "rippled_quadratic", "task_settings": {"dim": 20, "ripple": 0.0}},
    "least squares": {"task": "random_quadratic"},
    "flat plateau": {"task": "geman_mcclure"},
}
SADDLES: dict[str, dict[str, Any]] = {
    "strict saddle": {
        "task": "strict_saddle",
        "task_settings": {"dim": 16, "index": 2, "spread": 0.5},
        "transforms": ROTATED,
    },
    "monkey saddle": {"task": "monkey_saddle", "transforms": ROTATED},
}
RACE = (
    SuiteEntry("strict_saddle-10-rotated", "strict_saddle", {"dim": 10}, rotate=True),
    SuiteEntry("strict_saddle-100-rotated", "strict_saddle", {"dim": 100}, rotate=True),
    SuiteEntry("monkey_saddle", "monkey_saddle", rotate=True),
    SuiteEntry("four_fold_saddle", "four_fold_saddle", rotate=True),
    SuiteEntry("x2_y6_y4", "x2_y6_y4", rotate=True),
    SuiteEntry("x2_y3", "x2_y3", rotate=True),
    SuiteEntry("xy_saddle", "xy_saddle", rotate=True),
)
RIVALS = ("perturbed_gd", "noisy_gd", "sgd", "momentum")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/saddle_escape")
    """Folder for numbers, figure, agents and checkpoints."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training."""
    total_steps: int = 4_000_000
    """Steps of training for each seed."""
    num_lanes: int = 1024
    """Environments that move together in training."""
    num_instances: int = 25
    """Instances of each raced task."""
    tuning_trials: int = 64
    """Trials that the rivals are tuned with."""
    num_episodes: int = 256
    """Episodes on each saddle and decoy."""
    wandb: str = "disabled"
    """Weights & Biases: offline, online or disabled."""
    smoke: bool = False
    """Tiny sizes, to see that it runs."""


def train(settings: Settings, seed: int) -> Path:
    """The exported agent of one seed."""
    out = settings.out / f"seed-{seed}"
    config = AgentConfig.for_algorithm(
        "maskable-ppo",
        env=ENVIRONMENT,
        env_settings={
            "task": "mixture",
            "task_settings": {"tasks": TRAINING},
            "learning_rate": [-2.5, -0.3],
            "max_episode_steps": MAX_STEPS,
            "target": TARGET,
            "num_instances": 256 if settings.smoke else 8192,
        },
        total_steps=settings.total_steps,
        num_lanes=settings.num_lanes,
        num_eval_lanes=settings.num_episodes,
        seed=seed,
    )
    tracker = open_tracker(
        settings.wandb, group="saddle-escape", name=out.name, directory=settings.out, x_axis="step"
    )
    result = train_agent(config, out=out, tracker=tracker, resume=True)
    tracker.finish()
    return result.best


@dataclass
class Log:
    """What happened in a set of episodes.

    Attributes:
        steps: ``[N]`` gradients paid until the target, the budget if it was not reached.
        solved: ``[N]`` whether it was.
        when: one row a kick: step, gradient norm over the largest so far, lowest eigenvalue over
            the largest curvature of the task, size (the choice).
        seen: the same (without size) for a sample of steps without a kick.
    """

    steps: NDArray[np.int64]
    solved: NDArray[np.bool_]
    when: list[list[float]]
    seen: list[list[float]]


@torch.no_grad()
def play(
    rule: PolicyRule, task: dict[str, Any], settings: Settings, *, may_kick: bool, look: bool
) -> Log:
    """Let the agent play, with its kicks or without."""
    lanes = gym.make_vec(
        f"envs:LearnedOpt/{ENVIRONMENT}",
        num_envs=settings.num_episodes,
        vectorization_mode="vector_entry_point",
        autoreset_mode="Disabled",
        learning_rate=[-1.5, -0.5],
        instance_seed=REPORT_SEED,
        num_instances=settings.num_episodes,
        max_episode_steps=MAX_STEPS,
        target=TARGET,
        **task,
    )
    env: Any = lanes.unwrapped
    observation, info = lanes.reset(seed=REPORT_SEED)
    is_open = np.ones(settings.num_episodes, bool)
    steps = np.full(settings.num_episodes, MAX_STEPS)
    solved = np.zeros(settings.num_episodes, bool)
    log = Log(steps, solved, [], [])
    rng = np.random.default_rng(0)
    for t in range(MAX_STEPS):
        mask = torch.from_numpy(info["action_mask"].copy())
        if not may_kick:
            mask[:, KICKS] = False
        choice, _ = rule.decide(torch.from_numpy(observation), {}, mask=mask)
        if look:
            is_kick = ((choice >= KICKS.start) & (choice < KICKS.stop)).numpy()
            for lane in np.flatnonzero(is_kick & is_open):
                log.when.append([t, *where(env, lane), float(choice[lane])])
            for lane in np.flatnonzero(~is_kick & is_open & (rng.random(len(is_open)) < 0.005)):
                log.seen.append([t, *where(env, lane)])
        observation, _, terminated, truncated, info = lanes.step(choice.numpy())
        won = is_open & terminated & ~info["opt"]["diverged"]
        steps[won], solved[won] = t + 1, True
        is_open &= ~(terminated | truncated)
        if not is_open.any():
            break
    return log


def where(env: Any, lane: int) -> tuple[float, float]:
    """Gradient norm over the largest so far, lowest eigenvalue over the typical curvature."""
    state, task = env.state, env.core.task
    problem = state.problems.select(torch.tensor([lane]))

    def value(x: Tensor) -> Tensor:
        return task.loss(unflatten(x[None], problem.params), problem)[0]

    with torch.enable_grad():
        hessian = torch.autograd.functional.hessian(value, state.point[lane])
    lowest = float(torch.linalg.eigvalsh(hessian)[0]) / task.smoothness
    norm = state.actuator["trajectory"]["norm"][lane]
    return float(norm / state.actuator["largest_norm"][lane]), lowest


def rmst_ratios(settings: Settings, agents: dict[int, Path]) -> dict[str, Any]:
    """The benchmark: restricted mean times of agents and tuned rivals, task by task."""
    results = run_benchmark(
        RACE[:2] if settings.smoke else RACE,
        rules=[*RIVALS, *[str(path) for path in agents.values()]],
        out=settings.out / "bench",
        num_instances=settings.num_instances,
        tuning_trials=(0, settings.tuning_trials),
    )
    found: dict[str, Any] = {}
    for row in leaderboard(results, by="task"):
        if row.rule_kind == "learned" or row.tuning_trials == settings.tuning_trials:
            found.setdefault(row.group, {})[row.rule] = {
                "rmst over that of the best tuned rival": [
                    row.rmst_ratio.estimate,
                    row.rmst_ratio.low,
                    row.rmst_ratio.high,
                ],
                "success": [row.success.estimate, row.success.low, row.success.high],
            }
    return found


def main(settings: Settings) -> None:
    """Train, race, look, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if settings.smoke:
        settings = replace(
            settings,
            seeds=settings.seeds[:1],
            total_steps=20_000,
            num_lanes=64,
            num_instances=4,
            tuning_trials=4,
            num_episodes=16,
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    agents = {}
    for seed in settings.seeds:
        best = train(settings, seed)
        # The benchmark names learned rules after their files.
        agents[seed] = best.with_name(f"escape-{seed}.safetensors")
        agents[seed].write_bytes(best.read_bytes())
    numbers: dict[str, Any] = {"race": rmst_ratios(settings, agents), "episodes": {}}
    logs: dict[str, Log] = {}
    for seed, path in agents.items():
        rule = load_rule(path)
        assert isinstance(rule, PolicyRule)
        for name, task in {**SADDLES, **DECOYS}.items():
            free = play(rule, task, settings, may_kick=True, look=seed == settings.seeds[0])
            bound = play(rule, task, settings, may_kick=False, look=False)
            logs.setdefault(name, free)
            numbers["episodes"].setdefault(name, {})[f"seed {seed}"] = {
                "mean steps": float(free.steps.mean()),
                "mean steps without kicks": float(bound.steps.mean()),
                "solved": float(free.solved.mean()),
                "solved without kicks": float(bound.solved.mean()),
            }
    numbers["kicks of the first seed"] = {name: log.when for name, log in logs.items()}
    (settings.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    show(numbers, settings)
    plot(logs, settings)


def show(numbers: dict[str, Any], settings: Settings) -> None:
    """The tables."""
    console = Console(width=150)
    table = Table("task", *RIVALS, *[f"agent {s}" for s in settings.seeds])
    table.title = "Restricted mean time over that of the best tuned rival (success)"
    for task, entry in numbers["race"].items():
        cells = []
        for name in (*RIVALS, *[f"escape-{seed}" for seed in settings.seeds]):
            value = entry.get(name)
            cells.append(
                ""
                if value is None
                else f"{value['rmst over that of the best tuned rival'][0]:.2f} "
                f"({value['success'][0]:.0%})"
            )
        table.add_row(task, *cells)
    console.print(table)
    table = Table("problem", "seed", "steps", "without kicks", "solved", "without kicks")
    for name, entry in numbers["episodes"].items():
        for seed, row in entry.items():
            table.add_row(
                name,
                seed,
                f"{row['mean steps']:.1f}",
                f"{row['mean steps without kicks']:.1f}",
                f"{row['solved']:.0%}",
                f"{row['solved without kicks']:.0%}",
            )
    console.print(table)


def plot(logs: dict[str, Log], settings: Settings) -> None:
    """Kicks in the plane of gradient norm and lowest eigenvalue, beside steps without one."""
    figure, axes = plt.subplots(
        1, len(logs), figsize=(3.4 * len(logs), 3.6), layout="constrained", sharey=True
    )
    for axis, (name, log) in zip(np.atleast_1d(axes), logs.items(), strict=True):
        if log.seen:
            seen = np.array(log.seen)
            axis.plot(
                np.log10(seen[:, 1] + 1e-12), np.arcsinh(seen[:, 2] * 1e3), ".",
                color="#999999", markersize=3, label="no kick",
            )  # fmt: skip
        if log.when:
            when = np.array(log.when)
            sizes = when[:, 3] - KICKS.start
            for size, label in enumerate(("0.01", "0.1", "1", "curvature")):
                chosen = when[sizes == size]
                axis.plot(
                    np.log10(chosen[:, 1] + 1e-12), np.arcsinh(chosen[:, 2] * 1e3), "^",
                    color=("#56B4E9", "#E69F00", "#D55E00", "#009E73")[size], markersize=5,
                    label=f"kick {label}" if len(chosen) else None,
                )  # fmt: skip
        axis.set(title=f"{name}: {len(log.when)} kicks", xlabel="log10 gradient norm / largest")
        axis.axhline(0, color="#999999", linewidth=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    ticks = [-1e-1, -1e-2, -1e-3, 0, 1e-3, 1e-2, 1e-1]
    np.atleast_1d(axes)[0].set_yticks(
        [math.asinh(tick * 1e3) for tick in ticks], [f"{tick:g}" for tick in ticks]
    )
    np.atleast_1d(axes)[0].set_ylabel("lowest eigenvalue / typical curvature")
    figure.savefig(settings.out / "kicks.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
