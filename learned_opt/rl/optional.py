"""What the optional extra ``rl`` brings, imported when first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from learned_opt.errors import LearnedOptError


def require_module(name: str) -> ModuleType:
    """Import a module of stable-baselines3 or sb3-contrib.

    Args:
        name: its full name.

    Returns:
        The module.

    Raises:
        LearnedOptError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LearnedOptError(
            f"training agents needs {name.split('.', maxsplit=1)[0]}: install learned_opt[rl]"
        ) from error
