"""The coordinatewise LSTM: parity with torch's cell, exact gradients, equivariance."""

import pytest
import torch
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.features import log_and_sign
from learned_opt.rules.lstm import CoordinatewiseLSTM, LSTMStack, _LSTMCell

DOUBLE = torch.float64


def test_cell_gradients_are_exact():
    rng = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (3, 4), (3, 4), (16, 6), (16,)]
    inputs = [torch.randn(s, generator=rng, dtype=DOUBLE, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(_LSTMCell.apply, inputs)


def test_stack_equals_torch_lstm_cells():
    stack = LSTMStack(input_size=2, hidden_size=5, num_layers=2).to(DOUBLE)
    cells = [nn.LSTMCell(2, 5).to(DOUBLE), nn.LSTMCell(5, 5).to(DOUBLE)]
    with torch.no_grad():
        for layer, cell in enumerate(cells):
            weight, bias = getattr(stack, f"weight{layer}"), getattr(stack, f"bias{layer}")
            # torch orders the gates input, forget, candidate, output; ours puts the candidate last.
            order = torch.cat([torch.arange(0, 10), torch.arange(15, 20), torch.arange(10, 15)])
            cell.weight_ih.copy_(weight[order, :-5])
            cell.weight_hh.copy_(weight[order, -5:])
            cell.bias_ih.copy_(bias[order])
            cell.bias_hh.zero_()
    rng = torch.Generator().manual_seed(1)
    state = stack.init(torch.zeros(3, 4, dtype=DOUBLE))
    reference = [(torch.zeros(12, 5, dtype=DOUBLE),) * 2 for _ in cells]
    for _ in range(6):
        x = torch.randn(3, 4, 2, generator=rng, dtype=DOUBLE)
        out, state = stack(x, state)
        rows = x.flatten(0, 1)
        for layer, cell in enumerate(cells):
            reference[layer] = cell(rows, reference[layer])
            rows = reference[layer][0]
        torch.testing.assert_close(out.flatten(0, 1), rows, rtol=0, atol=1e-12)
    assert out.abs().max() > 0.05


def test_rule_is_the_paper_network_applied_to_each_coordinate():
    rule = CoordinatewiseLSTM(output_scale=0.5, seed=3).to(DOUBLE)
    grads = {
        "w": torch.tensor([[[0.3, -2.0]]], dtype=DOUBLE),
        "b": torch.tensor([5.0], dtype=DOUBLE),
    }
    params = {name: torch.zeros_like(g) for name, g in grads.items()}
    updates, _ = rule(grads, rule.init(params), params)
    for value, update in [
        (0.3, updates["w"][0, 0, 0]),
        (-2.0, updates["w"][0, 0, 1]),
        (5.0, updates["b"][0]),
    ]:
        features = log_and_sign(torch.tensor([[value]], dtype=DOUBLE))
        hidden, _ = rule.lstm(features, rule.lstm.init(features[..., 0]))
        torch.testing.assert_close(update, 0.5 * rule.head(hidden).squeeze())


def test_rule_commutes_with_permutations_of_coordinates():
    rule = CoordinatewiseLSTM(seed=1).to(DOUBLE)
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(9, generator=rng)
    params = {"x": torch.zeros(2, 9, dtype=DOUBLE)}
    plain = permuted = rule.init(params)
    for _ in range(4):
        grads = torch.randn(2, 9, generator=rng, dtype=DOUBLE)
        step, plain = rule({"x": grads}, plain, params)
        other, permuted = rule({"x": grads[:, order]}, permuted, params)
        torch.testing.assert_close(step["x"][:, order], other["x"], rtol=0, atol=1e-14)


def test_seed_fixes_theta_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (CoordinatewiseLSTM(seed=s) for s in (7, 7, 8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.lstm.weight0, second.lstm.weight0)
    assert not torch.equal(first.lstm.weight0, other.lstm.weight0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be positive, got 0"),
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"output_scale": -1.0}, "output_scale must be positive, got -1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(LearnedOptError, match=message):
        CoordinatewiseLSTM(**settings)


@pytest.mark.parametrize("num_rows", [1, 4095, 4096, 4097, 9000])
def test_the_step_without_a_graph_is_the_same_in_chunks(num_rows):
    rng = torch.Generator().manual_seed(0)
    stack = LSTMStack(input_size=2, hidden_size=3, num_layers=2).double()
    x = torch.randn(1, num_rows, 2, generator=rng, dtype=torch.float64)
    state = {
        key: torch.randn(1, num_rows, 3, generator=rng, dtype=torch.float64)
        for key in stack.init(x[..., 0])
    }
    out, new = stack(x, state)
    with torch.no_grad():
        chunked, chunked_new = stack(x, state)
    torch.testing.assert_close(chunked, out.detach(), rtol=1e-12, atol=1e-14)
    assert set(chunked_new) == set(new)
    for key, leaf in new.items():
        torch.testing.assert_close(chunked_new[key], leaf.detach(), rtol=1e-12, atol=1e-14)
