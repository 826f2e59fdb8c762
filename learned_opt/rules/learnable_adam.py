"""Adam whose hyperparameters are learned by gradients."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.errors import require
from learned_opt.rules.adaptive import adam_step, zero_moments
from learned_opt.rules.base import Rule, register_rule
from learned_opt.trees import Params, Tree


@final
@register_rule
class LearnableAdam(Rule):
    r"""Adam whose step length, decays and floor are four learned numbers, on log scales.

    $$ \alpha = \alpha_0 e^{\theta_1}, \quad 1 - \beta_i = (1 - \beta_{i,0}) e^{\theta_{i+1}}, \quad
    \epsilon = \epsilon_0 e^{\theta_4} $$

    All four start at zero, where the rule is Adam to the last bit. A decay is kept between
    0 and 1 - 1e-9.

    Args:
        learning_rate: initial step length, positive.
        beta1: initial decay of the first moment, in (0, 1).
        beta2: initial decay of the second moment, in (0, 1).
        eps: initial floor, positive.

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Kingma & Ba 2015 (arXiv:1412.6980). Learning Adam's hyperparameters on log scales follows
        ``LearnableAdam`` of google/learned_optimization (Metz et al. 2022, arXiv:2203.11860).

    Examples:
        >>> rule, x = LearnableAdam(learning_rate=0.1), {"x": torch.tensor([[0.0]])}
        >>> updates, _ = rule({"x": torch.tensor([[123.0]])}, rule.init(x), x)
        >>> round(updates["x"].item(), 6)
        -0.1
    """

    name = "learnable_adam"

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        for key, value in (("learning_rate", learning_rate), ("eps", eps)):
            require(
                value > 0 and math.isfinite(value),
                f"{key} must be positive and finite, got {value}",
            )
        for key, value in (("beta1", beta1), ("beta2", beta2)):
            require(0 < value < 1, f"{key} must be in (0, 1), got {value}")
        self._initial = {
            "learning_rate": learning_rate,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
        }
        self.log_learning_rate = nn.Parameter(torch.zeros(()))
        self.log_rate1 = nn.Parameter(torch.zeros(()))
        self.log_rate2 = nn.Parameter(torch.zeros(()))
        self.log_eps = nn.Parameter(torch.zeros(()))

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Any: the four numbers take the type of what they multiply."""
        return None

    @property
    def hyperparameters(self) -> dict[str, Tensor]:
        """Adam's hyperparameters as they are now, 0-d and float64."""
        return {
            "learning_rate": self._initial["learning_rate"] * self.log_learning_rate.double().exp(),
            "beta1": _decay(self._initial["beta1"], self.log_rate1),
            "beta2": _decay(self._initial["beta2"], self.log_rate2),
            "eps": self._initial["eps"] * self.log_eps.double().exp(),
        }

    def config(self) -> dict[str, Any]:
        """The initial hyperparameters."""
        return dict(self._initial)

    def init(self, params: Params) -> Tree:
        """Zero moments, step 0."""
        return zero_moments(params)

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of Adam; see `Rule.forward`."""
        del params, loss, rng
        return adam_step(grads, state, **self.hyperparameters)


def _decay(initial: float, log_rate: Tensor) -> Tensor:
    """``1 - (1 - initial) exp(log_rate)``, just `initial` at zero, in [0, 1)."""
    # A decay of 1 would forget nothing and could not be debiased.
    return (initial - (1 - initial) * log_rate.double().expm1()).clamp(0.0, 1 - 1e-9)
