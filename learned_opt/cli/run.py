"""``learned-opt run``: the main job in miniature, from training to the page."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from learned_opt.bench.search_spaces import BASELINES
from learned_opt.bench.suites import get_suite
from learned_opt.cli.bench import present, race
from learned_opt.cli.options import Options
from learned_opt.cli.progress import console
from learned_opt.cli.train import train
from learned_opt.errors import require
from learned_opt.meta.horizons import LogUniform
from learned_opt.meta.trainer import TrainConfig
from learned_opt.rules.base import get_rule
from learned_opt.rules.weights import list_rules


@dataclass(frozen=True, kw_only=True)
class Run:
    """Train a small LSTM, race it against tuned baselines on `quick`, write the page, log to W&B.

    The same command again goes on from whatever is finished.
    """

    out: Path = Path("runs/demo")
    """Folder for weights, shards, page and W&B runs."""
    num_outer_steps: int = 1500
    """Outer updates of the training, about 25 a second."""
    num_instances: int = 25
    """Fresh problem instances per task that the numbers are reported on."""
    tuning_trials: int = 16
    """Sobol trials per baseline and task."""
    workers: int = 2
    """Processes of the benchmark; the numbers do not depend on it."""
    shared: Options = field(default_factory=Options)

    def main(self) -> None:
        """Train, race, present."""
        self.shared.apply()
        require(
            self.tuning_trials >= 1, f"--tuning-trials must be positive, got {self.tuning_trials}"
        )
        console.rule("1  train")
        training = self.out / "train"
        result = train(
            get_rule("lstm", seed=self.shared.seed),
            [entry.build() for entry in get_suite("quick")],
            config=TrainConfig(
                num_outer_steps=self.num_outer_steps,
                num_problems=64,
                horizon=LogUniform(40, 200),
                objective="log_gap",
                seed=self.shared.seed,
                device=self.shared.device,
            ),
            out=training,
            options=self.shared,
            resume=True,
        )
        weights = self.out / "lstm-demo.safetensors"
        shutil.copyfile(result.best, weights)
        console.rule("2  race")
        results = race(
            ["quick"],
            rules=[*BASELINES, *list_rules(), str(weights)],
            out=self.out,
            seed=self.shared.seed,
            num_instances=self.num_instances,
            num_tuning_instances=8,
            tuning_trials=(0, self.tuning_trials),
            budget_scale=1.0,
            workers=self.workers,
            device=self.shared.device,
            dtype="float64",
        )
        console.rule("3  look")
        present(
            results,
            self.out,
            options=self.shared,
            weights=weights,
            training_history=training / "history.jsonl",
        )
