"""MLPLOpt: one small perceptron on every coordinate.

It keeps no hidden state: what it remembers are averages of gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.errors import require
from learned_opt.features import (
    NORMALIZER_FLOOR,
    TIME_SCALES,
    rms_normalized,
    schema_hash,
    time_features,
)
from learned_opt.rules.base import Rule, register_rule
from learned_opt.trees import Params, Tree, num_problems, unflatten

_MOMENTUM_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


class StepNet(nn.Module):
    r"""Perceptron from the features of a coordinate to its step.

    $$ \mathrm{step} = - a \, d \, e^{b m}, \qquad (d, m) = \mathrm{MLP}(\mathrm{features}) $$

    Args:
        num_features: features of a coordinate, next to those of time.
        hidden_size: units of a hidden layer (ReLU).
        num_layers: hidden layers.
        step_scale: ``a``.
        exponent_scale: ``b``.
        seed: seed of the weights, which are truncated normal of variance one over the number of
            inputs; biases are zero.
    """

    def __init__(
        self,
        *,
        num_features: int,
        hidden_size: int,
        num_layers: int,
        step_scale: float,
        exponent_scale: float,
        seed: int,
    ) -> None:
        super().__init__()
        require(hidden_size >= 1, f"hidden_size must be positive, got {hidden_size}")
        require(num_layers >= 1, f"num_layers must be positive, got {num_layers}")
        require(step_scale > 0, f"step_scale must be positive, got {step_scale}")
        require(exponent_scale >= 0, f"exponent_scale must not be negative, got {exponent_scale}")
        self.num_features, self.hidden_size, self.num_layers = num_features, hidden_size, num_layers
        self.step_scale, self.exponent_scale = step_scale, exponent_scale
        widths = (num_features + len(TIME_SCALES), *[hidden_size] * num_layers, 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                deviation = layer.in_features**-0.5
                bound = 2 * deviation
                nn.init.trunc_normal_(layer.weight, std=deviation, a=-bound, b=bound)
                nn.init.zeros_(layer.bias)

    def config(self) -> dict[str, Any]:
        """Sizes and scales."""
        return {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "step_scale": self.step_scale,
            "exponent_scale": self.exponent_scale,
        }

    def forward(self, features: Tensor, steps: Tensor) -> Tensor:
        """Features ``[N, P, F]`` and steps taken ``[N]`` -> updates ``[N, P]``."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        # What all coordinates share enters as a bias, not as eleven columns of every row.
        own, shared = first.weight.split([self.num_features, len(TIME_SCALES)], dim=1)
        bias = nn.functional.linear(time_features(steps, dtype=features.dtype), shared, first.bias)
        hidden = nn.functional.linear(features, own) + bias.unsqueeze(1)
        for layer in self.layers[1:]:
            hidden = layer(hidden.relu())
        direction, magnitude = hidden.unbind(-1)
        return -self.step_scale * direction * (self.exponent_scale * magnitude).exp()

    def updates(self, features: Sequence[Tensor], steps: Tensor, like: Params) -> Params:
        """The step of every tensor: each is normalised by itself, all move in one pass.

        Args:
            features: one ``[N, P, F]`` for each tensor of `like`, in order.
            steps: ``[N]`` steps taken.
            like: tensors ``[N, *shape]``.

        Returns:
            Updates, shaped as `like`.
        """
        rows = torch.cat([rms_normalized(f) for f in features], dim=1)
        return unflatten(self(rows, steps), like)


@final
@register_rule
class MLPLOpt(Rule):
    r"""MLPLOpt: a perceptron on gradient, parameter, six momenta and the time of each coordinate.

    Its 19 inputs are the gradient, the parameter and averages of gradients with decays 0.1, 0.5,
    0.9, 0.99, 0.999 and 0.9999, each divided by its root mean square over the tensor
    (`rms_normalized`), and eleven functions of the step count (`time_features`).

    $$ x \leftarrow x - 10^{-3} d \, e^{10^{-3} m} $$

    Args:
        hidden_size: units of a hidden layer.
        num_layers: hidden layers.
        step_scale: length of a unit step.
        exponent_scale: factor on the magnitude ``m``.
        seed: seed of the initial theta.

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Metz et al. 2019, "Understanding and correcting pathologies in the training of learned
        optimizers" (arXiv:1810.10180); details as in ``mlp_lopt.py`` of
        google/learned_optimization.

    Examples:
        >>> rule = MLPLOpt()
        >>> params = {"x": torch.zeros(3, 10)}
        >>> updates, state = rule({"x": torch.ones(3, 10)}, rule.init(params), params)
        >>> updates["x"].shape, sum(p.numel() for p in rule.parameters())
        (torch.Size([3, 10]), 1762)
    """

    name = "mlp_lopt"
    feature_schema = schema_hash(
        "rms_normalized", NORMALIZER_FLOOR, "g", "p", _MOMENTUM_DECAYS, TIME_SCALES
    )

    def __init__(
        self,
        *,
        hidden_size: int = 32,
        num_layers: int = 2,
        step_scale: float = 1e-3,
        exponent_scale: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net = StepNet(
            num_features=2 + len(_MOMENTUM_DECAYS),
            hidden_size=hidden_size,
            num_layers=num_layers,
            step_scale=step_scale,
            exponent_scale=exponent_scale,
            seed=seed,
        )

    def config(self) -> dict[str, Any]:
        """Sizes and scales."""
        return self.net.config()

    def init(self, params: Params) -> Tree:
        """Zero momenta ``[N, P, 6]`` for each tensor, step 0."""
        return {
            "momenta": {
                k: coordinates(p).new_zeros(*coordinates(p).shape, len(_MOMENTUM_DECAYS))
                for k, p in params.items()
            },
            "step": no_steps(params),
        }

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
        del loss, rng
        old: Params = state["momenta"]  # type: ignore[assignment]
        steps: Tensor = state["step"]  # type: ignore[assignment]
        momenta, features = {}, []
        for k, grad in grads.items():
            g, p = (coordinates(t).unsqueeze(-1) for t in (grad, params[k]))
            momenta[k] = torch.lerp(old[k], g, 1 - g.new_tensor(_MOMENTUM_DECAYS))
            features.append(torch.cat((g, p, momenta[k]), dim=-1))
        updates = self.net.updates(features, steps, grads)
        return updates, {"momenta": momenta, "step": steps + 1}  # type: ignore[dict-item]


def no_steps(params: Params) -> Tensor:
    """``[N]`` zeros."""
    device = next(iter(params.values())).device
    return torch.zeros(num_problems(params), dtype=torch.int64, device=device)


def with_a_dimension(tensor: Tensor) -> Tensor:
    """``[N, *shape]``, a scalar ``[N]`` as a vector of one."""
    return tensor.unsqueeze(1) if tensor.dim() == 1 else tensor


def coordinates(tensor: Tensor) -> Tensor:
    """``[N, P]``."""
    return with_a_dimension(tensor).flatten(1)
