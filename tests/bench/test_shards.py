import errno
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learned_opt.bench import shards
from learned_opt.bench.results import Results
from learned_opt.bench.shards import (
    DiskFullError,
    config_hash,
    read_shards,
    shard_config,
    write_atomically,
    write_shard,
)
from learned_opt.errors import LearnedOptError

CONFIG = {"rule": "sgd", "seed": 0}
ROW = {
    "suite": "s",
    "task": "t",
    "rule": "sgd",
    "trial": 0,
    "hyperparameters": "{}",
    "rmst": 3.0,
    "success": 1.0,
    "diverged": 0.0,
    "log_gap": -3.0,
    "is_pruned": False,
    "num_instances": 2,
    "budget": 10,
    "seconds": 0.1,
}


def folder_of(tmp_path: Path, version: int = shards.FORMAT_VERSION) -> Path:
    text = json.dumps({"format_version": version})
    (tmp_path / "benchmark.json").write_text(text, encoding="utf-8")
    return tmp_path


def test_hash_is_that_of_the_canonical_config() -> None:
    assert config_hash({"b": (1, 2), "a": 0.5}) == config_hash({"a": 0.5, "b": [1, 2]})
    assert config_hash(CONFIG) != config_hash({**CONFIG, "seed": 1})
    # The digest of '{"rule":"sgd","seed":0}', so that names stay what they are across versions.
    assert config_hash(CONFIG) == "f11785657bb28bc9"


def test_a_shard_comes_back_with_its_config(tmp_path: Path) -> None:
    path = write_shard(tmp_path, "tuning", CONFIG, [ROW, {**ROW, "trial": 1}])
    assert path.name == f"tuning-{config_hash(CONFIG)}.parquet"
    assert shard_config(path) == CONFIG
    table = read_shards(tmp_path, "tuning")
    assert table.schema.equals(shards.TUNING_SCHEMA)
    assert table.to_pylist()[1] == {**ROW, "trial": 1, "config_hash": config_hash(CONFIG)}
    assert list(tmp_path.iterdir()) == [path]


def test_no_shards_are_an_empty_table(tmp_path: Path) -> None:
    results = Results.load(folder_of(tmp_path))
    assert len(results) == 0 and results.tasks == []
    assert results.runs.schema.equals(shards.RUNS_SCHEMA)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_shard(folder_of(tmp_path), "tuning", CONFIG, [ROW])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(LearnedOptError, match=f"results shard {re.escape(str(path))} is damaged"):
        Results.load(tmp_path)


def test_a_shard_with_damaged_data_pages_is_named(tmp_path: Path) -> None:
    path = write_shard(folder_of(tmp_path), "tuning", CONFIG, [ROW])
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(bytes(data))
    with pytest.raises(LearnedOptError, match="is damaged"):
        Results.load(tmp_path)


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    path = folder_of(tmp_path) / "runs-0000000000000000.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(LearnedOptError, match=f"{re.escape(str(path))} is damaged"):
        Results.load(tmp_path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = write_shard(folder_of(tmp_path), "tuning", CONFIG, [ROW])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["rmst"]), path)
    with pytest.raises(LearnedOptError, match="its columns are not those of this format"):
        Results.load(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(folder_of(tmp_path), "tuning", CONFIG, [ROW])
    monkeypatch.setattr(shards, "FORMAT_VERSION", 99)
    with pytest.raises(LearnedOptError, match="format 1, this version reads format 99"):
        Results.load(tmp_path)
    folder_of(tmp_path, version=99)
    with pytest.raises(LearnedOptError, match=r"parquet has results format 1, .* reads format 99"):
        Results.load(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LearnedOptError, match="holds no benchmark results"):
        Results.load(tmp_path)
    (tmp_path / "benchmark.json").write_text("{", encoding="utf-8")
    with pytest.raises(LearnedOptError, match=r"benchmark\.json is damaged"):
        Results.load(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match=r"the disk is full: .* finished work is kept"):
        write_atomically(tmp_path / "a", fill)
    assert list(tmp_path.iterdir()) == []


def test_other_write_errors_and_interrupts_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(LearnedOptError, match=r"cannot write .*missing"):
        write_atomically(tmp_path / "missing" / "a", lambda path: path.write_text("x"))

    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_failed_rewrite(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def fill(path: Path) -> None:
        path.write_text("new")
        raise OSError(errno.EIO, "broken")

    with pytest.raises(LearnedOptError, match="cannot write"):
        write_atomically(target, fill)
    assert target.read_text() == "old"
