import pytest

from learned_opt.errors import LearnedOptError


def test_filter_by_value_and_by_collection(make_results) -> None:
    results = make_results([
        {"task": task, "rule": rule, "tuning_trials": k}
        for task in "ab"
        for rule in ("sgd", "adam")
        for k in (0, 4)
    ])
    assert len(results) == 8 and results.tasks == ["a", "b"] and results.rules == ["adam", "sgd"]
    assert len(results.filter(task="a", tuning_trials=4)) == 2
    assert len(results.filter(rule={"sgd", "adam"}, task="b")) == 4
    assert len(results.filter(rule=[])) == 0
    assert results.filter(rule="sgd").column("tuning_trials").tolist() == [0, 4, 0, 4]
    assert results.filter(task="b", rule="adam").rows()[0]["curve_loss"] == [1.0, 0.0]
    assert results.families == ["fa"]


def test_unknown_columns_are_refused(make_results) -> None:
    results = make_results([{}])
    with pytest.raises(LearnedOptError, match="unknown column 'tsk'; did you mean 'task'"):
        results.filter(tsk="a")
    with pytest.raises(LearnedOptError, match="unknown column 'rle'; did you mean 'rule'"):
        results.column("rle")
