"""The settings of a meta-training run."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from typing import Any, final

import torch

from learned_opt.errors import require, unknown_name
from learned_opt.meta.horizons import Fixed, Horizon
from learned_opt.meta.objectives import get_objective
from learned_opt.tasks.augmentations import REPARAMETRISATIONS
from learned_opt.tasks.transformed_task import require_range

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Floating-point types by name."""

ESTIMATORS = (
    "truncated_backpropagation",
    "backpropagation",
    "es",
    "pes",
    "es_single",
    "nres",
    "mixed",
    "ppo",
)
"""Names of the ways to estimate the meta-gradient; see `learned_opt.meta.configured`."""

TEACHERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion")
"""Names of the rules that can be imitated."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `meta_train`; everything but the rule and the tasks.

    Attributes:
        num_outer_steps: outer updates, one per truncation.
        num_problems: problems that move together in an episode; with perturbations, those of all
            pairs together.
        truncation: inner steps of an outer update; ``backpropagation`` takes all of the episode.
        segment_length: inner steps whose graph ``backpropagation`` holds at a time; None takes the
            root of the horizon, which needs the least memory.
        horizon: how many inner steps an episode lasts.
        objective: name of the meta-objective: ``sum``, ``final``, ``log``, ``log_gap``,
            ``log_mean_gap`` or ``balanced``.
        epsilon: floor of the logarithmic objectives, relative to the loss or gap at the start.
        task_weights: relative probability of each task; None makes them equal.
        task_epsilons: `epsilon` of each task, for ``ppo``; None makes all the same.
        imitation_steps: outer steps at the start in which the rule learns to take the steps of a
            teacher (Chen et al. 2020, arXiv:2010.09089), whatever the `estimator`; see
            `learned_opt.meta.imitation`.
        imitation_teacher: whom to imitate: a name in `TEACHERS`.
        imitation_learning_rate: of the teacher.
        gradient_noise: range of the norm of Gaussian noise on the gradients of training problems,
            which is drawn log-uniformly for each; None adds none. See `NoisyGradient`.
        dimension_factor: largest factor by which the number of coordinates of a training problem
            grows, drawn for each; None leaves it. See `RandomDimension`.
        convex_term: weight of a convex bowl beside each training problem (Lv et al. 2017,
            arXiv:1703.03633, use 1); None adds none. See `ConvexTerm`.
        reparametrisation: what has random units in training problems: ``global`` (all coordinates
            alike), ``tensor`` or ``parameter``; None leaves them. See `Reparametrised`.
        reparametrisation_range: smallest and largest of these units.
        random_scaling: range ``r`` of the random scaling ``exp(U(-r, r))`` of the coordinates of
            training problems (Lv et al. 2017, arXiv:1703.03633, use 3); None leaves them alone.
        second_order: differentiate through the gradients that the rule sees.
        estimator: how the meta-gradient is estimated: ``truncated_backpropagation``, or from pairs
            of perturbed thetas by ``es``, ``pes``, ``es_single`` or ``nres``, or from both as
            ``mixed``; or from decisions drawn at random by ``ppo``, which minimises the log of the
            time to gaps down to `epsilon` whatever the `objective`, with `num_problems` lanes,
            rollouts of `truncation` steps and an outer step for each minibatch.
        sigma: standard deviation of the perturbations of theta.
        num_pairs: pairs of perturbed thetas; `num_problems` must be a multiple.
        exploration: standard deviation of the decisions of ``ppo``, at the start and in the end.
        noise_exploration: factor on it on tasks with minibatches or noise, for ``ppo``. A change of
            decisions is kept up for a rollout there, and a rule that has to live with large ones
            learns to be careful.
        twins: whether ``ppo`` compares two runs on each such problem, which try opposite changes
            amid the same noise, so that smaller changes show.
        epochs: passes of ``ppo`` over a rollout.
        minibatches: parts of such a pass.
        stochastic_stretch: episodes on tasks with minibatches or noise last this many times longer
            than `horizon` says, for ``ppo``.
        coordinate_share: share of the coordinates that a first-order meta-gradient is estimated
            from; below 1 only for coordinatewise rules.
        learning_rate: outer Adam's first learning rate.
        warmup_steps: outer steps over which the learning rate rises to its first value.
        final_learning_rate_fraction: what the cosine decay leaves of it in the end.
        second_moment_decay: outer Adam's ``beta2``. Meta-gradients are heavy-tailed, and 0.99
            forgets an outlier ten times sooner than Adam's usual 0.999.
        averaging: mean age, as a share of the outer steps so far, of the weights that are averaged
            to those that are evaluated and kept: at 0.5 the plain mean (Polyak and Juditsky 1992),
            below it the power law of Karras et al. 2024 (arXiv:2312.02696), steps skipped left out;
            None evaluates and keeps those of the last step.
        clip_norm: largest Euclidean norm of the meta-gradient; longer ones are shortened.
        max_nonfinite_in_a_row: outer steps in a row whose meta-loss or meta-gradient may be not
            finite before the run is given up.
        seed: of everything random in training.
        evaluate_every: outer steps between evaluations on the held-out problems.
        num_eval_problems: held-out problems of each task, the same in every run.
        eval_steps: inner steps of an evaluation; None takes the longest horizon.
        log_every: outer steps that one line of the history covers.
        checkpoint_seconds: seconds between checkpoints; 0 writes one after every outer step.
        dtype: ``float32`` or ``float64``, of theta and of the problems.
        device: where theta and the problems live.
    """

    num_outer_steps: int = 2000
    num_problems: int = 64
    truncation: int = 20
    segment_length: int | None = None
    horizon: Horizon = field(default=Fixed(100))
    objective: str = "log_gap"
    epsilon: float = 1e-6
    task_weights: tuple[float, ...] | None = None
    task_epsilons: tuple[float, ...] | None = None
    imitation_steps: int = 0
    imitation_teacher: str = "adam"
    imitation_learning_rate: float = 0.01
    gradient_noise: tuple[float, float] | None = None
    dimension_factor: float | None = None
    convex_term: float | None = None
    reparametrisation: str | None = None
    reparametrisation_range: tuple[float, float] = (1e-3, 1e3)
    random_scaling: float | None = None
    second_order: bool = False
    estimator: str = "truncated_backpropagation"
    sigma: float = 0.01
    num_pairs: int = 16
    exploration: tuple[float, float] = (0.3, 0.1)
    noise_exploration: float = 1.0
    twins: bool = False
    epochs: int = 3
    minibatches: int = 4
    stochastic_stretch: float = 1.0
    coordinate_share: float = 1.0
    learning_rate: float = 3e-3
    warmup_steps: int = 0
    final_learning_rate_fraction: float = 0.02
    second_moment_decay: float = 0.99
    averaging: float | None = None
    clip_norm: float = 1.0
    max_nonfinite_in_a_row: int = 50
    seed: int = 0
    evaluate_every: int = 200
    num_eval_problems: int = 128
    eval_steps: int | None = None
    log_every: int = 10
    checkpoint_seconds: float = 120.0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (
            "num_outer_steps",
            "num_problems",
            "truncation",
            "imitation_learning_rate",
            "epsilon",
            "sigma",
            "num_pairs",
            "noise_exploration",
            "epochs",
            "minibatches",
            "stochastic_stretch",
            "learning_rate",
            "clip_norm",
            "max_nonfinite_in_a_row",
            "evaluate_every",
            "num_eval_problems",
            "log_every",
        ):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name} must be positive, got {value}")
        require(
            0 <= self.final_learning_rate_fraction <= 1,
            "final_learning_rate_fraction must lie in [0, 1], "
            f"got {self.final_learning_rate_fraction}",
        )
        require(
            self.warmup_steps >= 0, f"warmup_steps must not be negative, got {self.warmup_steps}"
        )
        require(
            0 < self.second_moment_decay < 1,
            f"second_moment_decay must lie in (0, 1), got {self.second_moment_decay}",
        )
        require(
            self.eval_steps is None or self.eval_steps >= 1,
            f"eval_steps must be positive or None, got {self.eval_steps}",
        )
        require(
            self.averaging is None or 0 < self.averaging <= 0.5,
            f"averaging must lie in (0, 0.5] or be None, got {self.averaging}",
        )
        for name in ("segment_length", "convex_term", "random_scaling"):
            value = getattr(self, name)
            require(
                value is None or (value > 0 and math.isfinite(value)),
                f"{name} must be positive or None, got {value}",
            )
        require(
            0 <= self.imitation_steps <= self.num_outer_steps,
            f"imitation_steps must lie between 0 and num_outer_steps={self.num_outer_steps}, "
            f"got {self.imitation_steps}",
        )
        if self.gradient_noise is not None:
            require_range("gradient_noise", self.gradient_noise)
        require(
            self.dimension_factor is None or 1 <= self.dimension_factor < math.inf,
            f"dimension_factor must be at least 1 or None, got {self.dimension_factor}",
        )
        if self.reparametrisation not in {None, *REPARAMETRISATIONS}:
            raise unknown_name("reparametrisation", str(self.reparametrisation), REPARAMETRISATIONS)
        require_range("reparametrisation_range", self.reparametrisation_range)
        if self.imitation_teacher not in TEACHERS:
            raise unknown_name("imitation_teacher", self.imitation_teacher, TEACHERS)
        require(
            self.checkpoint_seconds >= 0,
            f"checkpoint_seconds must not be negative, got {self.checkpoint_seconds}",
        )
        require(
            len(self.exploration) == 2 and min(self.exploration) > 0,
            f"exploration must be two positive numbers, got {self.exploration}",
        )
        get_objective(self.objective)
        if self.estimator not in ESTIMATORS:
            raise unknown_name("estimator", self.estimator, ESTIMATORS)
        slopes = {"truncated_backpropagation", "backpropagation", "mixed"}
        require(
            not self.second_order or self.estimator in slopes,
            f"second_order=True needs an estimator that back-propagates, got '{self.estimator}'",
        )
        require(
            self.coordinate_share == 1 or self.estimator == "truncated_backpropagation",
            "coordinate_share below 1 needs the estimator 'truncated_backpropagation', "
            f"got '{self.estimator}'",
        )
        require(
            self.segment_length is None or self.estimator == "backpropagation",
            f"segment_length needs the estimator 'backpropagation', got '{self.estimator}'",
        )
        require(
            self.estimator != "ppo" or self.device == "cpu",
            f"device must be cpu for the estimator 'ppo', got '{self.device}'",
        )
        require(
            self.task_epsilons is None or self.estimator == "ppo",
            f"task_epsilons need the estimator 'ppo', got '{self.estimator}'",
        )
        require(
            self.noise_exploration == 1 or self.estimator == "ppo",
            f"noise_exploration needs the estimator 'ppo', got '{self.estimator}'",
        )
        require(
            not self.twins or self.estimator == "ppo",
            f"twins need the estimator 'ppo', got '{self.estimator}'",
        )
        require(
            self.stochastic_stretch == 1 or self.estimator == "ppo",
            f"stochastic_stretch needs the estimator 'ppo', got '{self.estimator}'",
        )
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that `dtype` names."""
        return DTYPES[self.dtype]

    @property
    def num_eval_steps(self) -> int:
        """Inner steps of an evaluation."""
        return self.horizon.longest if self.eval_steps is None else self.eval_steps

    def learning_rate_at(self, step: int) -> float:
        """Outer learning rate of the update number `step`, counted from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.num_outer_steps))
        low = self.final_learning_rate_fraction
        warmth = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return self.learning_rate * warmth * (low + (1 - low) * cosine)

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON holds them."""
        settings = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        settings["horizon"] = self.horizon.config()
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain


def stream_seed(purpose: str, seed: int) -> int:
    """The seed of an independent random stream.

    Hashing keeps training away from the problems that a plain ``task.sample(n, seed=seed)`` names,
    which benchmarks draw.

    Args:
        purpose: what the stream is for.
        seed: the user's seed.

    Returns:
        A seed below ``2**63``.
    """
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
