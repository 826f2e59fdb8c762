"""Meta-training for a given time of the processor, with schedules that end when it does.

`meta_train` counts outer steps. Ways of training whose steps differ a thousandfold in price, and
grow dearer or cheaper on the way, cannot be given equal time by a number of steps that a pilot
foretold. Here learning rate and `progress` follow the time that is spent instead; all else is as in
`meta_train`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from learned_opt.meta.config import TrainConfig, stream_seed
from learned_opt.meta.estimators import MetaGradient, trainable
from learned_opt.meta.outer_adam import OuterAdam
from learned_opt.rules.base import Rule

FINENESS = 1_000_000
"""Parts that the time is cut into for the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How a run went.

    Attributes:
        seconds: of the processor, scoring left out: the time given and what the last step took
            beyond it.
        outer_steps: updates of theta, and those skipped.
        nonfinite: outer steps without a finite meta-gradient, which were skipped.
        clock: seconds spent when the rule was scored.
        steps: outer steps done then.
        scores: what it was given.
    """

    seconds: float
    outer_steps: int
    nonfinite: int
    clock: list[float]
    steps: list[int]
    scores: list[float]


def train_for(
    seconds: float,
    rule: Rule,
    estimator: MetaGradient[Any],
    *,
    config: TrainConfig,
    score: Callable[[Rule], float],
    num_scores: int = 1,
    now: Callable[[], float] = time.process_time,
) -> Timed:
    """Train theta of `rule`, in place, until the time is used up.

    What an estimator does before its first step (problems drawn, episodes run ahead) is paid for
    like all else.

    Args:
        seconds: of the processor.
        rule: what to train.
        estimator: how.
        config: learning rate and its decay, clipping and seed; numbers of steps play no part.
        score: a number for the rule, off the clock.
        num_scores: how often, besides once before training; the last time at the end.
        now: the clock.

    Returns:
        How it went.
    """
    estimator.check(rule)
    config = replace(config, num_outer_steps=FINENESS)
    parameters = trainable(rule)
    optimizer = OuterAdam(rule, config)
    rng = torch.Generator().manual_seed(stream_seed("meta-training", config.seed))
    state: Any = None
    spent, outer_steps, nonfinite = 0.0, 0, 0
    clock, steps, scores = [0.0], [0], [score(rule)]
    while spent < seconds:
        begin, progress = now(), spent / seconds
        estimate = estimator.estimate(rule, state, progress=progress, rng=rng)
        for parameter, grad in zip(parameters, estimate.grads, strict=True):
            parameter.grad = grad
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        if estimate.meta_loss.isfinite() and norm.isfinite():
            state = estimate.state
            optimizer.set_learning_rate(config.learning_rate_at(round(progress * FINENESS)))
            optimizer.step()
        else:
            state, nonfinite = None, nonfinite + 1
        outer_steps += 1
        spent += now() - begin
        if spent >= min(1.0, len(scores) / num_scores) * seconds:
            clock.append(spent)
            steps.append(outer_steps)
            scores.append(score(rule))
    return Timed(
        seconds=spent,
        outer_steps=outer_steps,
        nonfinite=nonfinite,
        clock=clock,
        steps=steps,
        scores=scores,
    )
