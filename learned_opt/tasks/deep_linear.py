"""Deep linear networks: a staircase of saddles, degenerate from three layers on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import FixedFunction, Start
from learned_opt.tasks.base import CriticalPoint, register_task

_MAX_MODES_LISTED = 6


@final
@register_task
class DeepLinear(FixedFunction):
    """A deep linear network, whose plateaus are all known in advance.

    ``1/2 ||W_N ... W_1 - M||^2`` is the squared loss on whitened inputs; ``M`` is diagonal with the
    given singular values (Kawaguchi 2016, arXiv:1605.07110; Baldi and Hornik 1989). Critical values
    are ``1/2 sum_{i not in S} s_i^2`` for sets ``S`` of learned modes. With two layers every saddle
    is strict. With three or more the Hessian at 0 vanishes, and at every greedy saddle (the largest
    modes learned, the others at 0) it has no negative eigenvalue; small starts pass these in turn.

    Args:
        depth: number ``N`` of layers, at least 2.
        width: number of inputs and of outputs.
        hidden: width of the hidden layers; None takes `width`.
        singular_values: the non-zero singular values of ``M``, positive, at most `width`.
        start: ``natural`` (each layer is `start_radius` times a random semi-orthogonal matrix),
            ``ball`` (Gaussian direction, all weights together at distance `start_radius` from 0),
            ``exact`` (0), or ``manifold`` (the top mode with the wrong sign, which shrinks to 0,
            plus `start_radius` in a random direction).
        start_radius: the scale of the start.

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.
    """

    name = "deep_linear"
    family = "deep_linear"

    def __init__(
        self,
        *,
        depth: int = 3,
        width: int = 10,
        hidden: int | None = None,
        singular_values: Sequence[float] = (3.0, 2.0, 1.0, 0.5),
        start: str = "natural",
        start_radius: float = 0.1,
    ) -> None:
        hidden = width if hidden is None else hidden
        modes = sorted(map(float, singular_values), reverse=True)
        require(depth >= 2, f"depth must be at least 2, got {depth}")
        require(hidden >= 1, f"hidden must be positive, got {hidden}")
        require(
            1 <= len(modes) <= width and modes[-1] > 0,
            f"singular_values must be 1..width={width} positive numbers, "
            f"got {tuple(singular_values)}",
        )
        self.start = Start(kind=start, radius=start_radius)
        self.depth, self.width, self.hidden, self._modes = depth, width, hidden, modes
        dims = (width, *[hidden] * (depth - 1), width)
        self.shapes = {f"w{i + 1}": (dims[i + 1], dims[i]) for i in range(depth)}
        self.saddle = torch.zeros(self.dim, dtype=torch.float64)
        self.escape = torch.eye(self.dim, dtype=torch.float64)
        learnable = min(hidden, len(modes))
        self.levels = tuple(sum(s * s for s in modes[r:]) / 2 for r in range(learnable + 1))
        self.minimum = self.levels[-1]
        self.smoothness = depth * modes[0] ** (2 - 2 / depth)
        self.radius = modes[0] ** (1 / depth)
        self.budget = 500 if depth == 2 else 3000
        target = torch.zeros(width, width, dtype=torch.float64)
        target.diagonal()[: len(modes)] = torch.tensor(modes, dtype=torch.float64)
        self._target = target

    def function(self, x: Tensor) -> Tensor:
        """The loss at all weights in order, each row-major, ``[..., d] -> [...]``."""
        first, *others = self._layers(x)
        network = first
        for layer in others:
            network = layer @ network
        return (network - self._target.to(x)).square().sum((-2, -1)) / 2

    def critical_points(self) -> list[CriticalPoint]:
        """One balanced point for each set of learned modes, lowest last.

        "Balanced" means that the layers share each learned singular value equally. Beyond six modes
        only the greedy sets are listed.
        """
        learnable, num_modes = min(self.hidden, len(self._modes)), len(self._modes)
        if num_modes <= _MAX_MODES_LISTED:
            subsets = [s for r in range(learnable + 1) for s in combinations(range(num_modes), r)]
        else:
            subsets = [tuple(range(r)) for r in range(learnable + 1)]
        return sorted((self._critical_point(s) for s in subsets), key=lambda p: -p.value)

    def _critical_point(self, subset: tuple[int, ...]) -> CriticalPoint:
        """The balanced point that has learned the modes in `subset`, one per hidden unit.

        Its Hessian splits into blocks. With ``a = s_i^{1/N}`` for each learned mode ``i``:
        pairs of learned modes ``(a, b)`` give ``sum_l a^{2(N-l)} b^{2(l-1)}`` and ``N - 1`` zeros;
        a learned with a missing mode gives ``a^{N-2} (s_i +- s_j)``; an idle hidden unit gives
        ``+-s_j`` for each missing mode with two layers and nothing with more.
        """
        depth, modes = self.depth, self._modes + [0.0] * (self.width - len(self._modes))
        roots = {i: modes[i] ** (1 / depth) for i in subset}
        missing = [s for j, s in enumerate(modes) if j not in roots]
        x = torch.zeros_like(self.saddle)
        layers = self._layers(x)
        for unit, (i, root) in enumerate(roots.items()):
            for number, layer in enumerate(layers):
                row = i if number == depth - 1 else unit
                layer[row, i if number == 0 else unit] = root
        spectrum = [
            sum(a ** (2 * (depth - 1 - i)) * b ** (2 * i) for i in range(depth))
            for a in roots.values()
            for b in roots.values()
        ]
        for i, root in roots.items():
            for s in missing:
                strength = root ** (depth - 2)
                spectrum += [strength * (modes[i] + s), strength * (modes[i] - s)]
        if depth == 2:
            for s in missing:
                spectrum += [s, -s] * (self.hidden - len(subset))
        spectrum += [0.0] * (self.dim - len(spectrum))
        return CriticalPoint(
            x=x,
            value=sum(s * s for s in missing) / 2,
            eigenvalues=torch.tensor(sorted(spectrum), dtype=torch.float64),
        )

    def _layers(self, x: Tensor) -> list[Tensor]:
        """Views of ``[..., d]`` as the layers ``[..., rows, columns]``, first layer first."""
        sizes = [rows * columns for rows, columns in self.shapes.values()]  # type: ignore[misc]
        return [
            part.reshape(*x.shape[:-1], *shape)
            for part, shape in zip(x.split(sizes, dim=-1), self.shapes.values(), strict=True)
        ]

    def _stable(self, num_problems: int, rng: torch.Generator) -> Tensor:
        """The top mode, balanced but with the last layer's sign turned: it shrinks to 0."""
        x = torch.zeros(num_problems, self.dim, dtype=torch.float64)
        amplitude = torch.rand(num_problems, generator=rng, dtype=torch.float64) * self.radius
        layers = self._layers(x)
        for layer in layers:
            layer[:, 0, 0] = amplitude
        layers[-1][:, 0, 0] = -amplitude
        return x

    def _natural(self, num_problems: int, rng: torch.Generator) -> Tensor:
        parts = []
        for rows, columns in self.shapes.values():  # type: ignore[misc]
            side = max(rows, columns)
            gaussian = torch.randn(num_problems, side, side, generator=rng, dtype=torch.float64)
            q, r = torch.linalg.qr(gaussian)
            haar = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
            parts.append(haar[:, :rows, :columns].flatten(1))
        return self.start.radius * torch.cat(parts, dim=1)
