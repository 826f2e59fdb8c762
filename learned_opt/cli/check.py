"""``learned-opt check``: whether bundled weights score what their headers say."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from learned_opt.cli.options import LocalOptions
from learned_opt.errors import LearnedOptError, require
from learned_opt.meta.config import stream_seed
from learned_opt.meta.evaluation import draw_held_out, evaluate
from learned_opt.meta.presets import PRESETS, SCORE
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.environments import make_lanes
from learned_opt.rl.evaluate import play_rule, summarize
from learned_opt.rules.base import Rule
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import list_rules, load_rule, read_metadata

_COUNTS: dict[Literal["return", "solved"], str] = {
    "return": "mean return of held-out episodes",
    "solved": "share of them solved",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Run weights on their held-out problems again and compare with the scores they claim."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Bundled weights by name, or weight files; all bundled ones by default."""
    tolerance: float = 0.02
    """Largest difference that passes; other processors round in other ways."""
    shared: LocalOptions = field(default_factory=LocalOptions)

    def main(self) -> None:
        """Print a table and fail if a score differs."""
        self.shared.apply()
        require(self.tolerance > 0, f"--tolerance must be positive, got {self.tolerance}")
        table = Table("weights", "score", "claimed", "found", title="Held-out scores")
        wrong = []
        for name in self.names or tuple(list_rules()):
            for score, (claimed, found) in scores(name).items():
                table.add_row(name, score, f"{claimed:.4f}", f"{found:.4f}")
                if not math.isclose(claimed, found, abs_tol=self.tolerance, rel_tol=0):
                    wrong.append(f"{name} ({score}: {claimed:.4f} claimed, {found:.4f} found)")
        Console().print(table)
        if wrong:
            raise LearnedOptError(
                f"scores differ by more than {self.tolerance}: {', '.join(wrong)}"
            )


def scores(name: str) -> dict[str, tuple[float, float]]:
    """What weights claim and what they do.

    Args:
        name: bundled weights or a file.

    Returns:
        Claimed and found value of each score.

    Raises:
        LearnedOptError: if the header names neither a preset's score nor an environment.
    """
    rule, about = load_rule(name), read_metadata(name)
    claimed = json.loads(about["scores"]) if about["scores"] else {}
    if "env" in about:
        found = _agent_scores(rule, json.loads(about["training"]))
        return {text: (claimed[key], found[key]) for key, text in _COUNTS.items()}
    presets = [preset for preset in PRESETS.values() if preset.rule == rule.name]
    require(
        SCORE in claimed and len(presets) == 1,
        f"'{name}' has no score that can be checked: it was made by no preset",
    )
    config = presets[0].config()
    held_out = draw_held_out(
        [part.task for part in presets[0].mixture()],
        config.num_eval_problems,
        dtype=config.torch_dtype,
        device="cpu",
    )
    score = evaluate(rule, held_out, num_steps=config.num_eval_steps).score
    return {SCORE: (claimed[SCORE], score)}


def _agent_scores(rule: Rule, training: dict[str, object]) -> dict[str, float]:
    """The evaluation of an agent's training, once more."""
    assert isinstance(rule, PolicyRule)
    config = AgentConfig.from_json(training)
    lanes = make_lanes(
        config.env,
        {**config.env_settings, "instance_seed": config.eval_instance_seed},
        num_lanes=config.num_eval_lanes,
        autoreset="Disabled",
    )
    # Environments decide once for all parameters, what is plugged in for each tensor.
    played = PolicyRule(**{**rule.config(), "scope": "problem"})
    played.load_state_dict(rule.state_dict())
    episodes = play_rule(
        played.requires_grad_(requires_grad=False),
        lanes,
        seed=stream_seed("held-out agents", 0) >> 1,
    ).episodes
    return summarize(episodes)
