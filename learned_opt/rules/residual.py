"""A rule that is known to work, and a small learned correction to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.errors import require
from learned_opt.features import schema_hash
from learned_opt.rules.base import Rule, build_rule, describe_rule, register_rule
from learned_opt.trees import Params, Tree, per_problem


@final
@register_rule
class Residual(Rule):
    r"""A nominal rule's step plus a learned rule's, times a small gain that is learned too.

    $$ \Delta x = \Delta x_\mathrm{nominal} + \gamma \, \Delta x_\mathrm{learned} $$

    Before any training this is the nominal rule with a small disturbance, so meta-training starts
    at something stable rather than at noise; with a gain of zero it is the nominal rule. All of
    theta is trained: that of both rules, and the gain.

    Args:
        nominal: the rule to correct: a `Rule`, a registered name (fresh theta), or a description
            as in `config`.
        learned: the rule that corrects it, in the same forms.
        gain: initial gain.

    Raises:
        LearnedOptError: if a rule is unknown, both are sweeps of different sizes, or the gain is
            not finite.

    References:
        Harrison, Metz and Sohl-Dickstein 2022, "A closer look at learned optimization: stability,
        robustness, and inductive biases" (arXiv:2209.11208), section 4: the nominal term. Their
        per-parameter magnitudes and preconditioning are left to the learned rule.

    Examples:
        >>> rule = Residual("adam", "small_fc_lopt", gain=0.0)
        >>> params = {"x": torch.zeros(3, 10)}
        >>> updates, state = rule({"x": torch.ones(3, 10)}, rule.init(params), params)
        >>> round(updates["x"][0, 0].item(), 6)
        -0.001
    """

    name = "residual"

    def __init__(
        self,
        nominal: Rule | str | Mapping[str, Any] = "learnable_adam",
        learned: Rule | str | Mapping[str, Any] = "small_fc_lopt",
        *,
        gain: float = 0.1,
    ) -> None:
        super().__init__()
        require(math.isfinite(gain), f"gain must be finite, got {gain}")
        # The learned rule first: its theta is in the type that the whole rule computes in.
        self.learned, self.nominal = build_rule(learned), build_rule(nominal)
        self.gain = nn.Parameter(torch.tensor(gain, dtype=self.learned.compute_dtype))
        self._initial_gain = gain
        sizes = {self.learned.sweep_size, self.nominal.sweep_size} - {None}
        require(
            len(sizes) <= 1,
            "nominal and learned must be sweeps over equally many problems, got "
            f"{self.nominal.sweep_size} and {self.learned.sweep_size}",
        )

    @property
    def needs_loss(self) -> bool:  # type: ignore[override]
        """Whether either rule does."""
        return self.nominal.needs_loss or self.learned.needs_loss

    @property
    def needs_rng(self) -> bool:  # type: ignore[override]
        """Whether either rule does."""
        return self.nominal.needs_rng or self.learned.needs_rng

    @property
    def coordinatewise(self) -> bool:  # type: ignore[override]
        """Whether both rules are."""
        return self.nominal.coordinatewise and self.learned.coordinatewise

    @property
    def feature_schema(self) -> str:  # type: ignore[override]
        """Digest of what both see."""
        return schema_hash("residual", self.nominal.feature_schema, self.learned.feature_schema)

    @property
    def sweep_size(self) -> int | None:
        """That of whichever is a sweep."""
        return self.learned.sweep_size or self.nominal.sweep_size

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """That of the learned rule, or of the nominal one if it takes any."""
        return self.learned.compute_dtype or self.nominal.compute_dtype

    def config(self) -> dict[str, Any]:
        """Both rules and the initial gain."""
        return {
            "nominal": describe_rule(self.nominal),
            "learned": describe_rule(self.learned),
            "gain": self._initial_gain,
        }

    def init(self, params: Params) -> Tree:
        """Both states."""
        return {"nominal": self.nominal.init(params), "learned": self.learned.init(params)}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step; see `Rule.forward`. The nominal rule draws its random numbers first."""
        old: dict[str, Any] = state
        steps, nominal = self.nominal(grads, old["nominal"], params, loss=loss, rng=rng)
        corrections, learned = self.learned(grads, old["learned"], params, loss=loss, rng=rng)
        updates = {
            k: torch.addcmul(steps[k], correction, per_problem(self.gain, correction))
            for k, correction in corrections.items()
        }
        return updates, {"nominal": nominal, "learned": learned}
