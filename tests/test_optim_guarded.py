"""The guard of the torch.optim facade: what it keeps finite and what it lets pass."""

import copy
import logging

import pytest
import torch
from torch import nn

from learned_opt.optim import LearnedOptimizer
from learned_opt.rules.adaptive import Adam
from learned_opt.rules.guarded import Guarded
from learned_opt.tasks.datasets import digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("lr", "weight_decay", "overflows"),
    [(1.0, 0.0, 0), (1.0, 0.3, 0), (1.0, "largest", 2), ("largest", 0.0, 3)],
)
def test_no_learning_rate_and_no_decay_makes_a_guarded_parameter_infinite(
    dtype, lr, weight_decay, overflows
):
    """The guard judges updates; what becomes of them is up to the user's numbers and the type."""
    largest = torch.finfo(dtype).max
    lr = 2e3 * largest if lr == "largest" else lr
    weight_decay = largest if weight_decay == "largest" else weight_decay
    before = torch.tensor([100.0, 0.5, -2.0], dtype=dtype)
    p = nn.Parameter(before.clone())
    optimizer = LearnedOptimizer([p], Adam(), guard=Adam(), lr=lr, weight_decay=weight_decay)
    p.grad = torch.tensor([-1.0, 1.0, 1.0], dtype=dtype)
    optimizer.step()
    expected = before.double() * (1 - lr * weight_decay) - lr * 1e-3 * p.grad.double()
    is_kept = expected.abs() > largest
    assert is_kept.sum() == overflows
    torch.testing.assert_close(p.detach(), torch.where(is_kept, before, expected.to(dtype)))


def test_an_anchor_holds_the_fallback_of_its_own_step():
    """Also of a parameter that has no gradient when the anchor is set."""
    a, b = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = LearnedOptimizer([a, b], Guarded(Adam(), Adam(), window=4))
    here, before = None, None
    for k in range(40):
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b) if k % 2 else None
        optimizer.step(loss=a.sum().item() + b.sum().item())
        state = optimizer.state[a]["rule_state"]
        if here is not None and torch.equal(state["anchor"]["point"][0], here):
            for moment in ("param_0", "param_1"):
                found = state["anchor"]["fallback"]["first_moment"][moment]
                torch.testing.assert_close(found, before["first_moment"][moment])
        here = torch.cat([a.detach(), b.detach()])
        before = copy.deepcopy(state["fallback"])


def test_with_minibatches_a_fallback_passes_its_own_guard(caplog):
    """Noise inflates promises: at the demand of nine tenths Adam hands over to Adam."""
    data = digits().first(512)
    inputs, labels = data.inputs.float(), data.labels

    def hand_overs(make):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = make(model.parameters())
        rng = torch.Generator().manual_seed(1)
        caplog.clear()
        for _ in range(300):
            index = torch.randint(len(labels), (32,), generator=rng)

            def closure(index=index):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs[index]), labels[index])
                loss.backward()
                return loss

            optimizer.step(closure)
        return len(caplog.records)

    with caplog.at_level(logging.INFO, logger="learned_opt.rules.guarded"):
        assert hand_overs(lambda p: LearnedOptimizer(p, Guarded(Adam(), Adam(), demand=0.9))) > 0
        assert hand_overs(lambda p: LearnedOptimizer(p, Adam(), guard=Adam())) == 0
