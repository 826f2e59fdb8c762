import math

import numpy as np
import pytest

from learned_opt.bench.alarm import leakage_alarms
from learned_opt.bench.leaderboard import leaderboard
from learned_opt.bench.statistics import geometric_mean, iqm
from learned_opt.errors import LearnedOptError

INF = math.inf


def runs(times, **shared):
    return [
        {
            **shared,
            "instance": i,
            **{f"t_{n}": t for n in ("exit", "half", "solve", "gap1", "gap2", "gap3", "gap4")},
            "status": "solved" if math.isfinite(t) else "censored",
            "log_gap": -3.0 if math.isfinite(t) else -float(i),
        }
        for i, t in enumerate(times)
    ]


@pytest.fixture
def table(make_results):
    learned = {"rule": "net", "rule_kind": "learned", "tuning_trials": 0}
    return make_results([
        *runs([10, 20, 30, 40], task="a", family="fa", rule="sgd"),
        *runs([50, 50, 50, INF], task="a", family="fa", rule="sgd", tuning_trials=0),
        *runs([20, 20, 20, 40], task="a", family="fa", rule="adam"),
        *runs([5, 10, 15, 20], task="a", family="fa", **learned),
        *runs([INF, INF, 50, 50], task="b", family="fb", rule="sgd", budget=200),
        *runs([100, 100, 100, 100], task="b", family="fb", rule="adam", budget=200),
        *runs([INF, INF, 40, 160], task="b", family="fb", budget=200, **learned),
    ])


def test_numbers_of_a_hand_made_table(table) -> None:
    rows = {(r.rule, r.tuning_trials): r for r in leaderboard(table)}
    # Best baselines: on a both tie at 25 and sgd comes second in name order; on b it is adam.
    net = rows["net", 0]
    assert net.rmst_ratio.estimate == pytest.approx(math.sqrt(12.5 / 25 * 150 / 100))
    assert rows["sgd", 4].rmst_ratio.estimate == pytest.approx(math.sqrt(1.0 * 125 / 100))
    assert rows["sgd", 0].num_tasks == 1 and rows["sgd", 0].rmst_ratio.estimate == 62.5 / 25
    assert net.success.estimate == 6 / 8 and net.num_runs == 8 and net.num_tasks == 2
    assert net.ert == pytest.approx(math.sqrt(12.5 * 600 / 2))
    assert net.log_gap.estimate == iqm([-3, -3, -3, -3, 0, -1, -3, -3])
    logs = [math.log(t) / math.log(100) for t in (5, 10, 15, 20)]
    logs += [1, 1, math.log(40) / math.log(200), math.log(160) / math.log(200)]
    assert net.ecdf_area == pytest.approx(1 - np.mean(logs))
    assert net.rmst_ratio.low <= net.rmst_ratio.estimate <= net.rmst_ratio.high
    assert net.median_seconds == 1.0 and net.rule_kind == "learned"


def test_groups_and_order(table) -> None:
    families = leaderboard(table, by="family")
    assert [(r.group, r.rule) for r in families[:2]] == [("fa", "net"), ("fa", "adam")]
    assert {r.group for r in families} == {"fa", "fb"}
    assert {r.group for r in leaderboard(table, by="task")} == {"a", "b"}
    ratios = [r.rmst_ratio.estimate for r in leaderboard(table)]
    assert ratios == sorted(ratios)


def test_bootstrap_is_seeded_and_paired(make_results) -> None:
    rng = np.random.default_rng(0)
    loose = make_results([
        *runs(rng.uniform(1, 99, size=40), rule="sgd"),
        *runs(rng.uniform(1, 99, size=40), rule="adam"),
    ])
    assert leaderboard(loose, seed=3) == leaderboard(loose, seed=3)
    assert leaderboard(loose, seed=3) != leaderboard(loose, seed=4)
    # Exactly half of the baseline on every instance: pairing leaves no uncertainty.
    paired = make_results([
        *runs([10, 20, 30, 90], rule="sgd"),
        *runs([5, 10, 15, 45], rule="net", rule_kind="learned", tuning_trials=0),
    ])
    ratio = leaderboard(paired)[0].rmst_ratio
    assert (ratio.low, ratio.estimate, ratio.high) == (0.5, 0.5, 0.5)


def test_divergence_and_failure_everywhere(make_results) -> None:
    bad = [{**row, "status": "diverged", "log_gap": 1.0} for row in runs([INF] * 3, rule="sgd")]
    row = leaderboard(make_results(bad))[0]
    assert row.num_diverged == 3 and row.success.estimate == 0 and row.ert == INF
    assert row.rmst_ratio.estimate == 1.0 and row.ecdf_area == 0.0 and row.log_gap.estimate == 1.0


def test_without_a_baseline_there_is_no_ratio(make_results) -> None:
    (row,) = leaderboard(make_results(runs([1.0], rule="net", rule_kind="learned")))
    assert math.isnan(row.rmst_ratio.estimate) and row.success.estimate == 1.0


def test_bad_input_is_refused(make_results, table) -> None:
    with pytest.raises(LearnedOptError, match="results must hold at least one run"):
        leaderboard(make_results([]))
    with pytest.raises(LearnedOptError, match=r"by must be .* got 'rule'"):
        leaderboard(table, by="rule")  # type: ignore[arg-type]


def strict(times, **shared):
    return runs(times, family="strict_saddle", rotated=True, task="s-rotated", **shared)


def test_alarm_of_an_impossible_speedup(make_results) -> None:
    learned = {"rule_kind": "learned", "tuning_trials": 0}
    results = make_results([
        *strict([90, 90], rule="momentum", tuning_trials=0),
        *strict([60, 60], rule="momentum", tuning_trials=16),
        *strict([5, 5.9], rule="cheat", **learned),
        *strict([6, 6], rule="honest", **learned),
        *[{**r, "rotated": False} for r in strict([1, 1], rule="aligned", **learned)],
    ])
    (alarm,) = leakage_alarms(results)
    assert (alarm.rule, alarm.task, alarm.baseline_rmst) == ("cheat", "s-rotated", 60)
    assert alarm.speedup == pytest.approx(60 / 5.45)
    assert "cheat (K = 0) is 11.0 times faster" in alarm.message
    assert [a.rule for a in leakage_alarms(results, max_speedup=9.9)] == ["cheat", "honest"]


def test_no_alarm_without_heavy_ball(make_results) -> None:
    assert leakage_alarms(make_results(strict([1, 1], rule="cheat"))) == []


def test_geometric_mean_of_ratios_is_symmetric() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
