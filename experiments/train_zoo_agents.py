"""Train the agents that the package ships as "hyper-control" and "saddle-escape".

Each learns on a mixture of saddles, plateaus, valleys and bowls of 2 to 40 dimensions in random
frames, from initial step sizes that are off by up to three decades. Whole families stay unseen
(octopus, deep linear networks, phase retrieval, soft committee machine, Styblinski-Tang, every
network), so that the benchmark shows what carries over.

    python experiments/train_zoo_agents.py hyper-control    # 10 minutes on one core; resumable
    python experiments/train_zoo_agents.py saddle-escape
    cp runs/zoo-agents/hyper-control.safetensors runs/zoo-agents/saddle-escape.safetensors \
        learned_opt/zoo/                                    # ship them
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from learned_opt.cli.failures import run_script
from learned_opt.cli.progress import progress_bar
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.export import save_agent
from learned_opt.rl.train import train_agent
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import load_rule, read_metadata

ROTATED = [{"name": "rotated"}]
MIXTURE: list[dict[str, Any]] = [
    {
        "task": "strict_saddle",
        "task_settings": {"dim": 10, "spread": 0.5},
        "transforms": ROTATED,
        "weight": 2,
    },
    {
        "task": "strict_saddle",
        "task_settings": {"dim": 30, "index": 4, "largest_escape": 0.1, "spread": 0.5},
        "transforms": ROTATED,
    },
    {"task": "monkey_saddle", "transforms": ROTATED},
    {"task": "re_zn", "task_settings": {"degree": 4}, "transforms": ROTATED},
    {"task": "x2_y4_y2", "transforms": ROTATED},
    {"task": "x2_y3", "task_settings": {"start_radius": 0.1}, "transforms": ROTATED},
    {"task": "x2_y3", "task_settings": {"start_radius": 1e-3}, "transforms": ROTATED},
    {"task": "phi4_chain", "task_settings": {"dim": 8}, "transforms": ROTATED},
    {"task": "matrix_factorization"},
    {"task": "welsch"},
    {"task": "geman_mcclure"},
    {"task": "logistic_staircase"},
    {"task": "sigmoid_regression"},
    {"task": "rosenbrock", "task_settings": {"dim": 4}, "transforms": ROTATED},
    {"task": "random_quadratic"},
    {"task": "rippled_quadratic", "weight": 2},
]
AGENTS: dict[str, dict[str, Any]] = {
    "hyper-control": {
        "env": "HyperControl-v0",
        "algo": "ppo",
        "description": "Step size, momentum and noise of a heavy ball, steered by a PPO agent.",
    },
    "saddle-escape": {
        "env": "SaddleEscape-v0",
        "algo": "maskable-ppo",
        "description": "Continue, speed up, brake, kick or go back: a masked PPO agent decides.",
    },
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be changed; the defaults are those of the shipped weights."""

    agent: tyro.conf.Positional[Literal["hyper-control", "saddle-escape"]]
    """Which one."""
    out: Path = Path("runs/zoo-agents")
    """Folder for weights, history and checkpoint."""
    total_steps: int = 16_000_000
    """Decisions to train for."""
    seed: int = 0
    """Seed of training."""


def main(settings: Settings) -> None:
    """Train, or go on from the checkpoint."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    agent = AGENTS[settings.agent]
    config = AgentConfig.for_algorithm(
        agent["algo"],
        env=agent["env"],
        env_settings={
            "task": "mixture",
            "task_settings": {"tasks": MIXTURE},
            "learning_rate": [-2.8, 0.2],
            "max_episode_steps": 512,
            "target": 1e-4,
            "gap_unit": "saddle",
            "kick_cost": 0.05,
            "num_instances": 8192,
        },
        total_steps=settings.total_steps,
        # Time counts: what is reached fifty steps later is worth a third.
        gamma=0.98,
        bootstrap_truncated=True,
        final_learning_rate_fraction=0.03,
        hidden=(64, 64),
        evaluate_every=500_000,
        num_eval_lanes=1024,
        seed=settings.seed,
    )
    with progress_bar() as bar:
        line = bar.add_task(f"training {settings.agent}", total=settings.total_steps, note="")

        def on_progress(done: int, total: int, note: str) -> None:
            bar.update(line, completed=done, total=total, note=note)

        result = train_agent(
            config,
            out=settings.out / settings.agent,
            resume=True,
            on_progress=on_progress,
        )
    rule = load_rule(result.best)
    # What is plugged in decides for each tensor by itself, which environments do not know.
    shipped = PolicyRule(**{**rule.config(), "scope": "tensor"})
    shipped.load_state_dict(rule.state_dict())
    about = read_metadata(result.best)
    kept = ("tasks", "horizon", "seed", "licence", "scores", "training", "env", "algo", "steps")
    path = save_agent(
        shipped,
        settings.out / f"{settings.agent}.safetensors",
        about={**{key: about[key] for key in kept}, "description": agent["description"]},
    )
    print(path, result.metrics)


if __name__ == "__main__":
    run_script(main, Settings, __doc__, resumes=True)
