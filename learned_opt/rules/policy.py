"""A trained policy as an update rule: observe, decide with a small network, act."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learned_opt.actuators import get_actuator
from learned_opt.errors import require
from learned_opt.rules.base import Rule, register_rule
from learned_opt.trees import Params, Tree, flatten, num_matrices, num_problems, unflatten

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
HEADS = ("clip", "squash", "argmax")


class Recurrent(nn.Module):
    """A network with a memory: an LSTM, if it has units, and layers.

    Attributes:
        lstm_units: units of the LSTM, 0 for none.
        activation: ``tanh`` or ``relu``, between layers.
        learning_rate_factor: see `Rule`.
    """

    lstm_units: int
    activation: str
    learning_rate_factor: float = 1.0

    def build(
        self, widths: Sequence[int], *, lstm_units: int, activation: str = "tanh", seed: int
    ) -> Self:
        """Draw initial weights.

        Args:
            widths: of the observation, of hidden layers, of what is put out.
            lstm_units: units of the LSTM, 0 for none.
            activation: ``tanh`` or ``relu``, between layers.
            seed: of the weights.

        Returns:
            The network itself.
        """
        self.lstm_units, self.activation = lstm_units, activation
        features, *others = widths
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTMCell(features, lstm_units) if lstm_units else None
            sizes = (lstm_units or features, *others)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self._between = ACTIVATIONS[activation]()
        return self

    def init_memory(self, lanes: Sequence[int]) -> Tree:
        """The network's memory before its first decision.

        Args:
            lanes: the shape of what is decided for, such as ``[N]``.

        Returns:
            ``hidden`` and ``cell``, ``[*lanes, U]``; nothing without an LSTM.
        """
        if not self.lstm_units:
            return {}
        empty = next(self.parameters()).new_zeros(*lanes, self.lstm_units)
        return {"hidden": empty, "cell": empty}

    def outputs(self, observation: Tensor, state: Tree) -> tuple[Tensor, Tree]:
        """What the network puts out, before a head makes a decision of it.

        Args:
            observation: ``[..., F]`` features.
            state: holds ``hidden`` and ``cell`` if the network has a memory.

        Returns:
            ``[..., A]`` numbers, and the new memory.
        """
        hidden = observation.to(next(self.parameters()).dtype)
        memory: Tree = {}
        if self.lstm is not None:
            h, c = state["hidden"], state["cell"]
            assert isinstance(h, Tensor) and isinstance(c, Tensor)
            hidden, c = _lstm_step(self.lstm, hidden, h, c)
            memory = {"hidden": hidden, "cell": c}
        for layer in self.layers[:-1]:
            hidden = self._between(layer(hidden))
        return self.layers[-1](hidden), memory


@register_rule
class PolicyRule(Recurrent, Rule):
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
        output_scale: size of the last layer at the start, relative to the others: a small one
            starts from a rule that leaves all controls alone.
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
        output_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.actuator = get_actuator(actuator, **(actuator_config or {}))
        self.hidden, self.head = tuple(hidden), head
        self.learning_rate, self.scope = learning_rate, scope
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
        widths = (features, *self.hidden, decisions)
        self.build(widths, lstm_units=lstm_units, activation=activation, seed=seed)
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.mul_(output_scale)

    @property
    def needs_loss(self) -> bool:  # type: ignore[override]
        """Whether the actuator can do without."""
        return self.actuator.needs_loss

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
        return self._start(params, self.actuator.init)

    def restart(self, params: Params, steps: Tensor) -> Tree:
        """See `Rule.restart`; the actuator's state may know, the network remembers nothing."""
        return self._start(params, partial(self.actuator.restart, steps=steps))

    def _start(self, params: Params, first: Callable[..., Tree]) -> Tree:
        state: Tree = {}
        for name, point in self._units(params).items():
            rate = point.new_full((len(point),), self.learning_rate)
            lanes = point.shape if self.actuator.per_coordinate else point.shape[:1]
            actuator = first(point, learning_rate=rate, num_matrices=num_matrices(params))
            state[name] = {"actuator": actuator, **self.init_memory(lanes)}
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
        require(
            loss is not None or not self.needs_loss, f"rule '{self.name}' needs the loss, got None"
        )
        points, slopes = self._units(params), self._units(grads)
        if loss is None:
            loss = next(iter(points.values())).new_full((num_problems(params),), torch.nan)
        loss = loss.to(next(iter(grads.values())))
        new: Tree = {}
        updates: Params = {}
        for name, point in points.items():
            slope, old = slopes[name], state[name]
            assert isinstance(old, dict)
            seen, inner = self.actuator.observe(slope, loss, point, old["actuator"])  # type: ignore[arg-type]
            decision, memory = self.decide(seen, old, mask=self.actuator.mask(inner))

            def noise(size: int, like: Tensor = point) -> Tensor:
                drawn = torch.randn(len(like), size, generator=rng, dtype=like.dtype)
                return drawn.to(like.device)

            step = self.actuator.act(decision, slope, point, inner, noise)
            updates[name] = step.updates
            new[name] = {"actuator": step.state, **memory}
        if self.scope == "problem":
            return unflatten(updates["all"], params), new
        return {name: updates[name].reshape(p.shape) for name, p in params.items()}, new

    def outputs_told(
        self, observation: Tensor, state: Tree, is_noisy: Tensor
    ) -> tuple[Tensor, Tree]:
        """What the network puts out in training, where it is known which problems are noisy.

        Args:
            observation: ``[N, F]`` features.
            state: holds the memory.
            is_noisy: ``[N]`` whether there are minibatches or noise.

        Returns:
            ``[N, A]`` numbers, and the new memory; as `outputs`, of a network that does not ask.
        """
        del is_noisy
        return self.outputs(observation, state)

    def belief(self, memory: Tree) -> Tensor | None:
        """How likely the network takes it that there is noise.

        Args:
            memory: as from `outputs`.

        Returns:
            ``[...]`` logits, or None from a network that does not ask.
        """
        del memory
        return None

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
        out, memory = self.outputs(observation, state)
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


def _lstm_step(lstm: nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """What `lstm` does, out of operations that `torch.func.vmap` knows."""
    gates = F.linear(x, lstm.weight_ih, lstm.bias_ih) + F.linear(h, lstm.weight_hh, lstm.bias_hh)
    entry, forget, fresh, exposure = gates.chunk(4, dim=-1)
    c = forget.sigmoid() * c + entry.sigmoid() * fresh.tanh()
    return exposure.sigmoid() * c.tanh(), c
