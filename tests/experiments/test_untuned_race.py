"""The pure parts of experiments/untuned_race.py, against closed forms."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from learned_opt.bench.suites import SuiteEntry
from learned_opt.tasks import Rotated, get_task

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _jobs
import _one_setting
import _race_report
import _ratios
from _floors import lbfgs_times, newton_times

INF = math.inf


def times(**changes):
    """Three targets, two instances: the rule takes half of the better rival's time to the first."""
    settings = {
        "label": "one",
        "family": "a",
        "group": "trained",
        "budget": 100,
        "rivals": {
            "slow": np.array([[40.0, 40.0], [60.0, INF], [INF, INF]]),
            "fast": np.array([[20.0, 20.0], [INF, 100.0], [INF, INF]]),
        },
        "rule": np.array([[[10.0, 10.0], [40.0, 40.0], [INF, INF]]]),
    }
    return _ratios.TaskTimes(**(settings | changes))


def compared(*tasks, num_seeds=1):
    weights = _ratios.seed_weights(num_seeds, 500, seed=0)
    return [_ratios.compare(task, weights, seed=0) for task in tasks]


def test_compare_takes_the_best_baseline_of_each_target():
    (c,) = compared(times())
    # Both rivals reach the second target once; 60 and the budget are less than twice the budget.
    assert c.best[:2] == ("fast", "slow")
    assert c.rival_rmst.tolist() == [20, 80, 100]
    assert c.rule_rmst.tolist() == [10, 40, 100]
    assert c.rival_success.tolist() == [1, 0.5, 0]
    assert c.rule_success.tolist() == [1, 1, 0]
    assert c.is_reached.tolist() == [True, True, False]
    assert np.exp(c.log_ratio) == pytest.approx([2, 2, 1])
    assert not c.is_less_solved


def test_mean_leaves_out_what_nobody_reaches():
    (c,) = compared(times())
    assert _ratios.mean_ratio([c]).estimate == pytest.approx(2)
    assert _ratios.mean_ratio([c], target=2) is None


def test_interval_covers_instances_and_vanishes_without_spread():
    (c,) = compared(times())
    first = _ratios.mean_ratio([c], target=0)
    assert (first.low, first.high) == pytest.approx((2, 2))
    # The rival takes 60 or 100, the rule 40: resamples are 60/40, 80/40 and 100/40.
    second = _ratios.mean_ratio([c], target=1)
    assert (second.low, second.high) == pytest.approx((1.5, 2.5))


def test_draws_are_paired():
    # Rule and rival agree on every instance: the ratio has no spread although the times have.
    both = np.array([[1.0, 9.0], [2.0, 30.0], [4.0, 80.0]])
    (c,) = compared(times(rivals={"same": both}, rule=both[None]))
    ratio = _ratios.mean_ratio([c])
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((1, 1, 1))


def test_meta_seeds_are_averaged_and_drawn():
    rule = np.stack([np.full((3, 2), 10.0), np.full((3, 2), 30.0)])
    rivals = {"only": np.full((3, 2), 20.0)}
    (c,) = compared(times(rivals=rivals, rule=rule), num_seeds=2)
    assert c.rule_rmst.tolist() == [20, 20, 20]
    ratio = _ratios.mean_ratio([c])
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((1, 20 / 30, 2))


def test_families_count_once():
    def task(label, family, factor):
        rule = np.full((1, 3, 2), 20.0 / factor)
        return times(label=label, family=family, rivals={"only": np.full((3, 2), 20.0)}, rule=rule)

    found = compared(task("one", "a", 2), task("two", "a", 8), task("three", "b", 1))
    assert _ratios.mean_ratio(found).estimate == pytest.approx(16 ** (1 / 3))
    assert _ratios.mean_ratio(found, by_family=True).estimate == pytest.approx(2)
    summary = _race_report.summarise(found, {"lbfgs": found[:1]})
    assert summary["worst task"] == ["three", pytest.approx(1)]
    assert summary["faster on"] == 2
    assert summary["floors"]["lbfgs"]["num_tasks"] == 1
    assert summary["floors"]["lbfgs"]["rule"][0] == pytest.approx(2)


def test_success_below_the_best_baseline_is_told():
    rule = np.array([[[10.0, INF], [40.0, INF], [INF, INF]]])
    (c,) = compared(times(rule=rule))
    assert c.is_less_solved
    assert _race_report.summarise([c], {})["solved less often"] == ["one"]


def test_starting_at_the_target_costs_one_gradient():
    assert _ratios.restricted([0, math.nan, 3], 50).tolist() == [1, 50, 3]


LISTED = ["rotated(strict_saddle)", "monkey_saddle", "deep_linear", "digits_mlp"]


@pytest.mark.parametrize(
    ("task", "names", "group"),
    [
        (get_task("strict_saddle"), LISTED, "trained"),
        (Rotated(get_task("strict_saddle")), LISTED, "trained"),
        (get_task("four_fold_saddle"), LISTED, "trained"),  # the family of the monkey saddle
        (get_task("octopus"), LISTED, "unseen"),
        (get_task("octopus"), [*LISTED, "shifted(octopus)"], "trained"),
        (get_task("deep_linear", depth=2), LISTED, "trained"),
        (get_task("deep_linear", depth=3), LISTED, "unseen"),
        (get_task("digits_mlp"), LISTED, "trained"),
        (get_task("parity_mlp"), LISTED, "unseen"),
        (get_task("welsch"), LISTED, "unseen"),
        # What a mixture holds is not in the header: in doubt a task is not called unseen.
        (get_task("welsch"), ["noisy(mixture)"], "trained"),
        (get_task("phase_retrieval"), ["noisy(mixture)"], "unseen"),
        (get_task("digits_mlp"), ["noisy(mixture)"], "unseen"),
        (get_task("digits_mlp"), ["noisy(mixture)", "digits_mlp"], "trained"),
    ],
)
def test_groups(task, names, group):
    assert _ratios.group_of(task, names) == group


def test_one_setting_is_best_by_the_geometric_mean():
    # 10 and 1000, 100 and 50, 40 and 160: geometric means 100, 70.7, 80; means 505, 75, 100.
    found = {
        "one": np.array([[10.0], [100.0], [40.0]]),
        "two": np.array([[1000.0], [50.0], [160.0]]),
    }
    budgets = {"one": 2000, "two": 2000}
    assert _one_setting.best_setting(found, budgets) == 1
    # Failures cost the budget, so a short one forgives the first setting its second task.
    assert _one_setting.best_setting(found, {"one": 2000, "two": 100}) == 0


def test_best_overall():
    rivals = {
        "one": {"x": np.array([[10.0]]), "y": np.array([[30.0]])},
        "two": {"x": np.array([[90.0]]), "y": np.array([[20.0]])},
    }
    assert _ratios.best_overall(rivals, {"one": 100, "two": 100}) == "y"


def test_complete_puts_points_over_defaults():
    first, second = _jobs.complete("momentum", [{"learning_rate": 7.0}])
    assert second == {**first, "learning_rate": 7.0}
    assert first["learning_rate"] != 7.0


EVENTS = ("gap1", "gap4")


def test_newton_solves_a_quadratic_in_one_step_within_its_radius():
    task = get_task("random_quadratic")
    problems = task.sample(4, seed=0, dtype=torch.float64)
    found = newton_times(task, problems, budget=50, events=EVENTS)
    assert found.shape == (2, 4)
    assert bool((found <= 8).all())
    task.radius = 1e6
    assert newton_times(task, problems, budget=50, events=EVENTS).tolist() == [[1] * 4] * 2


def test_newton_leaves_a_strict_saddle():
    task = Rotated(get_task("strict_saddle", dim=10))
    problems = task.sample(3, seed=0, dtype=torch.float64)
    assert bool((newton_times(task, problems, budget=50, events=EVENTS) <= 10).all())


def test_newton_is_censored_at_the_budget():
    task = get_task("rosenbrock", dim=10)
    problems = task.sample(2, seed=0, dtype=torch.float64)
    found = newton_times(task, problems, budget=2, events=EVENTS)
    assert found[1].tolist() == [INF, INF]


def test_lbfgs_pays_for_every_point_of_its_line_search():
    task = get_task("random_quadratic")
    problems = task.sample(3, seed=0, dtype=torch.float64)
    found = lbfgs_times(task, problems, budget=200, events=EVENTS)
    assert bool((found[0] <= found[1]).all())
    assert bool((found[1] <= 40).all())
    # One step along the slope and the first full one: nothing is known before it is paid for.
    assert bool((lbfgs_times(task, problems, budget=1, events=EVENTS)[1] == INF).all())


def test_finished_jobs_are_read_back(tmp_path):
    entry = SuiteEntry("x", "x2_y4_y2")
    jobs = [
        _jobs.Job(kind="floor", entry=entry, rule="newton", seed=0, num_instances=2),
        _jobs.Job(
            kind="runs",
            entry=entry,
            rule="sgd",
            settings=({"learning_rate": 0.1}, {"learning_rate": 1e-9})[1:],
            seed=0,
            num_instances=2,
        ),
    ]
    done = []
    first = _jobs.run_jobs(jobs, tmp_path, workers=1, on_done=done.append)
    again = _jobs.run_jobs(jobs, tmp_path, workers=1, on_done=done.append)
    assert done == jobs
    assert np.isinf(first[1]).all()
    for one, two in zip(first, again, strict=True):
        assert one.shape == (3, 2)
        np.testing.assert_array_equal(one, two)


def test_runs_are_those_of_the_benchmark(tmp_path):
    # The same setting on the same instances as the benchmark's own shards.
    from learned_opt.bench.runner import run_benchmark
    from learned_opt.bench.tuning import defaults

    entry = SuiteEntry("x", "x2_y4_y2")
    results = run_benchmark(
        [entry], rules=["adam"], out=tmp_path, num_instances=3, tuning_trials=(0,)
    )
    job = _jobs.Job(
        kind="runs", entry=entry, rule="adam", settings=(defaults("adam"),), seed=0,
        num_instances=3,
    )  # fmt: skip
    np.testing.assert_array_equal(_jobs.run_job(job)[0], results.column("t_gap1"))


def test_floors_are_left_out_where_they_do_not_exist():
    entries = [
        SuiteEntry("small", "x2_y4_y2"),
        SuiteEntry("large", "deep_linear", {"depth": 3}),
        SuiteEntry("noisy", "parity_mlp"),
    ]
    jobs = _jobs.floor_jobs(entries, seed=0, num_instances=2)
    assert [(job.entry.label, job.rule) for job in jobs] == [
        ("small", "lbfgs"),
        ("small", "newton"),
        ("large", "lbfgs"),
    ]


def test_figure_and_tables_hold_every_task(tmp_path):
    found = compared(times(), times(label="two", group="unseen"))
    floors = {"newton": found[:1]}
    groups = {
        group: _race_report.summarise(_race_report.members(found, group), floors)
        for group in ("trained", "unseen", "all")
    }
    table = _race_report.task_table(found, floors)
    assert [row[0] for row in table] == ["task", "one", "two"]
    assert table[1][3:6] == ["20 / 80 / 100", "10 / 40 / 100", "2 [1.73, 2.24]"]
    assert _race_report.group_table(groups)[3][:3] == ["all", "2", "2"]
    _race_report.plot(found, floors, groups, tmp_path / "race.png", title="")
    assert (tmp_path / "race.png").stat().st_size > 10_000
