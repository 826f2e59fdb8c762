"""Buffers are used again, and nobody notices."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from learned_opt import LearnedOptimizer
from learned_opt.rules import Guarded, get_rule
from learned_opt.trees import flatten, leaves, unflatten
from learned_opt.workspace import PIECE, Workspace, empty_like, workspace


def problem():
    rng = torch.Generator().manual_seed(0)
    shapes = [(PIECE // 64, 64), (64, 100), (33,)]
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes]


def steps(optimizer, parameters, num):
    for t in range(num):
        for k, p in enumerate(parameters):
            p.grad = (k + 1) * p.detach() + (t % 3)
        optimizer.step()


@pytest.mark.parametrize("guard", [False, True])
def test_state_that_was_handed_out_stays_and_is_gone_on_from_exactly(guard):
    parameters = problem()
    optimizer = LearnedOptimizer(parameters, get_rule("controller"), guard=guard)
    steps(optimizer, parameters, 7)
    state, points = optimizer.state_dict(), [p.detach().clone() for p in parameters]
    saved = copy.deepcopy(state)
    steps(optimizer, parameters, 9)
    kept = leaves(state["state"][0]["rule_state"])
    for name, leaf in leaves(saved["state"][0]["rule_state"]).items():
        assert_close(kept[name], leaf, rtol=0, atol=0, equal_nan=True)
    again = [nn.Parameter(p) for p in points]
    other = LearnedOptimizer(again, get_rule("controller"), guard=guard)
    other.load_state_dict(saved)
    for p, q in zip(points, again, strict=True):
        assert torch.equal(p, q)
    steps(other, again, 9)
    for p, q in zip(parameters, again, strict=True):
        assert torch.equal(p, q)


def test_copies_share_nothing():
    parameters = problem()
    optimizer = LearnedOptimizer(parameters, get_rule("controller"), guard=False)
    steps(optimizer, parameters, 3)
    twin, twins = copy.deepcopy((optimizer, parameters))
    steps(optimizer, parameters, 5)
    steps(twin, twins, 5)
    for p, q in zip(parameters, twins, strict=True):
        assert torch.equal(p, q)


def test_what_is_kept_is_not_handed_out_again():
    space, like = Workspace(), torch.zeros(1, PIECE + 1)
    with space.use():
        first, second = empty_like(like), empty_like(like)
        space.settle([first[:, 3:5]])
        third, fourth = empty_like(like), empty_like(like)
    assert workspace() is None
    assert third.data_ptr() == second.data_ptr()
    assert fourth.data_ptr() not in {first.data_ptr(), second.data_ptr()}
    space.settle([])
    space.forget()
    with space.use():
        assert empty_like(like).data_ptr() not in {first.data_ptr(), second.data_ptr()}


def test_what_was_split_is_joined_without_a_copy():
    tensors = {"a": torch.randn(1, 3, 4), "b": torch.randn(1, 5), "c": torch.randn(1)}
    flat = flatten(tensors)
    parts = unflatten(flat, tensors)
    shuffled = {name: parts[name] for name in ("b", "a", "c")}
    with Workspace().use():
        assert flatten(parts).data_ptr() == flat.data_ptr()
        assert torch.equal(flatten(parts), flat)
        assert torch.equal(
            flatten(shuffled), torch.cat((flat[:, 12:17], flat[:, :12], flat[:, 17:]), 1)
        )
        assert torch.equal(flatten(tensors), flat)


@pytest.mark.parametrize(
    "rule",
    [
        get_rule("adam", learning_rate=0.1),
        Guarded(get_rule("sgd", learning_rate=3.0), "adam", window=4),
    ],
)
def test_long_vectors_move_in_pieces_as_they_would_at_once(rule):
    """Adam, and a guard that undoes windows of gradient descent and lets Adam act."""
    points = {f"{k}": p.detach()[None] for k, p in enumerate(problem())}
    bends = torch.linspace(0.1, 1, flatten(points).shape[1])
    state, space = rule.init(points), Workspace()
    other, has_returned = state, False
    for _ in range(14):
        grads = unflatten(flatten(points) * bends, points)
        updates, state = rule(grads, state, points)
        with torch.no_grad(), space.use():
            moved, other = rule(grads, other, points)
        space.settle(leaves(other).values())
        assert_close(flatten(moved), flatten(updates), rtol=1e-4, atol=1e-6)
        assert leaves(state).keys() == leaves(other).keys()
        has_returned |= rule.name == "guarded" and bool(rule.returns(state))
        # The anchor must be met exactly, rounding included, for either to have come back.
        points = {name: p + updates[name] for name, p in points.items()}
    for name, leaf in leaves(other).items():
        assert_close(leaf, leaves(state)[name], rtol=1e-4, atol=1e-5)
    assert has_returned == (rule.name == "guarded")


@pytest.mark.parametrize("size", [100, PIECE + 100])
@pytest.mark.parametrize("bad", [1e25, torch.inf, torch.nan])
def test_a_gradient_is_refused_only_where_it_is_not_finite(size, bad):
    """Its square may be infinite: clipped, it is as good as any."""
    rule = Guarded("lion", "lion")
    points = {"x": torch.ones(1, size)}
    state = rule.init(points)
    slopes = torch.ones(1, size)
    slopes[0, -1] = bad
    with torch.no_grad(), Workspace().use():
        _, state = rule({"x": slopes}, state, points, loss=torch.ones(1))
    assert bool(state["book"]["is_rule"]) == (bad == 1e25)
