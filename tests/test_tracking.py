"""Trackers: what they write, and that W&B can never stop a run."""

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import learned_opt.tracking
from learned_opt.errors import LearnedOptError
from learned_opt.tracking import JsonLinesTracker, NullTracker, WandbTracker, open_tracker


def use_everything(tracker, picture: Path) -> None:
    """Every call of the protocol once, and one call after the end."""
    tracker.log({"loss": 2.0}, step=0)
    tracker.log({"loss": 1.0, "log_gap": -0.5}, step=10)
    tracker.log({"loss": 1.5}, step=5)
    tracker.summary({"rmst": 120.0, "gap": float("inf"), "status": "solved"})
    tracker.table("results", ["task", "steps"], [["saddle", 3], ["monkey", None], ["x", 0.5]])
    tracker.figure("leaderboard", picture)
    tracker.artifact("weights", picture, kind="model")
    tracker.finish()
    tracker.log({"loss": 0.0}, step=20)
    tracker.finish()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from matplotlib import image

    path = tmp_path / "picture.png"
    image.imsave(path, torch.zeros(4, 4, 3).numpy())
    return path


def test_json_lines_hold_one_object_per_call_in_order(tmp_path, picture):
    path = tmp_path / "deep" / "history.jsonl"
    use_everything(JsonLinesTracker(path), picture)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[:3] == [
        {"step": 0, "loss": 2.0},
        {"step": 10, "loss": 1.0, "log_gap": -0.5},
        {"step": 5, "loss": 1.5},
    ]
    assert lines[3] == {"summary": {"rmst": 120.0, "gap": "inf", "status": "solved"}}
    assert lines[4]["rows"] == [["saddle", 3], ["monkey", None], ["x", 0.5]]
    assert [set(line) for line in lines[5:]] == [{"figure", "path"}, {"artifact", "path", "kind"}]


def test_json_lines_are_appended_and_read_back_as_floats(tmp_path):
    path = tmp_path / "history.jsonl"
    for value in (torch.tensor(0.25), float("nan")):
        tracker = JsonLinesTracker(path)
        tracker.log({"loss": value}, step=1)
        assert len(path.read_text().splitlines()) >= 1  # flushed before finish
        tracker.finish()
    first, second = (json.loads(line)["loss"] for line in path.read_text().splitlines())
    assert first == 0.25
    assert str(float(second)) == "nan"


def test_null_tracker_ignores_everything(picture):
    use_everything(NullTracker(), picture)


def test_wandb_offline_run_holds_metrics_without_account_or_noise(tmp_path, picture, capfd):
    tracker = WandbTracker(project="p", group="g", name="n", config={"K": 4}, directory=tmp_path)
    use_everything(tracker, picture)
    assert tracker.run_dir is not None
    assert tracker.run_dir.parent == tmp_path / "wandb"
    assert tracker.run_dir.name.startswith("offline-run-")
    assert list(tracker.run_dir.glob("run-*.wandb"))
    assert capfd.readouterr() == ("", "")
    inspected = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(tracker.run_dir)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    records = [json.loads(line) for line in inspected.stdout.splitlines()]
    history = [r for r in records if r["type"] == "history"]
    text = json.dumps(records)
    assert len(history) >= 3
    assert all(name in text for name in ("gradient_evaluations", "log_gap", "rmst", "weights"))
    assert {"K", "config"} <= set(json.dumps([r for r in records if r["type"] == "run"]).split('"'))


class BrokenRun:
    """A run whose every method raises, as W&B's do when its service has died."""

    dir = "/nowhere/offline-run-1/files"

    def __getattr__(self, name: str):
        raise BrokenPipeError(f"service died at {name}\nand said more")


def test_wandb_that_breaks_later_warns_once_and_goes_on(monkeypatch, picture, caplog, tmp_path):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: BrokenRun())
    with caplog.at_level(logging.WARNING):
        use_everything(WandbTracker(project="p", directory=tmp_path), picture)
    assert [r.getMessage() for r in caplog.records] == [
        "W&B tracking failed; the run goes on: service died at define_metric"
    ]


def test_wandb_that_cannot_start_warns_once_and_goes_on(monkeypatch, picture, caplog, tmp_path):
    import wandb

    def refuse(**_):
        raise OSError("no service")

    monkeypatch.setattr(wandb, "init", refuse)
    with caplog.at_level(logging.WARNING):
        tracker = WandbTracker(project="p", directory=tmp_path)
        use_everything(tracker, picture)
    assert tracker.run_dir is None
    assert len(caplog.records) == 1


def test_wandb_without_network_keeps_the_run_offline(monkeypatch, picture, caplog, tmp_path):
    import wandb

    modes: list[str] = []

    def init(**settings):
        modes.append(settings["mode"])
        if settings["mode"] == "online":
            raise wandb.errors.CommError("no network")
        return BrokenRun()

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        WandbTracker(project="p", directory=tmp_path, mode="online")
    assert modes == ["online", "offline"]
    assert len(caplog.records) == 1


def test_wandb_is_imported_only_inside_functions_of_tracking():
    package = Path(learned_opt.tracking.__file__).parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = tree.body if path.name == "tracking.py" else ast.walk(tree)
        imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [a.name for n in imports for a in n.names] + [
            getattr(n, "module", "") for n in imports
        ]
        assert not [name for name in names if name and name.split(".")[0] == "wandb"], path


def test_open_tracker_makes_what_it_names(tmp_path):
    tracker = open_tracker("jsonl", name="adam", directory=tmp_path, config={"K": 4})
    tracker.finish()
    assert (tmp_path / "adam.jsonl").read_text() == '{"summary": {"K": 4}}\n'
    assert isinstance(open_tracker("disabled"), NullTracker)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(LearnedOptError, match="unknown tracker 'onlin'; did you mean 'online'"):
        open_tracker("onlin")
    with pytest.raises(LearnedOptError, match="unknown W&B mode 'ofline'"):
        WandbTracker(project="p", mode="ofline", directory=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(LearnedOptError, match="project must not be empty, got ''"):
        WandbTracker(project="", directory=tmp_path)
