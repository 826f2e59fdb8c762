"""Training an agent: rollouts, updates, held-out evaluation, checkpoints and a history."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from learned_opt.errors import LearnedOptError, require
from learned_opt.meta.checkpoint import require_same_settings, write_checkpoint
from learned_opt.meta.config import stream_seed
from learned_opt.meta.history import History
from learned_opt.meta.interrupts import Interrupted, deferred_signals
from learned_opt.rl.agents import (
    agent_state,
    build_adapter,
    build_agent,
    cut_values,
    set_agent_state,
)
from learned_opt.rl.checkpoints import CHECKPOINT, KIND, read_agent_checkpoint
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.environments import make_lanes
from learned_opt.rl.evaluate import play_rule, summarize
from learned_opt.rl.export import about_agent, export_agent, middle_learning_rate, save_agent
from learned_opt.rl.optional import require_module
from learned_opt.rl.state import generators, own_generators, pack, set_generators, unpack
from learned_opt.rules.policy import PolicyRule
from learned_opt.tracking import NullTracker, Tracker


@final
@dataclass(frozen=True, kw_only=True)
class AgentResult:
    """What a finished run leaves.

    Attributes:
        best: exported policy with the highest score.
        last: exported policy at the end.
        history: the record, as JSON lines.
        checkpoint: where the run can be taken up.
        best_score: mean return over the held-out episodes of `best`, in the environment's units.
        best_step: steps that `best` had been trained for.
        last_score: the score of `last`.
        steps: steps taken in all.
        metrics: the last evaluation, see `summarize`.
    """

    best: Path
    last: Path
    history: Path
    checkpoint: Path
    best_score: float
    best_step: int
    last_score: float
    steps: int
    metrics: dict[str, float]


def train_agent(
    config: AgentConfig,
    *,
    out: Path | str,
    tracker: Tracker | None = None,
    resume: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> AgentResult:
    """Train an agent with stable-baselines3 and export it.

    What is evaluated, and kept when it is the best so far, is the exported rule: it plays one
    episode in each of the held-out lanes, without exploration.

    SIGINT and SIGTERM end the run before the next rollout, with a checkpoint. A run that was ended
    or killed and then resumed yields the same weights, bit for bit, as one that never was, for
    every algorithm, if torch runs one thread. The process's global random generators, which
    stable-baselines3 seeds and draws from, are left as they were found.

    Args:
        config: settings.
        out: folder for ``best.safetensors``, ``last.safetensors``, ``history.jsonl`` and
            ``checkpoint.pt``; made if missing.
        tracker: where metrics go besides the history.
        resume: go on from the checkpoint in `out` if there is one.
        on_progress: called before each rollout with the steps done, their total and a short note.

    Returns:
        Paths and scores.

    Raises:
        LearnedOptError: if the extra ``rl`` is not installed, the algorithm does not fit the
            environment, `out` holds a run and `resume` is False, or a checkpoint is damaged or was
            made with other settings.
        Interrupted: if a signal ended the run.
    """
    with own_generators():
        run = _Run(config, Path(out), tracker or NullTracker(), resume=resume)
        try:
            with deferred_signals() as signal_received:
                run.learn(signal_received, on_progress or (lambda *_: None))
            return run.result()
        finally:
            run.close()


class _Enough(Exception):
    """Training ends before its last step."""


@final
class _Run:
    """The mutable state of one training run."""

    def __init__(self, config: AgentConfig, out: Path, tracker: Tracker, *, resume: bool) -> None:
        self.config, self.out, self.tracker = config, out, tracker
        self.settings = config.to_json()
        self.adapter = build_adapter(config)
        self.per_lane: int = self.adapter.agents_per_lane
        self.core = self.adapter.lanes.core
        self.model = build_agent(config, self.adapter)
        held_out = {**config.env_settings, "instance_seed": config.eval_instance_seed}
        self.held_out = make_lanes(
            config.env, held_out, num_lanes=config.num_eval_lanes, autoreset="Disabled"
        )
        self.best_score, self.best_step = -math.inf, 0
        self.num_stale = 0
        self.evaluated_at: int = -1
        self.metrics: dict[str, float] = {}
        out.mkdir(parents=True, exist_ok=True)
        exists = self.checkpoint_path.exists()
        require(
            resume or not exists,
            f"out='{out}' already holds a run; resume (--resume) goes on with it, another folder "
            "starts anew",
        )
        # Streams of lanes are numbered consecutively: plain seeds would share most of them.
        self.adapter.seed(stream_seed("agent", config.seed) >> 1)
        self.model._last_obs = self.adapter.reset()
        self.model._last_episode_starts = torch.ones(self.adapter.num_envs).bool().numpy()
        length = self._restore() if exists else 0
        self.history = History(out / "history.jsonl", length=length)
        self.saved_at = time.monotonic() if exists else -math.inf

    @property
    def checkpoint_path(self) -> Path:
        return self.out / CHECKPOINT

    @property
    def steps(self) -> int:
        """Steps of lanes so far."""
        return int(self.model.num_timesteps) // self.per_lane

    @property
    def note(self) -> str:
        """One line on how the run stands."""
        if not self.metrics:
            return ""
        gap = self.metrics["median_log10_gap"]
        return f"median log10 gap {gap:.2f}, best return {self.best_score:.2f}"

    def learn(
        self,
        signal_received: Callable[[], int | None],
        on_progress: Callable[[int, int, str], None],
    ) -> None:
        """Train to the end, or until a signal or patience ends it."""
        total = self.config.total_steps

        def boundary() -> None:
            if self.evaluated_at < 0 or self.steps - self.evaluated_at >= self._stride():
                self._evaluate()
            on_progress(min(self.steps, total), total, self.note)
            number = signal_received()
            late = time.monotonic() - self.saved_at >= self.config.checkpoint_seconds
            if number is not None or late:
                self.save()
            if number is not None:
                raise Interrupted(
                    f"interrupted after {self.steps} of {total} steps; "
                    f"the checkpoint is in '{self.out}', resume (--resume) goes on from there",
                    signal_number=number,
                )
            if self.config.patience is not None and self.num_stale >= self.config.patience:
                raise _Enough

        with contextlib.suppress(_Enough):
            self.model.learn(
                total * self.per_lane - self.model.num_timesteps,
                callback=_callback(self.model, self.adapter, boundary, self.config),
                log_interval=None,
                reset_num_timesteps=False,
            )
        if self.evaluated_at != self.steps:
            self._evaluate()
        self.save()
        on_progress(min(self.steps, total), total, self.note)

    def _stride(self) -> int:
        """Steps from the last evaluation to the next multiple of `evaluate_every`."""
        every = self.config.evaluate_every
        return int(every - self.evaluated_at % every)

    def _rule(self) -> PolicyRule:
        return export_agent(self.model, learning_rate=middle_learning_rate(self.core))

    def _evaluate(self) -> None:
        rule = self._rule()
        episodes = play_rule(
            rule, self.held_out, seed=stream_seed("held-out agents", 0) >> 1
        ).episodes
        self.metrics = summarize(episodes)
        score, self.evaluated_at = self.metrics["return"], self.steps
        record = {f"eval/{name}": value for name, value in self.metrics.items()}
        record |= {
            name: float(value)
            for name, value in self.model.logger.name_to_value.items()
            if name.startswith("train/")
        }
        record |= {f"rollout/{name}": value for name, value in self.adapter.take_tally().items()}
        self.history.append(self.steps, record)
        self.tracker.log(record, step=self.steps)
        if score > self.best_score:
            self.best_score, self.best_step, self.num_stale = score, self.steps, 0
            self._save_rule(rule, "best")
        else:
            self.num_stale += 1

    def _save_rule(self, rule: PolicyRule, name: str) -> Path:
        about = about_agent(self.config, self.core, self.steps, self.metrics)
        return save_agent(rule, self.out / f"{name}.safetensors", about=about)

    def save(self) -> None:
        """Write the checkpoint."""
        write_checkpoint(
            self.checkpoint_path,
            {
                "kind": KIND,
                "settings": self.settings,
                "agent": agent_state(self.model),
                "env": pack(self.adapter.get_state()),
                "generators": generators(self.model.action_space),
                "evaluated_at": self.evaluated_at,
                "best_score": self.best_score,
                "best_step": self.best_step,
                "num_stale": self.num_stale,
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
        saved = read_agent_checkpoint(path)
        # How often to save changes nothing of what is computed.
        free = {"checkpoint_seconds": self.config.checkpoint_seconds}
        require_same_settings(path, {**saved["settings"], **free}, self.settings)
        try:
            set_agent_state(self.model, saved["agent"])
            self.adapter.set_state(unpack(saved["env"], self.adapter.get_state()))
        except (KeyError, RuntimeError, ValueError) as error:
            raise LearnedOptError(
                f"checkpoint '{path}' does not fit this version of the agent or environment"
            ) from error
        set_generators(saved["generators"], self.model.action_space)
        self.evaluated_at, self.num_stale = saved["evaluated_at"], saved["num_stale"]
        self.best_score, self.best_step = saved["best_score"], saved["best_step"]
        self.metrics = saved["metrics"]
        length: int = saved["history_length"]
        return length

    def result(self) -> AgentResult:
        """Write the last policy and say where everything is."""
        result = AgentResult(
            best=self.out / "best.safetensors",
            last=self._save_rule(self._rule(), "last"),
            history=self.out / "history.jsonl",
            checkpoint=self.checkpoint_path,
            best_score=self.best_score,
            best_step=self.best_step,
            last_score=self.metrics["return"],
            steps=self.steps,
            metrics=self.metrics,
        )
        self.tracker.summary({"best_score": self.best_score, "best_step": self.best_step})
        self.tracker.artifact(f"{self.config.algo}-best", result.best, kind="model")
        return result

    def close(self) -> None:
        """Let go of files and environments."""
        self.history.close()
        self.adapter.close()
        self.held_out.close()


def _callback(model: Any, adapter: Any, boundary: Callable[[], None], config: AgentConfig) -> Any:
    """What stable-baselines3 calls before each rollout and after each step."""
    base = require_module("stable_baselines3.common.callbacks").BaseCallback

    class Callback(base):  # type: ignore[misc, valid-type]
        def _on_rollout_start(self) -> None:
            boundary()

        def _on_step(self) -> bool:
            agents, last = adapter.cut
            if config.is_on_policy and config.bootstrap_truncated and len(agents):
                values = cut_values(
                    model, torch.from_numpy(last), torch.from_numpy(agents), self.locals
                )
                # The rollout is stored after this call, from this very array.
                self.locals["rewards"][agents] += config.gamma * values.numpy()
            return True

    return Callback()
