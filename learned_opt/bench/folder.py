"""The results folder: whose it is, what was asked for, what failed."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learned_opt.bench.shards import FORMAT_VERSION, read_metadata, shard_config, write_atomically
from learned_opt.bench.units import Unit, library_version
from learned_opt.errors import LearnedOptError, require

FAILURES = "failures.jsonl"
"""Name of the log of units that failed, one JSON object a line, beside the shards."""


def open_folder(folder: Path, units: Sequence[Unit], workers: int) -> None:
    """Make the folder, or make sure that it belongs to this benchmark; write ``benchmark.json``.

    Args:
        folder: where results go.
        units: all units of the benchmark.
        workers: processes, for the record.

    Raises:
        LearnedOptError: if the folder cannot be made, or holds another benchmark, other weights
            under the same name, or a damaged file.
    """
    unit = units[0]
    settings: dict[str, Any] = {
        "suite": " + ".join(dict.fromkeys(unit.suite for unit in units)),
        "seed": unit.seed,
        "num_instances": unit.num_instances,
        "num_tuning_instances": unit.num_tuning_instances,
        "tuning_trials": list(unit.tuning_trials),
        "budget_scale": unit.budget_scale,
        "dtype": unit.dtype,
        "device": torch.device(unit.device).type,
        # Shards of learned rules know their own.
        "library_version": library_version("hand-made"),
        "torch_version": torch.__version__,
    }
    entries = {u.entry.label: asdict(u.entry) for u in units}
    rules = list(dict.fromkeys(u.entrant.name for u in units))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LearnedOptError(f"cannot make the results folder {folder}: {error}") from error
    if (folder / "benchmark.json").exists():
        before = read_metadata(folder)
        for key, value in settings.items():
            require(
                before.get(key) == value,
                f"{folder} holds a benchmark with {key} {before.get(key)!r}, this one has "
                f"{value!r}; choose another folder",
            )
        for label, entry in before["entries"].items():
            require(
                entries.get(label, entry) == entry,
                f"{folder} holds another task under the label '{label}'; choose another folder",
            )
        entries = before["entries"] | entries
        rules = list(dict.fromkeys([*before["rules"], *rules]))
    _require_no_stale_shards(folder, units)
    (folder / FAILURES).unlink(missing_ok=True)
    metadata = {
        "format_version": FORMAT_VERSION,
        **settings,
        "entries": entries,
        "rules": rules,
        "threads": 1,
        "workers": workers,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        # Without the machine's own path to the program.
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    text = json.dumps(metadata, indent=1) + "\n"
    write_atomically(
        folder / "benchmark.json", lambda path: path.write_text(text, encoding="utf-8")
    )


def _require_no_stale_shards(folder: Path, units: Iterable[Unit]) -> None:
    """Refuse shards of the same task and rule that others wrote: they would count twice."""
    expected = {(u.entry.label, u.entrant.name): u for u in units}
    for path in sorted(folder.glob("runs-*.parquet")):
        config = shard_config(path)
        unit = expected.get((config["entry"]["label"], config["rule"]))
        require(
            unit is None or unit.path(folder) == path,
            f"{path} holds '{config['rule']}' on '{config['entry']['label']}' with other weights, "
            "sources or settings; delete it or choose another folder",
        )


def log_failure(folder: Path, unit: Unit, *, error: str, details: str) -> None:
    """Add a failed unit to the folder's log.

    Args:
        folder: the results folder.
        unit: what failed.
        error: one line.
        details: the traceback.
    """
    record = {
        "task": unit.entry.label,
        "rule": unit.entrant.name,
        "error": error,
        "traceback": details,
    }
    with (folder / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
