"""What each hand-made rule may be tuned over, in units that a task itself ships.

Ranges are relative, so one table serves tasks of any scale: learning rates of gradient type to the
inverse smoothness, step lengths of sign type to the radius, thresholds and noise to a typical
gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import qmc

from learned_opt.errors import require
from learned_opt.rules.base import HandMade, get_rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import squared_norm


@final
@dataclass(frozen=True)
class Units:
    """The scales of one task, in which search ranges are expressed.

    Attributes:
        smoothness: ``l``, a typical largest curvature.
        radius: ``R``, a typical distance from start to solution.
        gradient: a typical large gradient norm.
    """

    smoothness: float
    radius: float
    gradient: float

    def of(self, unit: str) -> float:
        """The factor of a named unit."""
        return {
            "one": 1.0,
            "inverse smoothness": 1 / self.smoothness,
            "smoothness": self.smoothness,
            "radius": self.radius,
            "gradient": self.gradient,
            "loss": self.smoothness * self.radius**2,
            "hessian lipschitz": self.smoothness / self.radius,
        }[unit]


def measure_units(task: Task, problems: Problems) -> Units:
    """The units of a task; the gradient is the median initial norm, or ``l R`` if that is larger.

    A run that starts next to a saddle has a vanishing initial gradient, in units of which no useful
    noise or threshold could be expressed.

    Args:
        task: the task.
        problems: its tuning instances.

    Returns:
        The units.
    """
    points = {name: p.detach().requires_grad_() for name, p in problems.params.items()}
    loss = task.loss(points, problems, None).sum()
    grads = dict(zip(points, torch.autograd.grad(loss, list(points.values())), strict=True))
    norm = float(squared_norm(grads).double().sqrt().median())
    floor = task.smoothness * task.radius
    return Units(
        task.smoothness, task.radius, norm if np.isfinite(norm) and norm > floor else floor
    )


@final
@dataclass(frozen=True)
class Range:
    """Where one hyperparameter is searched: log-uniform in ``[low, high]`` times a unit.

    Attributes:
        low: lower end, positive.
        high: upper end.
        unit: a unit of `Units.of`.
        complement: search ``1 - value`` instead of the value, for decay rates near 1.
        choices: if not empty, these values instead of the range, equally likely.
    """

    low: float = 1.0
    high: float = 1.0
    unit: str = "one"
    complement: bool = False
    choices: tuple[float, ...] = ()

    def value(self, u: float, units: Units) -> float:
        """Map ``u`` in [0, 1) to a value."""
        if self.choices:
            return self.choices[int(u * len(self.choices))] * units.of(self.unit)
        x = self.low * math.exp(u * math.log(self.high / self.low))
        return (1 - x if self.complement else x) * units.of(self.unit)


@final
@dataclass(frozen=True)
class SearchSpace:
    """The tuned hyperparameters of a rule; the others keep their defaults.

    Attributes:
        ranges: hyperparameter -> where it is searched.
    """

    ranges: dict[str, Range]

    def points(self, num_points: int, units: Units, *, seed: int) -> list[dict[str, float]]:
        """The first points of a scrambled Sobol sequence over the space.

        Sequences are nested: the first ``k`` of ``n`` points are the ``k`` points of the same seed.

        Args:
            num_points: how many, at least 0.
            units: scales of the task.
            seed: seed of the scrambling.

        Returns:
            Settings, one dictionary a point.
        """
        if num_points == 0:
            return []
        unit_cube = sobol(num_points, len(self.ranges), seed=seed)
        return [
            {
                name: where.value(float(u), units)
                for u, (name, where) in zip(row, self.ranges.items(), strict=True)
            }
            for row in unit_cube
        ]


def sobol(num_points: int, dim: int, *, seed: int) -> NDArray[np.float64]:
    """Scrambled Sobol points ``[num_points, dim]`` in [0, 1)."""
    # A whole power of two keeps the sequence balanced; what is not needed is cut off.
    exponent = max(0, (num_points - 1).bit_length())
    points: NDArray[np.float64] = qmc.Sobol(dim, scramble=True, seed=seed).random_base2(exponent)
    return points[:num_points]


_GRADIENT = "inverse smoothness"
_MOMENTUM = Range(1e-3, 0.5, complement=True)
_MOMENTUM_RATE = Range(1e-4, 4.0, _GRADIENT)
_BETA2 = Range(choices=(0.9, 0.99, 0.999))
_EPS = Range(choices=(1e-8, 1e-16))
_ADAM = {
    "learning_rate": Range(1e-4, 0.3, "radius"),
    "beta1": Range(2e-2, 0.5, complement=True),
    "beta2": _BETA2,
    "eps": _EPS,
}

_SPACES: dict[str, dict[str, Range]] = {
    "sgd": {"learning_rate": Range(1e-3, 2.0, _GRADIENT)},
    # Up to the stability limit 2 (1 + momentum) of a quadratic.
    "momentum": {"learning_rate": _MOMENTUM_RATE, "momentum": _MOMENTUM},
    "nesterov": {"learning_rate": _MOMENTUM_RATE, "momentum": _MOMENTUM},
    "adagrad": {"learning_rate": Range(1e-3, 1.0, "radius")},
    "rmsprop": {
        "learning_rate": Range(1e-4, 0.3, "radius"),
        "decay": Range(1e-3, 0.1, complement=True),
    },
    "adam": _ADAM,
    "adamw": {**_ADAM, "weight_decay": Range(1e-5, 0.1)},
    "lion": {
        "learning_rate": Range(1e-5, 0.1, "radius"),
        "beta1": Range(2e-2, 0.5, complement=True),
    },
    "normalized_gd": {"learning_rate": Range(1e-4, 1.0, "radius")},
    # Where the clip is active the step length is learning_rate x threshold: rates beyond the
    # stability limit of plain descent are what clipping is for.
    "clipped_gd": {
        "learning_rate": Range(1e-3, 1e2, _GRADIENT),
        "threshold": Range(1e-3, 1.0, "gradient"),
    },
    "noisy_gd": {
        "learning_rate": Range(1e-3, 2.0, _GRADIENT),
        "noise": Range(1e-6, 1.0, "gradient"),
    },
    "perturbed_gd": {
        "learning_rate": Range(1e-3, 2.0, _GRADIENT),
        "radius": Range(1e-6, 0.1, "radius"),
        "gradient_threshold": Range(1e-6, 0.1, "gradient"),
        "interval": Range(choices=(1.0, 10.0, 50.0, 200.0)),
    },
    "perturbed_gd_theory": {
        "smoothness": Range(0.5, 4.0, "smoothness"),
        "hessian_lipschitz": Range(0.1, 10.0, "hessian lipschitz"),
        "accuracy": Range(1e-4, 1.0, "gradient"),
        "initial_gap": Range(0.1, 10.0, "loss"),
    },
    "sgld": {
        "learning_rate": Range(1e-3, 2.0, _GRADIENT),
        "temperature": Range(1e-8, 0.1, "loss"),
    },
}

BASELINES = (
    "sgd",
    "momentum",
    "nesterov",
    "adagrad",
    "rmsprop",
    "adam",
    "adamw",
    "lion",
    "normalized_gd",
    "clipped_gd",
    "noisy_gd",
    "perturbed_gd",
    "sgld",
)
"""The hand-made rules that a benchmark races unless told otherwise."""


def search_space(rule: str) -> SearchSpace:
    """The search space of a hand-made rule.

    A rule without an entry here (one that a user registered) is searched a factor of 100 either
    way around each non-zero default.

    Args:
        rule: registered name of a hand-made rule.

    Returns:
        Its space.

    Raises:
        LearnedOptError: if there is no such rule, or it is a learned one.
    """
    if rule in _SPACES:
        return SearchSpace(_SPACES[rule])
    built = get_rule(rule)
    require(
        isinstance(built, HandMade),
        f"rule must be hand-made to be tuned, got '{rule}', whose theta are learned",
    )
    defaults = {name: float(value.detach()) for name, value in built.named_parameters()}
    return SearchSpace({
        name: Range(value / 100, value * 100) for name, value in defaults.items() if value > 0
    })
