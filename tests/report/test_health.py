"""Findings on histories made by hand: each symptom is named, a healthy run has none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image

from learned_opt.errors import LearnedOptError
from learned_opt.meta.diagnosis import GradientQuality, Profile
from learned_opt.report.diagnosis import (
    bias_figure,
    health_figure,
    profile_figure,
    variance_figure,
)
from learned_opt.report.health import PAGE, RunHistory, findings, read_run

SETTINGS = {"clip_norm": 1.0, "num_outer_steps": 200}
STEPS = np.arange(10, 201, 10)


def history(**changes):
    """A healthy run of 200 steps, with some metrics replaced or (None) left out."""
    columns = {
        "meta_loss": (STEPS, np.linspace(0, -3, 20)),
        "meta_gradient_norm": (STEPS, np.full(20, 0.5)),
        "clipped_share": (STEPS, np.zeros(20)),
        "nonfinite_meta_losses": (STEPS, np.zeros(20)),
        "eval/score": (np.arange(0, 201, 50), np.array([0.0, -1, -2, -2.5, -2.9])),
    }
    settings = changes.pop("settings", SETTINGS)
    for name, values in changes.items():
        key = {"score": "eval/score"}.get(name, name)
        if values is None:
            del columns[key]
        else:
            steps = columns[key][0] if key in columns else STEPS
            columns[key] = (steps, np.asarray(values, dtype=float))
    return RunHistory(columns=columns, settings=settings)


def symptoms(**changes):
    return [finding.symptom for finding in findings(history(**changes))]


def test_healthy_run_has_no_findings():
    assert symptoms() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"nonfinite_meta_losses": [0] * 5 + [2] * 5 + [17] * 10},
            "17 non-finite meta-losses, the first by step 60; those steps were skipped",
        ),
        (
            {"clipped_share": [0.86] * 10 + [1.0] * 10},
            "gradient norm above the clipping threshold of 1 in 93 % of the steps",
        ),
        (
            {"score": [0, -1, -2, -1.5, -0.5]},
            "held-out score got worse after step 100: -2.00, now -0.50",
        ),
        (
            {"score": [0, 0.1, 0.2, 0.3, 0.4]},
            "held-out score never better than before training (0.00, now 0.40)",
        ),
        (
            {"score": [0, -0.5, -0.5, -0.5, -0.505]},
            "meta-loss fell by another 0.79 in the second half while the held-out score",
        ),
        (
            {"meta_gradient_norm": np.geomspace(0.1, 1e5, 20)},
            "the gradient norm grew from 0.32 to 3.6e+04",
        ),
        (
            {"meta_gradient_norm": np.geomspace(1e30, 1e31, 20)},
            "a gradient norm of 3.2e+30 is typical, the largest 1e+31",
        ),
        (
            {"meta_gradient_norm": [0.5] * 10 + [3e4] + [0.5] * 9},
            "gradient norms of up to 3e+04, where 0.5 is typical",
        ),
        (
            {"estimator/gradient_std": [0.48] * 20},
            "the gradient is mostly noise: its standard deviation is 96 % of its norm",
        ),
        (
            {"estimator/kl_divergence": [0.004] * 17 + [0.2] * 3},
            "the policy moves far between two rollouts: divergence 0.2 in 15 % of the records",
        ),
        (
            {
                "estimator/kl_divergence": [0.2] * 20,
                "estimator/kl_divergence_amid_noise": [0.01] * 10 + [0.25] * 10,
            },
            "the policy moves far between two rollouts amid noise: divergence 0.25 in 50 %",
        ),
        ({"estimator/nonfinite_pairs": [0.5] * 20}, "0.5 pairs a step were not finite"),
        (
            {"eval/octopus/nonfinite": [0.0] * 19 + [0.125]},
            "12 % of the held-out problems of octopus end non-finite",
        ),
        (
            {"settings": {**SETTINGS, "num_outer_steps": 2000}},
            "the record ends at step 200 of 2,000",
        ),
        (
            {
                "settings": {**SETTINGS, "num_outer_steps": 2000},
                "nonfinite_meta_losses": [0] * 18 + [1, 11],
            },
            "the record ends at step 200 of 2,000 with nothing but non-finite meta-losses",
        ),
    ],
)
def test_each_symptom_is_named(changes, expected):
    assert any(found.startswith(expected) for found in symptoms(**changes)), symptoms(**changes)


def test_histories_without_the_share_count_their_records():
    found = symptoms(clipped_share=None, meta_gradient_norm=[0.5] * 5 + [2.0] * 15)
    assert found == ["gradient norm above the clipping threshold of 1 in 75 % of the steps"]
    assert symptoms(clipped_share=None, meta_gradient_norm=[2.0] * 20, settings={}) == []


def write(folder, *lines, end="\n"):
    folder.mkdir(exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "history.jsonl").write_text(text + end)
    return folder


def test_infinite_numbers_and_a_line_under_way_are_read(tmp_path):
    first = {"step": 0, "eval/score": 1.5}
    second = {"step": 10, "meta_loss": "nan", "meta_gradient_norm": "inf"}
    run = read_run(write(tmp_path, first, second, '{"step": 20, "meta_l', end=""))
    assert run.last_step == 10
    assert np.isnan(run.column("meta_loss")[1]).all()
    assert np.isinf(run.column("meta_gradient_norm")[1]).all()
    assert run.clip_norm is None
    assert len(run.column("estimator/gradient_std")[0]) == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["not json"], "line 1 is no record"),
        ([{"eval/score": 1.0}], "line 1 is no record"),
        (["3"], "line 1 is no record"),
        ([{"step": 0, "reward": 1.0}], "holds no meta-training"),
        ([], "line 1 is no record|holds no meta-training"),
    ],
)
def test_foreign_and_damaged_histories_are_refused(lines, message, tmp_path):
    with pytest.raises(LearnedOptError, match=message):
        read_run(write(tmp_path, *lines))


def test_folder_without_history_is_refused(tmp_path):
    with pytest.raises(LearnedOptError, match=r"holds no history\.jsonl"):
        read_run(tmp_path / "nowhere")


def is_picture(path, *, width):
    pixels = image.imread(path)
    assert pixels.shape[1] > width
    return 0.003 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score": [0, -1, -2, -1.5, -0.5], "nonfinite_meta_losses": [0] * 5 + [17] * 15},
        {"meta_loss": [np.nan] * 20, "meta_gradient_norm": [np.inf] * 20},
        {"meta_loss": None, "meta_gradient_norm": None, "settings": {}},
    ],
)
def test_panel_is_drawn_whatever_happened(changes, tmp_path):
    run = history(**changes)
    path = health_figure(run, tmp_path / "deep" / "health.png")
    assert is_picture(path, width=1000)
    assert health_figure(run, tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_other_figures_are_pictures(tmp_path):
    x = torch.linspace(0, 1, 5)
    curve = torch.stack([x.sin(), x.cos()])
    found = Profile(offsets=x, horizons=(5, 20), values=curve, smoothed=curve, sigma=0.1)
    assert is_picture(
        profile_figure(found, tmp_path / "a.png", x=x.tolist(), label="rate", mark=0.5), width=700
    )
    rows = [
        GradientQuality(
            name=name,
            horizon=20,
            truncation=truncation,
            mean=torch.tensor([-0.5]),
            standard_error=torch.tensor([0.1]),
            log10_variance=variance,
            cosine=0.5,
            batch=16,
        )
        for name, variance in (("ES", 2.0), ("back-propagation", 258.0), ("mine", float("inf")))
        for truncation in (5, 20)
    ]
    assert is_picture(variance_figure(rows, tmp_path / "b.png"), width=1000)
    assert is_picture(bias_figure(rows, tmp_path / "c.png", label="rate"), width=700)


def test_page_shows_pictures_that_exist_and_code_that_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / PAGE
    text = page.read_text()
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (page.parent / picture).stat().st_size < 80_000, picture
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, str(page), "exec"), {})
    assert (tmp_path / "profile.png").exists()
