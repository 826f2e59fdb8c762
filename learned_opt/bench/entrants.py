"""Who takes part: a hand-made rule by name, or trained weights by name or file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from learned_opt.rules.base import HandMade, Rule, get_rule, registered_rules
from learned_opt.rules.weights import list_rules, resolve_rule


@final
@dataclass(frozen=True)
class Entrant:
    """A rule that takes part.

    Attributes:
        name: how results call it; for a weight file, its stem (after its folder's name for the
            ``best`` and ``last`` of a training).
        source: registered name, bundled name or path.
        rule_kind: ``hand-made`` (tuned on every task) or ``learned`` (runs as it is).
        weights_hash: digest of theta and structure of a learned rule; empty for a hand-made one.
    """

    name: str
    source: str
    rule_kind: str
    weights_hash: str = ""

    @classmethod
    def of(cls, source: str | Path) -> Entrant:
        """Resolve a registered hand-made name, a bundled learned name or a weight file.

        Args:
            source: what the user wrote.

        Returns:
            The entrant.

        Raises:
            LearnedOptError: if it names nothing, or the file cannot be loaded.
        """
        text = str(source)
        is_hand_made = (
            text in registered_rules()
            and text not in list_rules()
            and isinstance(get_rule(text), HandMade)
        )
        if is_hand_made:
            return cls(text, text, "hand-made")
        path = Path(text)
        # Every training writes best.safetensors; its folder tells trainings apart.
        name = f"{path.parent.name}-{path.stem}" if path.stem in {"best", "last"} else path.stem
        return cls(name, text, "learned", weights_hash(resolve_rule(text)))


def weights_hash(rule: Rule) -> str:
    """Digest of a rule's structure and theta."""
    digest = hashlib.sha256(json.dumps([rule.name, rule.config()], sort_keys=True).encode())
    for key, value in sorted(rule.state_dict().items()):
        digest.update(key.encode())
        digest.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]
