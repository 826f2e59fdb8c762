"""When does a trained agent kick, and does it escape saddles sooner than perturbed descent?

A masked PPO agent learns SaddleEscape-v0 on a mixture of saddles (strict ones in a random frame,
degenerate ones of third and fourth order, one with a single way out) and decoys (convex bowls, flat
plateaus), where kicks are wasted. Gaps count in units of the saddle's, and returns are discounted,
so that time counts. Exported, it runs in the benchmark, untuned, beside perturbed and noisy
gradient descent and momentum, each tuned with 64 trials on each task. Then, on saddles and decoys:
what does it cost or gain to be allowed to kick, and at which gradient norms and lowest Hessian
eigenvalues do kicks happen, beside those of perturbed gradient descent?

    python experiments/saddle_escape.py            # about 45 minutes on one core
    python experiments/saddle_escape.py --smoke    # a minute; shows that it runs, not the result

Writes numbers.json, kicks.png, the benchmark's shards and the exported agents into --out. An
interrupted run goes on from its checkpoints.
"""

from __future__ import annotations

import json
import math
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from envs.scripted import PerturbedGD
from learned_opt.bench.runner import run_benchmark
from learned_opt.bench.statistics import stratified_bootstrap, wilson_interval
from learned_opt.bench.suites import SuiteEntry
from learned_opt.cli.failures import run_script
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.episodes import play
from learned_opt.rl.train import train_agent
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import load_rule
from learned_opt.tracking import open_tracker
from learned_opt.trees import unflatten

mpl.use("Agg")
import matplotlib.pyplot as plt

ENVIRONMENT = "SaddleEscape-v0"
KICKS = slice(4, 8)
REPORT_SEED = 63_001
TARGET = 1e-3
MAX_STEPS = 512
THRESHOLD, WAITING = 0.03, 20
"""Of perturbed gradient descent in the figure: gradient norm over the largest, and steps."""
SHARE_SEEN = 0.02
"""Of the steps without a kick, that the figure shows."""

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
    # One way out. The race starts at other distances from the saddle.
    {"task": "x2_y3", "task_settings": {"start_radius": 0.1}, "transforms": ROTATED},
    {"task": "x2_y3", "task_settings": {"start_radius": 1e-3}, "transforms": ROTATED},
    {"task": "rippled_quadratic", "task_settings": {"dim": 10, "ripple": 0.0}, "weight": 3},
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
    "one way out": {"task": "x2_y3", "transforms": ROTATED},
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
NOISY_RIVALS = ("perturbed_gd", "noisy_gd")
RIVALS = (*NOISY_RIVALS, "sgd", "momentum")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/saddle_escape")
    """Folder for numbers, figure, agents and checkpoints."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training."""
    total_steps: int = 12_000_000
    """Steps of training for each seed."""
    num_lanes: int = 1024
    """Environments that move together in training."""
    num_instances: int = 100
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
            "learning_rate": [-2.8, 0.2],
            "max_episode_steps": MAX_STEPS,
            "target": TARGET,
            "kick_cost": 0.05,
            "num_instances": 256 if settings.smoke else 8192,
        },
        total_steps=settings.total_steps,
        gamma=0.98,
        bootstrap_truncated=True,
        hidden=(64, 64),
        final_learning_rate_fraction=0.03,
        evaluate_every=1_000_000,
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
        when: one row a kick: step, gradient norm over the largest so far and lowest eigenvalue over
            the typical curvature of the task (both only if looked at), size (the choice).
        seen: the same (without size) for a sample of steps without a kick.
    """

    steps: NDArray[np.int64]
    solved: NDArray[np.bool_]
    when: list[list[float]]
    seen: list[list[float]]


class Agent:
    """A trained policy as `watch` wants it, with its kicks or without."""

    def __init__(self, rule: PolicyRule, *, may_kick: bool = True) -> None:
        self.rule, self.may_kick = rule, may_kick

    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """Decide in every lane."""
        mask = torch.from_numpy(info["action_mask"].copy())
        if not self.may_kick:
            mask[:, KICKS] = False
        with torch.no_grad():
            choice, _ = self.rule.decide(torch.from_numpy(observation), {}, mask=mask)
        return np.asarray(choice.numpy())


def make_lanes(task: dict[str, Any], settings: Settings) -> Any:
    """Held-out instances of a task; one lane in sixteen shares its own with another."""
    return gym.make_vec(
        f"envs:LearnedOpt/{ENVIRONMENT}",
        num_envs=settings.num_episodes,
        vectorization_mode="vector_entry_point",
        autoreset_mode="Disabled",
        learning_rate=[-1.5, -0.5],
        instance_seed=REPORT_SEED,
        num_instances=16 * settings.num_episodes,
        max_episode_steps=MAX_STEPS,
        target=TARGET,
        **task,
    )


class Watched:
    """A policy under observation: what it did, and where, in every lane's first episode."""

    def __init__(self, lanes: Any, policy: Any, *, looks: bool) -> None:
        self.env, self.policy, self.looks = lanes.unwrapped, policy, looks
        self.is_open = np.zeros(lanes.num_envs, bool)
        self.step = 0
        self.when: list[list[float]] = []
        self.seen: list[list[float]] = []
        self.rng = np.random.default_rng(0)

    def reset(self, mask: NDArray[np.bool_]) -> None:
        """Lanes begin, or have ended."""
        self.is_open ^= mask
        getattr(self.policy, "reset", lambda _: None)(mask)

    def __call__(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """Decide as the policy does."""
        choice: NDArray[Any] = self.policy(observation, info)
        is_kick = (choice >= KICKS.start) & (choice < KICKS.stop) & self.is_open
        is_seen = ~is_kick & self.is_open & (self.rng.random(len(choice)) < SHARE_SEEN)
        for lane in np.flatnonzero(is_kick):
            place = where(self.env, lane) if self.looks else ()
            self.when.append([self.step, *place, float(choice[lane])])
        for lane in np.flatnonzero(is_seen) if self.looks else ():
            self.seen.append([self.step, *where(self.env, lane)])
        self.step += 1
        return choice


def watch(lanes: Any, policy: Any, *, looks: bool = False) -> Log:
    """One episode in each lane; `looks` says whether Hessians are looked at."""
    watched = Watched(lanes, policy, looks=looks)
    episodes = play(lanes, watched, seed=REPORT_SEED)
    steps = np.where(episodes.solved, episodes.lengths, MAX_STEPS)
    return Log(steps, episodes.solved, watched.when, watched.seen)


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


def race(settings: Settings, agents: dict[int, Path]) -> dict[str, Any]:
    """The benchmark: restricted mean times of agents over those of tuned rivals, task by task."""
    results = run_benchmark(
        RACE[:2] if settings.smoke else RACE,
        rules=[*RIVALS, *[str(path) for path in agents.values()]],
        out=settings.out / "bench",
        num_instances=settings.num_instances,
        tuning_trials=(0, settings.tuning_trials),
        seed=REPORT_SEED,
    )
    times: dict[str, dict[str, NDArray[np.float64]]] = {}
    for row in results.runs.select([
        "task",
        "rule",
        "rule_kind",
        "tuning_trials",
        "t_solve",
        "budget",
    ]).to_pylist():
        if row["rule_kind"] == "learned" or row["tuning_trials"] == settings.tuning_trials:
            cell = times.setdefault(row["task"], {}).setdefault(row["rule"], [])  # type: ignore[arg-type]
            cell.append((row["t_solve"], row["budget"]))  # type: ignore[attr-defined]
    return {task: compare(rules) for task, rules in times.items()}


def compare(runs: dict[str, Any]) -> dict[str, Any]:
    """Times and success of each rule on one task; ratios of agents to the best rivals."""
    pairs = {rule: np.array(cell) for rule, cell in runs.items()}
    capped = {rule: np.minimum(pair[:, 0], pair[:, 1]) for rule, pair in pairs.items()}
    found: dict[str, Any] = {}
    for rule, pair in pairs.items():
        solved = int((pair[:, 0] <= pair[:, 1]).sum())
        found[rule] = {
            "rmst": float(capped[rule].mean()),
            "success": list(astuple(wilson_interval(solved, len(pair)))),
        }
        if rule in RIVALS:
            continue
        for name, rivals in (("noisy", NOISY_RIVALS), ("any", RIVALS)):
            best = min(rivals, key=lambda rival: capped[rival].mean())
            ratio = stratified_bootstrap(
                [np.stack((capped[rule], capped[best]), axis=1)],
                lambda strata: float(strata[0][:, 0].mean() / strata[0][:, 1].mean()),
                seed=0,
            )
            found[rule][f"over the best {name} rival"] = [best, *astuple(ratio)]
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
    numbers: dict[str, Any] = {"race": race(settings, agents), "episodes": {}}
    logs: dict[str, Log] = {}
    for seed, path in agents.items():
        rule = load_rule(path)
        assert isinstance(rule, PolicyRule)
        for name, task in {**SADDLES, **DECOYS}.items():
            lanes = make_lanes(task, settings)
            free = watch(lanes, Agent(rule), looks=seed == settings.seeds[0])
            bound = watch(lanes, Agent(rule, may_kick=False))
            logs.setdefault(name, free)
            numbers["episodes"].setdefault(name, {})[f"seed {seed}"] = {
                "steps": float(free.steps.mean()),
                "steps without kicks": float(bound.steps.mean()),
                "ratio": list(
                    astuple(
                        stratified_bootstrap(
                            [np.stack((free.steps, bound.steps), axis=1)],
                            lambda strata: float(strata[0][:, 0].mean() / strata[0][:, 1].mean()),
                            seed=0,
                        )
                    )
                ),
                "solved": float(free.solved.mean()),
                "solved without kicks": float(bound.solved.mean()),
                "kicks": len(free.when) / settings.num_episodes,
            }
    numbers["kicks of the first seed"] = {name: log.when for name, log in logs.items()}
    (settings.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    show(numbers, settings)
    perturbed = {}
    for name, task in SADDLES.items():
        lanes = make_lanes(task, settings)
        hand_made = PerturbedGD(lanes, gradient_threshold=THRESHOLD, waiting=WAITING)
        perturbed[name] = watch(lanes, hand_made, looks=True)
    plot(logs, perturbed, settings)


def show(numbers: dict[str, Any], settings: Settings) -> None:
    """The tables."""
    console = Console(width=200)
    agents = [f"escape-{seed}" for seed in settings.seeds]
    table = Table("task", *RIVALS, *agents, *[f"{seed} / noisy" for seed in settings.seeds])
    for seed in settings.seeds:
        table.add_column(f"{seed} / any")
    table.title = "Gradients until solved, restricted mean (success); ratios to the best rivals"
    table.caption = (
        "noisy: the better of perturbed and noisy gradient descent; any: momentum and SGD as well"
    )
    for task, entry in numbers["race"].items():
        cells = [
            f"{entry[name]['rmst']:.1f} ({entry[name]['success'][0]:.0%})"
            for name in (*RIVALS, *agents)
        ]
        ratios = [
            entry[agent][f"over the best {rivals} rival"][1:]
            for rivals in ("noisy", "any")
            for agent in agents
        ]
        table.add_row(task, *cells, *[f"{r[0]:.2f} [{r[1]:.2f}, {r[2]:.2f}]" for r in ratios])
    console.print(table)
    table = Table("problem", "seed", "steps", "kicks forbidden", "ratio", "solved", "same", "kicks")
    for name, entry in numbers["episodes"].items():
        for seed, row in entry.items():
            ratio = row["ratio"]
            table.add_row(
                name,
                seed,
                f"{row['steps']:.1f}",
                f"{row['steps without kicks']:.1f}",
                f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]",
                f"{row['solved']:.1%}",
                f"{row['solved without kicks']:.1%}",
                f"{row['kicks']:.2f}",
            )
    console.print(table)


def plot(logs: dict[str, Log], perturbed: dict[str, Log], settings: Settings) -> None:
    """Kicks in the plane of gradient norm and lowest eigenvalue, and when they come."""
    figure, axes = plt.subplots(
        2, len(logs), figsize=(2.8 * len(logs), 6), layout="constrained",
        sharey="row", height_ratios=(2, 1), squeeze=False,
    )  # fmt: skip
    colours = ("#56B4E9", "#E69F00", "#D55E00", "#009E73")
    labels = ("kick 0.001", "kick 0.01", "kick 0.1", "along curvature")
    bins = np.arange(0, 105, 5)
    for (top, bottom), (name, log) in zip(axes.T, logs.items(), strict=True):
        if name in perturbed:
            scatter(
                top, perturbed[name].when, "x", color="black", markersize=3, alpha=0.2,
                label="perturbed descent kicks",
            )  # fmt: skip
        scatter(top, log.seen, ".", color="#BBBBBB", markersize=3, label="no kick")
        for size, (colour, label) in enumerate(zip(colours, labels, strict=True)):
            rows = [row for row in log.when if row[3] == KICKS.start + size]
            scatter(top, rows, "^", color=colour, markersize=4, alpha=0.7, label=label)
        top.axvline(math.log10(THRESHOLD), color="black", linestyle=":", linewidth=1)
        top.axhline(0, color="#999999", linewidth=1)
        count = len(log.when) / len(log.steps)
        top.set(title=f"{name}\n{count:.2f} kicks an episode", xlabel="log10 gradient / largest")
        bottom.hist(
            [[row[0] for row in log.when if row[3] == KICKS.start + k] for k in range(4)],
            bins=bins, stacked=True, color=colours, label=labels,
            weights=[
                [1 / len(log.steps)] * sum(row[3] == KICKS.start + k for row in log.when)
                for k in range(4)
            ],
        )  # fmt: skip
        top.set_xlim(-6.2, 0.2)
        bottom.set(xlabel="step", xlim=(0, 100))
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
    ticks = [-1, -1e-1, -1e-2, -1e-3, 0, 1e-3, 1e-2, 1e-1, 1]
    axes[0, 0].set_yticks([squeezed(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes[0, 0].set_ylabel("lowest eigenvalue / typical curvature")
    axes[1, 0].set_ylabel("kicks an episode")
    handles = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(settings.out / "kicks.png", dpi=110)
    plt.close(figure)


def scatter(axis: Any, rows: list[list[float]], marker: str, **how: Any) -> None:
    """Points at gradient norm and lowest eigenvalue."""
    if rows:
        points = np.array(rows)
        axis.plot(np.log10(points[:, 1] + 1e-12), squeezed(points[:, 2]), marker, **how)


def squeezed(values: Any) -> Any:
    """Logarithmic beyond a thousandth, either way."""
    return np.arcsinh(np.asarray(values) * 1e3)


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
