"""When a learning curve has settled, and what its history must hold."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from learned_opt.errors import LearnedOptError

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from learning_curve import Settings, curve, main, settled_at


def history(folder, values):
    lines = [
        {"step": 10 * (i + 1), "estimator/pace": value, "eval/score": -value}
        for i, value in enumerate(values)
    ]
    path = folder / "history.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_it_settles_where_it_stays_within_a_tenth_of_its_end():
    steps = np.arange(1.0, 21.0)
    values = np.array([100.0] * 5 + [10.9] * 3 + [12.0] + [10.5] * 9 + [10.0] * 2)
    # Step 9 leaves the tenth once more.
    assert settled_at(steps, values) == 10
    assert settled_at(steps, np.full(20, 3.0)) == 1


def test_the_curve_is_drawn_in_core_minutes(tmp_path, capsys):
    history(tmp_path, [40.0, 20.0, 10.0, 10.0])
    main(Settings(run=tmp_path, core_minutes=8.0))
    assert "after 6 core-minutes" in capsys.readouterr().out
    assert (tmp_path / "learning_curve.png").stat().st_size > 5_000


def test_what_is_missing_is_named(tmp_path):
    path = history(tmp_path, [1.0, 2.0])
    with pytest.raises(LearnedOptError, match="must hold 'eval/other'"):
        curve(path, "eval/other")
    with pytest.raises(LearnedOptError, match="--core-minutes must be positive"):
        main(Settings(run=tmp_path, core_minutes=0.0))
