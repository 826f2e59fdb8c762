"""Why does meta-training diverge? The plots and numbers of the page in docs, from hand-made rules.

On rippled bowls with a large step size, heavy ball is chaotic without diverging: what is the
meta-loss like along the learning rate at several horizons, how do the variance and direction of
back-propagation, ES and PES change with the horizon, and what becomes of runs that train the
learning rate and the momentum by each? On noisy bowls: what does truncation do to the gradient?

    python experiments/diagnosis.py            # about 5 minutes on one core
    python experiments/diagnosis.py --smoke    # seconds; shows that it runs, not the result

Writes numbers.json and the pictures into --out, which are those of docs/figures.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from learned_opt.cli.failures import run_script
from learned_opt.errors import LearnedOptError
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.diagnosis import (
    GradientQuality,
    meta_loss_profile,
    quality_by_horizon,
    quality_by_truncation,
)
from learned_opt.meta.horizons import Fixed
from learned_opt.meta.trainer import meta_train
from learned_opt.report.diagnosis import (
    bias_figure,
    health_figure,
    profile_figure,
    variance_figure,
)
from learned_opt.report.health import findings, read_run
from learned_opt.rules.base import Rule, get_rule
from learned_opt.rules.weights import load_rule
from learned_opt.tasks import NoisyGradient, get_task
from learned_opt.tasks.base import Task

HORIZONS = (5, 20, 80, 320)
TRUNCATIONS = (1, 5, 20, 80)
RATE, MOMENTUM = 1.0, 0.5
"""Where gradients are looked at and training begins: steep ripples repel, the bowl holds."""

RUNS: dict[str, dict[str, Any]] = {
    "back-propagation": {"second_order": True, "truncation": 80},
    "truncated": {"second_order": True, "truncation": 5},
    "first order": {"truncation": 20},
    "es": {"estimator": "es", "truncation": 20},
    "pes": {"estimator": "pes", "truncation": 20},
    "nres": {"estimator": "nres", "truncation": 20},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    out: Path = Path("runs/diagnosis")
    """Folder for numbers, pictures and runs."""
    seed: int = 0
    """Of problems, noise and training."""
    num_samples: int = 1024
    """Gradients whose mean and variance are taken."""
    num_reference: int = 8192
    """Pairs of the long-run mean."""
    num_points: int = 241
    """Of the meta-loss along the learning rate."""
    num_outer_steps: int = 400
    """Of each run."""
    smoke: bool = False
    """Tiny sizes, to see that it runs."""


def rippled(ripple: float = 0.5) -> Task:
    """Bowls whose curvature swings between -3.5 and 5.5 times its mean with ripples of 0.5."""
    return get_task("rippled_quadratic", dim=4, ripple=ripple, condition_decades=(0.5, 0.5))


def noisy() -> Task:
    """Bowls with condition number 100 and gradient noise, the setting of Wu et al. 2018."""
    bowl = get_task("rippled_quadratic", dim=8, ripple=0.0, condition_decades=(2.0, 2.0))
    return NoisyGradient(bowl, noise=1.0)


def heavy_ball() -> Rule:
    """The rule; theta is its learning rate and its momentum."""
    return get_rule("momentum", learning_rate=RATE, momentum=MOMENTUM)


def profile(settings: Settings, config: TrainConfig) -> dict[str, Any]:
    """The loss of one problem after T steps along the learning rate."""
    rates = torch.linspace(0.9, 1.1, settings.num_points, dtype=torch.float64)
    found = meta_loss_profile(
        heavy_ball(),
        rippled(),
        replace(config, objective="final", num_problems=1, num_pairs=1),
        direction=torch.tensor([1.0, 0.0]),
        offsets=rates - RATE,
        horizons=HORIZONS,
        num_draws=16 if settings.smoke else 512,
    )
    picture = settings.out / "diagnosis_meta_loss.png"
    shrink(profile_figure(found, picture, x=rates.tolist(), label="learning rate"))
    return {
        f"T = {horizon}": {
            "mean jump": jump(found.values[row]),
            "mean jump, smoothed": jump(found.smoothed[row]),
            "standard deviation": float(found.values[row].std()),
            "best rate": float(rates[found.values[row].argmin()]),
            "best rate, smoothed": float(rates[found.smoothed[row].argmin()]),
            "best smoothed meta-loss": float(found.smoothed[row].min()),
        }
        for row, horizon in enumerate(found.horizons)
    }


def jump(values: Tensor) -> float:
    """The mean step from one point to the next."""
    return float(values.diff().abs().mean())


def table(found: list[GradientQuality]) -> list[dict[str, Any]]:
    """The same as plain numbers."""
    return [
        {
            "estimate": entry.name,
            "horizon": entry.horizon,
            "truncation": entry.truncation,
            "mean": entry.mean.tolist(),
            "standard error": entry.standard_error.tolist(),
            "log10 variance": entry.log10_variance,
            "cosine": entry.cosine,
        }
        for entry in found
    ]


def shrink(picture: Path) -> None:
    """Few colours are enough for lines, and a third of the bytes."""
    Image.open(picture).convert("RGB").quantize(48).save(picture, optimize=True)


def train(settings: Settings, config: TrainConfig, name: str) -> dict[str, Any]:
    """Train the rule one way, and what its history says."""
    folder = settings.out / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    config = replace(
        config,
        num_problems=64,
        num_pairs=16,
        horizon=Fixed(80),
        num_outer_steps=settings.num_outer_steps,
        learning_rate=0.02,
        evaluate_every=max(1, settings.num_outer_steps // 20),
        log_every=5,
        **RUNS[name],
    )
    end = "finished"
    try:
        meta_train(heavy_ball(), rippled(), config=config, out=folder)
    except LearnedOptError as error:
        end = str(error)
    run = read_run(folder)
    _, scores = run.column("eval/score")
    norms = run.column("meta_gradient_norm")[1]
    plain = name.replace(" ", "_").replace("-", "_")
    shrink(health_figure(run, settings.out / f"diagnosis_health_{plain}.png"))
    last = folder / "last.safetensors"
    theta = load_rule(last).config() if last.exists() else {}
    return {
        "end": end,
        "score": [scores[0], scores.min(), scores[-1]],
        "gradient norm, median and largest": [
            float(torch.tensor(norms).median()) if len(norms) else math.nan,
            float(norms.max()) if len(norms) else math.nan,
        ],
        "theta": theta,
        "findings": [finding.symptom for finding in findings(run)],
    }


def main(settings: Settings) -> None:
    """Compute, draw, write."""
    if settings.smoke:
        settings = replace(
            settings, num_samples=32, num_reference=64, num_points=21, num_outer_steps=20
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    # Where descent converges, losses become denormal numbers, which stall a CPU.
    torch.set_flush_denormal(True)
    config = TrainConfig(
        dtype="float64",
        seed=settings.seed,
        sigma=0.03,
        truncation=5,
        num_pairs=settings.num_samples,
        num_problems=settings.num_samples,
    )
    numbers: dict[str, Any] = {"meta-loss": profile(settings, config)}
    print("meta-loss done", flush=True)
    reference = {"num_reference": settings.num_reference}
    by_horizon = quality_by_horizon(heavy_ball(), rippled(), config, horizons=HORIZONS, **reference)
    shrink(variance_figure(by_horizon, settings.out / "diagnosis_variance.png"))
    numbers["by horizon"] = table(by_horizon)
    calm = quality_by_horizon(heavy_ball(), rippled(0.0), config, horizons=HORIZONS, **reference)
    numbers["by horizon, without ripples"] = table(calm)
    print("variance done", flush=True)
    by_truncation = quality_by_truncation(
        get_rule("sgd", learning_rate=0.3),
        noisy(),
        replace(config, horizon=Fixed(80)),
        truncations=TRUNCATIONS,
        **reference,
    )
    picture = settings.out / "diagnosis_bias.png"
    shrink(bias_figure(by_truncation, picture, label="learning rate"))
    numbers["by truncation"] = table(by_truncation)
    print("bias done", flush=True)
    numbers["runs"] = {}
    for name in RUNS:
        numbers["runs"][name] = train(settings, config, name)
        print(name, json.dumps(numbers["runs"][name], default=float), flush=True)
    (settings.out / "numbers.json").write_text(json.dumps(numbers, indent=1, default=float))


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
