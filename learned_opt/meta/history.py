"""The record of a run as JSON lines, cut back to a checkpoint when the run is resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import final

from learned_opt.errors import require


@final
class History:
    """Appends ``{"step": ..., name: number}`` lines.

    Numbers that are not finite become the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which
    `float` reads back.

    Args:
        path: the file.
        length: bytes of it to keep.

    Raises:
        LearnedOptError: if the file is shorter than `length`.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        found = path.stat().st_size if path.exists() else 0
        require(
            found >= length,
            f"history '{path}' has {found} bytes where the checkpoint expects {length}",
        )
        self._file = path.open("ab")
        self._file.truncate(length)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        record = {
            name: value if math.isfinite(value) else str(float(value))
            for name, value in metrics.items()
        }
        self._file.write(json.dumps({"step": step, **record}).encode() + b"\n")

    def flush(self) -> int:
        """Hand everything to the operating system.

        Returns:
            The length of the file in bytes.
        """
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
