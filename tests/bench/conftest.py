from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from learned_opt.bench.results import Results
from learned_opt.bench.shards import RUNS_SCHEMA, TUNING_SCHEMA

BLANK: dict[str, Any] = {
    "suite": "made",
    "task": "a",
    "family": "fa",
    "kind": "saddle",
    "dim": 2,
    "rotated": False,
    "rule": "sgd",
    "rule_kind": "hand-made",
    "tuning_trials": 4,
    "instance": 0,
    "seed": 0,
    "budget": 100,
    "status": "solved",
    **{f"t_{name}": 1.0 for name in ("exit", "half", "solve", "gap1", "gap2", "gap3", "gap4")},
    "final_loss": 0.0,
    "best_loss": 0.0,
    "log_gap": -3.0,
    "minimum": 0.0,
    "reference": 1.0,
    "next_level": 0.0,
    "levels": [],
    "zero_gradient_steps": 0,
    "seconds": 1.0,
    "hyperparameters": "{}",
    "curve_step": [0, 1],
    "curve_loss": [1.0, 0.0],
    "path_step": [],
    "path_x": [],
    "path_y": [],
    "config_hash": "0" * 16,
}


@pytest.fixture
def make_results() -> Callable[[Sequence[dict[str, Any]]], Results]:
    """Results from rows that name only what differs from a blank run."""

    def make(rows: Sequence[dict[str, Any]]) -> Results:
        runs = pa.Table.from_pylist([{**BLANK, **row} for row in rows], schema=RUNS_SCHEMA)
        return Results(runs, TUNING_SCHEMA.empty_table(), {})

    return make
