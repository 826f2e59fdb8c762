"""Made-up but lifelike results: known times, levels, divergences and paths."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

import learned_opt.tasks  # noqa: F401  (registers the tasks that landscapes are rebuilt from)
from learned_opt.bench.results import Results
from learned_opt.bench.shards import RUNS_SCHEMA, TUNING_SCHEMA
from learned_opt.bench.suites import get_suite
from learned_opt.bench.units import derive_seed
from learned_opt.tasks.base import get_task

NUM_INSTANCES = 6
BUDGET = 400
STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400]
RULES = {"sgd": 90.0, "momentum": 30.0, "adam": 20.0, "l<sub>&": 12.0}
LEARNED = "l<sub>&"
TASKS = {
    "monkey_saddle": ("re_zn", "saddle", 2, False),
    "strict_saddle-10-rotated": ("strict_saddle", "saddle", 10, True),
    "welsch": ("welsch", "plateau", 8, False),
}


def curve(time: float, diverges: bool) -> list[float]:
    """A loss that rests at 1, then at the level 0.3, then falls to 1e-5, tenfold every `time`."""
    values = []
    for step in STEPS:
        falling = 10.0 ** -max(0.0, (step - time) / time)
        values.append(math.nan if diverges and step > 32 else max(1e-5, 1.0 * falling))
    return values


def path(time: float) -> tuple[list[int], list[float], list[float]]:
    """Gradient descent on the first instance, in float64."""
    task = get_task("monkey_saddle")
    seed = derive_seed(0, "evaluation", "monkey_saddle")
    problem = task.sample(NUM_INSTANCES, seed=seed, dtype=torch.float64).select(torch.tensor([0]))
    (name,) = problem.params
    x = problem.params[name].clone()
    points = [x[0].tolist()]
    for _ in range(60):
        point = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(task.loss({name: point}, problem).sum(), point)
        x = x - 3.0 / time * grad
        points.append(x[0].tolist())
    return list(range(61)), [p[0] for p in points], [p[1] for p in points]


def first_loss() -> float:
    task = get_task("monkey_saddle")
    seed = derive_seed(0, "evaluation", "monkey_saddle")
    problems = task.sample(NUM_INSTANCES, seed=seed, dtype=torch.float64)
    return float(task.loss(problems.params, problems)[0])


def make_rows() -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for task, (family, kind, dim, rotated) in TASKS.items():
        for rule, base in RULES.items():
            learned = rule == LEARNED
            for trials in (0,) if learned else (0, 4):
                for instance in range(NUM_INSTANCES):
                    time = base * (1 if learned or trials else 3) * rng.uniform(0.9, 1.1)
                    diverges = (rule, trials, task) == ("sgd", 0, "welsch") and instance < 2
                    losses = curve(time, diverges)
                    times = {f"t_gap{k}": time * (1 + k) for k in (1, 2, 3, 4)}
                    times |= {"t_exit": time, "t_half": 1.2 * time, "t_solve": time * 4}
                    limit = 0 if diverges else BUDGET
                    times = {k: t if t <= limit else math.inf for k, t in times.items()}
                    steps, x, y = [], [], []
                    if task == "monkey_saddle" and instance < 2:
                        steps, x, y = path(base)
                        losses[0] = first_loss()
                    status = "solved" if times["t_solve"] < math.inf else "censored"
                    rows.append({
                        **times,
                        "suite": "made-up",
                        "task": task,
                        "family": family,
                        "kind": kind,
                        "dim": dim,
                        "rotated": rotated,
                        "rule": rule,
                        "rule_kind": "learned" if learned else "hand-made",
                        "tuning_trials": trials,
                        "instance": instance,
                        "seed": 0,
                        "budget": BUDGET,
                        "status": "diverged" if diverges else status,
                        "final_loss": losses[-1],
                        "best_loss": float(np.nanmin(losses)),
                        "log_gap": 1.0 if diverges else math.log10(losses[-1]),
                        "minimum": 0.0,
                        "reference": 1.0,
                        "next_level": 0.3,
                        "levels": [1.0, 0.3, 0.0],
                        "zero_gradient_steps": 0,
                        "seconds": 0.01,
                        "hyperparameters": "{}" if learned else json.dumps({"learning_rate": 0.1}),
                        "curve_step": STEPS,
                        "curve_loss": losses,
                        "path_step": steps,
                        "path_x": x,
                        "path_y": y,
                        "config_hash": f"{task}-{rule}",
                    })
    return rows


@pytest.fixture(scope="session")
def results() -> Results:
    entries = {entry.label: entry for entry in get_suite("saddle-core")}
    metadata = {
        "format_version": 1,
        "suite": "made-up",
        "seed": 0,
        "num_instances": NUM_INSTANCES,
        "tuning_trials": [0, 4],
        "dtype": "float64",
        "entries": {"monkey_saddle": dataclasses.asdict(entries["monkey_saddle"])},
        "versions": {"python": "3.11", "torch": "2.6"},
        "command": ["learned-opt", "bench", "made-up"],
    }
    runs = pa.Table.from_pylist(make_rows(), schema=RUNS_SCHEMA)
    return Results(runs, TUNING_SCHEMA.empty_table(), metadata)


@pytest.fixture(scope="session")
def empty(results: Results) -> Results:
    return Results(results.runs.slice(0, 0), results.tuning, results.metadata)
