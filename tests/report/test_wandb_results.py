"""W&B runs of results: one per rule, with what the results say."""

from typing import ClassVar

import numpy as np
import pytest

from learned_opt.bench.leaderboard import leaderboard
from learned_opt.errors import LearnedOptError
from learned_opt.report import wandb_results
from learned_opt.report.field import Field
from learned_opt.report.wandb_results import how_to_view, log_results


class Recorder:
    """Stands in for `WandbTracker`."""

    made: ClassVar[list] = []

    def __init__(self, *, directory, **settings):
        self.settings, self.calls = settings, []
        self.run_dir = directory / f"offline-run-{len(self.made)}"
        self.made.append(self)

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

    def of(self, name):
        return [(args, kwargs) for call, args, kwargs in self.calls if call == name]


@pytest.fixture
def recorded(results, monkeypatch, tmp_path):
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(wandb_results, "WandbTracker", Recorder)
    weights, picture = tmp_path / "l<sub>&.safetensors", tmp_path / "p.png"
    folders = log_results(
        results, group="demo", directory=tmp_path, figures={"board": picture}, weights=weights
    )
    assert folders == [run.run_dir for run in Recorder.made]
    return Recorder.made


def test_one_run_per_shown_rule(recorded, results):
    assert [run.settings["name"] for run in recorded] == ["l<sub>&", "adam", "momentum", "sgd"]
    assert {run.settings["group"] for run in recorded} == {"demo"}
    config = recorded[1].settings["config"]
    assert config["rule"] == "adam"
    assert config["tuning_trials"] == 4
    assert config["hyperparameters"]["welsch"] == {"learning_rate": 0.1}
    assert all(run.calls[-1][0] == "finish" for run in recorded)


def test_curves_are_medians_on_growing_steps(recorded, results):
    adam = recorded[1]
    steps = [kwargs["step"] for _, kwargs in adam.of("log")]
    assert steps == sorted(set(steps)) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400]
    field = Field(results)
    entrant = next(e for e in field.shown if e.rule == "adam")
    for (metrics,), gap, loss in zip(
        [args for args, _ in adam.of("log")],
        field.gap_band("welsch", entrant).median,
        field.loss_band("welsch", entrant).median,
        strict=True,
    ):
        assert metrics["log_gap/welsch"] == np.log10(gap)
        assert metrics["loss/welsch"] == loss
        assert set(metrics) == {
            f"{kind}/{task.label}" for kind in ("loss", "log_gap") for task in field.tasks
        }


def test_summary_is_the_leaderboard(recorded, results):
    ((summary,), _), *_ = recorded[1].of("summary")
    row = next(r for r in leaderboard(results) if (r.rule, r.tuning_trials) == ("adam", 4))
    assert summary["all/success"] == row.success.estimate
    assert summary["all/time_ratio_high"] == row.rmst_ratio.high
    assert summary["welsch/ert"] > 0


def test_table_figures_and_weights(recorded):
    for run in recorded:
        ((name, columns, rows), _), *_ = run.of("table")
        assert name == "runs"
        assert len(rows) == 18  # three tasks of six instances
        assert all(len(row) == len(columns) for row in rows)
        assert [args[0] for args, _ in run.of("figure")] == ["board"]
    assert [len(run.of("artifact")) for run in recorded] == [1, 0, 0, 0]


def test_how_to_view_names_each_folder_once(tmp_path):
    text = how_to_view([tmp_path / "a b" / "offline-run-1", tmp_path / "a b" / "offline-run-2"])
    assert len(text.splitlines()) == 2
    assert f"wandb leet '{tmp_path}/a b'" in text
    assert f"wandb sync --yes '{tmp_path}/a b'/offline-run-*" in text
    assert not how_to_view([])


def test_empty_results_are_refused(empty, tmp_path):
    with pytest.raises(LearnedOptError, match="results hold no runs"):
        log_results(empty, group="demo", directory=tmp_path)
