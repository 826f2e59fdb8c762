"""small_fc_lopt: a tiny perceptron on every coordinate, fed with factored second moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.features import NORMALIZER_FLOOR, TIME_SCALES, schema_hash
from learned_opt.rules.base import Rule, register_rule
from learned_opt.rules.mlp_lopt import StepNet, no_steps, with_a_dimension
from learned_opt.trees import Params, Tree

_DECAY_SPEED = 10.0
"""Factor on learned decays: their outer gradients are small beside those of the weights."""


@final
@register_rule
class SmallFCLOpt(Rule):
    r"""small_fc_lopt: a tiny perceptron on Adam's and Adafactor's statistics of each coordinate.

    Its 39 inputs are, each divided by its root mean square over the tensor (`rms_normalized`), the
    gradient ``g`` and the parameter; three momenta ``m`` (decays 0.9, 0.99, 0.999); the second
    moment ``v`` (0.999), ``m / sqrt(v)`` for each momentum and ``1 / sqrt(v)``; for each of the
    decays 0.9, 0.99, 0.999 of the factored second moment ``g`` preconditioned by it, its row and
    column factors, their inverse roots, and ``m`` preconditioned by it; then eleven functions of
    the step count (`time_features`). All seven decays are learned: theta holds a tenth of the
    change of ``log(1 - decay)``.

    As in Adafactor (Shazeer & Stern 2018, arXiv:1804.04235), a tensor of two or more dimensions is
    factored over its two longest ones: rows are along the longest, columns along the next (of
    equal ones the later counts as longer). Vectors and scalars keep a full second moment, which
    stands in for both factors. All floors are absolute numbers, as the authors have them: the
    inverse roots fade where gradients are far above 1.

    $$ x \leftarrow x - 10^{-3} d \, e^{10^{-3} m} $$

    Args:
        hidden_size: units of a hidden layer; 4 is the paper's, 32 that of later work.
        num_layers: hidden layers.
        step_scale: length of a unit step.
        exponent_scale: factor on the magnitude.
        seed: seed of the initial theta.

    Raises:
        LearnedOptError: if a setting is out of range.

    References:
        Metz et al. 2022, "Practical tradeoffs between memory, compute, and performance in learned
        optimizers" (arXiv:2203.11860); details as in ``adafac_mlp_lopt.py`` of
        google/learned_optimization.

    Examples:
        >>> rule = SmallFCLOpt()
        >>> params = {"x": torch.zeros(3, 5, 2)}
        >>> updates, state = rule({"x": torch.ones(3, 5, 2)}, rule.init(params), params)
        >>> updates["x"].shape, sum(p.numel() for p in rule.parameters())
        (torch.Size([3, 5, 2]), 197)
    """

    name = "small_fc_lopt"
    feature_schema = schema_hash("rms_normalized", NORMALIZER_FLOOR, "adafactor", TIME_SCALES)
    # Buffers would be saved as theta: these are constants.
    _initial_decays = (0.9, 0.99, 0.999)
    _initial_second_decays = (0.999,)

    def __init__(
        self,
        *,
        hidden_size: int = 4,
        num_layers: int = 2,
        step_scale: float = 1e-3,
        exponent_scale: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net = StepNet(
            num_features=28,
            hidden_size=hidden_size,
            num_layers=num_layers,
            step_scale=step_scale,
            exponent_scale=exponent_scale,
            seed=seed,
        )
        self.momentum_decays = nn.Parameter(torch.zeros(len(self._initial_decays)))
        self.second_decays = nn.Parameter(torch.zeros(len(self._initial_second_decays)))
        self.factored_decays = nn.Parameter(torch.zeros(len(self._initial_decays)))

    def config(self) -> dict[str, Any]:
        """Sizes and scales."""
        return self.net.config()

    def init(self, params: Params) -> Tree:
        """Zero averages for each tensor, step 0."""
        momenta, second, factors = {}, {}, {}
        for k, p in params.items():
            zeros = with_a_dimension(p).new_zeros(*with_a_dimension(p).shape, 1)
            momenta[k] = zeros.repeat_interleave(len(self._initial_decays), -1)
            second[k] = zeros
            parts = [momenta[k].mean(dim, keepdim=True) for dim in _factored_dims(zeros)]
            factors[k] = _named_factors(parts or [momenta[k]])
        return {
            "momenta": momenta,  # type: ignore[dict-item]
            "second_moment": second,  # type: ignore[dict-item]
            "factors": factors,  # type: ignore[dict-item]
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
        old: dict[str, Any] = state
        rate = _rates(self.momentum_decays, self._initial_decays)
        second_rate = _rates(self.second_decays, self._initial_second_decays)
        factored_rate = _rates(self.factored_decays, self._initial_decays)
        new: dict[str, Any] = {"momenta": {}, "second_moment": {}, "factors": {}}
        features = []
        for k, grad in grads.items():
            g, p = (with_a_dimension(t).unsqueeze(-1) for t in (grad, params[k]))
            m = torch.lerp(old["momenta"][k], g, rate)
            v = torch.lerp(old["second_moment"][k], g.square(), second_rate)
            dims = _factored_dims(g)
            square = g.square() + 1e-30
            seen = [square.mean(dim, keepdim=True) for dim in dims] or [square]
            factors = [
                torch.lerp(before, now, factored_rate)
                for before, now in zip(old["factors"][k].values(), seen, strict=True)
            ]
            columns = [g, p, m, v, m * (v + 1e-6).rsqrt(), (v + 1e-6).rsqrt()]
            columns += _factored_features(g, m, factors, dims)
            shape = (*g.shape[:-1], -1)
            features.append(torch.cat([c.expand(shape) for c in columns], -1).flatten(1, -2))
            new["momenta"][k], new["second_moment"][k] = m, v
            new["factors"][k] = _named_factors(factors)
        steps: Tensor = old["step"]
        return self.net.updates(features, steps, grads), {**new, "step": steps + 1}


def _rates(theta: Tensor, initial: Sequence[float]) -> Tensor:
    """``1 - decay``: what theta makes of the initial one, at most 1."""
    return ((1 - theta.new_tensor(initial)) * (_DECAY_SPEED * theta).exp()).clamp_max(1.0)


def _factored_dims(tensor: Tensor) -> tuple[int, ...]:
    """Of ``[N, *shape, 1]``: the dimensions averaged for the row and for the column factor.

    They are the longest and the next; none for vectors.
    """
    if tensor.dim() <= 3:
        return ()
    by_length = sorted(range(1, tensor.dim() - 1), key=lambda d: tensor.shape[d])
    return by_length[-1], by_length[-2]


def _named_factors(factors: Sequence[Tensor]) -> Params:
    names = ("row", "column") if len(factors) == 2 else ("full",)
    return dict(zip(names, factors, strict=True))


def _factored_features(
    g: Tensor, m: Tensor, factors: Sequence[Tensor], dims: tuple[int, ...]
) -> list[Tensor]:
    """``g`` and ``m`` preconditioned, and the factors; the constants are those of the authors."""
    if not dims:
        (full,) = factors
        inverse = (full + 1e-8).rsqrt()
        preconditioned = g * _capped_rsqrt(full + 1e-9)
        return [preconditioned, full, full, inverse, inverse, m * (full + 1e-6).rsqrt()]
    row, column = factors
    mean = row.mean(dims[1], keepdim=True)
    scale = _capped_rsqrt(row / (mean + 1e-9)) * _capped_rsqrt(column)
    return [g * scale, row, column, (row + 1e-8).rsqrt(), (column + 1e-8).rsqrt(), m * scale]


def _capped_rsqrt(values: Tensor) -> Tensor:
    return values.clamp_min(1e-9).rsqrt()
