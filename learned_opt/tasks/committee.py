"""The soft committee machine of Saad & Solla (Physical Review E 52, 4225, 1995)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import (
    ClosedFormTask,
    CriticalPoint,
    Facts,
    Problems,
    register_task,
)
from learned_opt.trees import Params, Tree


@final
@register_task
class SoftCommittee(ClosedFormTask):
    """Soft committee machine: hidden units share one plateau until their symmetry breaks.

    The student ``sum_i erf(w_i . x / sqrt 2)`` learns a teacher of the same form with orthonormal
    weights, ``x ~ N(0, I)``. The population loss is exact, without sampling: with the overlaps
    ``Q = w w^T`` and ``R = w t^T``,
    ``(1/pi) [sum asin(Q_ik / sqrt((1 + Q_ii)(1 + Q_kk))) + sum asin(T_nm / 2)
    - 2 sum asin(R_in / sqrt(2 (1 + Q_ii)))]``.
    On the way every student unit first becomes the same compromise between all teacher units; this
    symmetric saddle is the plateau.

    Args:
        num_units: hidden units ``K`` of student and teacher.
        num_inputs: input dimension.
        symmetry_breaking: standard deviation of the initial overlaps between student and teacher;
            the plateau lasts for about the logarithm of its inverse.

    Raises:
        LearnedOptError: if `num_units` is below 2, `num_inputs` below ``2 num_units``, or
            `symmetry_breaking` is not positive.

    Examples:
        >>> round(SoftCommittee(num_units=2).plateau_value, 5)
        0.01161
    """

    name = "soft_committee"
    kind = "plateau"
    family = "soft_committee"
    budget = 1000
    radius = 1.0
    minimum = 0.0

    def __init__(
        self, *, num_units: int = 3, num_inputs: int = 50, symmetry_breaking: float = 1e-3
    ) -> None:
        require(num_units >= 2, f"{self.name}: num_units must be at least 2, got {num_units}")
        require(
            num_inputs >= 2 * num_units,
            f"{self.name}: num_inputs must be at least 2 num_units = {2 * num_units}, "
            f"got {num_inputs}",
        )
        require(
            symmetry_breaking > 0,
            f"{self.name}: symmetry_breaking must be positive, got {symmetry_breaking}",
        )
        self.num_units, self.num_inputs = num_units, num_inputs
        self.symmetry_breaking = symmetry_breaking
        self.smoothness = 0.5 * num_units
        self.shapes = {"w": (num_units, num_inputs)}

    @property
    def plateau_value(self) -> float:
        """Loss on the symmetric plateau, ``(K/pi) (pi/6 - K asin(1/(2K)))``."""
        k = self.num_units
        return k / math.pi * (math.pi / 6 - k * math.asin(1 / (2 * k)))

    def function(self, x: Tensor) -> Tensor:
        """The loss against the teacher made of the first ``K`` unit vectors.

        Args:
            x: ``[..., K * num_inputs]`` student weights, unit by unit.

        Returns:
            ``[...]`` losses.
        """
        weights = x.unflatten(-1, (self.num_units, self.num_inputs))
        return _population_loss(weights, weights[..., : self.num_units])

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The population loss against each instance's own teacher."""
        del batch
        teacher = problems.constants["teacher"]
        assert isinstance(teacher, Tensor)
        return _population_loss(params["w"], torch.bmm(params["w"], teacher.mT))

    def critical_points(self) -> list[CriticalPoint]:
        """The symmetric saddle and the teacher; the spectra are dense float64 eigenvalues.

        Permutations and reflections of the units give equivalent points, which are left out.
        """
        k = self.num_units
        student = torch.zeros(2, k, self.num_inputs, dtype=torch.float64)
        student[0, :, :k] = 1 / math.sqrt(k * (2 * k - 1))
        student[1, :, :k] = torch.eye(k, dtype=torch.float64)
        values = (self.plateau_value, 0.0)
        points = []
        for x, value in zip(student.flatten(1), values, strict=True):
            hessian = torch.autograd.functional.hessian(self.function, x)
            points.append(
                CriticalPoint(x=x, value=value, eigenvalues=torch.linalg.eigvalsh(hessian))
            )
        return points

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        k = self.num_units
        gaussian = torch.randn(
            num_problems, self.num_inputs, 2 * k, generator=rng, dtype=torch.float64
        )
        frame = torch.linalg.qr(gaussian).Q.mT
        teacher, student = frame[:, :k], frame[:, k:]
        overlaps = torch.randn(num_problems, k, k, generator=rng, dtype=torch.float64)
        weights = math.sqrt(0.5) * student + self.symmetry_breaking * torch.bmm(overlaps, teacher)
        reference = torch.full((num_problems,), self.plateau_value, dtype=torch.float64)
        zeros = torch.zeros_like(reference)
        return Problems(
            params={"w": weights},
            constants={"teacher": teacher.contiguous()},
            facts=Facts(
                minimum=zeros,
                reference=reference,
                next_level=zeros,
                levels=torch.stack([reference, zeros], dim=1),
            ),
        )


def _population_loss(student: Tensor, overlap: Tensor) -> Tensor:
    """The loss from student weights ``[..., K, d]`` and teacher overlaps ``[..., K, K]``."""
    gram = student @ student.mT
    scale = 1 + gram.diagonal(dim1=-2, dim2=-1)
    own = torch.asin(gram * (scale.unsqueeze(-1) * scale.unsqueeze(-2)).rsqrt()).sum((-2, -1))
    cross = torch.asin(overlap * (2 * scale).rsqrt().unsqueeze(-1)).sum((-2, -1))
    # Orthonormal teacher: asin(1/2) = pi/6 on the diagonal, 0 elsewhere.
    teacher = student.shape[-2] * math.pi / 6
    return (own + teacher - 2 * cross) / math.pi
