"""Many small multilayer perceptrons in one batch, without vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from learned_opt.errors import unknown_name
from learned_opt.trees import Params

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""The nonlinearities that perceptron tasks offer."""


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Look up a nonlinearity.

    Args:
        name: a key of `ACTIVATIONS`.

    Returns:
        The function.

    Raises:
        LearnedOptError: if there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def layer_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters ``w0, b0, w1, ...`` between layers of `sizes` units.

    Examples:
        >>> layer_shapes([64, 20, 10])
        {'w0': (64, 20), 'b0': (20,), 'w1': (20, 10), 'b1': (10,)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        shapes[f"w{layer}"] = (fan_in, fan_out)
        shapes[f"b{layer}"] = (fan_out,)
    return shapes


def draw_weights(
    shapes: dict[str, tuple[int, ...]],
    num_problems: int,
    rng: torch.Generator,
    *,
    std: Callable[[int], float],
) -> Params:
    """Gaussian weights and zero biases.

    Args:
        shapes: what `layer_shapes` returned.
        num_problems: how many networks.
        rng: CPU generator, advanced.
        std: standard deviation of a weight, given its fan-in.

    Returns:
        Parameters ``[N, *shape]``, float64.
    """
    return {
        name: std(shape[0]) * torch.randn(num_problems, *shape, generator=rng, dtype=torch.float64)
        if len(shape) == 2
        else torch.zeros(num_problems, *shape, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def logits(params: Params, inputs: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Outputs of ``N`` perceptrons.

    Args:
        params: weights ``[N, fan_in, fan_out]`` and biases ``[N, fan_out]``, layer by layer.
        inputs: ``[N, B, features]``, or ``[B, features]`` seen by all alike.
        activation: nonlinearity between layers.

    Returns:
        ``[N, B, outputs]``.
    """
    num_layers = len(params) // 2
    hidden = inputs
    for layer in range(num_layers):
        weight, bias = params[f"w{layer}"], params[f"b{layer}"].unsqueeze(1)
        if hidden.dim() == 2:
            # Shared inputs: one matrix product against all networks' weights side by side.
            num_problems, fan_in, fan_out = weight.shape
            side_by_side = weight.transpose(0, 1).reshape(fan_in, num_problems * fan_out)
            product = (hidden @ side_by_side).unflatten(1, (num_problems, fan_out))
            hidden = product.transpose(0, 1) + bias
        else:
            hidden = torch.baddbmm(bias, hidden, weight)
        if layer + 1 < num_layers:
            hidden = activation(hidden)
    return hidden


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each problem.

    Args:
        outputs: ``[N, B, C]`` logits.
        labels: ``[N, B]`` classes, or ``[B]`` shared by all.

    Returns:
        ``[N]`` losses.
    """
    num_problems, num_examples, _ = outputs.shape
    losses = functional.cross_entropy(
        outputs.reshape(num_problems * num_examples, -1),
        labels.expand(num_problems, num_examples).reshape(-1),
        reduction="none",
    )
    return losses.view(num_problems, num_examples).mean(1)
