"""Real data that ships inside scikit-learn; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from learned_opt.errors import require


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A classification data set.

    Attributes:
        inputs: ``[M, num_features]``, float64 on the CPU.
        labels: ``[M]``, int64, from 0.
        num_classes: number of classes.
    """

    inputs: Tensor
    labels: Tensor
    num_classes: int

    @property
    def num_features(self) -> int:
        """Length of one input."""
        return self.inputs.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, num_train: int) -> Classification:
        """The first examples.

        Args:
            num_train: how many.

        Returns:
            The smaller data set.

        Raises:
            LearnedOptError: if there are not as many.
        """
        require(
            1 <= num_train <= len(self),
            f"num_train must be between 1 and {len(self)}, got {num_train}",
        )
        return Classification(
            inputs=self.inputs[:num_train],
            labels=self.labels[:num_train],
            num_classes=self.num_classes,
        )


@cache
def digits() -> Classification:
    """Handwritten digits, 1797 images of 8 by 8 pixels in ``[0, 1]``, 10 classes, in file order."""
    images, labels = load_digits(return_X_y=True)
    return Classification(
        inputs=torch.from_numpy(images).double() / 16,
        labels=torch.from_numpy(labels).long(),
        num_classes=10,
    )


@cache
def breast_cancer() -> Classification:
    """Wisconsin breast cancer, 569 samples of 30 standardised features, 2 classes, shuffled."""
    features, labels = load_breast_cancer(return_X_y=True)
    inputs = torch.from_numpy(features)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    # A fixed order that mixes the classes.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return Classification(
        inputs=inputs[order].double(), labels=torch.from_numpy(labels)[order].long(), num_classes=2
    )
