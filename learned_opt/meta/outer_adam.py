"""The optimizer of meta-training: Adam on theta, whose parts may learn at rates of their own."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from learned_opt.meta.config import TrainConfig
from learned_opt.rules.base import Rule


def learning_rate_factors(rule: Rule) -> dict[str, float]:
    """The learning rate of each trainable parameter, over that of the settings.

    Args:
        rule: its modules may carry ``learning_rate_factor`` and ``bias_learning_rate_factor``, see
            `Rule`; factors multiply.

    Returns:
        Name, as in `named_parameters`, -> a positive number.
    """
    factors = {name: 1.0 for name, p in rule.named_parameters() if p.requires_grad}
    for path, module in rule.named_modules():
        inside = path + "." if path else ""
        for name in factors:
            if name.startswith(inside):
                factors[name] *= float(getattr(module, "learning_rate_factor", 1.0))
            if name == inside + "bias":
                factors[name] *= float(getattr(module, "bias_learning_rate_factor", 1.0))
    return factors


@final
class OuterAdam(torch.optim.Adam):
    """Adam with one group of parameters for each factor on the learning rate.

    Args:
        rule: its trainable parameters are moved.
        config: of its settings, the decay of second moments.
    """

    def __init__(self, rule: Rule, config: TrainConfig) -> None:
        parameters = dict(rule.named_parameters())
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for name, factor in learning_rate_factors(rule).items():
            groups.setdefault(factor, []).append(parameters[name])
        self._factors = list(groups)
        super().__init__(
            [{"params": group} for group in groups.values()],
            lr=config.learning_rate,
            betas=(0.9, config.second_moment_decay),
        )

    def set_learning_rate(self, rate: float) -> None:
        """Learn at that rate from now on, times the factor of each group."""
        for group, factor in zip(self.param_groups, self._factors, strict=True):
            group["lr"] = factor * rate


def power_average(rule: Rule, mean_age: float) -> AveragedModel:
    """A copy of the rule that holds averages of its parameters.

    Outer step ``s`` of ``t`` has a weight in proportion to ``s ** (1 / mean_age - 2)``, so the
    average forgets the start however long training lasts.

    Args:
        rule: what is trained; update the copy with it after each outer step.
        mean_age: how far back the average lies, as a share of the steps so far.

    Returns:
        The copy is the attribute ``module``.

    References:
        Karras et al. 2024 (arXiv:2312.02696), section 3.1.
    """

    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        kept = (1 - 1 / (float(count) + 1)) ** (1 / mean_age - 1)
        return torch.lerp(current, averaged, kept)

    return AveragedModel(rule, avg_fn=average)
