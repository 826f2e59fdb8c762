"""RNNProp: a coordinatewise LSTM that sees Adam's ratios and takes bounded steps."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.actuators import bounded
from learned_opt.errors import require
from learned_opt.features import moment_ratios, schema_hash
from learned_opt.rules.base import Rule, register_rule
from learned_opt.rules.lstm import LSTMStack
from learned_opt.rules.norms import nonzero
from learned_opt.trees import Params, Tree, flatten, per_problem, unflatten


@final
@register_rule
class RNNProp(Rule):
    r"""RNNProp: an LSTM on scale-free moment ratios whose steps are bounded by `output_scale`.

    $$ x \leftarrow x - \alpha \tanh(\mathrm{head}(\mathrm{LSTM}(\mathrm{ELU}(W [g/\sqrt{\hat v},
    \hat m/\sqrt{\hat v}] + b)))) $$

    The ratios do not change with the loss's scale as long as gradients stay well above `eps`, and
    the bound keeps an untrained or lost network
    from leaving at once: both make for longer horizons than the rule was trained on.

    Args:
        hidden_size: width of the input layer and LSTM units a layer.
        num_layers: LSTM layers.
        output_scale: ``alpha``, the largest step of a coordinate, in units of the parameters.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: floor of the root mean square gradient.
        seed: seed of the initial theta.

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Lv, Jiang and Li 2017 (arXiv:1703.03633), section 4.

    Examples:
        >>> rule = RNNProp()
        >>> params = {"x": torch.zeros(3, 10)}
        >>> updates, state = rule({"x": torch.ones(3, 10)}, rule.init(params), params)
        >>> updates["x"].shape, sum(p.numel() for p in rule.parameters())
        (torch.Size([3, 10]), 6641)
    """

    name = "rnnprop"
    coordinatewise = True
    feature_schema = schema_hash("moment_ratios", "g", "m")

    def __init__(
        self,
        *,
        hidden_size: int = 20,
        num_layers: int = 2,
        output_scale: float = 0.1,
        beta1: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(output_scale > 0, f"output_scale must be positive, got {output_scale}")
        require(0 <= beta1 < 1, f"beta1 must be in [0, 1), got {beta1}")
        require(0 <= beta2 < 1, f"beta2 must be in [0, 1), got {beta2}")
        require(eps > 0, f"eps must be positive, got {eps}")
        self.output_scale, self.beta1, self.beta2, self.eps = output_scale, beta1, beta2, eps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = LSTMStack(
                input_size=hidden_size, hidden_size=hidden_size, num_layers=num_layers
            )
            self.embed = nn.Linear(2, hidden_size)
            self.head = nn.Linear(hidden_size, 1)

    def config(self) -> dict[str, Any]:
        """Sizes, scale and decays."""
        return {
            "hidden_size": self.lstm.hidden_size,
            "num_layers": self.lstm.num_layers,
            "output_scale": self.output_scale,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "eps": self.eps,
        }

    def init(self, params: Params) -> Tree:
        """Zero moments ``[N, P]``, zero LSTM states ``[N, P, hidden_size]``, step 0."""
        flat = flatten(params)
        return {
            "first_moment": torch.zeros_like(flat),
            "second_moment": torch.zeros_like(flat),
            "step": torch.zeros(flat.shape[0], dtype=torch.int64, device=flat.device),
            "lstm": self.lstm.init(flat),
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
        del params, loss, rng
        flat = flatten(grads)
        first = torch.lerp(state["first_moment"], flat, 1 - self.beta1)  # type: ignore[arg-type]
        second = torch.lerp(state["second_moment"], flat.square(), 1 - self.beta2)  # type: ignore[arg-type]
        step: Tensor = state["step"] + 1  # type: ignore[operator,assignment]
        features = moment_ratios(
            first / per_problem(1 - self.beta1 ** step.double(), flat),
            # Where the second moment is zero so are gradient and momentum: any divisor gives the
            # ratio 0, and one keeps the root's derivative finite.
            nonzero(second) / per_problem(1 - self.beta2 ** step.double(), flat),
            flat,
            epsilon=self.eps,
        )
        embedded = nn.functional.elu(self.embed(features))
        hidden, lstm_state = self.lstm(embedded, state["lstm"])
        decision = -self.head(hidden).squeeze(-1)
        return unflatten(bounded(decision, scale=self.output_scale), grads), {
            "first_moment": first,
            "second_moment": second,
            "step": step,
            "lstm": lstm_state,
        }
