r"""Back-propagation where it is calm, evolution where it is not, parameter by parameter.

Both estimate the gradient of one smoothed meta-loss from the same runs: evolution from the
differences of the losses, back-propagation from their slopes at the perturbed thetas. In calm
regions slopes vary far less from pair to pair; where inner loops are chaotic, theirs explodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.meta.estimators import Estimate, MetaGradient
from learned_opt.meta.evolution import (
    EvolutionState,
    EvolutionStrategies,
    summary,
    weighted_mean,
)
from learned_opt.meta.perturbations import PerTruncation
from learned_opt.rules.base import Rule


@final
@dataclass(frozen=True, kw_only=True)
class Mixed(MetaGradient[EvolutionState]):
    """The mean of back-propagation and truncated ES, weighted by inverse variance.

    Attributes:
        evolution: truncated ES with at least two pairs, whose runs are back-propagated through too.
        second_order: differentiate through the gradients that the rule sees.

    Raises:
        LearnedOptError: if `evolution` has one pair, or noise that outlasts a truncation: slopes
            know nothing of what came before.

    References:
        Metz et al. 2019 (arXiv:1810.10180), the combined estimator.
    """

    evolution: EvolutionStrategies
    second_order: bool = False

    def __post_init__(self) -> None:
        pairs = self.evolution.num_pairs
        require(pairs >= 2, f"num_pairs must be at least 2 to tell variances, got {pairs}")
        schedule = self.evolution.schedule
        require(
            isinstance(schedule, PerTruncation),
            f"schedule must be PerTruncation() to be mixed with slopes, got {schedule}",
        )

    def estimate(
        self, rule: Rule, state: EvolutionState | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[EvolutionState]:
        """One truncation of every pair; see `MetaGradient.estimate`."""
        outcomes = self.evolution.outcomes(
            rule,
            state,
            progress=progress,
            rng=rng,
            differentiable=True,
            second_order=self.second_order,
        )
        weights = self.evolution.weights(outcomes)
        slopes = torch.cat([o.backpropagation for o in outcomes if o.backpropagation is not None])
        evolved = weighted_mean(torch.cat([o.evolution for o in outcomes]), weights)
        (gradient, variance), share = inverse_variance_mean(weighted_mean(slopes, weights), evolved)
        return summary(
            rule,
            state,
            outcomes,
            weights,
            gradient=gradient,
            variance=variance,
            metrics={
                "backpropagation_share": share.mean().item(),
                "nonfinite_slopes": float((~slopes.isfinite()).any(1).sum().item()),
            },
        )

    def pack(self, state: EvolutionState) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        return self.evolution.pack(state)

    def unpack(self, packed: Mapping[str, Any]) -> EvolutionState:
        """See `MetaGradient.unpack`."""
        return self.evolution.unpack(packed)


def inverse_variance_mean(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    r"""Two estimates as one, each entry weighted by the inverse of its variance.

    $$ \frac{g_1 / v_1 + g_2 / v_2}{1 / v_1 + 1 / v_2} $$

    The weights come from the same samples as the estimates, so the mean is unbiased only as far as
    these are independent. An entry of `first` that is not finite counts as infinitely uncertain.
    Where both variances vanish, or neither is known, the estimates count alike.

    Args:
        first: estimate and variance, each ``[D]``.
        second: the same, finite.

    Returns:
        Estimate and variance, as if the two were independent, and the share of `first`, ``[D]``.

    Examples:
        >>> one, four = torch.tensor([1.0]), torch.tensor([4.0])
        >>> (mean, variance), share = inverse_variance_mean((one, one), (4 * one, four))
        >>> share.item(), round(mean.item(), 6), round(variance.item(), 6)
        (0.800000011920929, 1.6, 0.8)
    """
    (mean1, variance1), (mean2, variance2) = first, second
    share = (variance2 / (variance1 + variance2)).nan_to_num(nan=0.5)
    share = torch.where(mean1.isfinite(), share, 0.0)
    # Nothing of what weighs nothing, be it infinite.
    mean = torch.where(share > 0, share * mean1, 0.0) + (1 - share) * mean2
    variance = torch.where(share > 0, share.square() * variance1, 0.0)
    variance = variance + (1 - share).square() * variance2
    return (mean, variance), share
