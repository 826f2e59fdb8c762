"""Figures for "why does my meta-training diverge?": the meta-loss, its gradients, a run's health.

What is drawn was computed by `learned_opt.meta.diagnosis` or recorded by `meta_train`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learned_opt.meta.diagnosis import GradientQuality, Profile
from learned_opt.report.charts import FAINT, INK
from learned_opt.report.figures import png_figure
from learned_opt.report.health import Finding, RunHistory, findings

_RAW, _SMOOTH, _ALARM = "#56B4E9", "#D55E00", "#D55E00"
_ESTIMATES = {
    "back-propagation": ("#D55E00", "-", "o"),
    "first order": ("#E69F00", "--", "s"),
    "ES": ("#0072B2", "-", "D"),
    "PES": ("#009E73", "-", "^"),
    "NRES": ("#CC79A7", "--", "v"),
}


def profile_figure(
    profile: Profile, path: Path | str, *, x: Sequence[float], label: str, mark: float | None = None
) -> Path:
    """Draw a meta-loss along a line, a panel for each horizon, and as evolution strategies see it.

    Args:
        profile: what `meta_loss_profile` returned.
        path: the PNG to write; its folder is made.
        x: ``[K]`` what the offsets mean.
        label: of that axis.
        mark: where a dotted line goes, such as a bound of stability.

    Returns:
        Where the figure is.
    """
    columns = len(profile.horizons)
    with png_figure(path, figsize=(2.5 * columns + 0.5, 3.0), ncols=columns, squeeze=False) as (
        figure,
        axes,
    ):
        for panel, horizon, values, smooth in zip(
            axes[0], profile.horizons, profile.values, profile.smoothed, strict=True
        ):
            panel.plot(x, values, color=_RAW, linewidth=0.9)
            panel.plot(x, smooth, color=_SMOOTH, linewidth=1.8)
            panel.set_title(f"T = {horizon}", fontsize=11)
            panel.set_xlabel(label)
            if mark is not None:
                panel.axvline(mark, color=FAINT, linewidth=1, linestyle=":")
        axes[0, 0].set_ylabel("meta-loss")
        figure.legend(
            axes[0, 0].get_lines()[:2],
            ["meta-loss", f"smoothed with sigma = {profile.sigma:g}, as ES sees it"],
            loc="outside upper center",
            ncols=2,
            fontsize=10,
        )
    return Path(path)


def variance_figure(found: Sequence[GradientQuality], path: Path | str) -> Path:
    """Draw the variance of estimates and their cosine to the reference over the horizon.

    Args:
        found: what `quality_by_horizon` returned.
        path: the PNG to write; its folder is made.

    Returns:
        Where the figure is.
    """
    with png_figure(path, figsize=(9.0, 3.4), ncols=2) as (figure, (left, right)):
        for name in dict.fromkeys(entry.name for entry in found):
            entries = [entry for entry in found if entry.name == name]
            horizons = [entry.horizon for entry in entries]
            style = _style(name)
            left.plot(horizons, [entry.log10_variance for entry in entries], label=name, **style)
            right.plot(horizons, [entry.cosine for entry in entries], **style)
        horizons = sorted({entry.horizon for entry in found})
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(horizons, [str(horizon) for horizon in horizons])
            axes.minorticks_off()
            axes.set_xlabel("inner steps of an episode")
        # Back-propagation covers hundreds of decades, the others hardly one.
        left.set_yscale("symlog", linthresh=4, linscale=1.5)
        finite = [e.log10_variance for e in found if math.isfinite(e.log10_variance)] or [0.0]
        low, high = math.floor(min(finite) - 0.5), max(max(finite) * 1.2, 4.0)
        ticks = [t for t in (-8, -6, -4, -2, 0, 2, 4, 10, 30, 100, 300) if low <= t <= high]
        left.set_ylim(low, high)
        left.set_yticks(ticks, [f"$10^{{{tick}}}$" for tick in ticks])
        left.minorticks_off()
        left.set_ylabel("variance of one sample")
        right.set(ylabel="cosine to the long-run mean", ylim=(-0.6, 1.05))
        right.axhline(0, color=FAINT, linewidth=1)
        right.set_title(f"means of {found[0].batch} samples", fontsize=11, color=FAINT)
        figure.legend(loc="outside upper center", ncols=5, fontsize=10)
    return Path(path)


def bias_figure(
    found: Sequence[GradientQuality], path: Path | str, *, entry: int = 0, label: str = "theta"
) -> Path:
    """Draw mean gradients with two standard errors over the truncation.

    Args:
        found: what `quality_by_truncation` returned, the whole horizon among the truncations.
        path: the PNG to write; its folder is made.
        entry: which entry of theta to show.
        label: its name.

    Returns:
        Where the figure is.
    """
    truncations = sorted({each.truncation for each in found})
    with png_figure(path, figsize=(6.0, 3.6)) as (figure, axes):
        names = list(dict.fromkeys(each.name for each in found))
        for place, name in enumerate(names):
            own = [each for each in found if each.name == name]
            shift = 1.05 ** (place - (len(names) - 1) / 2)
            axes.errorbar(
                [each.truncation * shift for each in own],
                [float(each.mean[entry]) for each in own],
                yerr=[2 * float(each.standard_error[entry]) for each in own],
                label=name,
                **_style(name),
            )
        axes.axhline(0, color=INK, linewidth=1)
        whole = [each for each in found if each.truncation == each.horizon]
        if whole:
            level = float(np.mean([float(each.mean[entry]) for each in whole]))
            axes.axhline(level, color=FAINT, linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_xticks(truncations, [str(each) for each in truncations])
        axes.minorticks_off()
        axes.set(
            xlabel=f"truncation, of {found[0].horizon} inner steps",
            ylabel=f"mean d meta-loss / d {label}",
        )
        figure.legend(loc="outside upper center", ncols=5, fontsize=10)
    return Path(path)


def health_figure(run: RunHistory, path: Path | str) -> Path:
    """Draw meta-loss, gradient norm, non-finite samples and held-out score, symptoms marked.

    Args:
        run: what `read_run` returned.
        path: the PNG to write; its folder is made.

    Returns:
        Where the figure is.
    """
    found = findings(run)
    panels = {
        "meta_loss": "meta-loss",
        "meta_gradient_norm": "gradient norm",
        "nonfinite_meta_losses": "non-finite, so far",
        "eval/score": "held-out score",
    }
    with png_figure(path, figsize=(9.0, 5.4), nrows=2, ncols=2, sharex=True) as (_, grid):
        for axes, (metric, label) in zip(grid.flat, panels.items(), strict=True):
            steps, values = run.column(metric)
            is_finite = np.isfinite(values)
            axes.plot(
                steps[is_finite],
                values[is_finite],
                color="#0072B2",
                linewidth=1.4,
                marker="o" if metric == "eval/score" else "",
                markersize=3,
                drawstyle="steps-post" if metric == "nonfinite_meta_losses" else "default",
            )
            axes.set_ylabel(label)
            own = [finding for finding in found if finding.metric == metric]
            _mark(axes, own)
        _draw_norms(grid[0, 1], run)
        pair_steps, pairs = run.column("estimator/nonfinite_pairs")
        if pairs.any():
            grid[1, 0].plot(pair_steps, pairs, color="#E69F00", linewidth=1, label="pairs, a step")
            grid[1, 0].legend(fontsize=9)
        top = max(1.0, grid[1, 0].get_ylim()[1])
        grid[1, 0].set_ylim(-0.03 * top, top)
        for axes in grid[1]:
            axes.set_xlabel("outer step")
    return Path(path)


def _draw_norms(axes: Any, run: RunHistory) -> None:
    """The scale of the gradient norms, with the threshold that clips them."""
    _, norms = run.column("meta_gradient_norm")
    if (norms > 0).any():
        axes.set_yscale("log")
    if run.clip_norm is not None:
        axes.axhline(run.clip_norm, color=INK, linewidth=1, linestyle="--", label="clip_norm")
        axes.legend(fontsize=9, loc="lower right")


def _mark(axes: Any, found: Sequence[Finding]) -> None:
    """Symptoms as titles, and where they begin as lines."""
    lines = [textwrap.fill(finding.symptom.split(";")[0], 56) for finding in found]
    axes.set_title("\n".join(lines), fontsize=9, color=_ALARM, loc="left")
    for finding in found:
        if finding.step is not None:
            axes.axvline(finding.step, color=_ALARM, linewidth=1, linestyle=":")


def _style(name: str) -> dict[str, Any]:
    colour, dash, marker = _ESTIMATES.get(name, (INK, ":", "x"))
    return {
        "color": colour,
        "linestyle": dash,
        "marker": marker,
        "markersize": 5,
        "linewidth": 1.6,
    }
