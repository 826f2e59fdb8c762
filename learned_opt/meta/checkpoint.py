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
    names = [name for name in {**saved, **current} if saved.get(name) != current.get(name)]
    changes = "; ".join(
        f"{name}: {saved.get(name)!r} there, {current.get(name)!r} here" for name in names
    )
    require(
        not names, f"checkpoint '{path}' was made with other settings ({changes}); cannot resume"
    )
