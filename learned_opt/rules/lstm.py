"""The coordinatewise LSTM of "Learning to learn by gradient descent by gradient descent"."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.actuators import additive
from learned_opt.errors import require
from learned_opt.features import LOG_AND_SIGN_RANGE, log_and_sign, schema_hash
from learned_opt.rules.base import Rule, register_rule
from learned_opt.trees import Params, Tree, flatten, unflatten

_CHUNK_ROWS = 4096
"""Rows that move together without a graph: their gates fit the cache."""


def _cell(
    inputs: Tensor, c: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One LSTM step: new hidden and cell state, gates and tanh of the cell.

    Rows ``[R, F]`` share ``weight [4 H, F]``; rows ``[..., R, F]`` have one ``[..., 4 H, F]`` each.
    """
    size = c.shape[-1]
    if weight.dim() == 2:
        gates = torch.addmm(bias, inputs, weight.t())
    else:
        gates = (inputs @ weight.mT).add_(bias.unsqueeze(-2))
    # tanh(a) = 2 sigmoid(2 a) - 1: on a CPU one contiguous sigmoid over all gates is five times
    # faster than a strided sigmoid and a tanh.
    gates[..., 3 * size :].mul_(2)
    gates.sigmoid_()
    i, f, o, half = gates.chunk(4, dim=-1)
    new_c = torch.addcmul(f * c, i, half * 2 - 1)
    tanh_c = (new_c * 2).sigmoid_().mul_(2).sub_(1)
    return o * tanh_c, new_c, gates, tanh_c


class _LSTMCell(torch.autograd.Function):
    """One LSTM step with its gradient written out; only the first two outputs are for callers.

    One autograd node instead of one for every operation, and only the activations are kept:
    in an unrolled inner loop this cell is most of the time and nearly all of the memory.
    """

    @staticmethod
    def forward(
        x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        inputs = torch.cat((x, h), dim=-1)
        new_h, new_c, gates, tanh_c = _cell(inputs, c, weight, bias)
        return new_h, new_c, inputs, gates, tanh_c

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _, _, c, weight, _ = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[2:], c, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[misc]
    def backward(
        ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None, *unused: None
    ) -> tuple[Tensor | None, ...]:
        del unused
        inputs, gates, tanh_c, c, weight = ctx.saved_tensors
        size = c.shape[-1]
        i, f, o, half = gates.chunk(4, dim=-1)
        grad_h = torch.zeros_like(tanh_c) if grad_h is None else grad_h
        grad_c = torch.zeros_like(tanh_c) if grad_c is None else grad_c
        grad_c = grad_c + torch.ops.aten.tanh_backward(grad_h * o, tanh_c)
        deltas = torch.empty_like(gates)
        torch.mul(grad_c, half * 2 - 1, out=deltas[..., :size])
        torch.mul(grad_c, c, out=deltas[..., size : 2 * size])
        torch.mul(grad_h, tanh_c, out=deltas[..., 2 * size : 3 * size])
        # The candidate is 2 sigmoid(2 a) - 1, whose derivative is four times that of a sigmoid.
        torch.mul(grad_c, i * 4, out=deltas[..., 3 * size :])
        torch.ops.aten.sigmoid_backward.grad_input(deltas, gates, grad_input=deltas)
        grad_inputs = deltas @ weight
        num_inputs = inputs.shape[-1] - size
        return (
            grad_inputs[..., :num_inputs],
            grad_inputs[..., num_inputs:],
            grad_c * f,
            deltas.mT @ inputs,
            deltas.sum(-2),
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Lanes with a theta each: the same step on tensors that carry the lane axis first."""
        lanes = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=True)
        ]
        return _LSTMCell.apply(*lanes), (0,) * 5


class LSTMStack(nn.Module):
    """Layers of LSTM cells with one bias each, over rows that share the weights.

    Gate order in the weights: input, forget, output (sigmoid), candidate (tanh).

    Args:
        input_size: number of features a row.
        hidden_size: units a layer.
        num_layers: layers.
    """

    def __init__(self, *, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        require(hidden_size >= 1, f"hidden_size must be positive, got {hidden_size}")
        require(num_layers >= 1, f"num_layers must be positive, got {num_layers}")
        self.hidden_size, self.num_layers = hidden_size, num_layers
        bound = hidden_size**-0.5
        for layer in range(num_layers):
            width = (input_size if layer == 0 else hidden_size) + hidden_size
            weight = torch.empty(4 * hidden_size, width).uniform_(-bound, bound)
            bias = torch.empty(4 * hidden_size).uniform_(-bound, bound)
            setattr(self, f"weight{layer}", nn.Parameter(weight))
            setattr(self, f"bias{layer}", nn.Parameter(bias))

    def init(self, like: Tensor) -> Tree:
        """Zero states ``[N, P, hidden_size]`` for rows ``[N, P]`` like those of `like`."""
        zeros = like.new_zeros(*like.shape, self.hidden_size)
        return {f"{part}{layer}": zeros for layer in range(self.num_layers) for part in "hc"}

    def forward(self, x: Tensor, state: Tree) -> tuple[Tensor, Tree]:
        """One step: features ``[N, P, F]`` -> outputs ``[N, P, hidden_size]`` and the new state."""
        shape = x.shape[:-1]
        rows = x.flatten(0, 1)
        old = {key: leaf.flatten(0, 1) for key, leaf in state.items()}  # type: ignore[union-attr]
        if torch.is_grad_enabled():
            rows, new = self._step(rows, old)
        else:
            rows, new = self._step_in_chunks(rows, old)
        return rows.unflatten(0, shape), {k: leaf.unflatten(0, shape) for k, leaf in new.items()}

    def _step(self, rows: Tensor, old: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        new = {}
        for layer in range(self.num_layers):
            weight, bias = getattr(self, f"weight{layer}"), getattr(self, f"bias{layer}")
            rows, c, *_ = _LSTMCell.apply(rows, old[f"h{layer}"], old[f"c{layer}"], weight, bias)
            new[f"h{layer}"], new[f"c{layer}"] = rows, c
        return rows, new

    def _step_in_chunks(
        self, rows: Tensor, old: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same without a graph; what does not leave the cache takes a quarter of the time."""
        new = {key: torch.empty_like(leaf) for key, leaf in old.items()}
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            out = rows[part]
            for layer in range(self.num_layers):
                weight, bias = getattr(self, f"weight{layer}"), getattr(self, f"bias{layer}")
                h, c = f"h{layer}", f"c{layer}"
                inputs = torch.cat((out, old[h][part]), dim=1)
                out, new[c][part], *_ = _cell(inputs, old[c][part], weight, bias)
                new[h][part] = out
        return new[f"h{self.num_layers - 1}"], new


@final
@register_rule
class CoordinatewiseLSTM(Rule):
    """L2L: one small LSTM, shared by all coordinates, adds its output to each of them.

    Every coordinate has its own hidden state, so the rule is equivariant to permutations of the
    coordinates and costs 4 x `hidden_size` state floats per parameter and layer pair.

    Args:
        hidden_size: LSTM units a layer.
        num_layers: LSTM layers.
        output_scale: length of a unit output. The paper's code uses 0.01; 0.1 trains faster on
            problems whose solution lies a unit away.
        seed: seed of the initial theta.

    References:
        Andrychowicz et al. 2016 (arXiv:1606.04474), section 2.1 and appendix A.

    Examples:
        >>> rule = CoordinatewiseLSTM()
        >>> params = {"x": torch.zeros(3, 10)}
        >>> updates, state = rule({"x": torch.ones(3, 10)}, rule.init(params), params)
        >>> updates["x"].shape, sum(p.numel() for p in rule.parameters())
        (torch.Size([3, 10]), 5141)
    """

    name = "lstm"
    coordinatewise = True
    feature_schema = schema_hash("log_and_sign", LOG_AND_SIGN_RANGE)

    def __init__(
        self,
        *,
        hidden_size: int = 20,
        num_layers: int = 2,
        output_scale: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(output_scale > 0, f"output_scale must be positive, got {output_scale}")
        self.output_scale = output_scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = LSTMStack(input_size=2, hidden_size=hidden_size, num_layers=num_layers)
            self.head = nn.Linear(hidden_size, 1)

    def config(self) -> dict[str, Any]:
        """Sizes and scale."""
        return {
            "hidden_size": self.lstm.hidden_size,
            "num_layers": self.lstm.num_layers,
            "output_scale": self.output_scale,
        }

    def init(self, params: Params) -> Tree:
        """Zero hidden and cell states, each ``[N, P, hidden_size]`` over all coordinates."""
        return self.lstm.init(flatten(params))

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step; see `Rule.forward`."""
        del params, loss, rng
        hidden, state = self.lstm(log_and_sign(flatten(grads)), state)
        decision = self.head(hidden).squeeze(-1)
        return unflatten(additive(decision, scale=self.output_scale), grads), state
