"""Perturbed gradient descent: noise only where the gradient is small (Jin et al. 2017).

A step of the published algorithm that perturbs needs two gradients: one to see that it is small,
one at the perturbed point. A rule is given one gradient a step, so here a perturbation is a step of
its own (the update is the perturbation alone) and is paid for as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError, require
from learned_opt.rules.base import HandMade, register_rule
from learned_opt.rules.noisy import given, in_ball
from learned_opt.rules.norms import problem_norm
from learned_opt.trees import Params, Tree, num_problems, per_problem, per_row


@final
@register_rule
class PerturbedGD(HandMade):
    """Perturbed gradient descent with free constants (Jin et al. 2017, arXiv:1703.00887, alg. 1).

    If ``|g| <= gradient_threshold`` and more than `interval` gradient steps were taken since the
    last perturbation, ``x <- x + radius xi`` with ``xi`` uniform in the unit ball; otherwise
    ``x <- x - learning_rate g``.
    """

    name = "perturbed_gd"
    needs_rng = True
    learning_rate: Tensor
    radius: Tensor
    gradient_threshold: Tensor
    interval: Tensor

    def __init__(
        self,
        *,
        learning_rate: float | Tensor = 1e-2,
        radius: float | Tensor = 1e-2,
        gradient_threshold: float | Tensor = 1e-2,
        interval: float | Tensor = 50.0,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            radius=radius,
            gradient_threshold=gradient_threshold,
            interval=interval,
        )

    def init(self, params: Params) -> Tree:
        """Never perturbed: infinitely many steps since."""
        return {"elapsed": _never(params)}

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One gradient step or one perturbation."""
        del loss
        elapsed: Tensor = state["elapsed"]  # type: ignore[assignment]
        is_small = problem_norm(grads) <= self.gradient_threshold
        perturbs = is_small & (elapsed > self.interval)
        updates = _descend_or_perturb(
            grads,
            params,
            perturbs,
            learning_rate=self.learning_rate,
            radius=self.radius,
            rng=given(rng, self),
        )
        return updates, {"elapsed": torch.where(perturbs, 0.0, elapsed + 1)}


@dataclass(frozen=True, kw_only=True)
class TheoryConstants:
    """What algorithm 2 of Jin et al. 2017 derives from its inputs, each a scalar or ``[N]``."""

    learning_rate: Tensor
    radius: Tensor
    gradient_threshold: Tensor
    loss_threshold: Tensor
    interval: Tensor


@final
@register_rule
class PerturbedGDTheory(HandMade):
    """Perturbed gradient descent with the constants of its proof (Jin et al. 2017, algorithm 2).

    Unlike `PerturbedGD` it ends: if `interval` steps after a perturbation the loss has not fallen
    by `loss_threshold`, it returns to the point before and stays there (``terminated`` in the
    state). The constants are cautious beyond use; the rule is here to show it.

    Args:
        smoothness: Lipschitz constant of the gradient.
        hessian_lipschitz: Lipschitz constant of the Hessian.
        accuracy: the gradient norm aimed at.
        constant: the absolute constant ``c`` of the theorem.
        failure_probability: the theorem's ``delta``.
        initial_gap: bound on the loss at the start over its minimum.

    Raises:
        LearnedOptError: if a value is not positive and finite.
    """

    name = "perturbed_gd_theory"
    needs_loss = True
    needs_rng = True
    smoothness: Tensor
    hessian_lipschitz: Tensor
    accuracy: Tensor
    constant: Tensor
    failure_probability: Tensor
    initial_gap: Tensor

    def __init__(
        self,
        *,
        smoothness: float | Tensor = 1.0,
        hessian_lipschitz: float | Tensor = 1.0,
        accuracy: float | Tensor = 1e-2,
        constant: float | Tensor = 1.0,
        failure_probability: float | Tensor = 0.1,
        initial_gap: float | Tensor = 1.0,
    ) -> None:
        super().__init__(
            smoothness=smoothness,
            hessian_lipschitz=hessian_lipschitz,
            accuracy=accuracy,
            constant=constant,
            failure_probability=failure_probability,
            initial_gap=initial_gap,
        )
        for key, value in self.named_parameters():
            require(
                bool((value > 0).all()),
                f"{self.name}: {key} must be positive, got {value.tolist()}",
            )

    def constants(self, dim: int) -> TheoryConstants:
        """The algorithm's step length and thresholds.

        Args:
            dim: number of coordinates of a problem.

        Returns:
            The constants; `interval` is rounded up to whole steps.

        Examples:
            >>> constants = PerturbedGDTheory().constants(100)
            >>> round(constants.interval.item()), f"{constants.radius.item():.0e}"
            (484, '4e-06')
        """
        smooth, rho, eps, c = self.smoothness, self.hessian_lipschitz, self.accuracy, self.constant
        odds = dim * smooth * self.initial_gap / (c * eps.square() * self.failure_probability)
        chi = 3 * odds.log().clamp(min=4.0)
        threshold = c.sqrt() / chi.square() * eps
        return TheoryConstants(
            learning_rate=c / smooth,
            radius=threshold / smooth,
            gradient_threshold=threshold,
            loss_threshold=c / chi**3 * (eps**3 / rho).sqrt(),
            interval=(chi / c.square() * smooth / (rho * eps).sqrt()).ceil(),
        )

    def init(self, params: Params) -> Tree:
        """Never perturbed, not terminated."""
        elapsed = _never(params)
        return {
            "elapsed": elapsed,
            "terminated": torch.zeros_like(elapsed, dtype=torch.bool),
            "loss_before": torch.zeros_like(elapsed),
            "point_before": {k: p.detach().clone() for k, p in params.items()},
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
        """One gradient step, one perturbation, the return to the point before, or nothing."""
        if loss is None:
            raise LearnedOptError(f"{self.name}: loss must be the [N] losses, got None")
        elapsed: Tensor = state["elapsed"]  # type: ignore[assignment]
        terminated: Tensor = state["terminated"]  # type: ignore[assignment]
        loss_before: Tensor = state["loss_before"]  # type: ignore[assignment]
        before: Params = state["point_before"]  # type: ignore[assignment]
        constants = self.constants(sum(p[0].numel() for p in params.values()))
        is_small = problem_norm(grads) <= constants.gradient_threshold
        perturbs = is_small & (elapsed > constants.interval) & ~terminated
        is_stuck = loss.double() - loss_before > -constants.loss_threshold
        ends = (elapsed == constants.interval) & is_stuck & ~terminated
        updates = _descend_or_perturb(
            grads,
            params,
            perturbs,
            learning_rate=constants.learning_rate,
            radius=constants.radius,
            rng=given(rng, self),
        )
        updates = {
            k: torch.where(per_row(ends, u), before[k] - params[k], u).masked_fill(
                per_row(terminated, u), 0.0
            )
            for k, u in updates.items()
        }
        return updates, {
            "elapsed": torch.where(perturbs, 0.0, elapsed + 1),
            "terminated": terminated | ends,
            "loss_before": torch.where(perturbs, loss.double(), loss_before),
            "point_before": {
                k: torch.where(per_row(perturbs, p), p, before[k]) for k, p in params.items()
            },
        }


def _never(params: Params) -> Tensor:
    """``[N]`` steps since the last perturbation when there was none."""
    device = next(iter(params.values())).device
    return torch.full((num_problems(params),), torch.inf, dtype=torch.float64, device=device)


def _descend_or_perturb(
    grads: Params,
    params: Params,
    perturbs: Tensor,
    *,
    learning_rate: Tensor,
    radius: Tensor,
    rng: torch.Generator,
) -> Params:
    """``radius`` times a point of the unit ball where `perturbs` ``[N]``, else a gradient step."""
    updates = {k: -per_problem(learning_rate, g) * g for k, g in grads.items()}
    if not bool(perturbs.any()):  # noise costs more than the rest of the step, and is rarely needed
        return updates
    noise = in_ball(params, rng)
    return {
        k: torch.where(per_row(perturbs, u), per_problem(radius, u) * noise[k], u)
        for k, u in updates.items()
    }
