"""One Parquet shard per unit of work: its columns, its name, writing and reading it.

A shard is named by the hash of its canonical config and is written to a temporary file that is then
renamed: it exists whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from learned_opt.errors import LearnedOptError, require

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
    ("is_pruned", pa.bool_()),
    ("num_instances", pa.int64()),
    ("budget", pa.int64()),
    ("seconds", pa.float64()),
    ("config_hash", pa.string()),
])
"""Columns of a tuning shard: one row per trial; trial 0 is the rule's defaults.

A pruned trial was stopped once it could no longer be selected: its `rmst` and `success` are lower
bounds.
"""

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


def read_shards(folder: Path, kind: str) -> pa.Table:
    """All shards of one kind as one table.

    Args:
        folder: the results folder.
        kind: ``runs`` or ``tuning``.

    Returns:
        Their rows, shard after shard; an empty table if there is none.

    Raises:
        LearnedOptError: if a shard is damaged or of another format version.
    """
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
