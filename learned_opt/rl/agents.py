"""The algorithms of stable-baselines3 as an `AgentConfig` asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError, require
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.environments import make_lanes
from learned_opt.rl.optional import require_module
from learned_opt.rl.state import pack, unpack
from learned_opt.rules.policy import ACTIVATIONS

_CLASSES = {
    "ppo": ("stable_baselines3", "PPO"),
    "sac": ("stable_baselines3", "SAC"),
    "dqn": ("stable_baselines3", "DQN"),
    "recurrent-ppo": ("sb3_contrib", "RecurrentPPO"),
    "maskable-ppo": ("sb3_contrib", "MaskablePPO"),
}
_COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_current_progress_remaining",
    "exploration_rate",
    "_n_calls",
)
_REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def build_adapter(config: AgentConfig) -> Any:
    """The lanes of an environment as stable-baselines3 takes them.

    Args:
        config: settings of the agent that will play in them.

    Returns:
        A `LaneAdapter`.

    Raises:
        LearnedOptError: if the extra ``rl`` is not installed or the environment cannot be made.
    """
    adapter = require_module("learned_opt.rl.adapter")
    lanes = make_lanes(config.env, config.env_settings, num_lanes=config.num_lanes)
    return adapter.LaneAdapter(
        lanes,
        reward_scale=config.reward_scale,
        reward_clip=config.reward_clip,
        stagger=config.stagger,
        marks_truncation=not config.is_on_policy,
    )


def build_agent(config: AgentConfig, env: Any) -> Any:
    """An untrained agent.

    Args:
        config: its settings.
        env: a `LaneAdapter`.

    Returns:
        The model of stable-baselines3.

    Raises:
        LearnedOptError: if the extra ``rl`` is not installed or the algorithm does not fit the
            environment's actions.
    """
    module, name = _CLASSES[config.algo]
    factory = getattr(require_module(module), name)
    is_discrete = isinstance(env.action_space, gym.spaces.Discrete)
    require(
        is_discrete or config.algo not in {"dqn", "maskable-ppo"},
        f"{config.algo} needs discrete actions; those of '{config.env}' are continuous",
    )
    require(
        not is_discrete or config.algo != "sac",
        f"sac needs continuous actions; those of '{config.env}' are discrete",
    )
    if config.algo == "maskable-ppo" and env.lanes.core.actuator.mask(_state(env)) is None:
        raise LearnedOptError(f"'{config.env}' has no action masks; ppo does without")
    specific = _on_policy(config, env) if config.is_on_policy else _off_policy(config, env)
    policy = "MlpLstmPolicy" if config.lstm_units else "MlpPolicy"
    model = factory(
        policy,
        env,
        learning_rate=lambda remaining: config.learning_rate_at(1 - remaining),
        gamma=config.gamma,
        seed=config.seed,
        device="cpu",
        verbose=0,
        **specific,
    )
    logger = require_module("stable_baselines3.common.logger")
    model.set_logger(logger.Logger(folder=None, output_formats=[]))
    # SB3 looks through every lane's dictionary for statistics that the adapter counts anyway.
    model._update_info_buffer = lambda infos, dones=None: None
    _calm(model, config)
    return model


def _state(env: Any) -> Any:
    """The actuator's state of lanes that may not have been started yet."""
    try:
        return env.lanes.state.actuator
    except gym.error.ResetNeeded:
        env.lanes.reset(seed=0)
        return env.lanes.state.actuator


def _on_policy(config: AgentConfig, env: Any) -> dict[str, Any]:
    transitions = env.num_envs * config.rollout_steps
    policy: dict[str, Any] = {
        "net_arch": {"pi": list(config.hidden), "vf": list(config.hidden)},
        "activation_fn": ACTIVATIONS[config.activation],
    }
    if isinstance(env.action_space, gym.spaces.Box):
        policy["log_std_init"] = config.log_std
    if config.lstm_units:
        policy["lstm_hidden_size"] = config.lstm_units
    return {
        "n_steps": config.rollout_steps,
        "batch_size": transitions // config.minibatches,
        "n_epochs": config.epochs,
        "gae_lambda": config.gae_lambda,
        "clip_range": config.clip_range,
        "ent_coef": config.ent_coef,
        "vf_coef": config.vf_coef,
        "max_grad_norm": config.max_grad_norm,
        "policy_kwargs": policy,
    }


def _off_policy(config: AgentConfig, env: Any) -> dict[str, Any]:
    per_lane = env.agents_per_lane
    shared = {
        "buffer_size": config.buffer_size,
        "learning_starts": config.learning_starts * per_lane,
        "batch_size": config.batch_size,
        "train_freq": config.rollout_steps,
        "gradient_steps": config.gradient_steps,
        "policy_kwargs": {
            "net_arch": list(config.hidden),
            "activation_fn": ACTIVATIONS[config.activation],
        },
    }
    if config.algo == "sac":
        shared["policy_kwargs"]["net_arch"] = {
            "pi": list(config.hidden),
            "qf": [2 * units for units in config.hidden],
        }
        return {**shared, "tau": config.tau}
    initial, final = config.exploration
    return {
        **shared,
        # One call to step moves every lane; SB3 counts the calls.
        "target_update_interval": max(config.target_update_interval, config.num_lanes) * per_lane,
        "exploration_initial_eps": initial,
        "exploration_final_eps": final,
        "exploration_fraction": config.exploration_fraction,
        "max_grad_norm": config.max_grad_norm,
    }


@torch.no_grad()
def _calm(model: Any, config: AgentConfig) -> None:
    """Scale the last layer of the policy, so that training starts from next to nothing."""
    if config.algo == "dqn":
        return
    last = model.actor.mu if config.algo == "sac" else model.policy.action_net
    # SB3 has drawn the on-policy one orthogonal, with gain 0.01 already.
    drawn = 1.0 if config.algo == "sac" else 0.01
    last.weight.mul_(config.output_scale / drawn)
    last.bias.zero_()


def cut_values(model: Any, observations: Tensor, agents: Tensor, step_locals: Any) -> Tensor:
    """What the critic of an on-policy agent expects after episodes that were cut.

    Args:
        model: the agent.
        observations: ``[M, F]`` the last observations.
        agents: ``[M]`` whose.
        step_locals: local variables of the model's rollout, for the LSTM's state.

    Returns:
        ``[M]`` values.
    """
    with torch.no_grad():
        if hasattr(model.policy, "lstm_actor"):
            state = tuple(part[:, agents].contiguous() for part in step_locals["lstm_states"].vf)
            going_on = torch.zeros(len(agents))
            values = model.policy.predict_values(observations, state, going_on)
        else:
            values = model.policy.predict_values(observations)
    flat: Tensor = values.flatten()
    return flat


def agent_state(model: Any) -> dict[str, Any]:
    """All that a model needs to go on at the start of a rollout, save its environment.

    Args:
        model: the agent.

    Returns:
        Nested dictionaries of tensors and numbers.
    """
    state: dict[str, Any] = {
        "policy": model.policy.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in _optimizers(model)],
        "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
        "last_obs": pack(model._last_obs),
        "last_episode_starts": pack(model._last_episode_starts),
    }
    if getattr(model, "_last_lstm_states", None) is not None:
        state["lstm"] = [list(part) for part in model._last_lstm_states]
    if getattr(model, "log_ent_coef", None) is not None:
        state["log_ent_coef"] = model.log_ent_coef.detach()
    memory = getattr(model, "replay_buffer", None)
    if memory is not None:
        kept = memory.size()
        state["replay"] = {name: pack(getattr(memory, name)[:kept]) for name in _REPLAYED}
        state["replay"] |= {"position": memory.pos, "is_full": memory.full}
    return state


def set_agent_state(model: Any, state: Mapping[str, Any]) -> None:
    """Go on from what `agent_state` returned.

    Args:
        model: an agent built with the same settings.
        state: what `agent_state` returned.
    """
    model.policy.load_state_dict(state["policy"])
    for optimizer, saved in zip(_optimizers(model), state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model._last_obs = unpack(state["last_obs"], model._last_obs)
    model._last_episode_starts = unpack(state["last_episode_starts"], model._last_episode_starts)
    if "lstm" in state:
        model._last_lstm_states = type(model._last_lstm_states)(*map(tuple, state["lstm"]))
    if "log_ent_coef" in state:
        with torch.no_grad():
            model.log_ent_coef.copy_(state["log_ent_coef"])
    if "replay" in state:
        saved, memory = state["replay"], model.replay_buffer
        for name in _REPLAYED:
            kept = saved[name].numpy()
            getattr(memory, name)[: len(kept)] = kept
        memory.pos, memory.full = saved["position"], saved["is_full"]


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    if hasattr(model, "actor"):
        found = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
        return [optimizer for optimizer in found if optimizer is not None]
    return [model.policy.optimizer]
