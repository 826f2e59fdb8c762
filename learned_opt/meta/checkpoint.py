"""One file that holds all a run needs to go on bit for bit.

It is written beside its final name and renamed, so that a kill leaves the old one or the new one,
and is read without unpickling code.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from learned_opt.errors import LearnedOptError, require

_FORMAT = "learned_opt meta-training checkpoint 1"
_LONG = 100
"""Characters about one setting beyond which only what differs in it is printed."""


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`.

    Args:
        path: the file.
        content: nested dictionaries and lists of tensors, numbers, strings and None. Tensors keep
            their strides: matrix products of a transposed layout may round differently.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save({"format": _FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `write_checkpoint` wrote.

    Args:
        path: the file.
        device: where its tensors go.

    Returns:
        The content.

    Raises:
        LearnedOptError: if the file is damaged or something else.
    """
    try:
        # torch reads tensors without looking at the archive's checksums.
        with zipfile.ZipFile(path) as archive:
            require(archive.testzip() is None, "a checksum does not fit")
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise LearnedOptError(
            f"checkpoint '{path}' is damaged or not a checkpoint; delete it to start anew"
        ) from error
    require(
        isinstance(content, dict) and content.pop("format", None) == _FORMAT,
        f"checkpoint '{path}' is of another kind or version than '{_FORMAT}'",
    )
    return dict(content)


def require_same_settings(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on under settings other than those the checkpoint was made with.

    Args:
        path: the checkpoint, for the message.
        saved: its settings.
        current: the settings asked for.

    Raises:
        LearnedOptError: naming every setting that differs.
    """
    changes = "; ".join(_differences("", saved, current))
    require(
        not changes,
        f"checkpoint '{path}' was made with other settings ({changes}); cannot resume",
    )


def _differences(name: str, saved: object, current: object) -> list[str]:
    """Where two settings differ; of what is long only the entries, of lists only the first one."""
    if saved == current:
        return []
    whole = f"{name}: {saved!r} there, {current!r} here"
    is_short = bool(name) and len(whole) <= _LONG
    if isinstance(saved, Mapping) and isinstance(current, Mapping) and not is_short:
        inner = f"{name}." if name else ""
        keys = {**saved, **current}
        return [d for k in keys for d in _differences(f"{inner}{k}", saved.get(k), current.get(k))]
    if isinstance(saved, list | tuple) and isinstance(current, list | tuple) and not is_short:
        if len(saved) != len(current):
            return [f"{name}: {len(saved)} of them there, {len(current)} here"]
        for i, (a, b) in enumerate(zip(saved, current, strict=True)):
            if a != b:
                return _differences(f"{name}[{i}]", a, b)
    return [whole]
