"""What a check demands, and when two values are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Violation(Exception):
    """What a check found."""


def demand(condition: object, message: str) -> None:
    """Go on only if a condition holds.

    Args:
        condition: what must be true.
        message: what is wrong otherwise.

    Raises:
        Violation: if it is not.
    """
    if not condition:
        raise Violation(message)


def leaves(data: Any, name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """All arrays in nested dictionaries, tuples and object arrays."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, f"{name}[{key!r}]")
    elif isinstance(data, (tuple, list)) or (isinstance(data, np.ndarray) and data.dtype == object):
        if isinstance(data, np.ndarray):
            yield name, data
        for position, value in enumerate(data):
            yield from leaves(value, f"{name}[{position}]")
    elif isinstance(data, np.ndarray):
        yield name, data


def is_equal(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether two values are the same: kinds, shapes, dtypes and contents.

    Args:
        found: a value, nested or not.
        expected: what it should be.
        tolerance: largest absolute and relative difference of floating-point numbers.

    Returns:
        Whether they are.
    """
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(
            is_equal(found[key], expected[key], tolerance) for key in expected
        )
    if isinstance(expected, (tuple, list)):
        return len(found) == len(expected) and all(
            is_equal(a, b, tolerance) for a, b in zip(found, expected, strict=True)
        )
    if expected is None or isinstance(expected, (str, bool)):
        return type(found) is type(expected) and bool(found == expected)
    a, b = np.asarray(found), np.asarray(expected)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if tolerance and np.issubdtype(b.dtype, np.inexact):
        return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))
    return bool(np.array_equal(a, b, equal_nan=np.issubdtype(b.dtype, np.inexact)))
