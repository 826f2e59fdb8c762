"""Checkpoints of agents: what a run left, loaded or exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learned_opt.errors import require
from learned_opt.meta.checkpoint import read_checkpoint
from learned_opt.rl.agents import build_adapter, build_agent, set_agent_state
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.export import about_agent, export_agent, middle_learning_rate, save_agent
from learned_opt.rl.state import own_generators

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in a run's folder."""

KIND = "agent 2"
"""What a checkpoint says that it is: an agent's, in this version of the format."""


def read_agent_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: the file.

    Returns:
        What was saved.

    Raises:
        LearnedOptError: if it is damaged or of another kind.
    """
    saved = read_checkpoint(path)
    require(
        saved.get("kind") == KIND, f"checkpoint '{path}' is of another kind or version than agents"
    )
    return saved


def load_agent(folder: Path | str) -> tuple[AgentConfig, Any]:
    """The agent that a run's checkpoint holds.

    Args:
        folder: where the run was.

    Returns:
        Its settings and the model of stable-baselines3.

    Raises:
        LearnedOptError: if there is no checkpoint, or it is damaged or of another kind.
    """
    path = Path(folder) / CHECKPOINT
    require(path.is_file(), f"no checkpoint at '{path}'")
    saved = read_agent_checkpoint(path)
    config = AgentConfig.from_json(saved["settings"])
    with own_generators():
        model = build_agent(config, build_adapter(config))
        model._last_obs = model.get_env().reset()
        model._last_episode_starts = saved["agent"]["last_episode_starts"].numpy()
        set_agent_state(model, saved["agent"])
    return config, model


def export_checkpoint(
    folder: Path | str,
    path: Path | str,
    *,
    learning_rate: float | None = None,
    scope: str = "problem",
) -> Path:
    """Export the agent that a run's checkpoint holds.

    Args:
        folder: where the run was.
        path: the weight file to write.
        learning_rate: initial step size of the rule; None takes the middle of those trained on.
        scope: ``problem`` or ``tensor``, see `export_agent`.

    Returns:
        The path.

    Raises:
        LearnedOptError: if there is no checkpoint, or it is damaged or of another kind.
    """
    config, model = load_agent(folder)
    core = model.get_env().lanes.core
    rule = export_agent(
        model,
        learning_rate=middle_learning_rate(core) if learning_rate is None else learning_rate,
        scope=scope,
    )
    steps = model.num_timesteps // model.get_env().agents_per_lane
    return save_agent(rule, path, about=about_agent(config, core, steps, {}))
