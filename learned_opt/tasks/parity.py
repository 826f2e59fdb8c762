"""Sparse parity: no gradient tells which inputs matter until late (arXiv:2207.08799)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks import perceptron
from learned_opt.tasks.base import Problems, Task, register_task
from learned_opt.tasks.networks import class_facts
from learned_opt.trees import Params, Tree


@final
@register_task
class ParityMLP(Task):
    """Perceptron that learns the parity of a few hidden bits; the plateau is chance, ``ln 2``.

    Inputs are uniform in ``{-1, 1}^n``; the class is whether the product of `num_relevant` of them,
    other ones in each problem, is positive (Barak et al. 2022, arXiv:2207.08799). Each minibatch is
    fresh; the deterministic loss is that of a fixed sample.

    Args:
        num_inputs: bits ``n`` of an input.
        num_relevant: bits ``k`` that decide the class.
        hidden: units of each hidden layer.
        activation: ``sigmoid``, ``relu`` or ``tanh``.
        batch_size: fresh examples of one evaluation; None takes the fixed sample.
        num_fixed: size of the fixed sample.

    Raises:
        LearnedOptError: if a setting is out of range.
    """

    name = "parity_mlp"
    kind = "plateau"
    family = "parity_mlp"
    budget = 2000

    def __init__(
        self,
        *,
        num_inputs: int = 20,
        num_relevant: int = 3,
        hidden: Sequence[int] = (32,),
        activation: str = "relu",
        batch_size: int | None = 128,
        num_fixed: int = 1000,
    ) -> None:
        require(
            1 <= num_relevant <= num_inputs,
            f"{self.name}: num_relevant must be between 1 and num_inputs = {num_inputs}, "
            f"got {num_relevant}",
        )
        require(
            all(size >= 1 for size in hidden),
            f"{self.name}: hidden must hold positive numbers of units, got {tuple(hidden)}",
        )
        require(
            batch_size is None or batch_size >= 1,
            f"{self.name}: batch_size must be positive or None, got {batch_size}",
        )
        require(num_fixed >= 1, f"{self.name}: num_fixed must be positive, got {num_fixed}")
        self.num_inputs, self.num_relevant = num_inputs, num_relevant
        self.batch_size = batch_size
        self.shapes = perceptron.layer_shapes([num_inputs, *hidden, 2])
        self._activation = perceptron.get_activation(activation)
        self._fixed = _random_signs((num_fixed, num_inputs), torch.Generator().manual_seed(0))

    @property
    def is_stochastic(self) -> bool:
        """Whether evaluations see minibatches."""
        return self.batch_size is not None

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree | None:
        """Draw ``{"inputs": [N, B, n]}``, fresh examples; None without a batch size."""
        if self.batch_size is None:
            return None
        like = problems.facts.minimum
        shape = (problems.num_problems, self.batch_size, self.num_inputs)
        return {"inputs": _random_signs(shape, rng).to(like.device, like.dtype)}

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Mean cross-entropy over the minibatch, or over the fixed sample without one."""
        relevant = problems.constants["relevant"]
        assert isinstance(relevant, Tensor)
        like = params["w0"]
        inputs = self._fixed.to(like.device, like.dtype) if batch is None else batch["inputs"]
        assert isinstance(inputs, Tensor)
        examples = inputs.expand(len(relevant), *inputs.shape[-2:])
        index = relevant.unsqueeze(1).expand(-1, examples.shape[1], -1)
        labels = (examples.gather(2, index).prod(2) > 0).long()
        return perceptron.cross_entropy(perceptron.logits(params, inputs, self._activation), labels)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        keys = torch.rand(num_problems, self.num_inputs, generator=rng, dtype=torch.float64)
        return Problems(
            params=perceptron.draw_weights(
                self.shapes, num_problems, rng, std=lambda fan_in: (2 / fan_in) ** 0.5
            ),
            constants={"relevant": keys.argsort(1)[:, : self.num_relevant]},
            facts=class_facts(2, num_problems),
        )


def _random_signs(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform ``-1`` and ``1``, float32."""
    return torch.randint(0, 2, shape, generator=rng, dtype=torch.float32) * 2 - 1
