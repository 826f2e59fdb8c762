"""Hand-made rules that add noise at every step.

Every `forward` follows the contract of `Rule.forward`; its docstring here only says what it does.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError
from learned_opt.rules.base import HandMade, register_rule
from learned_opt.rules.norms import problem_norm, root
from learned_opt.trees import Params, Tree, num_problems, per_problem


@final
@register_rule
class NoisyGD(HandMade):
    """Noisy gradient descent, ``x <- x - learning_rate (g + noise u)``, ``u`` on the sphere.

    ``u`` is uniform on the unit sphere that spans all coordinates of a problem together (Ge et al.
    2015, arXiv:1503.02101, algorithm 1).
    """

    name = "noisy_gd"
    needs_rng = True
    learning_rate: Tensor
    noise: Tensor

    def __init__(
        self, *, learning_rate: float | Tensor = 1e-2, noise: float | Tensor = 1e-2
    ) -> None:
        super().__init__(learning_rate=learning_rate, noise=noise)

    def init(self, params: Params) -> Tree:
        """No state."""
        del params
        return {}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of noisy gradient descent."""
        del loss
        directions = on_sphere(params, given(rng, self))
        updates = {
            k: -per_problem(self.learning_rate, g)
            * torch.addcmul(g, directions[k], per_problem(self.noise, g))
            for k, g in grads.items()
        }
        return updates, state


@final
@register_rule
class SGLD(HandMade):
    """Langevin dynamics, ``x <- x - learning_rate g + sqrt(2 learning_rate temperature) xi``.

    ``xi`` is standard normal (Welling & Teh 2011); the stationary density is proportional to
    ``exp(-loss / temperature)`` for small learning rates.
    """

    name = "sgld"
    needs_rng = True
    learning_rate: Tensor
    temperature: Tensor

    def __init__(
        self, *, learning_rate: float | Tensor = 1e-2, temperature: float | Tensor = 1e-4
    ) -> None:
        super().__init__(learning_rate=learning_rate, temperature=temperature)

    def init(self, params: Params) -> Tree:
        """No state."""
        del params
        return {}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of Langevin dynamics."""
        del loss
        xi = normals(params, given(rng, self))
        amplitude = root(2 * self.learning_rate * self.temperature)
        updates = {
            k: per_problem(amplitude, g) * xi[k] - per_problem(self.learning_rate, g) * g
            for k, g in grads.items()
        }
        return updates, state


def given(rng: torch.Generator | None, rule: HandMade) -> torch.Generator:
    """The generator that `rule` was handed.

    Raises:
        LearnedOptError: if it was handed none.
    """
    if rng is None:
        raise LearnedOptError(f"{rule.name}: rng must be a torch.Generator, got None")
    return rng


def normals(params: Params, rng: torch.Generator) -> Params:
    """Standard normal numbers shaped as `params`, drawn on the CPU in their dtype."""
    return {
        k: torch.randn(p.shape, generator=rng, dtype=p.dtype).to(p.device)
        for k, p in params.items()
    }


def on_sphere(params: Params, rng: torch.Generator) -> Params:
    """For each problem a direction uniform on the unit sphere of all its coordinates together."""
    draws = normals(params, rng)
    norm = problem_norm(draws)
    return {k: draw / per_problem(norm, draw) for k, draw in draws.items()}


def in_ball(params: Params, rng: torch.Generator) -> Params:
    """For each problem a point uniform in the unit ball of all its coordinates together.

    The radius of such a point is distributed as ``U^(1/d)`` with ``U`` uniform.
    """
    directions = on_sphere(params, rng)
    dim = sum(p[0].numel() for p in params.values())
    radius = torch.rand(num_problems(params), generator=rng, dtype=torch.float64) ** (1 / dim)
    return {k: u * per_problem(radius.to(u.device), u) for k, u in directions.items()}
