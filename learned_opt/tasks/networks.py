"""Perceptrons on the real data of `datasets`: training as most users know it, and its plateaus."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks import datasets, perceptron
from learned_opt.tasks.base import Facts, Problems, Task, register_task
from learned_opt.trees import Params, Tree


def class_facts(num_classes: int, num_problems: int) -> Facts:
    """Facts of a classifier under cross-entropy: the plateau is that of the constant predictor.

    Args:
        num_classes: equally frequent classes.
        num_problems: ``N``.

    Returns:
        Facts with the lower bound 0 and the plateau at ``ln num_classes``, float64.
    """
    plateau = torch.full((num_problems,), math.log(num_classes), dtype=torch.float64)
    zeros = torch.zeros_like(plateau)
    return Facts(
        minimum=zeros,
        reference=plateau,
        next_level=zeros,
        levels=plateau.unsqueeze(1),
        is_lower_bound=True,
    )


class PerceptronTask(Task):
    """A perceptron on a classification data set that all problems share.

    Problems differ in their initial weights. A minibatch is drawn for each problem apart, uniformly
    with replacement.
    """

    def __init__(
        self,
        *,
        data: datasets.Classification,
        hidden: Sequence[int],
        activation: str,
        batch_size: int | None,
        weight_std: Callable[[int], float],
    ) -> None:
        require(
            all(size >= 1 for size in hidden),
            f"{self.name}: hidden must hold positive numbers of units, got {tuple(hidden)}",
        )
        require(
            batch_size is None or batch_size >= 1,
            f"{self.name}: batch_size must be positive or None, got {batch_size}",
        )
        self.family = self.name
        self.batch_size = batch_size
        self.shapes = perceptron.layer_shapes([data.num_features, *hidden, data.num_classes])
        self._activation = perceptron.get_activation(activation)
        self._data = data
        self._weight_std = weight_std
        self._inputs: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._labels: dict[torch.device, Tensor] = {}

    @property
    def is_stochastic(self) -> bool:
        """Whether evaluations see minibatches."""
        return self.batch_size is not None

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree | None:
        """Draw ``{"index": [N, B]}``, examples with replacement; None without a batch size."""
        if self.batch_size is None:
            return None
        shape = (problems.num_problems, self.batch_size)
        index = torch.randint(len(self._data), shape, generator=rng)
        return {"index": index.to(problems.facts.minimum.device)}

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Mean cross-entropy over the minibatch, or over all training data without one."""
        del problems
        like = params["w0"]
        inputs, labels = self._data_like(like.dtype, like.device)
        if batch is not None:
            index = batch["index"]
            assert isinstance(index, Tensor)
            inputs, labels = inputs[index], labels[index]
        return perceptron.cross_entropy(perceptron.logits(params, inputs, self._activation), labels)

    def _data_like(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The data cast and moved, once for each dtype and device."""
        if (dtype, device) not in self._inputs:
            self._inputs[dtype, device] = self._data.inputs.to(device, dtype)
            self._labels[device] = self._data.labels.to(device)
        return self._inputs[dtype, device], self._labels[device]

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        return Problems(
            params=perceptron.draw_weights(self.shapes, num_problems, rng, std=self._weight_std),
            constants={},
            facts=class_facts(self._data.num_classes, num_problems),
        )


@final
@register_task
class DigitsMLP(PerceptronTask):
    """Small perceptron on handwritten digits, after the MNIST task of Andrychowicz et al. 2016.

    Args:
        hidden: units of each hidden layer.
        activation: ``sigmoid``, ``relu`` or ``tanh``.
        batch_size: examples of one evaluation; None takes all.
        num_train: training examples, at most 1797.
        init_std: standard deviation of the initial weights; biases start at 0.

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    name = "digits_mlp"
    kind = "net"
    budget = 300

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (20,),
        activation: str = "sigmoid",
        batch_size: int | None = 128,
        num_train: int = 1500,
        init_std: float = 0.1,
    ) -> None:
        require(init_std > 0, f"{self.name}: init_std must be positive, got {init_std}")
        super().__init__(
            data=datasets.digits().first(num_train),
            hidden=hidden,
            activation=activation,
            batch_size=batch_size,
            weight_std=lambda fan_in: init_std,
        )


@final
@register_task
class BreastCancerMLP(PerceptronTask):
    """Small perceptron on standardised clinical features with two classes.

    Args:
        hidden: units of each hidden layer.
        activation: ``sigmoid``, ``relu`` or ``tanh``.
        batch_size: examples of one evaluation; None takes all.
        num_train: training examples, at most 569.
        init_std: standard deviation of the initial weights; biases start at 0.

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    name = "breast_cancer_mlp"
    kind = "net"
    budget = 300
    smoothness = 2.0

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (16,),
        activation: str = "tanh",
        batch_size: int | None = 64,
        num_train: int = 455,
        init_std: float = 0.1,
    ) -> None:
        require(init_std > 0, f"{self.name}: init_std must be positive, got {init_std}")
        super().__init__(
            data=datasets.breast_cancer().first(num_train),
            hidden=hidden,
            activation=activation,
            batch_size=batch_size,
            weight_std=lambda fan_in: init_std,
        )


@final
@register_task
class DeepSigmoidMLP(PerceptronTask):
    """Deep sigmoid perceptron on digits: gradients vanish with depth, the loss rests at ``ln 10``.

    Weights start as ``N(0, 1 / fan_in)``, biases at 0. Evaluations see all training data by
    default, so that the plateau is not mixed up with minibatch noise.

    Args:
        depth: number of hidden layers.
        width: units of each hidden layer.
        batch_size: examples of one evaluation; None takes all.
        num_train: training examples, at most 1797.

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    name = "deep_sigmoid_mlp"
    kind = "plateau"
    budget = 2000
    smoothness = 2.0

    def __init__(
        self,
        *,
        depth: int = 4,
        width: int = 32,
        batch_size: int | None = None,
        num_train: int = 500,
    ) -> None:
        require(depth >= 1, f"{self.name}: depth must be positive, got {depth}")
        super().__init__(
            data=datasets.digits().first(num_train),
            hidden=(width,) * depth,
            activation="sigmoid",
            batch_size=batch_size,
            weight_std=lambda fan_in: fan_in**-0.5,
        )
