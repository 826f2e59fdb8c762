"""What the history of a meta-training run says about its health."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from learned_opt.errors import LearnedOptError, require
from learned_opt.rules.weights import read_metadata

PAGE = "docs/why-does-my-meta-training-diverge.md"
"""The page that explains symptoms, causes and remedies."""

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """The record of a run.

    Attributes:
        columns: metric -> its outer steps and values, which may be infinite or NaN.
        settings: the run's `TrainConfig` as JSON; empty if no weights were saved beside it.
    """

    columns: Mapping[str, tuple[Array, Array]]
    settings: Mapping[str, Any]

    def column(self, name: str) -> tuple[Array, Array]:
        """Steps and values of a metric; both empty if it was never recorded."""
        return self.columns.get(name, (np.empty(0), np.empty(0)))

    @property
    def last_step(self) -> int:
        """The last outer step on record."""
        return int(max(steps[-1] for steps, _ in self.columns.values()))

    @property
    def clip_norm(self) -> float | None:
        """The threshold of the gradient norm, if known."""
        found = self.settings.get("clip_norm")
        return None if found is None else float(found)


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something worth knowing about a run.

    Attributes:
        symptom: what the history shows.
        remedy: what to try.
        metric: the metric that shows it, to be marked in the panel; empty for none.
        step: the outer step at which it begins; None where it has no beginning.
    """

    symptom: str
    remedy: str
    metric: str = ""
    step: int | None = None


def read_run(folder: Path | str) -> RunHistory:
    """Read what `meta_train` left in a folder, during a run or after it.

    Args:
        folder: with ``history.jsonl`` and, for the settings, ``best.safetensors``.

    Returns:
        The record.

    Raises:
        LearnedOptError: if there is no history, or it is damaged, empty or of something else.
    """
    path = Path(folder) / "history.jsonl"
    require(path.is_file(), f"'{folder}' holds no history.jsonl; a folder of 'learned-opt train'?")
    found: dict[str, list[tuple[float, float]]] = {}
    lines = path.read_text().split("\n")
    # A run under way may be in the middle of its last line; whole lines end with a line break.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
            for name, value in record.items():
                found.setdefault(name, []).append((step, float(value)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LearnedOptError(f"'{path}': line {number} is no record of a run") from error
    require("eval/score" in found, f"'{path}' holds no meta-training: it has no held-out score")
    weights = Path(folder) / "best.safetensors"
    header = read_metadata(weights) if weights.is_file() else {}
    return RunHistory(
        columns={
            name: (np.array([s for s, _ in pairs]), np.array([v for _, v in pairs]))
            for name, pairs in found.items()
        },
        settings=json.loads(header.get("training", "{}")),
    )


def findings(run: RunHistory) -> list[Finding]:
    """What a look at the history finds, the most alarming first; empty if nothing.

    Thresholds are rules of thumb. They call attention; whether something is wrong, the figure and
    the page say.

    Args:
        run: the record.

    Returns:
        Symptoms with remedies.
    """
    looks: list[Callable[[RunHistory], Finding | None]] = [
        _not_finite,
        _ended_early,
        _exploding,
        _clipped,
        _held_out_worse,
        _never_better,
        _short_sighted,
        _noisy,
        _far_without_noise,
        _far_amid_noise,
        _pairs_left_out,
        _held_out_not_finite,
    ]
    return [finding for look in looks if (finding := look(run)) is not None]


def _not_finite(run: RunHistory) -> Finding | None:
    steps, counts = run.column("nonfinite_meta_losses")
    if not len(counts) or counts[-1] == 0:
        return None
    first = int(steps[np.argmax(counts > 0)])
    plural = "es" if counts[-1] > 1 else ""
    return Finding(
        symptom=f"{counts[-1]:,.0f} non-finite meta-loss{plural}, the first by step {first:,}; "
        "those steps were skipped",
        remedy="lower the learning rate, shorten the horizon, or estimate by nres or es, which "
        "leave out single pairs",
        metric="nonfinite_meta_losses",
        step=first,
    )


def _ended_early(run: RunHistory) -> Finding | None:
    total, last = run.settings.get("num_outer_steps"), run.last_step
    if total is None or last >= total:
        return None
    steps, counts = run.column("nonfinite_meta_losses")
    if len(counts) >= 2 and counts[-1] - counts[-2] == steps[-1] - steps[-2]:
        return Finding(
            symptom=f"the record ends at step {last:,} of {total:,} with nothing but "
            "non-finite meta-losses",
            remedy="theta is where inner loops diverge: begin anew with a lower learning rate, "
            "--resume would go on from there",
            metric="nonfinite_meta_losses",
            step=last,
        )
    return Finding(
        symptom=f"the record ends at step {last:,} of {total:,}",
        remedy="if the run is not under way, go on with --resume",
    )


def _exploding(run: RunHistory) -> Finding | None:
    steps, norms = run.column("meta_gradient_norm")
    if len(norms) < 10:
        return None
    typical = float(np.median(norms))
    largest = int(np.argmax(norms))
    # The first windows belong to untrained weights, whose gradients may well be long.
    early, late = (float(np.median(part)) for part in np.array_split(norms, 5)[::4])
    if early > 0 and late > 100 * early:
        return Finding(
            symptom=f"the gradient norm grew from {early:.2g} to {late:.2g}",
            remedy="the inner loop has become chaotic: shorten the truncation, or estimate by "
            "nres, pes or mixed",
            metric="meta_gradient_norm",
            step=int(steps[np.argmax(norms > 100 * early)]),
        )
    if typical > 1e6:
        return Finding(
            symptom=f"a gradient norm of {typical:.2g} is typical, the largest "
            f"{norms[largest]:.2g}",
            remedy="inner loops are chaotic and the direction is noise: shorten the truncation, or "
            "estimate by nres, pes or es",
            metric="meta_gradient_norm",
        )
    if typical > 0 and norms[largest] > 1000 * typical:
        return Finding(
            symptom=f"gradient norms of up to {norms[largest]:.2g}, where {typical:.2g} is typical",
            remedy="single inner loops are chaotic: keep clip_norm, shorten the truncation, or "
            "estimate by nres or mixed",
            metric="meta_gradient_norm",
            step=int(steps[largest]),
        )
    return None


def _clipped(run: RunHistory) -> Finding | None:
    limit = run.clip_norm
    _, shares = run.column("clipped_share")
    if not len(shares):
        # Histories from before the share was recorded know the means over log_every steps alone.
        _, norms = run.column("meta_gradient_norm")
        shares = (norms > (limit or math.inf)).astype(np.float64)
    if not len(shares) or shares.mean() < 0.5:
        return None
    threshold = "" if limit is None else f" of {limit:g}"
    return Finding(
        symptom=f"gradient norm above the clipping threshold{threshold} in "
        f"{100 * shares.mean():.0f} % of the steps",
        remedy="the outer steps have one length whatever the gradient says; harmless if the "
        "held-out score falls, otherwise a sign of chaos: compare with nres",
        metric="meta_gradient_norm",
    )


def _held_out_worse(run: RunHistory) -> Finding | None:
    steps, scores = run.column("eval/score")
    best = int(np.argmin(scores))
    gained = scores[0] - scores[best]
    lost = scores[-1] - scores[best]
    if best in {0, len(scores) - 1} or lost <= max(0.1, 0.2 * gained):
        return None
    return Finding(
        symptom=f"held-out score got worse after step {steps[best]:,.0f}: "
        f"{scores[best]:.2f}, now {scores[-1]:.2f}",
        remedy="best.safetensors holds that step; lower the learning rate or let it decay "
        "further, and see that training horizons reach eval_steps",
        metric="eval/score",
        step=int(steps[best]),
    )


def _never_better(run: RunHistory) -> Finding | None:
    steps, scores = run.column("eval/score")
    if len(scores) < 2 or np.argmin(scores) > 0:
        return None
    return Finding(
        symptom=f"held-out score never better than before training ({scores[0]:.2f}, "
        f"now {scores[-1]:.2f})",
        remedy="check the estimate first: a first-order or truncated gradient may point the wrong "
        "way; then try a learning rate ten times lower",
        metric="eval/score",
        step=int(steps[0]),
    )


def _short_sighted(run: RunHistory) -> Finding | None:
    steps, losses = run.column("meta_loss")
    _, scores = run.column("eval/score")
    is_known = np.isfinite(losses)
    if is_known.sum() < 10 or len(scores) < 3 or np.argmin(scores) == 0:
        return None
    # The second halves of both: at first, losses may fall late for want of finished episodes.
    third, last = np.array_split(losses[is_known], 4)[2:]
    fall, half = third.mean() - last.mean(), len(scores) // 2
    if fall <= 2 * last.std() or scores[half:].min() < scores[: half + 1].min() - 0.02:
        return None
    return Finding(
        symptom=f"meta-loss fell by another {fall:.2g} in the second half while the held-out "
        "score stood still",
        remedy="what is gained in a truncation is not gained over an evaluation: lengthen the "
        "horizon, or estimate by nres or pes, which know no truncation bias",
        metric="meta_loss",
        step=int(steps[len(steps) // 2]),
    )


def _noisy(run: RunHistory) -> Finding | None:
    steps, stds = run.column("estimator/gradient_std")
    norm_steps, norms = run.column("meta_gradient_norm")
    if not len(stds):
        return None
    known = np.isin(norm_steps, steps) & (norms > 0)
    ratios = stds[np.isin(steps, norm_steps[known])] / norms[known]
    # The squared norm of an estimate is that of the gradient and the variance together.
    if not len(ratios) or np.median(ratios) < 0.9:
        return None
    return Finding(
        symptom="the gradient is mostly noise: its standard deviation is "
        f"{100 * np.median(ratios):.0f} % of its norm",
        remedy="natural once the held-out score has settled; before that, more pairs, a larger "
        "sigma, nres instead of pes, or mixed where the inner loop is calm",
        metric="meta_gradient_norm",
    )


def _far_without_noise(run: RunHistory) -> Finding | None:
    return _far(run, "kl_divergence", "")


def _far_amid_noise(run: RunHistory) -> Finding | None:
    return _far(run, "kl_divergence_amid_noise", " amid noise")


def _far(run: RunHistory, metric: str, where: str) -> Finding | None:
    steps, divergences = run.column(f"estimator/{metric}")
    is_far = divergences > 0.05
    if not len(divergences) or is_far.mean() <= 0.1:
        return None
    return Finding(
        symptom=f"the policy moves far between two rollouts{where}: divergence "
        f"{np.median(divergences[is_far]):.2g} in {100 * is_far.mean():.0f} % of the records",
        remedy="what was played no longer says what pays: a lower learning rate (of that part of "
        "the rule, `learning_rate_factor`), fewer epochs, more problems",
        metric="meta_loss",
        step=int(steps[np.argmax(is_far)]),
    )


def _pairs_left_out(run: RunHistory) -> Finding | None:
    steps, counts = run.column("estimator/nonfinite_pairs")
    if not len(counts) or counts.mean() == 0:
        return None
    return Finding(
        symptom=f"{counts.mean():.2g} pairs a step were not finite and left out",
        remedy="a smaller sigma keeps perturbed rules from diverging",
        metric="nonfinite_meta_losses",
        step=int(steps[np.argmax(counts > 0)]),
    )


def _held_out_not_finite(run: RunHistory) -> Finding | None:
    worst = {
        name.split("/")[1]: values[-1]
        for name, (_, values) in run.columns.items()
        if name.startswith("eval/") and name.endswith("/nonfinite") and values[-1] > 0
    }
    if not worst:
        return None
    task = max(worst, key=worst.__getitem__)
    return Finding(
        symptom=f"{100 * worst[task]:.2g} % of the held-out problems of {task} end non-finite",
        remedy="train on longer horizons, or deploy under guard (the default of LearnedOptimizer)",
        metric="eval/score",
    )
