"""The outer loop: Adam on the meta-gradient, with evaluation, checkpoints and a history."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError, require
from learned_opt.meta.checkpoint import read_checkpoint, require_same_settings, write_checkpoint
from learned_opt.meta.config import TrainConfig, stream_seed
from learned_opt.meta.configured import (
    configured_estimator,
    truncated_backpropagation,
    warm_started,
)
from learned_opt.meta.estimators import MetaGradient, trainable
from learned_opt.meta.evaluation import draw_held_out, evaluate
from learned_opt.meta.history import History
from learned_opt.meta.interrupts import Interrupted, deferred_signals
from learned_opt.meta.outer_adam import OuterAdam, learning_rate_factors, power_average
from learned_opt.rules.base import Rule
from learned_opt.rules.weights import save_rule
from learned_opt.tasks.base import Task
from learned_opt.tracking import NullTracker, Tracker

__all__ = ["TrainConfig", "TrainResult", "meta_train", "truncated_backpropagation"]

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        best: weights with the lowest held-out score, or averages, see `TrainConfig.averaging`.
        last: weights after the last outer step, or their average.
        history: the record, as JSON lines.
        best_score: the score of `best`: mean log10 of the relative gap, over held-out problems and
            steps.
        best_step: outer steps that `best` had seen.
        last_score: the score of `last`.
        nonfinite_meta_losses: outer steps skipped because their meta-loss or meta-gradient was not
            finite.
    """

    best: Path
    last: Path
    history: Path
    best_score: float
    best_step: int
    last_score: float
    nonfinite_meta_losses: int


def meta_train(
    rule: Rule,
    tasks: Task | Sequence[Task],
    *,
    config: TrainConfig,
    out: Path | str,
    estimator: MetaGradient[Any] | None = None,
    tracker: Tracker | None = None,
    resume: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> TrainResult:
    """Train theta of `rule`, in place; averages are in the files alone.

    SIGINT and SIGTERM end the run after the outer step under way, with a checkpoint. A run that was
    ended or killed and then resumed yields the same weights, bit for bit, as one that never was.

    Args:
        rule: what to train; it is moved to the device and type that `config` names.
        tasks: what to train on; each episode draws one of them.
        config: settings.
        out: folder for ``best.safetensors``, ``last.safetensors``, ``history.jsonl`` and
            ``checkpoint.pt``; made if missing.
        estimator: how to estimate the meta-gradient, after the imitation if there is any; None as
            `config` says.
        tracker: where metrics go besides the history.
        resume: go on from the checkpoint in `out` if there is one.
        on_progress: called after each outer step with the steps done, their total and a short note.

    Returns:
        Paths and scores.

    Raises:
        LearnedOptError: if `rule` has nothing to train, `out` holds a run and `resume` is False, a
            checkpoint is damaged or was made with other settings, or meta-losses stay non-finite.
        Interrupted: if a signal ended the run.
    """
    tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
    require(
        len(trainable(rule)) > 0, f"rule '{rule.name}' has no parameters that require gradients"
    )
    estimator = estimator or configured_estimator(config, tasks)
    estimator.check(rule)
    run = _Run(
        rule,
        tasks,
        config=config,
        out=Path(out),
        estimator=estimator,
        tracker=tracker or NullTracker(),
        resume=resume,
    )
    try:
        with deferred_signals() as signal_received:
            while run.step < config.num_outer_steps:
                run.advance()
                if on_progress is not None:
                    on_progress(run.step, config.num_outer_steps, run.note)
                if (number := signal_received()) is not None:
                    run.save()
                    raise Interrupted(
                        f"interrupted after {run.step} of {config.num_outer_steps} outer steps; "
                        f"the checkpoint is in '{out}', resume (--resume) goes on from there",
                        signal_number=number,
                    )
        return run.result()
    finally:
        run.close()


def _first_losses(task: Task) -> list[str]:
    """What tells two tasks of one name apart, whatever their settings: where they start."""
    problems = task.sample(2, seed=0, dtype=torch.float64)
    return [f"{loss:.6e}" for loss in task.loss(problems.params, problems).tolist()]


@final
class _Run:
    """The mutable state of one meta-training run."""

    def __init__(
        self,
        rule: Rule,
        tasks: Sequence[Task],
        *,
        config: TrainConfig,
        out: Path,
        estimator: MetaGradient[Any],
        tracker: Tracker,
        resume: bool,
    ) -> None:
        self.rule = rule.to(device=config.device, dtype=config.torch_dtype)
        self.config, self.out, self.tracker = config, out, tracker
        self.estimator = warm_started(config, tasks, estimator)
        # A hand-made rule's config is its theta, which training moves and the checkpoint restores.
        theta = dict(rule.named_parameters())
        self.settings = {
            **config.to_json(),
            "rule": rule.name,
            "rule_config": {k: v for k, v in rule.config().items() if k not in theta},
            "feature_schema": rule.feature_schema,
            "tasks": [task.name for task in tasks],
            "dims": [task.dim for task in tasks],
            "first_losses": [_first_losses(task) for task in tasks],
            "estimator_class": type(estimator).__name__,
        }
        factors = {k: v for k, v in learning_rate_factors(rule).items() if v != 1}
        if factors:
            self.settings["learning_rate_factors"] = factors
        self.parameters = trainable(rule)
        self.optimizer = OuterAdam(rule, config)
        self.average = None if config.averaging is None else power_average(rule, config.averaging)
        self.rng = torch.Generator().manual_seed(stream_seed("meta-training", config.seed))
        self.held_out = draw_held_out(
            tasks, config.num_eval_problems, dtype=config.torch_dtype, device=config.device
        )
        self.step = 0
        self.state: Any = None
        self.num_nonfinite = 0
        self.num_nonfinite_in_a_row = 0
        self.best_score, self.best_step, self.last_score = math.inf, 0, math.inf
        self.window: list[list[float]] = []
        self.metrics: list[dict[str, float]] = []

        out.mkdir(parents=True, exist_ok=True)
        exists = self.checkpoint_path.exists()
        require(
            resume or not exists,
            f"out='{out}' already holds a run; resume (--resume) goes on with it, another folder "
            "starts anew",
        )
        length = self._restore() if exists else 0
        self.history = History(out / "history.jsonl", length=length)
        self.saved_at = time.monotonic()
        if not exists:
            self._evaluate()
            self.save()

    @property
    def checkpoint_path(self) -> Path:
        return self.out / "checkpoint.pt"

    @property
    def evaluated(self) -> Rule:
        """The rule whose weights are evaluated and kept."""
        if self.average is None:
            return self.rule
        averaged = self.average.module
        assert isinstance(averaged, Rule)
        return averaged

    @property
    def note(self) -> str:
        """One line on how the run stands."""
        return f"best score {self.best_score:.3f} at step {self.best_step}"

    def advance(self) -> None:
        """One outer step, with the logging, evaluation and checkpoint that are due after it."""
        config = self.config
        estimate = self.estimator.estimate(
            self.rule, self.state, progress=self.step / config.num_outer_steps, rng=self.rng
        )
        for parameter, grad in zip(self.parameters, estimate.grads, strict=True):
            parameter.grad = grad
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        meta_loss, grad_norm = torch.stack((estimate.meta_loss, norm)).tolist()
        if math.isfinite(meta_loss) and math.isfinite(grad_norm):
            self.state = estimate.state
            self.num_nonfinite_in_a_row = 0
            self.optimizer.set_learning_rate(config.learning_rate_at(self.step))
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.rule)
            self.window.append([meta_loss, grad_norm])
            self.metrics.append(dict(estimate.metrics))
        else:
            self._skip(meta_loss, grad_norm, estimate.diagnostics)
        self.step += 1
        is_last = self.step == config.num_outer_steps
        if self.step % config.log_every == 0 or is_last:
            self._record_window()
        if self.step % config.evaluate_every == 0 or is_last:
            self._evaluate()
        if is_last or time.monotonic() - self.saved_at >= config.checkpoint_seconds:
            self.save()

    def _skip(
        self, meta_loss: float, grad_norm: float, diagnostics: Mapping[str, float | Tensor]
    ) -> None:
        """Leave theta alone and draw a fresh episode next; give up if that keeps happening."""
        self.state = None
        self.num_nonfinite += 1
        self.num_nonfinite_in_a_row += 1
        where = ", ".join(f"{name} {float(value):g}" for name, value in diagnostics.items())
        _log.warning(
            "outer step %d skipped: meta-loss %g, meta-gradient norm %g (%s)",
            self.step + 1,
            meta_loss,
            grad_norm,
            where,
        )
        self.tracker.log({"nonfinite_meta_losses": self.num_nonfinite}, step=self.step + 1)
        if self.num_nonfinite_in_a_row >= self.config.max_nonfinite_in_a_row:
            raise LearnedOptError(
                f"meta-loss or meta-gradient was not finite {self.num_nonfinite_in_a_row} outer "
                f"steps in a row, up to step {self.step + 1} ({where}); a smaller learning rate, "
                "horizon or output scale may help"
            )

    def _record_window(self) -> None:
        """Log the means since the last record, over the steps that were not skipped."""
        metrics: dict[str, float] = {
            "learning_rate": self.config.learning_rate_at(self.step - 1),
            "nonfinite_meta_losses": self.num_nonfinite,
        }
        if self.window:
            losses, norms = zip(*self.window, strict=True)
            metrics["meta_loss"] = sum(losses) / len(losses)
            metrics["meta_gradient_norm"] = sum(norms) / len(norms)
            clipped = [norm > self.config.clip_norm for norm in norms]
            metrics["clipped_share"] = sum(clipped) / len(clipped)
        for name in dict.fromkeys(name for each in self.metrics for name in each):
            known = [each[name] for each in self.metrics if name in each]
            metrics[f"estimator/{name}"] = sum(known) / len(known)
        self.window, self.metrics = [], []
        self.history.append(self.step, metrics)
        self.tracker.log(metrics, step=self.step)

    def _evaluate(self) -> None:
        evaluation = evaluate(self.evaluated, self.held_out, num_steps=self.config.num_eval_steps)
        metrics = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        metrics["eval/score"] = self.last_score = evaluation.score
        self.history.append(self.step, metrics)
        self.tracker.log(metrics, step=self.step)
        if self.last_score < self.best_score:
            self.best_score, self.best_step = self.last_score, self.step
            self._save_rule("best")

    def _save_rule(self, name: str) -> Path:
        metadata = {
            "tasks": self.settings["tasks"],
            "horizon": self.settings["horizon"],
            "seed": str(self.config.seed),
            "licence": "Apache-2.0",
            "scores": {"held_out_mean_log10_gap": self.last_score, "outer_step": self.step},
            "training": self.settings,
        }
        return save_rule(self.evaluated, self.out / f"{name}.safetensors", metadata=metadata)

    def save(self) -> None:
        """Write the checkpoint."""
        write_checkpoint(
            self.checkpoint_path,
            {
                "settings": self.settings,
                "theta": self.rule.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "rng": self.rng.get_state(),
                "state": None if self.state is None else self.estimator.pack(self.state),
                "step": self.step,
                "num_nonfinite": self.num_nonfinite,
                "num_nonfinite_in_a_row": self.num_nonfinite_in_a_row,
                "best_score": self.best_score,
                "best_step": self.best_step,
                "last_score": self.last_score,
                "window": self.window,
                "metrics": self.metrics,
                "history_length": self.history.flush(),
            },
        )
        self.saved_at = time.monotonic()

    def _restore(self) -> int:
        """Take over the checkpoint.

        Returns:
            The length of the history that belongs to it.
        """
        path = self.checkpoint_path
        saved = read_checkpoint(path, device=self.config.device)
        # A setting that is younger than the checkpoint had its default, and what is observed was
        # the same. How often to save changes nothing of what is computed.
        younger = {**TrainConfig().to_json(), "feature_schema": self.rule.feature_schema}
        free = {"checkpoint_seconds": self.config.checkpoint_seconds}
        require_same_settings(path, {**younger, **saved["settings"], **free}, self.settings)
        try:
            self.rule.load_state_dict(saved["theta"])
        except RuntimeError as error:
            raise LearnedOptError(
                f"checkpoint '{path}' holds weights of other shapes than rule '{self.rule.name}'"
            ) from error
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.rng.set_state(saved["rng"].cpu())
        self.state = None if saved["state"] is None else self.estimator.unpack(saved["state"])
        self.step = saved["step"]
        self.num_nonfinite = saved["num_nonfinite"]
        self.num_nonfinite_in_a_row = saved["num_nonfinite_in_a_row"]
        self.best_score, self.best_step = saved["best_score"], saved["best_step"]
        self.last_score = saved["last_score"]
        self.window, self.metrics = saved["window"], saved["metrics"]
        length: int = saved["history_length"]
        return length

    def result(self) -> TrainResult:
        """Write the last weights and say where everything is."""
        result = TrainResult(
            best=self.out / "best.safetensors",
            last=self._save_rule("last"),
            history=self.out / "history.jsonl",
            best_score=self.best_score,
            best_step=self.best_step,
            last_score=self.last_score,
            nonfinite_meta_losses=self.num_nonfinite,
        )
        self.tracker.summary({"best_score": self.best_score, "best_step": self.best_step})
        self.tracker.artifact(f"{self.rule.name}-best", result.best, kind="model")
        return result

    def close(self) -> None:
        """Let go of the files."""
        self.history.close()
