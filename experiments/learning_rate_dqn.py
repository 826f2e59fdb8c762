"""Does a DQN agent control the learning rate of a network better than a tuned schedule?

After Fu et al. 2016, "Deep Q-networks for accelerating the training of deep neural networks"
(arXiv:1606.01467): an agent moves the learning rate of SGD up or down or keeps it while a small
perceptron learns handwritten digits. Theirs saw raw filters, was rewarded by the inverse of the
minibatch loss, and pulled the weights towards a network trained before (the "regression" of the
authors' code). Ours sees numbers without units, is rewarded by the fall of the loss over all the
data, and gets no such help. The rates it starts from are off by up to two and a half decades.

Compared with SGD at the best constant rate and with the best cosine, exponential and step decays
(peak rate and final fraction tuned on other instances), with the agent that sees nothing
(state-blind), and with its mean schedule, replayed.

    python experiments/learning_rate_dqn.py            # about half an hour on one core
    python experiments/learning_rate_dqn.py --smoke    # seconds; shows that it runs, not the result

Writes numbers.json, learning_rate_dqn.png and the exported agents into --out. An interrupted run
goes on from its checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from learned_opt.cli.failures import run_script
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.evaluate import evaluate_with_controls
from learned_opt.rl.train import train_agent
from learned_opt.rules.base import Rule
from learned_opt.rules.weights import load_rule
from learned_opt.tasks import get_task
from learned_opt.tracking import open_tracker
from learned_opt.trees import Params, Tree, per_problem
from learned_opt.unroll import unroll

mpl.use("Agg")
import matplotlib.pyplot as plt

ENVIRONMENT = "LearningRate-v0"
CHOICE_SEED, REPORT_SEED = 31_001, 41_001
"""Pools of instances: schedules are tuned on the first, everything is reported on the second."""
RATES = tuple(float(10**e) for e in np.arange(-2, 1.3, 0.2))
SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, final: 1.0,
    "cosine": lambda progress, final: (
        final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    ),
    "exponential": lambda progress, final: final**progress,
    "step, halfway": lambda progress, final: 1.0 if progress < 0.5 else final,
}
FINALS = (0.3, 0.1, 0.03, 0.01)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/learning_rate_dqn")
    """Folder for numbers, figure, agents and checkpoints."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training."""
    total_steps: int = 300_000
    """Steps of training for each seed."""
    num_steps: int = 100
    """Minibatches an episode."""
    num_instances: int = 128
    """Held-out starts that are reported."""
    wandb: str = "disabled"
    """Weights & Biases: offline, online or disabled."""
    smoke: bool = False
    """Tiny sizes, to see that it runs."""


class Scheduled(Rule):
    """SGD whose rate follows a schedule: ``peak`` times a shape of the share of steps done."""

    name = "scheduled_sgd"

    def __init__(self, peak: Tensor, shape: Callable[[float], float], num_steps: int) -> None:
        super().__init__()
        self.peak, self.shape, self.num_steps = peak, shape, num_steps

    def init(self, params: Params) -> Tree:
        """Step 0."""
        first = next(iter(params.values()))
        return {"step": torch.zeros(len(first), dtype=torch.int64)}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step."""
        del params, loss, rng
        step: Tensor = state["step"]  # type: ignore[assignment]
        rate = self.peak * self.shape(int(step[0]) / self.num_steps)
        return {k: -per_problem(rate, g) * g for k, g in grads.items()}, {"step": step + 1}


def environment(settings: Settings, instance_seed: int) -> dict[str, Any]:
    """Keyword arguments of the environment."""
    return {
        "task": "digits_mlp",
        "instance_seed": instance_seed,
        "num_instances": settings.num_instances,
        "max_episode_steps": settings.num_steps,
    }


def scheduled(settings: Settings) -> dict[str, dict[str, Any]]:
    """Each schedule's best setting on the tuning instances, and what it reaches on the others."""
    task = get_task("digits_mlp")
    count = max(2, settings.num_instances // 8)
    found = {}
    for name, shape in SHAPES.items():
        finals = FINALS if name != "constant" else (1.0,)
        scores: dict[tuple[float, float], float] = {}
        for final in finals:
            rates = torch.tensor(RATES).repeat_interleave(count)
            problems = task.sample(count, seed=CHOICE_SEED).repeat(len(RATES))
            losses = final_losses(settings, rates, shape, final, problems, seed=CHOICE_SEED)
            medians = losses.reshape(len(RATES), count).median(1).values
            scores |= dict(zip(product(RATES, (final,)), medians.tolist(), strict=True))
        rate, final = min(scores, key=lambda key: scores[key])
        problems = task.sample(settings.num_instances, seed=REPORT_SEED)
        losses = final_losses(
            settings, torch.full((settings.num_instances,), rate), shape, final, problems,
            seed=REPORT_SEED,
        )  # fmt: skip
        found[name] = {"rate": rate, "final": final, "loss": interval(losses.numpy())}
    return found


@torch.no_grad()
def final_losses(
    settings: Settings,
    rates: Tensor,
    shape: Callable[[float, float], float],
    final: float,
    problems: Any,
    *,
    seed: int,
) -> Tensor:
    """Loss over all the data at the end, ``[N]``; what is not finite counts as inf."""
    task = get_task("digits_mlp")
    rule = Scheduled(rates, lambda progress: shape(progress, final), settings.num_steps)
    rng = torch.Generator().manual_seed(seed)
    run = unroll(task, rule, problems, num_steps=settings.num_steps, rng=rng)
    losses = task.loss(run.carry.params, problems)
    return torch.where(losses.isfinite(), losses, torch.inf).double()


def interval(values: NDArray[np.float64]) -> list[float]:
    """Median with a 95 % percentile bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = np.median(values[rng.integers(len(values), size=(2000, len(values)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(np.median(values)), float(low), float(high)]


def agents(settings: Settings) -> dict[str, dict[str, Any]]:
    """What each seed's agent and its controls reach."""
    found = {}
    for seed in settings.seeds:
        out = settings.out / f"seed-{seed}"
        config = AgentConfig.for_algorithm(
            "dqn",
            env=ENVIRONMENT,
            env_settings={**environment(settings, 0), "num_instances": 1024},
            total_steps=settings.total_steps,
            evaluate_every=max(1, settings.total_steps // 6),
            num_eval_lanes=8 if settings.smoke else 64,
            learning_starts=1000 if settings.smoke else 5000,
            seed=seed,
        )
        tracker = open_tracker(
            settings.wandb,
            group="learning-rate-dqn",
            name=out.name,
            directory=settings.out,
            x_axis="step",
        )
        result = train_agent(config, out=out, tracker=tracker, resume=True)
        tracker.finish()
        played = evaluate_with_controls(
            load_rule(result.best),
            ENVIRONMENT,
            environment(settings, REPORT_SEED),
            num_lanes=settings.num_instances,
            seed=REPORT_SEED,
        )
        found[f"seed {seed}"] = {
            name: interval(np.where(episodes.diverged, np.inf, episodes.losses))
            for name, episodes in played.items()
        }
    return found


def main(settings: Settings) -> None:
    """Train, tune, compare, write."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if settings.smoke:
        settings = replace(
            settings, seeds=settings.seeds[:1], total_steps=2000, num_instances=8, num_steps=10
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    numbers = {"agents": agents(settings), "schedules": scheduled(settings)}
    (settings.out / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    table = Table("what", "median training loss", title=f"Digits after {settings.num_steps} steps")
    for name, entry in numbers["schedules"].items():
        table.add_row(f"{name}, tuned: rate {entry['rate']:.3g}", brief(entry["loss"]))
    for seed, entry in numbers["agents"].items():
        for name, value in entry.items():
            table.add_row(f"{name}, {seed}", brief(value), style="bold" if name == "policy" else "")
    Console(width=100).print(table)
    plot(numbers, settings)


def brief(value: list[float]) -> str:
    """Estimate and interval."""
    return f"{value[0]:.4f} [{value[1]:.4f}, {value[2]:.4f}]"


def plot(numbers: dict[str, Any], settings: Settings) -> None:
    """Medians with intervals, one row each."""
    rows = [(name, entry["loss"], "#E69F00") for name, entry in numbers["schedules"].items()]
    colours = {"policy": "#0072B2"}
    for seed, entry in numbers["agents"].items():
        rows += [(f"{name}, {seed}", v, colours.get(name, "#999999")) for name, v in entry.items()]
    figure, axis = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.2), layout="constrained")
    for i, (_, value, colour) in enumerate(rows):
        axis.errorbar(
            value[0],
            -i,
            xerr=[[value[0] - value[1]], [value[2] - value[0]]],
            fmt="o",
            color=colour,
            capsize=3,
        )
    axis.set_yticks([-i for i in range(len(rows))], [name for name, _, _ in rows])
    axis.set(
        xscale="log",
        xlabel="training loss, all 1,500 examples (median, 95 % interval)",
        title=f"Learning rate control on digits, {settings.num_steps} minibatches",
    )
    axis.grid(alpha=0.3, axis="x")
    figure.savefig(settings.out / "learning_rate_dqn.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
