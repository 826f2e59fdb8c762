"""Runs of ways_of_training.py: the ways, the tasks they share, training for a time, and races."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _capped import Times, entries_of, measure
from _timed_training import Timed, train_for

from learned_opt.errors import require
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.configured import configured_estimator
from learned_opt.meta.evaluation import draw_held_out, evaluate
from learned_opt.meta.presets import Part, get_preset
from learned_opt.rules import get_rule
from learned_opt.rules.base import Rule
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import load_rule, save_rule
from learned_opt.tasks.base import Task
from learned_opt.tasks.mixture import Mixture

PARTS = (
    "rotated(strict_saddle)-4",
    "rotated(strict_saddle)-30",
    "strict_saddle-30",
    "x2_y3-2",
    "deep_linear-40",
    "welsch-8",
    "sigmoid_regression-8",
    "rosenbrock-2",
    "noisy(mixture)-16",
    "digits_mlp-1210",
    "breast_cancer_mlp-398",
)
"""Names of tasks and their numbers of parameters: what all ways are trained on."""

SEEN = ("random_quadratic", "strict_saddle")
"""What the noisy mixture holds."""

INSTANCES = 0
"""Seed of the instances that are measured on, the same for all."""


def _controller(seed: int) -> Rule:
    return get_rule("controller", seed=seed)


def _heavy_ball(seed: int) -> Rule:
    """As many recurrent units as the controller has, which starts as nearly plain momentum."""
    return get_rule(
        "policy",
        actuator="hyper_control",
        lstm_units=32,
        hidden=(),
        scope="problem",
        output_scale=0.01,
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of training.

    Attributes:
        label: in table and figure.
        colour: of its lines.
        estimator: of the meta-gradient.
        changes: settings that differ from the preset, which is PPO's.
        rule: from a seed, what is trained.
    """

    label: str
    colour: str
    estimator: str
    changes: dict[str, Any] = field(default_factory=dict)
    rule: Callable[[int], Rule] = _controller

    @property
    def plays(self) -> bool:
        """Whether it takes a target for each task, and mixes the deterministic ones itself."""
        return self.estimator == "ppo"


WAYS = {
    "ppo": Way(label="PPO", colour="#0072B2", estimator="ppo"),
    "pes": Way(
        label="PES",
        colour="#E69F00",
        estimator="pes",
        # A pair costs little beside the batches, one for each of four groups of tasks.
        changes={"num_problems": 128, "num_pairs": 32, "truncation": 20, "sigma": 0.03},
    ),
    "truncated_backpropagation": Way(
        label="back-propagation, truncated",
        colour="#CC3311",
        estimator="truncated_backpropagation",
        changes={"num_problems": 64, "truncation": 20},
    ),
    "ppo-hyper_control": Way(
        label="PPO, hyper_control actuator",
        colour="#009E73",
        estimator="ppo",
        rule=_heavy_ball,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run: a way, a learning rate and seconds of processor time; `small` to try it."""

    way: str
    rate: float
    seed: int
    seconds: float
    folder: Path
    num_scores: int
    small: bool

    @property
    def weights(self) -> Path:
        """Where the trained weights are."""
        return self.folder / "last.safetensors"


class Measured(NamedTuple):
    """A finished run and its times on each task."""

    job: Job
    run: Timed
    times: dict[str, Times]


def picked(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """The first part of each name, such as ``welsch-8``, with its weight and target."""
    first: dict[str, Part] = {}
    for part in parts:
        first.setdefault(f"{part.task.name}-{part.task.dim}", part)
    missing = [name for name in names if name not in first]
    require(not missing, f"the preset's mixture has no {', '.join(missing)}")
    return [first[name] for name in names]


def scaled(rule: Rule, task: Task) -> Rule:
    """A copy that takes its first step size in units of the task's curvature, as in the mixture.

    It is what HyperControl does, and what the controller, which has no step size, does without.
    """
    assert isinstance(rule, PolicyRule)
    copied = copy.deepcopy(rule)
    copied.learning_rate /= task.smoothness
    return copied


def batched(parts: Sequence[Part]) -> tuple[list[Task], tuple[float, ...]]:
    """All deterministic tasks as one that mixes them, then the others, with their weights.

    PPO plays them so by itself. With the others an episode, or a pair, would have a task to itself:
    as many batches as tasks for PES, and a gradient that is of one task at a time.
    """
    certain = [part for part in parts if not part.task.is_stochastic]
    others = [part for part in parts if part.task.is_stochastic]
    mixture = Mixture.of([part.task for part in certain], [part.weight for part in certain])
    weights = (sum(part.weight for part in certain), *(part.weight for part in others))
    return [mixture, *(part.task for part in others)], weights


def all_parts(*, small: bool = False) -> list[Part]:
    """What all ways are trained on, or one part in five of it."""
    return picked(get_preset("controller").mixture(), PARTS[:: 5 if small else 1])


def configured(job: Job, parts: Sequence[Part]) -> tuple[list[Task], TrainConfig]:
    """Tasks as the estimator wants them, and settings."""
    way, preset = WAYS[job.way], get_preset("controller")
    if way.plays:
        tasks, weights = [part.task for part in parts], tuple(part.weight for part in parts)
        common = preset.settings["epsilon"]
        own: dict[str, Any] = {"task_epsilons": tuple(part.epsilon or common for part in parts)}
    else:
        tasks, weights = batched(parts)
        own = {
            "task_epsilons": None,
            "stochastic_stretch": 1.0,
            "noise_exploration": 1.0,
            "twins": False,
        }
    config = preset.config(
        estimator=way.estimator,
        seed=job.seed,
        learning_rate=job.rate,
        task_weights=weights,
        averaging=None,  # of weights that come at equal times, not steps
        **own,
        **way.changes,
    )
    if job.small:
        num_pairs = min(8, config.num_pairs)
        config = replace(config, num_problems=4 * num_pairs, num_pairs=num_pairs, eval_steps=10)
    return tasks, config


def train(job: Job) -> Timed:
    """Train for the given time, or read what an earlier call left."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    summary = job.folder / "trained.json"
    if summary.exists():
        return Timed(**json.loads(summary.read_text()))
    way, parts = WAYS[job.way], all_parts(small=job.small)
    tasks, config = configured(job, parts)
    held_out = draw_held_out(
        [part.task for part in parts], 8, dtype=config.torch_dtype, device=config.device
    )

    def score(rule: Rule) -> float:
        known = [
            evaluate(scaled(rule, each.task), [each], num_steps=config.num_eval_steps).score
            for each in held_out
        ]
        return sum(known) / len(known)

    rule = way.rule(job.seed)
    run = train_for(
        job.seconds,
        rule,
        configured_estimator(config, tasks),
        config=config,
        score=score,
        num_scores=job.num_scores,
    )
    job.folder.mkdir(parents=True, exist_ok=True)
    save_rule(rule, job.weights)
    summary.write_text(json.dumps(asdict(run)))
    return run


def names_of(parts: Sequence[Part]) -> list[str]:
    """Tasks as a header of weights would list them, those of the noisy mixture by name."""
    return [part.task.name for part in parts if "mixture" not in part.task.name] + list(SEEN)


def race(job: Job, suites: Sequence[str], num_instances: int) -> dict[str, Times]:
    """Steps of the trained rule to the targets, or what an earlier call found."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    entries = entries_of(suites, names_of(all_parts()))
    if job.small:
        entries = dict(list(entries.items())[:3:2])
    path = job.folder / "times.json"
    asked = {"labels": list(entries), "num_instances": num_instances}
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("asked") != asked:
        rule = load_rule(str(job.weights))
        found = {
            label: measure(
                scaled(rule, entry.build()), entry, num_instances=num_instances, seed=INSTANCES
            )
            for label, (entry, _) in entries.items()
        }
        times = {label: [each.means.tolist(), each.solved] for label, each in found.items()}
        known = {"asked": asked, "times": times}
        path.write_text(json.dumps(known))
    return {
        label: Times(means=np.array(means), solved=solved)
        for label, (means, solved) in known["times"].items()
    }
