"""Real phase retrieval: recover a vector, up to its sign, from squared projections."""

from __future__ import annotations

import math
from functools import partial
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import Start, gaussian_off, same_facts
from learned_opt.tasks.base import ClosedFormTask, CriticalPoint, Problems, register_task
from learned_opt.trees import Params, Tree


@final
@register_task
class PhaseRetrieval(ClosedFormTask):
    """Real phase retrieval, with infinitely many Gaussian measurements or a given number.

    The population loss with ``||x*|| = 1`` is
    ``F = 1/4 [3 ||x||^4 - 2 ||x||^2 - 4 <x, x*>^2 + 3]`` (Sun, Qu and Wright 2016,
    arXiv:1602.06664, treat the complex case). The sampled loss of a problem is
    ``1/(4m) sum_i (<a_i, x>^2 - <a_i, x*>^2)^2`` with its own standard normal ``a_i``; ``x*`` is
    the first unit vector. Saddles form the sphere ``x`` orthogonal to ``x*``, ``||x||^2 = 1/3``.

    `function`, `critical_points` and the levels are those of the population loss; for sampled
    losses they are approximate, apart from the minimum 0.

    Args:
        dim: number of coordinates, at least 2.
        num_measurements: ``m``; None gives the population loss.
        start: ``natural`` (a Gaussian with expected squared norm 1), ``ball`` about one of the
            saddles, ``manifold`` (Gaussian but with a small component along ``x*``) or ``exact``.
        start_radius: distance of ``ball`` or ``manifold`` starts.

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "phase_retrieval"
    family = "phase_retrieval"
    kind = "saddle"
    budget = 300
    minimum = 0.0
    radius = 1.0

    def __init__(
        self,
        *,
        dim: int = 20,
        num_measurements: int | None = None,
        start: str = "natural",
        start_radius: float = 1e-3,
    ) -> None:
        require(dim >= 2, f"dim must be at least 2, got {dim}")
        require(
            num_measurements is None or num_measurements >= 1,
            f"num_measurements must be positive or None, got {num_measurements}",
        )
        self.start = Start(kind=start, radius=start_radius)
        self.shapes = {"x": (dim,)}
        self.num_measurements = num_measurements
        # Few measurements make the largest curvature about twice that of the population loss.
        self.smoothness = 6.0 if num_measurements is None else 12.0

    def function(self, x: Tensor) -> Tensor:
        """The population loss, ``[..., d] -> [...]``."""
        # F = 3/4 (||x||^2 - 1)^2 + ||x||^2 - <x, x*>^2: a sum of squares, so small losses keep
        # their relative accuracy.
        along, across = x[..., 0].square(), x[..., 1:].square().sum(-1)
        return 0.75 * (along + across - 1).square() + across

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The population loss, or each problem's sampled loss, ``[N]``."""
        del batch
        x = params["x"]
        if self.num_measurements is None:
            return self.function(x)
        measurements: Tensor = problems.constants["measurements"]  # type: ignore[assignment]
        projections = (measurements @ x.unsqueeze(-1)).squeeze(-1)
        return (projections.square() - measurements[..., 0].square()).square().mean(-1) / 4

    def critical_points(self) -> list[CriticalPoint]:
        """The local maximum 0, one saddle of the sphere of them, and both minima."""
        d = self.dim
        zero = torch.zeros(d, dtype=torch.float64)
        saddle, target = zero.clone(), zero.clone()
        saddle[1], target[0] = math.sqrt(1 / 3), 1.0
        spectra = [
            [-3.0] + [-1.0] * (d - 1),
            [-2.0, *[0.0] * (d - 2), 2.0],
            [2.0] * (d - 1) + [6.0],
        ]
        return [
            CriticalPoint(x=x, value=value, eigenvalues=torch.tensor(spectrum, dtype=torch.float64))
            for x, value, spectrum in (
                (zero, 3 / 4, spectra[0]),
                (saddle, 2 / 3, spectra[1]),
                (target, 0.0, spectra[2]),
                (-target, 0.0, spectra[2]),
            )
        ]

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        d = self.dim
        saddle = self.critical_points()[1].x
        escape = torch.eye(d, dtype=torch.float64)[:1]
        zero = torch.zeros(d, dtype=torch.float64)
        scale = d**-0.5
        x = self.start.draw(
            num_problems,
            rng,
            saddle=saddle,
            escape=escape,
            stable=partial(gaussian_off, zero, escape, scale),
            natural=lambda n, rng: scale * torch.randn(n, d, generator=rng, dtype=torch.float64),
        )
        constants: Tree = {}
        if self.num_measurements is not None:
            constants["measurements"] = torch.randn(
                num_problems, self.num_measurements, d, generator=rng, dtype=torch.float64
            )
        return Problems(
            params={"x": x}, constants=constants, facts=same_facts(num_problems, (2 / 3, 0.0))
        )
