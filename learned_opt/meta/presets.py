"""How weights for the zoo are made: a rule, a mixture of tasks and settings, by name.

Whole families stay unseen in every preset (octopus, deep linear networks of depth 3 and more, phase
retrieval, soft committee machine), so that the benchmark shows what carries over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from learned_opt.errors import unknown_name
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.horizons import LogUniform
from learned_opt.meta.trainer import TrainResult
from learned_opt.rules.weights import load_rule, read_metadata, save_rule
from learned_opt.tasks import NoisyGradient, Rotated, get_task
from learned_opt.tasks.augmentations import Reparametrised
from learned_opt.tasks.base import Task
from learned_opt.tasks.mixture import Mixture

SCORE = "mean log10 gap over held-out problems and steps"
"""The score in the header of weights that a preset made."""


class Part(NamedTuple):
    """A task of a mixture.

    Attributes:
        task: the task.
        weight: its relative weight.
        epsilon: the smallest relative gap that counts there; None takes that of the settings.
    """

    task: Task
    weight: float
    epsilon: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Preset:
    """A training run that can be repeated.

    Attributes:
        rule: registered name.
        description: one line for the header of the weights.
        mixture: tasks and their relative weights, built when asked for.
        settings: entries of `TrainConfig` that differ from its defaults.
        keeps_last: ship the last weights instead of those with the best held-out score, which is
            another measure than what was trained for.
    """

    rule: str
    description: str
    mixture: Callable[[], list[Part]]
    settings: dict[str, Any]
    keeps_last: bool = False

    def config(self, **changes: Any) -> TrainConfig:
        """The settings of the run.

        Args:
            changes: entries that differ, such as the seed.

        Returns:
            The settings, with the weights and smallest targets of the mixture.
        """
        parts = self.mixture()
        weights = {"task_weights": tuple(part.weight for part in parts)}
        if any(part.epsilon is not None for part in parts):
            common = self.settings["epsilon"]
            weights["task_epsilons"] = tuple(part.epsilon or common for part in parts)
        return TrainConfig(**{**self.settings, **weights, **changes})

    def export(self, result: TrainResult, out: Path) -> Path:
        """Write the file that is bundled: the weights with a header that says where they are from.

        Args:
            result: what `meta_train` returned.
            out: the folder of the run.

        Returns:
            The file's path.
        """
        made = result.last if self.keeps_last else result.best
        score = result.last_score if self.keeps_last else result.best_score
        about = json.loads(read_metadata(made)["training"])
        horizon = f"{about['horizon']['low']} to {about['horizon']['high']}"
        if (stretch := about.get("stochastic_stretch", 1)) != 1:
            horizon += f", {stretch:g} times as long amid noise"
        return save_rule(
            load_rule(str(made)),
            out / f"{self.rule}.safetensors",
            metadata={
                "description": self.description,
                "tasks": [part.task.name for part in self.mixture()],
                "horizon": horizon,
                "seed": str(about["seed"]),
                "licence": "Apache-2.0",
                "scores": {SCORE: score},
            },
        )


def _rotated(name: str, **settings: Any) -> Task:
    return Rotated(get_task(name, **settings))


def _coordinatewise_mixture() -> list[Part]:
    # A perceptron episode costs as much as twenty of the others.
    return [
        Part(get_task("random_quadratic"), 1.0),
        Part(_rotated("strict_saddle", dim=4), 1.0),
        Part(_rotated("strict_saddle", dim=16), 1.0),
        Part(get_task("strict_saddle", dim=16), 1.0),
        Part(get_task("monkey_saddle"), 0.5),
        Part(get_task("re_zn", degree=4), 0.5),
        Part(get_task("x2_y4_y2"), 0.5),
        Part(get_task("phi4_chain", dim=8), 0.5),
        Part(get_task("matrix_factorization"), 1.0),
        Part(get_task("welsch"), 0.5),
        Part(get_task("geman_mcclure"), 0.5),
        Part(get_task("logistic_staircase"), 0.5),
        Part(get_task("sigmoid_regression"), 1.0),
        Part(get_task("rosenbrock", dim=4), 0.5),
        Part(get_task("digits_mlp", hidden=(5,), activation="sigmoid", batch_size=64), 0.1),
        Part(get_task("digits_mlp", hidden=(5,), activation="relu", batch_size=64), 0.1),
    ]


def _controller_mixture() -> list[Part]:
    # Weights are shares of the lanes. Settings differ from those of the benchmark where a family
    # has some to vary, so that nothing but the families themselves is known.
    noisy = Mixture.of(
        [get_task("random_quadratic", dim=16), _rotated("strict_saddle", dim=16)], [1.0, 1.0]
    )
    return [
        Part(_rotated("strict_saddle", dim=4), 1.0),
        Part(_rotated("strict_saddle", dim=10, smallest_curvature=0.3), 1.0),
        Part(_rotated("strict_saddle", dim=20, index=4, largest_escape=0.1), 0.7),
        Part(_rotated("strict_saddle", dim=30), 1.5),
        Part(get_task("strict_saddle", dim=2), 1.0),
        Part(get_task("strict_saddle", dim=30), 1.5),
        Part(get_task("monkey_saddle"), 1.0),
        Part(get_task("four_fold_saddle"), 1.0),
        Part(_rotated("re_zn", degree=5), 0.5),
        Part(get_task("x2_y3"), 1.0),
        Part(get_task("x2_y3", start_radius=0.1), 0.5),
        Part(get_task("x2_y4_y2"), 1.0),
        Part(get_task("x2_y6_y4"), 1.0),
        Part(get_task("phi4_chain", dim=8), 0.7),
        Part(get_task("matrix_factorization"), 1.5),
        Part(get_task("deep_linear", depth=2, width=5, hidden=4), 1.5),
        Part(_rotated("styblinski_tang", dim=6), 0.5),
        Part(get_task("welsch"), 1.0),
        Part(_rotated("welsch", dim=4), 0.5),
        Part(get_task("geman_mcclure"), 1.0),
        Part(get_task("logistic_staircase"), 1.0),
        Part(get_task("saturated_unit"), 1.0),
        Part(get_task("sigmoid_regression"), 2.0),
        Part(get_task("sigmoid_regression", dim=4), 1.0),
        Part(get_task("rosenbrock", dim=2), 0.5),
        Part(get_task("rosenbrock", dim=6), 0.7),
        Part(get_task("random_quadratic"), 0.7),
        Part(get_task("rippled_quadratic"), 0.3),
        Part(NoisyGradient(noisy, noise=0.05), 1.0, epsilon=1e-4),
        Part(NoisyGradient(noisy, noise=0.3), 1.0, epsilon=1e-3),
        *_small_nets(),
    ]


def _small_nets() -> list[Part]:
    """Perceptrons trained from minibatches, from 385 to 6,010 weights.

    A net is given targets that it can reach: with those of the other tasks it would wait for most
    of them in vain, and what it could win would not show.
    """

    def net(hidden: tuple[int, ...], activation: str, epsilon: float, **settings: Any) -> Part:
        task = get_task("digits_mlp", hidden=hidden, activation=activation, **settings)
        return Part(task, 0.5, epsilon=epsilon)

    def rescaled(part: Part) -> Part:
        # As with embeddings and normalisations, one tensor may be most of the length of them all.
        return part._replace(task=Reparametrised(part.task, level="tensor", scale_range=(0.25, 4)))

    return [
        net((16,), "relu", 1e-3, batch_size=32, num_train=128, init_std=0.15),
        rescaled(net((32,), "relu", 1e-3, batch_size=16, num_train=256, init_std=0.05)),
        rescaled(net((16,), "tanh", 1e-3, batch_size=64, num_train=256, init_std=0.1)),
        rescaled(net((12, 12, 12), "relu", 1e-3, batch_size=32, num_train=128, init_std=0.3)),
        net((12, 12, 12, 12), "relu", 1e-3, batch_size=32, num_train=128, init_std=0.18),
        net((8, 8), "sigmoid", 1e-2, batch_size=64, num_train=128, init_std=0.5),
        # Too small for its data: noise stays to the end.
        rescaled(net((5,), "relu", 3e-2, batch_size=32, num_train=256, init_std=0.1)),
        Part(get_task("breast_cancer_mlp", hidden=(12,), batch_size=32), 0.5, epsilon=1e-3),
        rescaled(
            Part(get_task("breast_cancer_mlp", hidden=(16, 16), batch_size=16), 0.5, epsilon=1e-3)
        ),
        # More data, so that much is left to learn when the horizon comes.
        net((16,), "relu", 1e-2, batch_size=32, num_train=500, init_std=0.12),
        rescaled(net((12, 12), "tanh", 1e-2, batch_size=16, num_train=500, init_std=0.15)),
        # Larger and deeper ones.
        net((40, 40), "relu", 1e-3, batch_size=64, num_train=256, init_std=0.09),
        net((24,) * 4, "relu", 1e-3, batch_size=32, num_train=256, init_std=0.12),
        net((16,) * 6, "relu", 1e-2, batch_size=32, num_train=256, init_std=0.16),
        net((80,), "relu", 1e-3, batch_size=64, num_train=256, init_std=0.08),
    ]


_COORDINATEWISE: dict[str, Any] = {
    "num_outer_steps": 12_000,
    "num_problems": 32,
    "truncation": 20,
    "horizon": LogUniform(50, 400),
    "objective": "log_gap",
    "epsilon": 1e-6,
    "random_scaling": 1.0,
    "num_eval_problems": 16,
    "eval_steps": 200,
    "evaluate_every": 500,
}


def _coordinatewise(rule: str, title: str, learning_rate: float) -> Preset:
    return Preset(
        rule=rule,
        description=f"{title} trained on saddles, plateaus, valleys, small nets",
        mixture=_coordinatewise_mixture,
        settings={**_COORDINATEWISE, "learning_rate": learning_rate},
    )


PRESETS: dict[str, Preset] = {
    "lstm": _coordinatewise("lstm", "Coordinatewise LSTM", 5e-3),
    "rnnprop": _coordinatewise("rnnprop", "RNNProp", 1e-3),
    "small_fc_lopt": _coordinatewise("small_fc_lopt", "small_fc_lopt", 3e-3),
    "mlp_lopt": _coordinatewise("mlp_lopt", "MLPLOpt", 3e-3),
    "learnable_adam": _coordinatewise("learnable_adam", "Adam's four hyperparameters", 3e-2),
    "residual": _coordinatewise("residual", "Learnable Adam corrected by small_fc_lopt", 3e-3),
    "controller": Preset(
        rule="controller",
        description="Recurrent nets that steer a trust region, trained by PPO",
        mixture=_controller_mixture,
        settings={
            "estimator": "ppo",
            "num_outer_steps": 7_200,
            "num_problems": 2304,
            "truncation": 32,
            "horizon": LogUniform(20, 400),
            "stochastic_stretch": 2.0,
            "noise_exploration": 0.4,
            "twins": True,
            "averaging": 0.1,
            "epsilon": 1e-5,
            "learning_rate": 1e-3,
            "clip_norm": 0.5,
            "num_eval_problems": 16,
            "eval_steps": 100,
            "evaluate_every": 1200,
            "log_every": 60,
        },
        keeps_last=True,
    ),
}
"""Presets by the rule that they train; what they made is bundled."""


def get_preset(name: str) -> Preset:
    """The preset that trains the rule called `name`.

    Raises:
        LearnedOptError: if there is none; the nearest name is suggested.

    Examples:
        >>> get_preset("lstm").config(seed=1).num_outer_steps
        12000
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
