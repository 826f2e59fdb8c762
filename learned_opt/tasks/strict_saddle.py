"""The strict quadratic saddle with quartic confinement."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks._starts import Start, gaussian_off
from learned_opt.tasks.base import ClosedFormTask, CriticalPoint, Facts, Problems, register_task
from learned_opt.trees import Params, Tree

_MAX_INDEX_LISTED = 4
_MAX_LEVELS = 16


@final
@register_task
class StrictSaddle(ClosedFormTask):
    """A quadratic saddle with quartic walls, of any dimension, index and condition.

    ``f(z) = 1/2 sum_{i>k} l_i z_i^2 - 1/2 sum_{i<=k} g_i z_i^2 + c/4 sum_{i<=k} z_i^4``; the first
    ``k`` coordinates are unstable at the origin and have minima at ``+-sqrt(g_i / c)``. Gradient
    descent needs ``ln(R / u0) / ln(1 + eta g)`` steps from an unstable component ``u0`` to ``R``.

    Args:
        dim: number of coordinates ``d``.
        index: number ``k`` of unstable coordinates, ``1 <= k <= d``.
        smallest_escape: smallest ``g_i``; they are spaced logarithmically, the largest first.
        largest_escape: largest ``g_i``.
        smallest_curvature: smallest ``l_i``; they are spaced logarithmically, the largest first.
        largest_curvature: largest ``l_i``.
        confinement: ``c``; None takes the largest ``g_i``, which puts the farthest minima at 1.
        spread: each problem's curvatures are the canonical ones times ``10^u``, ``u`` uniform in
            ``[-spread, spread]`` for each coordinate; walls scale along, so minima do not move.
        start: ``manifold``, ``ball``, ``exact`` or ``natural`` (standard normal).
        start_radius: size of the unstable component (``manifold``) or of the ball.

    Raises:
        LearnedOptError: if a setting is out of range or `start` unknown.

    Examples:
        >>> task = StrictSaddle(dim=3)
        >>> task.critical_points()[0].eigenvalues.tolist()
        [-0.01, 1.0, 1.0]
    """

    name = "strict_saddle"
    family = "strict_saddle"
    kind = "saddle"
    budget = 1000

    def __init__(
        self,
        *,
        dim: int = 10,
        index: int = 1,
        smallest_escape: float = 1e-2,
        largest_escape: float = 1e-2,
        smallest_curvature: float = 1.0,
        largest_curvature: float = 1.0,
        confinement: float | None = None,
        spread: float = 0.0,
        start: str = "manifold",
        start_radius: float = 1e-3,
    ) -> None:
        require(1 <= index <= dim, f"index must lie in 1..dim={dim}, got {index}")
        require(
            0 < smallest_escape <= largest_escape,
            "smallest_escape must be positive and at most largest_escape, "
            f"got {smallest_escape} and {largest_escape}",
        )
        require(
            0 < smallest_curvature <= largest_curvature,
            "smallest_curvature must be positive and at most largest_curvature, "
            f"got {smallest_curvature} and {largest_curvature}",
        )
        c = largest_escape if confinement is None else confinement
        require(c > 0, f"confinement must be positive, got {confinement}")
        require(spread >= 0, f"spread must not be negative, got {spread}")
        self.start = Start(kind=start, radius=start_radius)
        self.shapes = {"x": (dim,)}
        self.spread = spread
        self._escape = _log_spaced(largest_escape, smallest_escape, index)
        self._curvature = _log_spaced(largest_curvature, smallest_curvature, dim - index)
        self._confinement = torch.full((index,), c, dtype=torch.float64)
        self.smoothness = max(largest_curvature, 2 * largest_escape)
        self.radius = (largest_escape / c) ** 0.5
        self.minimum = -float((self._escape**2 / (4 * c)).sum())

    def function(self, x: Tensor) -> Tensor:
        """The canonical saddle, ``[..., d] -> [...]``."""
        quadratic, quartic = _coefficients(self._curvature, self._escape, self._confinement)
        return _saddle(x, quadratic.to(x), quartic.to(x))

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Each problem's own saddle, ``[N]``."""
        del batch
        c: dict[str, Tensor] = problems.constants  # type: ignore[assignment]
        return _saddle(params["x"], c["quadratic"], c["quartic"])

    def critical_points(self) -> list[CriticalPoint]:
        """All ``3^k`` points if ``k <= 4``, else the greedy staircase's ``k + 1``; lowest last."""
        index = len(self._escape)
        if index <= _MAX_INDEX_LISTED:
            signs = [list(s) for s in product((0.0, 1.0, -1.0), repeat=index)]
        else:
            signs = [[1.0] * j + [0.0] * (index - j) for j in range(index + 1)]
        points = [self._critical_point(torch.tensor(s, dtype=torch.float64)) for s in signs]
        return sorted(points, key=lambda p: -p.value)

    def _critical_point(self, signs: Tensor) -> CriticalPoint:
        """The point whose unstable coordinates are `signs` times their minima."""
        g, is_settled = self._escape, signs != 0
        x = torch.cat([signs * (g / self._confinement).sqrt(), torch.zeros_like(self._curvature)])
        spectrum = torch.cat([torch.where(is_settled, 2 * g, -g), self._curvature])
        return CriticalPoint(
            x=x,
            value=-float((is_settled * g**2 / (4 * self._confinement)).sum()),
            eigenvalues=spectrum.sort().values,
        )

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        index = len(self._escape)
        identity = torch.eye(self.dim, dtype=torch.float64)
        saddle, escape = torch.zeros(self.dim, dtype=torch.float64), identity[:index]
        x = self.start.draw(
            num_problems,
            rng,
            saddle=saddle,
            escape=escape,
            stable=partial(gaussian_off, saddle, escape, self.radius),
            natural=lambda n, rng: torch.randn(n, self.dim, generator=rng, dtype=torch.float64),
        )
        uniform = torch.rand(num_problems, self.dim, generator=rng, dtype=torch.float64)
        factor = 10 ** (self.spread * (2 * uniform - 1))
        escape, confinement = (
            self._escape * factor[:, :index],
            self._confinement * factor[:, :index],
        )
        quadratic, quartic = _coefficients(self._curvature * factor[:, index:], escape, confinement)
        drops = escape**2 / (4 * confinement)
        return Problems(
            params={"x": x},
            constants={"quadratic": quadratic, "quartic": quartic},
            facts=_facts(drops),
        )


def _log_spaced(first: float, last: float, count: int) -> Tensor:
    ratio = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.zeros(count)
    return first * (last / first) ** ratio.to(torch.float64)


def _coefficients(curvature: Tensor, escape: Tensor, confinement: Tensor) -> tuple[Tensor, Tensor]:
    """Of the squares and of the fourth powers, ``[..., d]``; the unstable coordinates first."""
    return (
        torch.cat((-escape, curvature), dim=-1),
        torch.cat((confinement, torch.zeros_like(curvature)), dim=-1),
    )


def _saddle(x: Tensor, quadratic: Tensor, quartic: Tensor) -> Tensor:
    # One expression for both kinds of coordinates: slices would cost more than they save.
    squares = x.square()
    return (squares * (quadratic / 2 + quartic / 4 * squares)).sum(-1)


def _facts(drops: Tensor) -> Facts:
    """Levels of the greedy staircase: the deepest well is found first, ``drops`` ``[N, k]``."""
    staircase = -drops.sort(dim=1, descending=True).values.cumsum(1)
    reference, minimum = torch.zeros_like(drops[:, 0]), -drops.sum(1)
    if drops.shape[1] < _MAX_LEVELS:
        levels = torch.cat([reference[:, None], staircase], dim=1)
    else:
        levels = torch.stack([reference, minimum], dim=1)
    return Facts(minimum=minimum, reference=reference, next_level=staircase[:, 0], levels=levels)
