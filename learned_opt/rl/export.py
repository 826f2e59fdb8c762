"""From an agent of stable-baselines3 to an update rule that needs none of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learned_opt.actuators import Actuator
from learned_opt.errors import LearnedOptError, require
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.environments import resolve_environment
from learned_opt.rules.policy import ACTIVATIONS, PolicyRule
from learned_opt.rules.weights import save_rule


def export_agent(
    model: Any,
    *,
    actuator: Actuator | None = None,
    learning_rate: float = 1e-2,
    scope: str = "problem",
) -> PolicyRule:
    """Copy the network that decides; critics, exploration and memory of the past stay behind.

    Args:
        model: a `PPO`, `MaskablePPO`, `RecurrentPPO`, `SAC` or `DQN` whose policy is made of
            linear layers with one activation, after one LSTM at most.
        actuator: what it was trained to steer; None asks the model's environment, which must then
            be a `LaneAdapter`.
        learning_rate: initial step size of the rule.
        scope: ``problem`` decides once for all parameters, as in training, ``tensor`` for each
            tensor by itself.

    Returns:
        The rule, in evaluation mode, with gradients off.

    Raises:
        LearnedOptError: if the policy is built in another way or does not fit the actuator.
    """
    if actuator is None:
        lanes = getattr(model.get_env(), "lanes", None)
        require(
            lanes is not None,
            "actuator must be given for a model whose environment is no LaneAdapter, got None",
        )
        assert lanes is not None
        actuator = lanes.core.actuator
    policy = model.policy
    if hasattr(policy, "q_net"):
        head, parts = "argmax", [*policy.q_net.q_net]
    elif hasattr(policy, "actor"):
        head, parts = "squash", [*policy.actor.latent_pi, policy.actor.mu]
    elif hasattr(policy, "action_net"):
        head = "argmax" if actuator.actions.is_discrete else "clip"
        parts = [*policy.mlp_extractor.policy_net, policy.action_net]
    else:
        raise LearnedOptError(f"policy of type {type(policy).__name__} cannot be exported")
    layers, activation = _layers(parts)
    lstm = getattr(policy, "lstm_actor", None)
    require(
        lstm is None or (lstm.num_layers == 1 and not lstm.bidirectional),
        "an exported policy has one LSTM layer at most",
    )
    rule = PolicyRule(
        actuator=actuator.name,
        actuator_config=actuator.config(),
        hidden=[layer.out_features for layer in layers[:-1]],
        activation=activation,
        head=head,
        lstm_units=0 if lstm is None else lstm.hidden_size,
        learning_rate=learning_rate,
        scope=scope,
    )
    theta: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        theta[f"layers.{number}.weight"] = layer.weight
        theta[f"layers.{number}.bias"] = layer.bias
    if lstm is not None:
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            theta[f"lstm.{name}"] = getattr(lstm, f"{name}_l0")
    with torch.no_grad():
        try:
            rule.load_state_dict({name: value.detach().cpu() for name, value in theta.items()})
        except RuntimeError as error:
            raise LearnedOptError(
                f"the policy does not fit the actuator '{actuator.name}': {error}"
            ) from error
    return rule.requires_grad_(requires_grad=False).eval()


def _layers(parts: list[nn.Module]) -> tuple[list[nn.Linear], str]:
    """The linear layers, and the name of the activation between them."""
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    between = {type(part) for part in parts if not isinstance(part, nn.Linear)}
    names = {kind: name for name, kind in ACTIVATIONS.items()}
    require(
        len(between) <= 1
        and between <= set(names)
        and len(parts) == 2 * len(linear) - 1
        and isinstance(parts[-1], nn.Linear),
        "an exported policy is made of linear layers with tanh or relu between them, got "
        + ", ".join(type(part).__name__ for part in parts),
    )
    return linear, names[between.pop()] if between else "tanh"


def save_agent(rule: PolicyRule, path: Path | str, *, about: dict[str, Any]) -> Path:
    """Write an exported rule, with what it sees and does in words.

    Args:
        rule: what `export_agent` returned.
        path: where to; the suffix must be ``.safetensors``.
        about: further entries of the header, such as those of `DESCRIPTIVE_KEYS`.

    Returns:
        The path.
    """
    actuator = rule.actuator
    own = {
        "features": json.dumps([
            {"name": f.name, "meaning": f.meaning, "low": f.low, "high": f.high}
            for f in actuator.features
        ]),
        "actions": json.dumps({
            "names": list(actuator.actions.names),
            "discrete": actuator.actions.is_discrete,
        }),
    }
    return save_rule(rule, path, metadata={**own, **about})


def middle_learning_rate(core: Any) -> float:
    """The geometric middle of the initial step sizes that were trained on.

    Args:
        core: the environment's decision process.

    Returns:
        A step size for `export_agent`.
    """
    low, high = core.settings.learning_rate
    return float(10 ** ((low + high) / 2) / core.task.smoothness)


def about_agent(
    config: AgentConfig, core: Any, steps: int, scores: dict[str, float]
) -> dict[str, Any]:
    """The header of an exported agent.

    Args:
        config: the settings of its training.
        core: the environment's decision process.
        steps: steps of lanes that it was trained for.
        scores: its last evaluation, see `summarize`.

    Returns:
        Entries for `save_agent`.
    """
    # How often a run was saved is not what its agent is.
    settings = {k: v for k, v in config.to_json().items() if k != "checkpoint_seconds"}
    short = resolve_environment(config.env).rpartition("/")[2]
    return {
        "description": f"{config.algo} agent on {short}, task {core.settings.task}",
        "tasks": [core.settings.task],
        "horizon": str(settings["env_settings"].get("max_episode_steps", "")),
        "seed": str(config.seed),
        "licence": "Apache-2.0",
        "scores": scores,
        "env": {"id": resolve_environment(config.env), "kwargs": settings["env_settings"]},
        "algo": config.algo,
        "steps": str(steps),
        "training": settings,
    }
