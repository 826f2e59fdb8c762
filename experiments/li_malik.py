"""Does a policy that writes the update itself beat hand-made optimizers on small nonconvex fits?

After Li and Malik 2016, "Learning to optimize" (arXiv:1606.01885): robust regression in three
dimensions and a ReLU network with two inputs, two hidden units and two classes, each problem with
a data set of its own, 40 steps. Their guided policy search is replaced by PPO on CoordUpdate-v0,
with one policy for all coordinates, trained on 120 and 80 problems as theirs; as theirs, training
starts near tuned gradient descent: from its step size, off by a factor of two either way. The
measure is theirs: the margin of victory, here by how much the mean objective of an algorithm lies
below the best of the others at the same iteration, averaged over 100 test problems.

Gradient descent and momentum are tuned on the training problems. Conjugate gradients and L-BFGS
are SciPy's; one of their iterations may cost several gradients because of the line search (the
table says how many), and it is iterations that the measure counts, in their favour.

    python experiments/li_malik.py            # about 20 minutes on one core
    python experiments/li_malik.py --smoke    # seconds; shows that it runs, not the result

Writes numbers.json, li_malik.png and the exported agents into --out. An interrupted run goes on
from its checkpoints.
"""

from __future__ import annotations

import json
import math
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from learned_opt.bench.statistics import stratified_bootstrap
from learned_opt.cli.failures import run_script
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.train import train_agent
from learned_opt.rules import get_rule
from learned_opt.rules.base import Rule
from learned_opt.rules.weights import load_rule
from learned_opt.tasks import get_task
from learned_opt.tasks.base import Problems, Task
from learned_opt.tracking import open_tracker
from learned_opt.trees import flatten, unflatten
from learned_opt.unroll import loss_and_grads, unroll

mpl.use("Agg")
import matplotlib.pyplot as plt

NUM_TRAIN = {"robust_regression": 120, "gaussian_mlp": 80}
TRAIN_SEED, TEST_SEED = 0, 51_001
RATES = tuple(float(10**e) for e in np.arange(-3, 1.6, 0.25))
MOMENTA = (0.5, 0.8, 0.9, 0.95)
COLOURS = {
    "agent": "#000000",
    "gradient descent": "#999999",
    "momentum": "#E69F00",
    "conjugate gradients": "#009E73",
    "L-BFGS": "#D55E00",
}

Curves = NDArray[np.float64]
"""Objectives ``[problems, iterations + 1]``."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/li_malik")
    """Folder for numbers, figure, agents and checkpoints."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training."""
    total_steps: int = 3_000_000
    """Steps of training for each seed and task."""
    num_steps: int = 40
    """Iterations of training and of the first figure."""
    num_test: int = 100
    """Test problems."""
    wandb: str = "disabled"
    """Weights & Biases: offline, online or disabled."""
    smoke: bool = False
    """Tiny sizes, to see that it runs."""


def curves(task: Task, rule: Rule, problems: Problems, num_steps: int) -> Curves:
    """What a rule does; not finite counts as inf."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        losses = unroll(task, rule, problems, num_steps=num_steps, rng=rng).losses
    return torch.where(losses.isfinite(), losses, torch.inf).double().numpy()


def tuned(task: Task, problems: Problems, num_steps: int) -> dict[str, Rule]:
    """Gradient descent and momentum with the lowest mean objective over the run."""
    count = problems.num_problems
    found: dict[str, Rule] = {}
    for label, name, momenta in (
        ("gradient descent", "sgd", (None,)),
        ("momentum", "momentum", MOMENTA),
    ):
        points = [(rate, momentum) for rate in RATES for momentum in momenta]

        def build(points: list[Any], repeats: int, name: str = name) -> Rule:
            columns = {"learning_rate": torch.tensor([p[0] for p in points]).double()}
            if name == "momentum":
                columns["momentum"] = torch.tensor([p[1] for p in points]).double()
            if repeats:
                columns = {k: v.repeat_interleave(repeats) for k, v in columns.items()}
            return get_rule(name, **{k: v if repeats else v[0] for k, v in columns.items()})

        swept = curves(task, build(points, count), problems.repeat(len(points)), num_steps)
        means = swept.reshape(len(points), count, -1).mean((1, 2))
        found[label] = build([points[int(np.nanargmin(means))]], 0)
    return found


def classical(task: Task, problems: Problems, method: str, num_steps: int) -> tuple[Curves, float]:
    """SciPy's optimizer on each problem; it stays where it stops early.

    Returns:
        The objectives, and the mean number of gradients that an iteration took.
    """
    runs = [
        classical_run(task, problems.select(torch.tensor([n])), method, num_steps)
        for n in range(problems.num_problems)
    ]
    gradients, iterations = (sum(run[i] for run in runs) for i in (1, 2))
    return np.array([run[0] for run in runs]), gradients / iterations


def classical_run(
    task: Task, problem: Problems, method: str, num_steps: int
) -> tuple[list[float], int, int]:
    """The same on one problem: objectives, gradients, iterations."""
    problem = problem.to(dtype=torch.float64, device="cpu")
    row: list[float] = []

    def value_and_slope(x: NDArray[np.float64]) -> tuple[Any, Any]:
        point = unflatten(torch.from_numpy(x.copy())[None], problem.params)
        loss, grads = loss_and_grads(task, point, problem, None)
        return loss.item(), flatten(grads)[0].numpy()

    # SciPy tells by the parameter's name what to hand over.
    def note(intermediate_result: Any) -> None:
        row.append(float(intermediate_result.fun))

    start = flatten(problem.params)[0].numpy()
    row.append(value_and_slope(start)[0])
    options = {"maxiter": num_steps}
    result = minimize(
        value_and_slope, start, jac=True, method=method, callback=note, options=options
    )
    row = row[: num_steps + 1]
    return row + [row[-1]] * (num_steps + 1 - len(row)), int(result.njev), int(result.nit)


def agent(settings: Settings, task: str, seed: int, learning_rate: float) -> Rule:
    """The exported policy of one seed, which starts from the step size of gradient descent."""
    out = settings.out / f"{task}-{seed}"
    decade = math.log10(learning_rate * get_task(task).smoothness)
    config = AgentConfig.for_algorithm(
        "ppo",
        env="CoordUpdate-v0",
        env_settings={
            "task": task,
            "num_instances": NUM_TRAIN[task],
            "max_episode_steps": settings.num_steps,
            "learning_rate": [decade - 0.3, decade + 0.3],
        },
        total_steps=settings.total_steps,
        # What counts is the objective at every iteration, not the last one alone.
        gamma=0.9,
        num_lanes=16 if settings.smoke else 256,
        num_eval_lanes=16 if settings.smoke else 256,
        seed=seed,
    )
    tracker = open_tracker(
        settings.wandb, group="li-malik", name=out.name, directory=settings.out, x_axis="step"
    )
    result = train_agent(config, out=out, tracker=tracker, resume=True)
    tracker.finish()
    # It decides for all parameters together and starts from the middle of the trained step sizes.
    # The last one: choosing the best would take more problems than the rivals are tuned on.
    return load_rule(result.last)


def margins(mean: dict[str, Curves]) -> dict[str, Curves]:
    """By how much each algorithm's mean objective lies below the best of the others."""
    return {
        name: np.min([other for rival, other in mean.items() if rival != name], axis=0) - own
        for name, own in mean.items()
    }


def race(settings: Settings, task_name: str) -> dict[str, Any]:
    """All algorithms on the test problems of one task, to four times the training horizon."""
    task = get_task(task_name)
    training = task.sample(NUM_TRAIN[task_name], seed=TRAIN_SEED)
    test = task.sample(settings.num_test, seed=TEST_SEED)
    horizon = 4 * settings.num_steps
    rules = tuned(task, training, settings.num_steps)
    hand_made = {name: curves(task, rule, test, horizon) for name, rule in rules.items()}
    learning_rate = rules["gradient descent"].learning_rate
    assert isinstance(learning_rate, torch.Tensor)
    price = {}
    for name, method in (("conjugate gradients", "CG"), ("L-BFGS", "L-BFGS-B")):
        hand_made[name], _ = classical(task, test, method, horizon)
        _, price[name] = classical(task, test, method, settings.num_steps)
    rivals = {name: run.mean(0) for name, run in hand_made.items()}
    found: dict[str, Any] = {
        "mean objective": {k: v.tolist() for k, v in rivals.items()},
        "gradients an iteration": price,
    }
    for seed in settings.seeds:
        own = curves(task, agent(settings, task_name, seed, learning_rate.item()), test, horizon)
        margin = margins({"agent": own.mean(0), **rivals})["agent"]
        best = np.min(list(hand_made.values()), axis=0)
        found[f"agent {seed}"] = {
            "mean objective": own.mean(0).tolist(),
            "margin of victory": margin.tolist(),
            "lead at the horizon": {
                name: list(
                    astuple(
                        stratified_bootstrap(
                            [(run - own)[:, settings.num_steps]],
                            lambda strata: float(strata[0].mean()),
                            seed=0,
                        )
                    )
                )
                for name, run in hand_made.items()
            },
            "share of problems won at the horizon": float(
                (own[:, settings.num_steps] < best[:, settings.num_steps]).mean()
            ),
            "share of steps 1 to the horizon with a positive margin": float(
                (margin[1 : settings.num_steps + 1] > 0).mean()
            ),
        }
    return found


def main(settings: Settings) -> None:
    """Train, tune, race, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if settings.smoke:
        settings = replace(
            settings, seeds=settings.seeds[:1], total_steps=4000, num_test=4, num_steps=10
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    numbers = {task: race(settings, task) for task in NUM_TRAIN}
    (settings.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    console = Console(width=120)
    shown = sorted({1, 5, 10, 20, settings.num_steps, 4 * settings.num_steps})
    for task, found in numbers.items():
        table = Table("algorithm", *[f"step {t}" for t in shown], title=f"{task}: mean objective")
        for name, mean in found["mean objective"].items():
            table.add_row(name, *[f"{mean[t]:.4f}" for t in shown])
        for seed in settings.seeds:
            mean = found[f"agent {seed}"]["mean objective"]
            table.add_row(f"agent, seed {seed}", *[f"{mean[t]:.4f}" for t in shown], style="bold")
        console.print(table)
        for name, price in found["gradients an iteration"].items():
            console.print(f"{name}: {price:.2f} gradients an iteration")
        for seed in settings.seeds:
            entry = found[f"agent {seed}"]
            console.print(
                f"seed {seed}: margin of victory at step {settings.num_steps} "
                f"{entry['margin of victory'][settings.num_steps]:+.4f}, positive on "
                f"{entry['share of steps 1 to the horizon with a positive margin']:.0%} of the "
                f"steps, {entry['share of problems won at the horizon']:.0%} of the problems won"
            )
            for name, (lead, low, high) in entry["lead at the horizon"].items():
                console.print(f"    lead over {name}: {lead:+.4f} [{low:+.4f}, {high:+.4f}]")
    plot(numbers, settings)


def plot(numbers: dict[str, Any], settings: Settings) -> None:
    """Mean objective and margin of victory against iterations."""
    figure, axes = plt.subplots(2, len(numbers), figsize=(11, 7), layout="constrained")
    for column, (task, found) in enumerate(numbers.items()):
        for name, mean in found["mean objective"].items():
            axes[0, column].plot(mean, color=COLOURS[name], label=name)
        for i, seed in enumerate(settings.seeds):
            entry = found[f"agent {seed}"]
            label = None if i else "agent, one line a seed"
            axes[0, column].plot(entry["mean objective"], color=COLOURS["agent"], label=label)
            axes[1, column].plot(entry["margin of victory"], color=COLOURS["agent"])
        axes[0, column].set(title=task.replace("_", " "), ylabel="mean objective")
        axes[1, column].set(xlabel="iteration", ylabel="agent's margin of victory")
        axes[1, column].axhline(0, color="#999999", linewidth=1)
        for axis in axes[:, column]:
            axis.axvline(settings.num_steps, color="#999999", linestyle=":", linewidth=1)
            axis.grid(alpha=0.3)
        low, high = axes[0, column].get_ylim()
        start = max(found["mean objective"]["gradient descent"][0], 0)
        axes[0, column].set_ylim(max(low, 0), min(high, 1.1 * start))
        margin = max(
            np.abs(found[f"agent {seed}"]["margin of victory"][2:]).max() for seed in settings.seeds
        )
        axes[1, column].set_ylim(-1.1 * min(margin, start), 1.1 * min(margin, start))
    axes[0, 0].legend(fontsize=8)
    figure.savefig(settings.out / "li_malik.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
