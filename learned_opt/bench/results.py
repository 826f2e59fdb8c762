"""Results on disk, read back: what statistics, figures and tables are made from.

Nothing else is read, so any of them can be redrawn without running anything again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learned_opt.bench.shards import read_metadata, read_shards
from learned_opt.errors import unknown_name


@final
@dataclass(frozen=True)
class Results:
    """The runs of a benchmark, read-only.

    Attributes:
        runs: one row per run, columns as in `shards.RUNS_SCHEMA`.
        tuning: one row per tuning trial, columns as in `shards.TUNING_SCHEMA`.
        metadata: what ``benchmark.json`` says.
    """

    runs: pa.Table
    tuning: pa.Table
    metadata: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read a results folder.

        Args:
            path: the folder that `run_benchmark` wrote.

        Returns:
            The results, ordered by task, rule, tuning budget and instance.

        Raises:
            LearnedOptError: if the folder is none, is of another format version, or a shard is
                damaged.
        """
        folder = Path(path)
        metadata = read_metadata(folder)
        keys = [(key, "ascending") for key in ("task", "rule", "tuning_trials", "instance")]
        runs = read_shards(folder, "runs").sort_by(keys)
        tuning = read_shards(folder, "tuning").sort_by([
            (key, "ascending") for key in ("task", "rule", "trial")
        ])
        return cls(runs, tuning, metadata)

    def __len__(self) -> int:
        return int(self.runs.num_rows)

    def filter(self, **equals: object) -> Results:
        """Keep the runs whose columns have the given values.

        Args:
            equals: column -> a value, or a collection of allowed values.

        Returns:
            The narrower results; tuning rows are narrowed by the columns they share.

        Raises:
            LearnedOptError: if a column is unknown.
        """
        runs, tuning = self.runs, self.tuning
        for column, value in equals.items():
            if column not in runs.column_names:
                raise unknown_name("column", column, runs.column_names)
            is_many = isinstance(value, Collection) and not isinstance(value, str)
            allowed = list(value) if is_many else [value]  # type: ignore[call-overload]
            runs = _keep(runs, column, allowed)
            if column in {"suite", "task", "rule"}:
                tuning = _keep(tuning, column, allowed)
        return Results(runs, tuning, self.metadata)

    def column(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """One column of `runs` as a NumPy array.

        Args:
            name: a column.

        Returns:
            ``[num_runs]`` values.

        Raises:
            LearnedOptError: if the column is unknown.
        """
        if name not in self.runs.column_names:
            raise unknown_name("column", name, self.runs.column_names)
        values: np.ndarray[Any, np.dtype[Any]] = self.runs[name].to_numpy(zero_copy_only=False)
        return values

    def rows(self) -> list[dict[str, Any]]:
        """The runs as a list of dictionaries."""
        rows: list[dict[str, Any]] = self.runs.to_pylist()
        return rows

    def unique(self, column: str) -> list[Any]:
        """Distinct values of a column, ascending."""
        return sorted(set(self.column(column).tolist()))

    @property
    def tasks(self) -> list[str]:
        """Task labels, ascending."""
        return self.unique("task")

    @property
    def rules(self) -> list[str]:
        """Rule names, ascending."""
        return self.unique("rule")

    @property
    def families(self) -> list[str]:
        """Task families, ascending."""
        return self.unique("family")


def _keep(table: pa.Table, column: str, allowed: list[object]) -> pa.Table:
    values = pa.array(allowed, type=table.schema.field(column).type)
    return table.filter(pc.is_in(table[column], value_set=values))
