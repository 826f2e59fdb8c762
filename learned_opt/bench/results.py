"""Results on disk: one Parquet shard per unit of work, and the one way to read them.

Statistics, figures and tables read only these files, so any of them can be redrawn without running
anything again. A shard is named by the hash of its canonical config and is written to a temporary
file that is then renamed: it exists whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from learned_opt.errors import LearnedOptError, require, unknown_name

FORMAT_VERSION = 1
"""Version of the folder's layout and columns; another one is refused."""

_LOSSES = pa.list_(pa.float64())
_STEPS = pa.list_(pa.int32())

RUNS_SCHEMA = pa.schema([
    ("suite", pa.string()),
    ("task", pa.string()),
    ("family", pa.string()),
    ("kind", pa.string()),
    ("dim", pa.int64()),
    ("rotated", pa.bool_()),
    ("rule", pa.string()),
    ("rule_kind", pa.string()),
    ("tuning_trials", pa.int64()),
    ("instance", pa.int64()),
    ("seed", pa.int64()),
    ("budget", pa.int64()),
    ("status", pa.string()),
    ("t_exit", pa.float64()),
    ("t_half", pa.float64()),
    ("t_solve", pa.float64()),
    ("t_gap1", pa.float64()),
    ("t_gap2", pa.float64()),
    ("t_gap3", pa.float64()),
    ("t_gap4", pa.float64()),
    ("final_loss", pa.float64()),
    ("best_loss", pa.float64()),
    ("log_gap", pa.float64()),
    ("minimum", pa.float64()),
    ("reference", pa.float64()),
    ("next_level", pa.float64()),
    ("levels", _LOSSES),
    ("zero_gradient_steps", pa.int64()),
    ("seconds", pa.float64()),
    ("hyperparameters", pa.string()),
    ("curve_step", _STEPS),
    ("curve_loss", _LOSSES),
    ("path_step", _STEPS),
    ("path_x", _LOSSES),
    ("path_y", _LOSSES),
    ("config_hash", pa.string()),
])
"""Columns of an evaluation shard: one row per run on a fresh instance.

Times are in steps and inf where not reached; `status` is ``solved``, ``censored`` or ``diverged``;
`zero_gradient_steps` counts the steps at which some gradient component was exactly zero; `seconds`
is the wall time of the whole batch over its number of runs; `hyperparameters` is JSON; the curve
holds losses on a grid that is even in log step; the path is filled for the first instances of
two-dimensional tasks and empty otherwise.
"""

TUNING_SCHEMA = pa.schema([
    ("suite", pa.string()),
    ("task", pa.string()),
    ("rule", pa.string()),
    ("trial", pa.int64()),
    ("hyperparameters", pa.string()),
    ("rmst", pa.float64()),
    ("success", pa.float64()),
    ("diverged", pa.float64()),
    ("log_gap", pa.float64()),
    ("num_instances", pa.int64()),
    ("budget", pa.int64()),
    ("seconds", pa.float64()),
    ("config_hash", pa.string()),
])
"""Columns of a tuning shard: one row per trial; trial 0 is the rule's defaults."""

_SCHEMAS = {"runs": RUNS_SCHEMA, "tuning": TUNING_SCHEMA}


class DiskFullError(LearnedOptError):
    """There was no room for a shard."""


def canonical_json(config: Mapping[str, Any]) -> str:
    """The one spelling of a config: sorted keys, no spaces.

    Examples:
        >>> canonical_json({"b": 1, "a": (2, 3)})
        '{"a":[2,3],"b":1}'
    """
    return json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_hash(config: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the canonical config."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:16]


def shard_path(folder: Path, kind: str, digest: str) -> Path:
    """Where the shard of a unit lies; `kind` is ``runs`` or ``tuning``."""
    return folder / f"{kind}-{digest}.parquet"


def write_atomically(path: Path, write: Any) -> None:
    """Have `write` fill a temporary file beside `path`, then rename it.

    Args:
        path: where the file is to be; its folder exists.
        write: called with the temporary path.

    Raises:
        DiskFullError: if the disk is full; nothing is left at `path` then.
        LearnedOptError: if it cannot be written for another reason; likewise.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise DiskFullError(
                f"the disk is full: {path} was not written; free some space and run the same "
                "command again, finished work is kept"
            ) from error
        raise LearnedOptError(f"cannot write {path}: {error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_shard(
    folder: Path, kind: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Write one unit's rows, with its config in the file's metadata.

    Args:
        folder: the results folder, which exists.
        kind: ``runs`` or ``tuning``.
        config: what the unit is a pure function of; JSON-able.
        rows: one mapping per row, without ``config_hash``.

    Returns:
        Where the shard lies.
    """
    digest = config_hash(config)
    filled = [{**row, "config_hash": digest} for row in rows]
    table = pa.Table.from_pylist(filled, schema=_SCHEMAS[kind]).replace_schema_metadata({
        "format_version": str(FORMAT_VERSION),
        "config": canonical_json(config),
    })
    path = shard_path(folder, kind, digest)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    return path


def _damaged(path: Path, reason: object) -> LearnedOptError:
    why = (str(reason) or repr(reason)).splitlines()[0]
    return LearnedOptError(
        f"results shard {path} is damaged ({why}); "
        "delete it and run the benchmark again to redo that unit alone"
    )


def shard_config(path: Path) -> dict[str, Any]:
    """The config a shard was written for, from its footer alone.

    Args:
        path: a shard.

    Returns:
        The config.

    Raises:
        LearnedOptError: if the file is damaged or of another format version.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        version = int(metadata[b"format_version"])
        config: dict[str, Any] = json.loads(metadata[b"config"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    _require_version(path, version)
    return config


def _require_version(path: Path, version: object) -> None:
    require(
        version == FORMAT_VERSION,
        f"{path} has results format {version}, this version reads format {FORMAT_VERSION}; "
        "run the benchmark into a new folder",
    )


def read_metadata(folder: Path) -> dict[str, Any]:
    """The ``benchmark.json`` of a results folder.

    Args:
        folder: the folder.

    Returns:
        Suite, seeds, versions and settings.

    Raises:
        LearnedOptError: if it is missing, unreadable or of another format version.
    """
    path = folder / "benchmark.json"
    require(path.is_file(), f"{folder} holds no benchmark results (no benchmark.json)")
    try:
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = metadata["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise LearnedOptError(f"{path} is damaged ({error!r}); delete it and run again") from error
    _require_version(path, version)
    return metadata


def _read_shards(folder: Path, kind: str) -> pa.Table:
    schema = _SCHEMAS[kind]
    tables = []
    for path in sorted(folder.glob(f"{kind}-*.parquet")):
        shard_config(path)
        try:
            table = pq.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error
        if not table.schema.equals(schema):
            raise _damaged(path, "its columns are not those of this format")
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables) if tables else schema.empty_table()


@final
@dataclass(frozen=True)
class Results:
    """The runs of a benchmark, read-only.

    Attributes:
        runs: one row per run, columns as in `RUNS_SCHEMA`.
        tuning: one row per tuning trial, columns as in `TUNING_SCHEMA`.
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
        runs = _read_shards(folder, "runs").sort_by(keys)
        tuning = _read_shards(folder, "tuning").sort_by([
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
