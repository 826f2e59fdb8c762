"""How good a rule is on problems it was not trained on: the same ones in every run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from learned_opt.meta.config import stream_seed
from learned_opt.meta.objectives import relative_gaps
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.unroll import unroll

WORST_LOG10_GAP = 10.0
"""What a loss that is not finite, or further away than this, counts as."""


@final
@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Fixed problems of one task.

    Attributes:
        label: names the task in metrics.
        task: what the losses mean.
        problems: the instances.
    """

    label: str
    task: Task
    problems: Problems


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the held-out problems say.

    Attributes:
        score: mean over tasks, problems and steps of log10 of the relative gap; lower is better.
        metrics: ``label/measure`` -> number. Measures: ``mean_log10_gap`` over all steps,
            ``final_log10_gap``, ``nonfinite`` (the share of problems that ended so) and, where
            losses cannot be negative, ``final_log10_loss``.
    """

    score: float
    metrics: dict[str, float]


def draw_held_out(
    tasks: Sequence[Task], num_problems: int, *, dtype: torch.dtype, device: torch.device | str
) -> list[HeldOut]:
    """Draw the problems of an evaluation; they depend on no training seed.

    Args:
        tasks: the distributions.
        num_problems: problems of each.
        dtype: floating-point type.
        device: where they live.

    Returns:
        One entry per task.
    """
    counts = Counter(task.name for task in tasks)
    return [
        HeldOut(
            label=task.name if counts[task.name] == 1 else f"{task.name}-{position}",
            task=task,
            problems=task.sample(
                num_problems,
                seed=torch.Generator().manual_seed(stream_seed("held-out problems", position)),
                dtype=dtype,
                device=device,
            ),
        )
        for position, task in enumerate(tasks)
    ]


def evaluate(rule: Rule, held_out: Sequence[HeldOut], *, num_steps: int) -> Evaluation:
    """Let `rule` train the held-out problems.

    Args:
        rule: the rule to judge.
        held_out: problems by task.
        num_steps: inner steps.

    Returns:
        Score and metrics.
    """
    metrics: dict[str, float] = {}
    scores: list[float] = []
    for position, entry in enumerate(held_out):
        rng = torch.Generator().manual_seed(stream_seed("held-out batches", position))
        facts = entry.problems.facts
        losses = unroll(entry.task, rule, entry.problems, num_steps=num_steps, rng=rng).losses
        gaps = relative_gaps(losses[:, 1:], facts=facts, initial=losses[:, 0]).double()
        floor = math.log10(torch.finfo(losses.dtype).eps)
        log10_gaps = gaps.log10().nan_to_num(nan=WORST_LOG10_GAP).clamp(floor, WORST_LOG10_GAP)
        final = losses[:, -1].double()
        scores.append(log10_gaps.mean().item())
        metrics[f"{entry.label}/mean_log10_gap"] = scores[-1]
        metrics[f"{entry.label}/final_log10_gap"] = log10_gaps[:, -1].mean().item()
        metrics[f"{entry.label}/nonfinite"] = (~final.isfinite()).double().mean().item()
        if bool((facts.minimum >= 0).all()):
            tiny = torch.finfo(losses.dtype).tiny
            metrics[f"{entry.label}/final_log10_loss"] = final.clamp_min(tiny).log10().mean().item()
    return Evaluation(score=sum(scores) / len(scores), metrics=metrics)
