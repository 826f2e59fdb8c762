"""Square roots and norms that stay finite, and differentiable, where they vanish."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_opt.trees import Params


def root(values: Tensor) -> Tensor:
    """Square root whose derivative at zero is zero instead of infinite.

    A coordinate that never saw a gradient has a zero second moment; the infinite slope there times
    its zero inner derivative would be NaN and poison a whole meta-gradient.

    Args:
        values: not negative, any shape.

    Returns:
        The roots, same shape.

    Examples:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> root(x).sum().backward()
        >>> x.grad
        tensor([0.0000, 0.2500])
    """
    if not (values.requires_grad and torch.is_grad_enabled()):
        return values.sqrt()
    is_zero = values == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, values).sqrt())


def nonzero(values: Tensor) -> Tensor:
    """`values` with exact zeros replaced by one, to divide by where the dividend is zero too."""
    return torch.where(values == 0, 1.0, values)


def problem_norm(tree: Params) -> Tensor:
    """Euclidean norm over all tensors of each problem, accumulated in float64.

    On plateaus the squares of float32 gradients underflow long before the gradients do. The
    derivative at a zero vector is zero.

    Args:
        tree: tensors ``[N, *shape]``.

    Returns:
        ``[N]`` norms, float64.

    Examples:
        >>> problem_norm({"x": torch.tensor([[3e-30, 4e-30]])}).item() > 4.9e-30
        True
    """
    norms = [
        torch.linalg.vector_norm(p.reshape(p.shape[0], -1), dim=1, dtype=torch.float64)
        for p in tree.values()
    ]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return total
