"""Train the LSTM weights that the package ships as "lstm".

A mixture of saddles, plateaus, valleys and small perceptrons, with random scaling of coordinates,
so that the rule sees gradients of many sizes; horizons from 50 to 400 steps. Whole families stay
unseen (octopus, deep linear networks, phase retrieval, soft committee machine, Styblinski-Tang), so
that the benchmark shows what carries over.

    python experiments/train_zoo_lstm.py                # about 20 minutes on one core; resumable
    cp runs/zoo-lstm/lstm.safetensors learned_opt/zoo/  # ship them
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.progress import track

from learned_opt.meta.horizons import LogUniform
from learned_opt.meta.trainer import TrainConfig, meta_train
from learned_opt.rules.base import get_rule
from learned_opt.rules.weights import load_rule, save_rule
from learned_opt.tasks import Rotated, get_task

# Task, relative weight. A perceptron episode costs as much as twenty of the others.
MIXTURE = (
    (get_task("random_quadratic"), 1.0),
    (Rotated(get_task("strict_saddle", dim=4)), 1.0),
    (Rotated(get_task("strict_saddle", dim=16)), 1.0),
    (get_task("strict_saddle", dim=16), 1.0),
    (get_task("monkey_saddle"), 0.5),
    (get_task("re_zn", degree=4), 0.5),
    (get_task("x2_y4_y2"), 0.5),
    (get_task("phi4_chain", dim=8), 0.5),
    (get_task("matrix_factorization"), 1.0),
    (get_task("welsch"), 0.5),
    (get_task("geman_mcclure"), 0.5),
    (get_task("logistic_staircase"), 0.5),
    (get_task("sigmoid_regression"), 1.0),
    (get_task("rosenbrock", dim=4), 0.5),
    (get_task("digits_mlp", hidden=(5,), activation="sigmoid", batch_size=64), 0.1),
    (get_task("digits_mlp", hidden=(5,), activation="relu", batch_size=64), 0.1),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be changed; the defaults are those of the shipped weights."""

    out: Path = Path("runs/zoo-lstm")
    """Folder for weights, history and checkpoint."""
    num_outer_steps: int = 12_000
    """Outer updates, one per truncation of 20 steps."""
    seed: int = 0
    """Meta-seed."""


def main(settings: Settings) -> None:
    """Train, or go on from the checkpoint."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tasks = [task for task, _ in MIXTURE]
    steps = iter(track(range(settings.num_outer_steps), description="training lstm"))
    done = 0

    def on_progress(now: int, total: int, note: str) -> None:
        nonlocal done
        del total, note
        while done < now:
            next(steps, None)
            done += 1

    result = meta_train(
        get_rule("lstm", seed=settings.seed),
        tasks,
        config=TrainConfig(
            num_outer_steps=settings.num_outer_steps,
            num_problems=32,
            truncation=20,
            horizon=LogUniform(50, 400),
            objective="log_gap",
            epsilon=1e-6,
            task_weights=tuple(weight for _, weight in MIXTURE),
            random_scaling=1.0,
            learning_rate=5e-3,
            num_eval_problems=16,
            eval_steps=200,
            evaluate_every=500,
            seed=settings.seed,
        ),
        out=settings.out,
        resume=True,
        on_progress=on_progress,
    )
    path = save_rule(
        load_rule(str(result.best)),
        settings.out / "lstm.safetensors",
        metadata={
            "description": "Coordinatewise LSTM trained on saddles, plateaus, valleys, small nets",
            "tasks": [task.name for task in tasks],
            "horizon": "50 to 400",
            "seed": settings.seed,
            "licence": "Apache-2.0",
            "scores": {"mean log10 gap over held-out problems and steps": result.best_score},
        },
    )
    print(path)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
