"""``learned-opt train``: meta-train a learned rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import tyro

from learned_opt.cli.options import Options
from learned_opt.cli.progress import console, progress_bar
from learned_opt.errors import require
from learned_opt.meta.horizons import Curriculum, Fixed, Horizon, LogUniform
from learned_opt.meta.presets import get_preset
from learned_opt.meta.trainer import TrainConfig, TrainResult, meta_train
from learned_opt.rules.base import Rule, get_rule
from learned_opt.tasks.base import Task, get_task
from learned_opt.tracking import open_tracker

_BESIDE_PRESET = {"rule", "preset", "out", "checkpoint_seconds", "resume", "shared"}
"""What may be chosen beside a preset."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Meta-train a learned rule on its own runs."""

    rule: tyro.conf.Positional[
        Literal[
            "lstm",
            "rnnprop",
            "mlp_lopt",
            "small_fc_lopt",
            "learnable_adam",
            "residual",
            "controller",
        ]
    ] = "lstm"
    """Architecture; residual is learnable_adam corrected by small_fc_lopt."""
    preset: Literal["zoo"] | None = None
    """Train as the bundled weights were: only the output folder, the seed and how often to save are
    yours then."""
    tasks: tuple[str, ...] = ("random_quadratic",)
    """Tasks to train on, by name; each episode draws one."""
    out: Path = Path("runs/train")
    """Folder for best.safetensors, last.safetensors, history.jsonl and the checkpoint; with a
    preset also for the file that is shipped."""
    num_outer_steps: int = 2000
    """Outer updates, one per truncation."""
    num_problems: int = 64
    """Problems that move together in an episode, those of all pairs together."""
    estimator: Literal[
        "truncated_backpropagation",
        "backpropagation",
        "es",
        "pes",
        "es_single",
        "nres",
        "mixed",
        "ppo",
    ] = "truncated_backpropagation"
    """How the meta-gradient is estimated: by back-propagation through a truncation or a whole
    episode, evolution strategies, both, or (controller) by proximal policy optimization."""
    sigma: float = 0.01
    """Standard deviation of the perturbations of theta; for evolution strategies."""
    num_pairs: int = 16
    """Pairs of perturbed thetas, which share the problems; for evolution strategies."""
    exploration: tuple[float, float] = (0.3, 0.1)
    """Standard deviation of the decisions at the start and in the end; for ppo."""
    noise_exploration: float = 1.0
    """Factor on --exploration for tasks with minibatches or noise; for ppo."""
    twins: bool = False
    """Compare two runs on each such problem, which try opposite changes amid the same noise; for
    ppo."""
    truncation: int = 20
    """Inner steps per outer update; for ppo, per rollout; backpropagation takes whole episodes."""
    segment_length: int | None = None
    """Inner steps whose graph backpropagation holds at a time; the root of the horizon by
    default, which needs the least memory."""
    horizon: tuple[int, ...] = (100,)
    """Inner steps per episode: one number, or two for log-uniform draws between them."""
    curriculum: tuple[int, ...] = ()
    """Shorter horizons to begin with, in order; each of them, and then --horizon, gets an equal
    share of the outer steps."""
    objective: str = "log_gap"
    """Meta-objective: sum, final, log, log_gap, ..."""
    learning_rate: float = 3e-3
    """Outer Adam's first learning rate; it decays by a cosine."""
    warmup_steps: int = 0
    """Outer steps over which the learning rate rises to its first value."""
    averaging: float | None = None
    """Mean age, as a share of the steps so far, of the weights that are averaged to those that are
    evaluated and kept; those of the last step by default."""
    clip_norm: float = 1.0
    """Longest meta-gradient; longer ones are shortened."""
    second_order: bool = False
    """Differentiate through the gradients that the rule sees, too; for back-propagation."""
    imitation_steps: int = 0
    """Outer steps at the start in which the rule learns to take the steps of a teacher."""
    imitation_teacher: Literal[
        "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion"
    ] = "adam"
    """Whom to imitate."""
    imitation_learning_rate: float = 0.01
    """Learning rate of the teacher."""
    gradient_noise: tuple[float, float] | None = None
    """Range of the norm of noise on gradients, drawn for each training problem; none by default."""
    dimension_factor: float | None = None
    """Largest factor by which the number of coordinates grows, drawn for each training problem;
    none by default."""
    convex_term: float | None = None
    """Weight of a random convex bowl beside each training problem; none by default."""
    reparametrisation: Literal["global", "tensor", "parameter"] | None = None
    """What has random units in training problems: all coordinates alike, each tensor or each
    parameter; nothing by default."""
    reparametrisation_range: tuple[float, float] = (1e-3, 1e3)
    """Smallest and largest of these units."""
    random_scaling: float | None = None
    """Range r of pointwise random scaling exp(U(-r, r)); none by default."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints."""
    resume: bool = False
    """Go on from the checkpoint in the output folder, bit for bit."""
    shared: Options = field(default_factory=Options)

    def main(self) -> None:
        """Train and say where the weights are."""
        self.shared.apply()
        require(
            1 <= len(self.horizon) <= 2,
            f"--horizon takes one or two numbers of steps, got {self.horizon}",
        )
        for flag, lengths in (("horizon", self.horizon), ("curriculum", self.curriculum)):
            require(
                all(steps >= 1 for steps in lengths),
                f"--{flag} takes positive numbers of steps, got {lengths}",
            )
        horizon: Horizon = (
            Fixed(self.horizon[0]) if len(self.horizon) == 1 else LogUniform(*self.horizon)
        )
        if self.curriculum:
            horizon = Curriculum((*map(Fixed, self.curriculum), horizon))
        config = TrainConfig(
            num_outer_steps=self.num_outer_steps,
            num_problems=self.num_problems,
            estimator=self.estimator,
            sigma=self.sigma,
            num_pairs=self.num_pairs,
            exploration=self.exploration,
            noise_exploration=self.noise_exploration,
            twins=self.twins,
            truncation=self.truncation,
            segment_length=self.segment_length,
            horizon=horizon,
            objective=self.objective,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            averaging=self.averaging,
            clip_norm=self.clip_norm,
            second_order=self.second_order,
            imitation_steps=self.imitation_steps,
            imitation_teacher=self.imitation_teacher,
            imitation_learning_rate=self.imitation_learning_rate,
            gradient_noise=self.gradient_noise,
            dimension_factor=self.dimension_factor,
            convex_term=self.convex_term,
            reparametrisation=self.reparametrisation,
            reparametrisation_range=self.reparametrisation_range,
            random_scaling=self.random_scaling,
            checkpoint_seconds=self.checkpoint_seconds,
            seed=self.shared.seed,
            device=self.shared.device,
        )
        rule = _fresh_rule(self.rule, self.shared.seed)
        tasks = [get_task(name) for name in self.tasks]
        preset = None
        if self.preset is not None:
            self._require_defaults()
            preset = get_preset(self.rule)
            tasks = [part.task for part in preset.mixture()]
            config = preset.config(
                seed=self.shared.seed,
                device=self.shared.device,
                checkpoint_seconds=self.checkpoint_seconds,
            )
        result = train(
            rule, tasks, config=config, out=self.out, options=self.shared, resume=self.resume
        )
        print(result.best if preset is None else preset.export(result, self.out))

    def _require_defaults(self) -> None:
        """A preset that is changed is no preset."""
        for entry in fields(self):
            if entry.name not in _BESIDE_PRESET:
                flag = f"--{entry.name.replace('_', '-')}"
                require(
                    getattr(self, entry.name) == entry.default,
                    f"{flag} is set by the preset and must be left out, "
                    f"got {getattr(self, entry.name)}",
                )


def _fresh_rule(name: str, seed: int) -> Rule:
    """An untrained rule; where nothing is drawn, the seed is for training alone."""
    if name == "learnable_adam":
        return get_rule(name)
    if name == "residual":
        return get_rule(name, learned=get_rule("small_fc_lopt", seed=seed))
    return get_rule(name, seed=seed)


def train(
    rule: Rule,
    tasks: Sequence[Task],
    *,
    config: TrainConfig,
    out: Path,
    options: Options,
    resume: bool = False,
) -> TrainResult:
    """`meta_train` under a progress bar, tracked; the arguments are its own."""
    tracker = open_tracker(
        options.wandb,
        project=options.project,
        group="meta-training",
        name=f"train-{rule.name}",
        config={"tasks": [task.name for task in tasks]},
        directory=out,
        x_axis="outer_step",
    )
    with progress_bar() as bar:
        line = bar.add_task(f"training {rule.name}", total=config.num_outer_steps, note="")

        def on_progress(done: int, total: int, note: str) -> None:
            bar.update(line, completed=done, total=total, note=note)

        try:
            result = meta_train(
                rule,
                tasks,
                config=config,
                out=out,
                tracker=tracker,
                resume=resume,
                on_progress=on_progress,
            )
        finally:
            tracker.finish()
    console.print(f"best weights: {result.best}")
    return result
