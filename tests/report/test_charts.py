"""Charts: valid plotly, right numbers."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from learned_opt.bench.results import Results
from learned_opt.bench.suites import SuiteEntry
from learned_opt.bench.units import derive_seed
from learned_opt.errors import LearnedOptError
from learned_opt.report.charts import (
    curves_chart,
    ecdf_chart,
    profile_chart,
    read_history,
    rounded,
    training_chart,
)
from learned_opt.report.field import Field, TaskInfo
from learned_opt.report.landscape import rebuild
from learned_opt.report.trajectories import trajectory_chart

LEARNED_KEY = "l<sub>&@0"


@pytest.fixture(scope="module")
def field(results):
    return Field(results)


def trace(chart, key, mode="lines"):
    return next(
        t for t in chart.data if t.get("legendgroup") == key and t["mode"] == mode and "name" in t
    )


def test_plotly_accepts_every_chart(field, tmp_path):
    import plotly.graph_objects as go

    history = tmp_path / "history.jsonl"
    history.write_text('{"step": 0, "meta_loss": 1.0}\n{"step": 1, "meta_loss": 0.5}\n')
    charts = [
        ecdf_chart(field, field.tasks, title="all"),
        profile_chart(field, field.tasks, title="all"),
        training_chart(history),
        *[curves_chart(field, task) for task in field.tasks],
        *[c for task in field.tasks if (c := trajectory_chart(field, task))],
    ]
    assert len(charts) == 7
    for chart in charts:
        go.Figure(data=chart.data, layout=chart.layout)
        json.dumps([chart.data, chart.layout, chart.motion], allow_nan=False)


def test_ecdf_counts_targets(field):
    welsch = [task for task in field.tasks if task.label == "welsch"]
    sgd = trace(ecdf_chart(field, welsch, title="x"), "sgd@4")
    entrant = next(e for e in field.shown if e.rule == "sgd")
    times = np.concatenate([
        field.times(t, "welsch", entrant)
        for t in ("t_exit", "t_half", "t_gap1", "t_gap2", "t_gap3", "t_gap4")
    ])
    for x, y in zip(sgd["x"], sgd["y"], strict=True):
        assert y == pytest.approx((times <= x).mean(), abs=5e-4)
    assert sgd["y"][-1] < 1  # some of sgd's targets lie beyond the budget


def test_profile_is_relative_to_the_best_hand_made_rule(field):
    chart = profile_chart(field, field.tasks, title="x")
    learned, adam = trace(chart, LEARNED_KEY), trace(chart, "adam@4")
    at = dict(zip(learned["x"], learned["y"], strict=True))
    assert at[0.5] == 0
    assert at[1.0] == 1  # 12 against adam's 20 steps a decade on every task
    assert [y for x, y in zip(adam["x"], adam["y"], strict=True) if x < 1][-1] == 0
    assert dict(zip(adam["x"], adam["y"], strict=True))[1.0] == 1


def test_profile_without_hand_made_rules_is_none(results):
    field = Field(results.filter(rule="l<sub>&"))
    assert profile_chart(field, field.tasks, title="x") is None


def test_curves_show_medians_bands_and_levels(field):
    task = next(task for task in field.tasks if task.label == "welsch")
    chart = curves_chart(field, task)
    adam = trace(chart, "adam@4")
    entrant = next(e for e in field.shown if e.rule == "adam")
    band = field.gap_band("welsch", entrant)
    np.testing.assert_allclose(adam["y"], band.median[1:], rtol=5e-3)
    assert adam["x"][0] == 1  # a logarithmic axis has no place for 0
    assert [shape["y0"] for shape in chart.layout["shapes"]] == [1.0, 0.3]
    assert sum(t.get("fill") == "tonexty" for t in chart.data) == len(field.shown)
    widths = {t["legendgroup"]: t["line"]["width"] for t in chart.data if "name" in t}
    assert widths[LEARNED_KEY] > max(w for key, w in widths.items() if key != LEARNED_KEY)


def test_paths_start_together_and_move_on_the_instances_own_surface(field, results):
    task = next(task for task in field.tasks if task.label == "monkey_saddle")
    chart = trajectory_chart(field, task)
    assert chart is not None
    assert chart.data[0]["type"] == "contour"
    starts = {(path["x"][0], path["y"][0]) for path in chart.motion["paths"]}
    assert len(starts) == 1
    assert len(chart.motion["paths"]) == len(field.shown)
    times = chart.motion["times"]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] <= 60
    for path in chart.motion["paths"]:
        assert chart.data[path["line"]]["x"] == path["x"]
        assert chart.data[path["head"]]["x"] == path["x"][-1:]
    (x, y), *_ = [(t["x"], t["y"]) for t in chart.data if t.get("name") == "start"]
    assert {(x[0], y[0])} == starts


def test_contour_is_the_gap_of_the_instance(field, results):
    task = next(task for task in field.tasks if task.label == "monkey_saddle")
    run = results.filter(task="monkey_saddle", rule="adam", tuning_trials=4, instance=0).rows()[0]
    landscape = rebuild(results, task, run)
    contour = trajectory_chart(field, task).data[0]
    i, j = 10, 60
    loss = landscape(np.array([[contour["x"][j], contour["y"][i]]]))[0]
    gap = (loss - run["minimum"]) / (run["reference"] - run["minimum"])
    assert contour["z"][i][j] == pytest.approx(np.log10(max(gap, 1e-4)), abs=0.01)


def test_surface_is_that_of_the_runs_own_instance(field, results):
    entry = SuiteEntry("turned", "random_quadratic", {"dim": 2}, rotate=True)
    seed = derive_seed(5, "evaluation", "turned")
    task = entry.build()
    problems = task.sample(4, seed=seed, dtype=torch.float64)
    losses = task.loss(problems.params, problems)
    metadata = {"entries": {"turned": dataclasses.asdict(entry)}}
    info = TaskInfo("turned", "x", "x", "quadratic", 2, True, 9, num_instances=4)
    for instance in (0, 3):
        start = problems.params["x"][instance].tolist()
        run = {"seed": 5, "instance": instance, "path_x": start[:1], "path_y": start[1:]}
        run |= {"curve_loss": [float(losses[instance])], "reference": 1.0, "minimum": 0.0}
        landscape = rebuild(Results(results.runs, results.tuning, metadata), info, run)
        assert landscape is not None
        assert landscape(np.array([start]))[0] == pytest.approx(float(losses[instance]))


def test_a_surface_that_is_not_the_runs_own_is_not_drawn(field, results):
    task = next(task for task in field.tasks if task.label == "monkey_saddle")
    run = results.filter(task="monkey_saddle", rule="adam", tuning_trials=4, instance=0).rows()[0]
    assert rebuild(results, task, run | {"curve_loss": [run["curve_loss"][0] + 1.0]}) is None
    assert rebuild(Results(results.runs, results.tuning, {}), task, run) is None
    unknown = {"entries": {"monkey_saddle": {"label": "x", "task_name": "no such task"}}}
    assert rebuild(Results(results.runs, results.tuning, unknown), task, run) is None


def test_tasks_of_other_dimensions_have_no_paths(field):
    assert [t.label for t in field.tasks if trajectory_chart(field, t)] == ["monkey_saddle"]


def test_history_reads_the_meta_loss_and_numbers_that_are_not_finite(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(
        '{"summary": {"K": 4}}\n{"step": 0, "validation_loss": 9, "meta_loss": 2.0}\n\n'
        '{"step": 5, "meta_loss": "nan"}\n{"step": 9, "grad_norm": 1.0}\n'
    )
    name, steps, values = read_history(path)
    assert (name, steps) == ("meta_loss", [0.0, 5.0])
    assert values[0] == 2.0
    assert np.isnan(values[1])


def test_bad_histories_are_named(tmp_path):
    with pytest.raises(LearnedOptError, match="does not exist"):
        read_history(tmp_path / "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{not json\n")
    with pytest.raises(LearnedOptError, match="is not JSON lines"):
        read_history(bad)
    bad.write_text('{"step": 1, "norm": 2, "nonfinite_meta_losses": 3}\n')
    with pytest.raises(LearnedOptError, match="holds no loss by step"):
        read_history(bad)


def test_rounded_numbers_are_json():
    assert rounded([1.23456, float("nan"), float("inf"), 123456.0]) == [1.235, None, None, 123500.0]
