import json
from pathlib import Path

import numpy as np
import pytest
import torch

from learned_opt.bench import units
from learned_opt.bench.entrants import Entrant, weights_hash
from learned_opt.bench.results import Results
from learned_opt.bench.runner import Progress, run_benchmark
from learned_opt.bench.shards import DiskFullError
from learned_opt.bench.suites import SuiteEntry
from learned_opt.bench.units import numeric_settings
from learned_opt.errors import LearnedOptError
from learned_opt.rules.base import get_rule
from learned_opt.rules.weights import save_rule

PLANE = SuiteEntry("plane", "x2_y4_y2")
TURNED = SuiteEntry("turned", "strict_saddle", {"dim": 3}, rotate=True)
SMALL = {
    "num_instances": 5,
    "num_tuning_instances": 2,
    "tuning_trials": (0, 4),
    "budget_scale": 0.3,
}


def run(out: Path, suite=(PLANE,), rules=("sgd",), **settings) -> Results:
    return run_benchmark(list(suite), rules=list(rules), out=out, **{**SMALL, **settings})


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def numbers(results: Results) -> list[dict]:
    """All columns but the clock, with NaN made comparable."""
    dropped = results.runs.drop_columns(["seconds"])
    return json.loads(json.dumps(dropped.to_pylist()).replace("NaN", '"nan"'))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    run(folder, suite=[PLANE, TURNED], rules=["sgd", "perturbed_gd"])
    return folder


def test_what_a_run_records(finished: Path) -> None:
    results = Results.load(finished)
    assert len(results) == 2 * 2 * 2 * 5
    assert results.unique("tuning_trials") == [0, 4] and results.unique("suite") == ["custom"]
    plane = results.filter(task="plane", rule="sgd", tuning_trials=4)
    assert plane.column("instance").tolist() == list(range(5))
    assert plane.unique("budget") == [90] and plane.unique("dim") == [2]
    for row in results.rows():
        assert row["status"] == ("solved" if np.isfinite(row["t_solve"]) else "censored")
        times = [row[f"t_gap{k}"] for k in (1, 2, 3, 4)]
        assert times == sorted(times) and row["t_solve"] == row["t_gap3"]
        assert row["t_exit"] <= row["t_half"]
        assert row["curve_step"][0] == 0 and row["curve_step"][-1] == row["budget"]
        assert row["curve_loss"][-1] == row["final_loss"] >= row["best_loss"]
        assert min(row["curve_loss"]) >= row["best_loss"]
        expected = (row["final_loss"] - row["minimum"] + 1e-12) / (
            row["reference"] - row["minimum"]
        )
        assert row["log_gap"] == pytest.approx(max(-12, np.log10(expected)), abs=1e-6)
        has_path = row["task"] == "plane" and row["instance"] < 4
        assert (len(row["path_x"]) > 0) == has_path
        assert len(row["path_x"]) == len(row["path_y"]) == len(row["path_step"]) <= 200


def test_paths_lie_on_their_loss_curves(finished: Path) -> None:
    row = Results.load(finished).filter(task="plane", rule="sgd", tuning_trials=4).rows()[3]
    loss = dict(zip(row["curve_step"], row["curve_loss"], strict=True))
    shared = 0
    for step, x, y in zip(row["path_step"], row["path_x"], row["path_y"], strict=True):
        if step in loss:
            shared += 1
            assert x**2 + y**4 - y**2 == pytest.approx(loss[step], rel=1e-9, abs=1e-12)
    assert shared > 20


def test_selection_is_by_the_tuning_table(finished: Path) -> None:
    results = Results.load(finished)
    trials = results.filter(task="plane", rule="sgd").tuning.to_pylist()
    assert [trial["trial"] for trial in trials] == [0, 1, 2, 3, 4]
    best = min(trials, key=lambda trial: (trial["rmst"], trial["log_gap"]))
    chosen = results.filter(task="plane", rule="sgd", tuning_trials=4)
    assert chosen.unique("hyperparameters") == [best["hyperparameters"]]


def test_tuning_never_sees_the_instances_that_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, torch.Tensor] = {}
    real_tune, real_race = units.tune, units.race

    def tune(task, rule, problems, **settings):
        seen["tuning"] = problems.params["x"]
        return real_tune(task, rule, problems, **settings)

    def race(task, make_rule, problems, **settings):
        seen["runs"] = problems.params["x"]
        return real_race(task, make_rule, problems, **settings)

    monkeypatch.setattr(units, "tune", tune)
    monkeypatch.setattr(units, "race", race)
    run(tmp_path, [TURNED], num_instances=8, num_tuning_instances=8)
    distances = torch.cdist(seen["tuning"], seen["runs"])
    assert distances.shape[0] == 8 and distances.min() > 1e-3


def test_all_rules_face_the_same_instances(finished: Path) -> None:
    results = Results.load(finished)
    for task in results.tasks:
        starts = {
            tuple(
                row["curve_loss"][0]
                for row in results.filter(task=task, rule=rule, tuning_trials=k).rows()
            )
            for rule in results.rules
            for k in (0, 4)
        }
        assert len(starts) == 1


def test_a_second_run_does_no_work(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = stamps(finished), []
    monkeypatch.setattr("learned_opt.bench.runner.run_unit", None)
    again = run(finished, [PLANE, TURNED], ["sgd", "perturbed_gd"], on_progress=seen.append)
    assert stamps(finished) == before and len(again) == 40
    assert [p.status for p in seen] == ["skipped"] * 4
    assert [p.done for p in seen] == [1, 2, 3, 4] and seen[0].total == 4


def test_an_interrupted_benchmark_resumes_to_the_same_numbers(
    tmp_path: Path, finished: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    rules = ["sgd", "perturbed_gd"]
    with pytest.raises(KeyboardInterrupt, match=r"stopped after 2 of 4 units.*same command again"):
        run(tmp_path, [PLANE, TURNED], rules, on_progress=interrupt)
    assert len(Results.load(tmp_path)) == 20
    seen: list[Progress] = []
    results = run(tmp_path, [PLANE, TURNED], rules, on_progress=seen.append)
    assert [p.status for p in seen] == ["skipped"] * 2 + ["finished"] * 2
    assert numbers(results) == numbers(Results.load(finished))


def test_numbers_do_not_depend_on_threads_or_denormals(tmp_path: Path, finished: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = run(tmp_path, [TURNED], ["perturbed_gd"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    expected = Results.load(finished).filter(task="turned", rule="perturbed_gd")
    assert numbers(results) == numbers(expected)


def test_numeric_settings_are_restored() -> None:
    tiny = torch.tensor(1e-310, dtype=torch.float64)
    with numeric_settings():
        assert float(tiny * 1.0) == 0.0
        with numeric_settings():
            pass
        assert float(tiny * 1.0) == 0.0
    assert float(tiny * 1.0) == 1e-310


@pytest.mark.slow
def test_the_number_of_workers_changes_no_number(tmp_path: Path, finished: Path) -> None:
    seen: list[Progress] = []
    rules = ["sgd", "perturbed_gd"]
    results = run(tmp_path, [PLANE, TURNED], rules, workers=2, on_progress=seen.append)
    assert [p.done for p in seen] == [1, 2, 3, 4]
    assert numbers(results) == numbers(Results.load(finished))


@pytest.mark.slow
def test_an_interrupt_of_workers_keeps_finished_units(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="stopped after 1 of 4 units"):
        run(tmp_path, [PLANE, TURNED], ["sgd", "adam"], workers=2, on_progress=interrupt)
    assert len(Results.load(tmp_path)) >= 10
    assert len(run(tmp_path, [PLANE, TURNED], ["sgd", "adam"])) == 40


def test_rules_can_be_added_later(tmp_path: Path) -> None:
    run(tmp_path, rules=["sgd"])
    before = stamps(tmp_path)
    results = run(tmp_path, rules=["adam"])
    assert results.rules == ["adam", "sgd"] and results.metadata["rules"] == ["sgd", "adam"]
    assert before.items() <= stamps(tmp_path).items()


def test_status_is_about_the_solve_target(tmp_path: Path) -> None:
    valley = SuiteEntry("valley", "rosenbrock", {"dim": 2})
    results = run(tmp_path, [PLANE, valley], tuning_trials=(0, 4), budget_scale=0.15)
    # Forty-five steps lead some instances half of the way down and none to the minimum.
    halfway = results.filter(task="plane", tuning_trials=4)
    assert np.isfinite(halfway.column("t_half")).any()
    assert np.isinf(halfway.column("t_solve")).all() and halfway.unique("status") == ["censored"]
    # The default learning rate is ten times beyond what the curvature of the valley allows.
    diverged = results.filter(task="valley", tuning_trials=0)
    assert diverged.unique("status") == ["diverged"] and diverged.unique("log_gap") == [1.0]
    assert np.isinf(diverged.column("t_gap4")).all()


def test_a_learned_rule_runs_as_it_is(tmp_path: Path) -> None:
    path = save_rule(get_rule("lstm", seed=1), tmp_path / "mine.safetensors")
    results = run(tmp_path / "out", rules=[str(path), "sgd"])
    mine = results.filter(rule="mine")
    assert len(mine) == 5 and mine.unique("tuning_trials") == [0]
    assert mine.unique("rule_kind") == ["learned"] and mine.unique("hyperparameters") == ["{}"]
    assert mine.tuning.num_rows == 0 and results.filter(rule="sgd").tuning.num_rows == 5

    save_rule(get_rule("lstm", seed=2), path)
    with pytest.raises(LearnedOptError, match="holds 'mine' on 'plane' with other weights"):
        run(tmp_path / "out", rules=[str(path)])


def test_weights_hash_sees_theta_and_structure() -> None:
    hashes = {
        weights_hash(get_rule("lstm", **settings))
        for settings in ({"seed": 1}, {"seed": 2}, {"seed": 1, "output_scale": 0.2})
    }
    assert len(hashes) == 3
    assert weights_hash(get_rule("lstm", seed=1)) in hashes
    assert Entrant.of("adam") == Entrant("adam", "adam", "hand-made")


def test_float32_runs(tmp_path: Path) -> None:
    results = run(tmp_path, dtype=torch.float32, tuning_trials=(4,))
    assert results.unique("tuning_trials") == [4] and results.metadata["dtype"] == "float32"
    losses = np.array([row["final_loss"] for row in results.rows()])
    assert np.array_equal(losses, losses.astype(np.float32))


def test_untuned_runs_need_no_tuning(tmp_path: Path) -> None:
    results = run(tmp_path, tuning_trials=(0,))
    assert results.tuning.num_rows == 0 and len(results) == 5


def test_a_failing_unit_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, broken = units.race, True

    def flaky(task, *args, **kwargs):
        if broken and task.dim == 2:
            raise RuntimeError("boom\nsecond line")
        return real(task, *args, **kwargs)

    monkeypatch.setattr(units, "race", flaky)
    with pytest.raises(
        LearnedOptError, match=r"1 of 2 units failed.* sgd on plane \(RuntimeError: boom\); the"
    ):
        run(tmp_path, [PLANE, TURNED])
    assert Results.load(tmp_path).tasks == ["turned"]
    (line,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["task"] == "plane" and "boom" in json.loads(line)["traceback"]
    broken = False
    assert run(tmp_path, [PLANE, TURNED]).tasks == ["plane", "turned"]
    assert not (tmp_path / "failures.jsonl").exists()


def test_a_full_disk_stops_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args, **kwargs):
        raise DiskFullError("the disk is full: x was not written")

    monkeypatch.setattr(units, "write_shard", full)
    with pytest.raises(LearnedOptError, match=r"^the disk is full: x was not written$"):
        run(tmp_path, [PLANE, TURNED])


def test_a_damaged_shard_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    (path,) = tmp_path.glob("runs-*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr("learned_opt.bench.runner.run_unit", None)
    with pytest.raises(LearnedOptError, match=f"{path.name} is damaged"):
        run(tmp_path, rules=["sgd", "adam"])


def test_a_folder_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(LearnedOptError, match=r"holds a benchmark with seed 0, this one has 1"):
        run(tmp_path, seed=1)
    with pytest.raises(LearnedOptError, match=r"num_instances 5, this one has 6"):
        run(tmp_path, num_instances=6)
    with pytest.raises(LearnedOptError, match="another task under the label 'plane'"):
        run(tmp_path, [SuiteEntry("plane", "x2_y3")])
    path = tmp_path / "benchmark.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(LearnedOptError, match="has results format 7, this version reads format 1"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_instances": 0}, "num_instances must be positive, got 0"),
        ({"num_tuning_instances": 0}, "num_tuning_instances must be positive, got 0"),
        ({"tuning_trials": ()}, r"tuning_trials must be counts of trials, got \(\)"),
        ({"tuning_trials": (0, -1)}, "tuning_trials must be counts"),
        ({"budget_scale": 0.0}, "budget_scale must be positive, got 0"),
        ({"workers": 0}, "workers must be positive, got 0"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64"),
        ({"suite": ()}, "suite must hold at least one task"),
        ({"suite": (PLANE, SuiteEntry(PLANE.label, "octopus"))}, "task labels must be unique"),
        ({"suite": (SuiteEntry("a", "nothing"),)}, "unknown task 'nothing'"),
        ({"rules": ()}, "rules must name at least one rule"),
        ({"rules": ("sdg",)}, "'sdg'; did you mean 'sgd'"),
        ({"rules": ("nowhere/sgd.safetensors",)}, "nowhere/sgd.safetensors"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict, message: str
) -> None:
    with pytest.raises(LearnedOptError, match=message):
        run(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_two_rules_of_one_name_are_refused(tmp_path: Path) -> None:
    path = save_rule(get_rule("lstm"), tmp_path / "sgd.safetensors")
    with pytest.raises(LearnedOptError, match="rule names must be unique"):
        run(tmp_path / "out", rules=["sgd", str(path)])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LearnedOptError, match="cannot make the results folder"):
        run(tmp_path / "file" / "out")
