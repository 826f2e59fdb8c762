"""The settings of an agent's training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, final

from learned_opt.errors import LearnedOptError, require, unknown_name
from learned_opt.rl.environments import resolve_environment

ALGORITHMS = ("dqn", "maskable-ppo", "ppo", "recurrent-ppo", "sac")
"""Names of the algorithms."""

ON_POLICY = ("maskable-ppo", "ppo", "recurrent-ppo")
"""Those that learn from what they have just done."""

DECAYS = ("constant", "cosine", "linear")
"""Ways in which a learning rate goes down."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "maskable-ppo": {"ent_coef": 3e-3},
    "recurrent-ppo": {"num_lanes": 256, "lstm_units": 32, "hidden": (32,), "minibatches": 4},
    "sac": {
        "num_lanes": 64,
        "rollout_steps": 1,
        "total_steps": 500_000,
        "learning_rate": 1e-3,
        "gamma": 0.995,
        "evaluate_every": 25_000,
    },
    "dqn": {
        "num_lanes": 64,
        "rollout_steps": 1,
        "total_steps": 1_000_000,
        "learning_rate": 1e-3,
        "gamma": 0.997,
        "evaluate_every": 50_000,
    },
}


@final
@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Settings of `train_agent`. The defaults are those of PPO; see `for_algorithm`.

    Steps are steps of lanes: one decision in one of `num_lanes` environments.

    Attributes:
        env: name of the environment, such as ``HyperControl-v0``.
        env_settings: its keyword arguments: task, task_settings, actuator, max_episode_steps, ...
        algo: ``ppo``, ``maskable-ppo``, ``recurrent-ppo``, ``sac`` or ``dqn``.
        total_steps: steps to train for; the last rollout is always finished.
        num_lanes: environments that move together.
        rollout_steps: steps of each lane between two updates.
        epochs: passes over a rollout (on-policy).
        minibatches: parts of a pass (on-policy).
        batch_size: transitions of a gradient step (off-policy).
        gradient_steps: gradient steps between two rollouts (off-policy).
        buffer_size: transitions remembered (off-policy).
        learning_starts: steps before the first update (off-policy).
        tau: share of SAC's critics that goes into their targets at each gradient step.
        target_update_interval: steps after which DQN's target network becomes a copy of the other.
        exploration: shares of random decisions of DQN at the start and in the end.
        exploration_fraction: share of the training over which they go from one to the other.
        learning_rate: Adam's, at the start.
        decay: how it goes down: ``linear``, ``cosine`` or ``constant``.
        final_learning_rate_fraction: what is left of it in the end.
        gamma: discount. The return is the final log gap where it is 1, and the smaller it is the
            more what happens on the way there counts.
        bootstrap_truncated: whether an episode that ends by its time limit is valued as if it went
            on (on-policy). Agents then plan without knowing the limit, with a `gamma` below 1 as
            their horizon; otherwise they plan for exactly as many steps as an episode has.
        gae_lambda: decay of the advantage estimator (on-policy).
        clip_range: largest change of a likelihood ratio that is rewarded (on-policy).
        ent_coef: weight of the entropy (on-policy); SAC tunes its own.
        vf_coef: weight of the value loss (on-policy).
        max_grad_norm: longest gradient (on-policy and DQN).
        hidden: units of the policy's hidden layers, and those of its critic.
        lstm_units: units of the policy's LSTM (recurrent-ppo).
        activation: ``tanh`` or ``relu``.
        output_scale: size of the policy's last layer at the start, relative to the others: training
            starts from an agent that does next to nothing (not DQN, whose outputs are values).
        log_std: log standard deviation of the decisions at the start (continuous, on-policy).
        reward_scale: what rewards are divided by.
        reward_clip: largest size of a divided reward.
        stagger: let the lanes' first episodes end at different times.
        seed: of everything random in training.
        evaluate_every: steps between evaluations.
        num_eval_lanes: episodes of an evaluation, the same each time.
        eval_instance_seed: pool of problem instances that are evaluated on, other than the
            environment's own.
        patience: evaluations in a row without a better score after which training ends; None never
            ends it.
        checkpoint_seconds: seconds between checkpoints; 0 writes one before each rollout.
    """

    env: str = "HyperControl-v0"
    env_settings: Mapping[str, Any] = field(default_factory=dict)
    algo: str = "ppo"
    total_steps: int = 4_000_000
    num_lanes: int = 1024
    rollout_steps: int = 32
    epochs: int = 4
    minibatches: int = 8
    batch_size: int = 256
    gradient_steps: int = 8
    buffer_size: int = 200_000
    learning_starts: int = 10_000
    tau: float = 0.005
    target_update_interval: int = 500
    exploration: tuple[float, float] = (1.0, 0.02)
    exploration_fraction: float = 0.3
    learning_rate: float = 3e-3
    decay: str = "linear"
    final_learning_rate_fraction: float = 0.1
    gamma: float = 1.0
    bootstrap_truncated: bool = False
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 1e-3
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    hidden: tuple[int, ...] = (32, 32)
    lstm_units: int = 0
    activation: str = "tanh"
    output_scale: float = 0.01
    log_std: float = -0.5
    reward_scale: float = 3.0
    reward_clip: float = 3.0
    stagger: bool = True
    seed: int = 0
    evaluate_every: int = 250_000
    num_eval_lanes: int = 512
    eval_instance_seed: int = 1_000_003
    patience: int | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        resolve_environment(self.env)
        if self.algo not in ALGORITHMS:
            raise unknown_name("algorithm", self.algo, ALGORITHMS)
        if self.decay not in DECAYS:
            raise unknown_name("decay", self.decay, DECAYS)
        if self.activation not in {"tanh", "relu"}:
            raise unknown_name("activation", self.activation, ("tanh", "relu"))
        for entry in fields(self):
            _require_type(entry.name, getattr(self, entry.name), entry.default)
        for name in _POSITIVE:
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name} must be positive, got {value}")
        for name in _SHARES:
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must lie in [0, 1], got {value}")
        require(
            len(self.exploration) == 2 and all(0 <= e <= 1 for e in self.exploration),
            f"exploration must be two shares in [0, 1], got {self.exploration}",
        )
        require(
            all(n >= 1 for n in self.hidden), f"hidden must be positive, got {list(self.hidden)}"
        )
        require(
            (self.lstm_units > 0) == (self.algo == "recurrent-ppo") and self.lstm_units >= 0,
            f"lstm_units must be positive for recurrent-ppo and 0 otherwise, got {self.lstm_units} "
            f"for {self.algo}",
        )
        require(self.ent_coef >= 0, f"ent_coef must not be negative, got {self.ent_coef}")
        require(0 <= self.seed < 2**32, f"seed must lie in [0, 2**32), got {self.seed}")
        require(
            self.patience is None or self.patience >= 1,
            f"patience must be positive or None, got {self.patience}",
        )
        require(
            self.checkpoint_seconds >= 0,
            f"checkpoint_seconds must not be negative, got {self.checkpoint_seconds}",
        )
        transitions = self.num_lanes * self.rollout_steps
        require(
            not self.is_on_policy
            or (transitions % self.minibatches == 0 and transitions >= 2 * self.minibatches),
            f"minibatches must divide the {transitions} transitions of a rollout into parts of two "
            f"or more, got {self.minibatches}",
        )
        trained = self.env_settings.get("instance_seed", 0)
        require(
            self.eval_instance_seed != trained,
            f"eval_instance_seed must differ from that of training, got {trained} for both",
        )
        try:
            json.dumps(self.to_json())
        except TypeError as error:
            raise LearnedOptError(f"env_settings must be JSON-able: {error}") from error

    @classmethod
    def for_algorithm(cls, algo: str, **settings: Any) -> AgentConfig:
        """Settings with the algorithm's own defaults.

        Args:
            algo: name of the algorithm.
            settings: what to change.

        Returns:
            The settings.

        Raises:
            LearnedOptError: if a name is unknown or a value out of range.

        Examples:
            >>> AgentConfig.for_algorithm("sac").num_lanes
            64
        """
        if algo not in ALGORITHMS:
            raise unknown_name("algorithm", algo, ALGORITHMS)
        known = {entry.name for entry in fields(cls)}
        for name in settings:
            if name not in known:
                raise unknown_name("setting", name, known)
        return cls(**{"algo": algo, **_DEFAULTS[algo], **settings})

    @property
    def is_on_policy(self) -> bool:
        """Whether the algorithm learns from what it has just done."""
        return self.algo in ON_POLICY

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate after a share `progress` of the training."""
        progress = min(max(progress, 0.0), 1.0)
        low = self.final_learning_rate_fraction
        left = {
            "constant": 1.0,
            "linear": low + (1 - low) * (1 - progress),
            "cosine": low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)),
        }
        return self.learning_rate * left[self.decay]

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON holds them."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        settings["env_settings"] = dict(self.env_settings)
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> AgentConfig:
        """Undo `to_json`.

        Args:
            settings: what it returned.

        Returns:
            The settings.

        Raises:
            LearnedOptError: if a name is unknown or a value out of range.
        """
        lists = {name: tuple(settings[name]) for name in ("hidden", "exploration")}
        return cls.for_algorithm(**{**settings, **lists})


def _require_type(name: str, value: Any, default: Any) -> None:
    """Values that come from JSON may be of any type; the default's says which is meant."""
    if isinstance(default, bool):
        require(isinstance(value, bool), f"{name} must be true or false, got {value!r}")
    elif isinstance(default, int):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        require(is_whole, f"{name} must be a whole number, got {value!r}")
    elif isinstance(default, float):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(is_number, f"{name} must be a number, got {value!r}")
    elif isinstance(default, tuple):
        is_list = isinstance(value, (list, tuple))
        require(is_list, f"{name} must be a list of numbers, got {value!r}")
        for one in value:
            _require_type(f"each entry of {name}", one, default[0])


_POSITIVE = (
    "total_steps",
    "num_lanes",
    "rollout_steps",
    "epochs",
    "minibatches",
    "batch_size",
    "gradient_steps",
    "buffer_size",
    "learning_starts",
    "tau",
    "target_update_interval",
    "learning_rate",
    "clip_range",
    "vf_coef",
    "max_grad_norm",
    "output_scale",
    "reward_scale",
    "reward_clip",
    "evaluate_every",
    "num_eval_lanes",
)
_SHARES = (
    "tau",
    "exploration_fraction",
    "final_learning_rate_fraction",
    "gamma",
    "gae_lambda",
)
