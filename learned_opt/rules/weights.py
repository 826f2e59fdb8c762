"""Weight files: a rule's theta as safetensors, with a header that says what it is.

The header is a flat map of strings; loading never unpickles. Bundled files live in
``learned_opt/zoo`` and are named by their stem.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from learned_opt.errors import LearnedOptError, require, unknown_name
from learned_opt.rules.base import HandMade, Rule, get_rule, registered_rules

FORMAT = "learned_opt"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"

DESCRIPTIVE_KEYS = ("description", "tasks", "horizon", "seed", "licence", "scores")
"""Header entries that every file has, empty where the writer gave none."""

_STRUCTURAL_KEYS = (
    "format",
    "format_version",
    "rule",
    "config",
    "feature_schema",
    "library_version",
)


def save_rule(rule: Rule, path: str | Path, *, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a rule's theta and what is known about it to one file, atomically.

    Args:
        rule: what to save.
        path: where to; the suffix must be ``.safetensors``. Missing folders are made.
        metadata: entries of the header, such as `DESCRIPTIVE_KEYS`; strings are kept, everything
            else becomes JSON.

    Returns:
        The path.

    Raises:
        LearnedOptError: if the suffix is another, or `metadata` names an entry that the format
            itself fills in.
    """
    path = Path(path)
    require(path.suffix == SUFFIX, f"path must end with {SUFFIX}, got '{path}'")
    metadata = dict(metadata or {})
    reserved = sorted(set(metadata) & set(_STRUCTURAL_KEYS))
    require(not reserved, f"metadata must not set {', '.join(reserved)}: the format fills them in")
    header = dict.fromkeys(DESCRIPTIVE_KEYS, "")
    header |= {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    header |= {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "rule": rule.name,
        "config": json.dumps(rule.config()),
        "feature_schema": rule.feature_schema,
        "library_version": _library_version(),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in rule.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(save(tensors, metadata=header))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_rule(name_or_path: str | Path) -> Rule:
    """Load a trained rule.

    Args:
        name_or_path: a bundled name (see `list_rules`), or the path of a file: a string that ends
            with ``.safetensors`` or has a path separator in it is a path.

    Returns:
        The rule on the CPU, in evaluation mode, with gradients off.

    Raises:
        LearnedOptError: if there is no such name or file, or the file is damaged, foreign, newer
            than this library, of an unknown rule, or does not fit it.
    """
    path = _locate(name_or_path)
    header, tensors = _read(path)
    name = header.get("rule", "")
    if name not in registered_rules():
        raise LearnedOptError(f"'{path}': {unknown_name('rule', name, registered_rules())}")
    try:
        rule = get_rule(name, **json.loads(header["config"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LearnedOptError(
            f"'{path}': its config does not build the rule '{name}': {error}"
        ) from error
    schema, expected_schema = header.get("feature_schema", ""), rule.feature_schema
    require(
        schema == expected_schema,
        f"'{path}': trained on feature schema '{schema}', "
        f"but this version of the rule '{name}' sees '{expected_schema}'",
    )
    _require_same_shapes(path, name, tensors, rule.state_dict())
    rule.load_state_dict(tensors, assign=True)
    return rule.requires_grad_(requires_grad=False).eval()


def read_metadata(name_or_path: str | Path) -> dict[str, str]:
    """The header of a weight file: `DESCRIPTIVE_KEYS`, the rule's name, config and versions.

    Args:
        name_or_path: as for `load_rule`.

    Returns:
        The header; structured values are JSON.

    Raises:
        LearnedOptError: if there is no such file, or it is damaged, foreign or too new.
    """
    return _read(_locate(name_or_path))[0]


def list_rules() -> dict[str, str]:
    """Bundled weights: name -> one-line description."""
    return {name: read_metadata(path)["description"] for name, path in sorted(_bundled().items())}


def resolve_rule(name_or_path: str | Path) -> Rule:
    """The rule that a user means by one word.

    Args:
        name_or_path: bundled weights or a file, as for `load_rule`, or a hand-made rule, which
            comes with its default hyperparameters.

    Returns:
        The rule, in evaluation mode, with gradients off.

    Raises:
        LearnedOptError: if nothing of that name exists (an untrained learned rule does not count),
            or the file cannot be loaded.

    Examples:
        >>> float(resolve_rule("adam").learning_rate)
        0.001
    """
    name = str(name_or_path)
    if _is_path(name) or name in _bundled():
        return load_rule(name_or_path)
    hand_made = {
        key: rule for key in registered_rules() if isinstance(rule := get_rule(key), HandMade)
    }
    require(
        name in hand_made or name not in registered_rules(),
        f"rule '{name}' is learned and has no bundled weights; train it and pass its weight file",
    )
    if name not in hand_made:
        raise unknown_name("rule", name, [*_bundled(), *hand_made])
    return hand_made[name].requires_grad_(requires_grad=False).eval()


def _is_path(name: str) -> bool:
    return name.endswith(SUFFIX) or "/" in name or os.sep in name


def _bundled() -> dict[str, Path]:
    """Name -> file of the bundled weights."""
    # The package ships unzipped (it holds native data), so its resources are files.
    folder = Path(str(resources.files("learned_opt.zoo")))
    return {path.stem: path for path in folder.glob(f"*{SUFFIX}")}


def _locate(name_or_path: str | Path) -> Path:
    """The file that a bundled name or a path names."""
    if isinstance(name_or_path, Path) or _is_path(name_or_path):
        path = Path(name_or_path)
        require(path.is_file(), f"no weight file at '{path}'")
        return path
    bundled = _bundled()
    if name_or_path not in bundled:
        raise unknown_name("bundled rule", name_or_path, bundled)
    return bundled[name_or_path]


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file of this format."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LearnedOptError(f"'{path}': not a readable safetensors file ({error})") from error
    require(
        header.get("format") == FORMAT,
        f"'{path}': a safetensors file, but its header does not say format='{FORMAT}'",
    )
    found = header.get("format_version", "")
    require(found.isdecimal(), f"'{path}': format_version must be a number, got '{found}'")
    require(
        int(found) <= FORMAT_VERSION,
        f"'{path}': written in format {found}, newer than {FORMAT_VERSION}, "
        "the newest that this version of learned_opt reads",
    )
    return header, tensors


def _require_same_shapes(
    path: Path, name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse theta of other names or shapes than those of the rule that the header describes."""
    for key in sorted({*found, *expected}):
        shapes = [list(t[key].shape) if key in t else None for t in (found, expected)]
        require(
            shapes[0] == shapes[1],
            f"'{path}': tensor '{key}' has shape {shapes[0]}, but the rule '{name}' "
            f"of its config has {shapes[1]}",
        )
        require(
            found[key].is_floating_point() == expected[key].is_floating_point(),
            f"'{path}': tensor '{key}' is {found[key].dtype}, but the rule '{name}' "
            f"has {expected[key].dtype}",
        )
        require(
            bool(torch.isfinite(found[key]).all()),
            f"'{path}': tensor '{key}' has values that are not finite",
        )


def _library_version() -> str:
    try:
        return version("learned_opt")
    except PackageNotFoundError:  # a source tree that was never installed
        return "unknown"
