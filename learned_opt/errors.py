"""What the library says when the input is wrong: one sentence with name, value and rule."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LearnedOptError(ValueError):
    """Bad input or a foreign file; the message is one sentence fit for the terminal."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> LearnedOptError:
    """An error for a name that is not registered, suggesting the nearest match.

    Args:
        kind: what the name stands for, such as ``"task"``.
        name: what was asked for.
        known: the names that exist.

    Returns:
        The error, to be raised by the caller.

    Examples:
        >>> str(unknown_name("task", "octopsu", ["octopus", "monkey"]))
        "unknown task 'octopsu'; did you mean 'octopus'? Known: monkey, octopus"
    """
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{match[0]}'?" if match else "."
    return LearnedOptError(f"unknown {kind} '{name}'{hint} Known: {', '.join(names)}")


def require(condition: bool, message: str) -> None:
    """Raise `LearnedOptError` with `message` unless `condition` holds.

    Args:
        condition: what must be true.
        message: one sentence naming the argument, its value and the rule.

    Raises:
        LearnedOptError: if the condition does not hold.
    """
    if not condition:
        raise LearnedOptError(message)
