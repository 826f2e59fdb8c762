"""A trained policy as an update rule: observe, decide with a small network, act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.actuators import get_actuator
from learned_opt.errors import require
from learned_opt.rules.base import Rule, register_rule
from learned_opt.trees import Params, Tree, flatten, unflatten

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
HEADS = ("clip", "squash", "argmax")


@final
@register_rule
class PolicyRule(Rule):
    """An actuator whose decisions a network makes; what an agent becomes when it is exported.

    The network sees what the agent saw in its environment and decides as the agent did with
    exploration switched off: the mean of a Gaussian clipped to [-1, 1] (``clip``), its tanh
    (``squash``), or the likeliest or most valued choice (``argmax``; masked choices never win).

    Args:
        actuator: name of a registered actuator.
        actuator_config: its settings.
        hidden: units of the network's hidden layers.
        activation: ``tanh`` or ``relu``, between layers.
        head: ``clip``, ``squash`` or ``argmax``.
        lstm_units: units of an LSTM before the first layer, 0 for none.
        learning_rate: initial step size, the only thing with a unit. The policy turns it up or
            down from there by up to four decades.
        scope: ``tensor`` decides for each parameter tensor by itself, with the same network;
            ``problem`` once for all of them together, as the environments do.
        seed: seed of the initial theta.

    Raises:
        LearnedOptError: if a setting is unknown, or the head does not fit the actuator.

    Examples:
        >>> rule = PolicyRule(actuator="hyper_control", hidden=(8,))
        >>> params = {"x": torch.ones(2, 4)}
        >>> updates, state = rule(params, rule.init(params), params, loss=torch.ones(2))
        >>> updates["x"].shape
        torch.Size([2, 4])
    """

    name = "policy"
    needs_loss = True
    needs_rng = True

    def __init__(
        self,
        *,
        actuator: str = "hyper_control",
        actuator_config: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (32, 32),
        activation: str = "tanh",
        head: str = "clip",
        lstm_units: int = 0,
        learning_rate: float = 1e-2,
        scope: str = "tensor",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.actuator = get_actuator(actuator, **(actuator_config or {}))
        self.hidden, self.activation, self.head = tuple(hidden), activation, head
        self.lstm_units, self.learning_rate, self.scope = lstm_units, learning_rate, scope
        features, decisions = len(self.actuator.features), self.actuator.actions.size
        require(all(n >= 1 for n in hidden), f"hidden must be positive, got {list(hidden)}")
        require(lstm_units >= 0, f"lstm_units must not be negative, got {lstm_units}")
        require(activation in ACTIVATIONS, f"activation must be tanh or relu, got '{activation}'")
        require(head in HEADS, f"head must be one of {', '.join(HEADS)}, got '{head}'")
        require(
            (head == "argmax") == self.actuator.actions.is_discrete,
            f"head '{head}' does not fit the actions of the actuator '{actuator}'",
        )
        require(learning_rate > 0, f"learning_rate must be positive, got {learning_rate}")
        require(scope in {"tensor", "problem"}, f"scope must be tensor or problem, got '{scope}'")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTMCell(features, lstm_units) if lstm_units else None
            widths = (lstm_units or features, *self.hidden, decisions)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self._between = ACTIVATIONS[activation]()

    @property
    def feature_schema(self) -> str:  # type: ignore[override]
        """Digest of the actuator's observation."""
        return self.actuator.feature_schema

    def config(self) -> dict[str, Any]:
        """Actuator, network, step size and scope."""
        return {
            "actuator": self.actuator.name,
            "actuator_config": self.actuator.config(),
            "hidden": list(self.hidden),
            "activation": self.activation,
            "head": self.head,
            "lstm_units": self.lstm_units,
            "learning_rate": self.learning_rate,
            "scope": self.scope,
        }

    def init(self, params: Params) -> Tree:
        """The actuator's state, and the network's memory, for every unit that is decided for."""
        return {name: self._init(flat) for name, flat in self._units(params).items()}

    def _init(self, point: Tensor) -> Tree:
        rate = point.new_full((len(point),), self.learning_rate)
        state: Tree = {"actuator": self.actuator.init(point, learning_rate=rate)}
        if self.lstm_units:
            lanes = point.shape if self.actuator.per_coordinate else point.shape[:1]
            empty = point.new_zeros(*lanes, self.lstm_units)
            state |= {"hidden": empty, "cell": empty}
        return state

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step; see `Rule.forward`."""
        require(loss is not None, f"rule '{self.name}' needs the loss, got None")
        assert loss is not None
        points, slopes = self._units(params), self._units(grads)
        loss = loss.to(next(iter(grads.values())))
        new: Tree = {}
        updates: Params = {}
        for name, point in points.items():
            slope, old = slopes[name], state[name]
            assert isinstance(old, dict)
            seen, inner = self.actuator.observe(slope, loss, point, old["actuator"])  # type: ignore[arg-type]
            decision, memory = self.decide(seen, old, mask=self.actuator.mask(inner))

            def noise(like: Tensor = point) -> Tensor:
                return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)

            step = self.actuator.act(decision, slope, point, inner, noise)
            updates[name] = step.updates
            new[name] = {"actuator": step.state, **memory}
        if self.scope == "problem":
            return unflatten(updates["all"], params), new
        return {name: updates[name].reshape(p.shape) for name, p in params.items()}, new

    def decide(
        self, observation: Tensor, state: Tree, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        """The network's decision without exploration.

        Args:
            observation: ``[..., F]`` features.
            state: holds ``hidden`` and ``cell`` if the network has a memory.
            mask: ``[N, A]`` allowed choices.

        Returns:
            ``[..., A]`` numbers in [-1, 1] or ``[...]`` choices, and the new memory.
        """
        hidden = observation.to(next(self.parameters()).dtype)
        memory: Tree = {}
        if self.lstm is not None:
            h, c = state["hidden"], state["cell"]
            assert isinstance(h, Tensor) and isinstance(c, Tensor)
            h, c = self.lstm(hidden.flatten(0, -2), (h.flatten(0, -2), c.flatten(0, -2)))
            hidden = h.unflatten(0, observation.shape[:-1])
            memory = {"hidden": hidden, "cell": c.unflatten(0, observation.shape[:-1])}
        for layer in self.layers[:-1]:
            hidden = self._between(layer(hidden))
        out = self.layers[-1](hidden)
        if self.head == "argmax":
            if mask is not None:
                out = out.masked_fill(~mask, -torch.inf)
            return out.argmax(-1), memory
        out = out.to(observation.dtype)
        return out.tanh() if self.head == "squash" else out.clamp(-1, 1), memory

    def _units(self, params: Params) -> Params:
        """What is decided for, flat ``[N, P]``: each tensor, or all of them as one."""
        if self.scope == "problem":
            return {"all": flatten(params)}
        return {name: p.reshape(len(p), -1) for name, p in params.items()}
