"""Perceptron tasks against one `nn.Module` at a time, their data and their batches."""

import math
import time

import pytest
import torch
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.tasks import datasets
from learned_opt.tasks.networks import BreastCancerMLP, DeepSigmoidMLP, DigitsMLP
from learned_opt.tasks.parity import ParityMLP

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}


def single_network(params, problem, activation):
    """Problem number `problem` as an ordinary module."""
    layers = []
    for layer in range(len(params) // 2):
        weight, bias = params[f"w{layer}"][problem], params[f"b{layer}"][problem]
        linear = nn.Linear(*weight.shape).double()
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def single_loss_and_grads(network, inputs, labels):
    loss = nn.functional.cross_entropy(network(inputs), labels)
    grads = torch.autograd.grad(loss, list(network.parameters()))
    return loss.detach(), [g.T if g.dim() == 2 else g for g in grads]


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_digits_equals_a_loop_over_single_networks(activation, batch_size):
    task = DigitsMLP(
        hidden=(9, 6), activation=activation, batch_size=batch_size, num_train=40, init_std=0.5
    )
    problems = task.sample(3, dtype=torch.float64)
    batch = task.batch(problems, torch.Generator().manual_seed(1))
    params = {name: p.requires_grad_() for name, p in problems.params.items()}
    losses = task.loss(params, problems, batch)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    data = datasets.digits()
    for n in range(3):
        index = torch.arange(40) if batch is None else batch["index"][n]
        network = single_network(params, n, ACTIVATIONS[activation])
        loss, single = single_loss_and_grads(network, data.inputs[index], data.labels[index])
        torch.testing.assert_close(losses[n].detach(), loss, rtol=1e-12, atol=1e-13)
        for ours, theirs in zip(grads, single, strict=True):
            torch.testing.assert_close(ours[n], theirs, rtol=1e-10, atol=1e-13)


def test_parity_equals_a_loop_over_single_networks():
    task = ParityMLP(num_inputs=6, num_relevant=3, hidden=(5,), batch_size=8)
    problems = task.sample(3, dtype=torch.float64)
    relevant = problems.constants["relevant"]
    batch = task.batch(problems, torch.Generator().manual_seed(0))
    losses = task.loss(problems.params, problems, batch)
    for n in range(3):
        inputs = batch["inputs"][n]
        labels = torch.tensor([
            int(math.prod(x[i] for i in relevant[n].tolist()) > 0) for x in inputs.tolist()
        ])
        loss, _ = single_loss_and_grads(single_network(problems.params, n, nn.ReLU), inputs, labels)
        torch.testing.assert_close(losses[n], loss, rtol=1e-12, atol=1e-13)


def test_parity_hides_distinct_bits_that_differ_between_problems():
    problems = ParityMLP(num_inputs=20, num_relevant=3).sample(64)
    relevant = problems.constants["relevant"]
    assert relevant.shape == (64, 3)
    assert all(len(set(row)) == 3 for row in relevant.tolist())
    assert len(set(relevant.flatten().tolist())) == 20


@pytest.mark.parametrize(("num_relevant", "correlated"), [(1, 1), (2, 0)])
def test_single_bits_correlate_with_the_class_only_when_one_is_relevant(num_relevant, correlated):
    task = ParityMLP(
        num_inputs=5, num_relevant=num_relevant, hidden=(5,), num_fixed=20_000, batch_size=None
    )
    problems = task.sample(1, dtype=torch.float64)
    params = {name: torch.zeros_like(p) for name, p in problems.params.items()}
    params["w0"][0] = torch.eye(5)
    params["w1"].requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(params, problems).sum(), params["w1"])
    # Of a relevant bit: E[relu(x) (1/2 - class)] = -1/4.
    assert int((gradient[0, :, 1] < -0.24).sum()) == correlated
    assert int((gradient[0, :, 1].abs() < 0.02).sum()) == 5 - correlated


@pytest.mark.parametrize(
    ("task", "num_classes"),
    [(DigitsMLP(), 10), (BreastCancerMLP(), 2), (DeepSigmoidMLP(), 10), (ParityMLP(), 2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_zero_weights_sit_on_the_plateau_of_the_constant_predictor(task, num_classes):
    problems = task.sample(2, dtype=torch.float64)
    zero = {name: torch.zeros_like(p) for name, p in problems.params.items()}
    torch.testing.assert_close(task.loss(zero, problems), problems.facts.reference)
    assert problems.facts.reference.tolist() == [math.log(num_classes)] * 2
    assert problems.facts.levels.tolist() == [[math.log(num_classes)]] * 2
    assert problems.facts.minimum.tolist() == problems.facts.next_level.tolist() == [0.0, 0.0]
    assert problems.facts.is_lower_bound


def test_initial_weights_have_the_stated_size():
    digits = DigitsMLP(init_std=0.1).sample(32, dtype=torch.float64).params
    assert float(digits["w0"].std()) == pytest.approx(0.1, rel=0.01)
    assert digits["b0"].abs().max() == digits["b1"].abs().max() == 0
    deep = DeepSigmoidMLP(depth=2).sample(32, dtype=torch.float64).params
    assert float(deep["w0"].std()) == pytest.approx(64**-0.5, rel=0.01)
    assert float(deep["w1"].std()) == pytest.approx(32**-0.5, rel=0.02)


@pytest.mark.parametrize(("depth", "norm"), [(2, 3e-2), (4, 2e-3), (8, 5e-6), (12, 2e-8)])
def test_first_gradient_vanishes_with_depth(depth, norm):
    task = DeepSigmoidMLP(depth=depth)
    problems = task.sample(4, dtype=torch.float64)
    first = problems.params["w0"].requires_grad_()
    losses = task.loss({**problems.params, "w0": first}, problems)
    (gradient,) = torch.autograd.grad(losses.sum(), first)
    assert norm / 2 < float(gradient.flatten(1).norm(dim=1).median()) < norm * 2


def test_minibatches_are_drawn_apart_and_reproducibly():
    task = DigitsMLP(batch_size=64)
    problems = task.sample(4)
    index = task.batch(problems, torch.Generator().manual_seed(3))["index"]
    again = task.batch(problems, torch.Generator().manual_seed(3))["index"]
    assert index.shape == (4, 64)
    assert torch.equal(index, again)
    assert not torch.equal(index[0], index[1])
    assert 0 <= index.min() <= index.max() < 1500


def test_minibatch_losses_average_to_the_full_loss():
    task = DigitsMLP(batch_size=500, num_train=200)
    problems = task.sample(1, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    draws = torch.stack([
        task.loss(problems.params, problems, task.batch(problems, rng)) for _ in range(200)
    ])
    error = float(draws.std()) / math.sqrt(len(draws))
    exact = float(task.loss(problems.params, problems))
    assert float(draws.mean()) == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("factory", [DigitsMLP, ParityMLP])
def test_without_a_batch_size_nothing_is_random(factory):
    task = factory(batch_size=None)
    assert not task.is_stochastic
    assert task.batch(task.sample(2), torch.Generator()) is None
    assert factory().is_stochastic


def test_data_are_scaled_mixed_and_shared():
    digits, cancer = datasets.digits(), datasets.breast_cancer()
    assert digits.inputs.shape == (1797, 64)
    assert (digits.inputs.min(), digits.inputs.max()) == (0, 1)
    assert torch.bincount(digits.first(500).labels).min() > 30
    assert cancer.inputs.shape == (569, 30)
    torch.testing.assert_close(cancer.inputs.mean(0), torch.zeros(30, dtype=torch.float64))
    torch.testing.assert_close(
        cancer.inputs.std(0, correction=0), torch.ones(30, dtype=torch.float64)
    )
    assert datasets.digits() is digits


def test_a_gradient_of_sixteen_networks_takes_milliseconds():
    task = DigitsMLP()
    problems = task.sample(16)
    rng = torch.Generator().manual_seed(0)
    params = {name: p.requires_grad_() for name, p in problems.params.items()}

    def seconds():
        started = time.perf_counter()
        losses = task.loss(params, problems, task.batch(problems, rng))
        torch.autograd.grad(losses.sum(), list(params.values()))
        return time.perf_counter() - started

    # About 1 ms on a quiet core; the bound only catches a fall back to a loop.
    assert min(seconds() for _ in range(30)) < 0.01


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (DigitsMLP, {"hidden": (0,)}, r"hidden must hold positive numbers of units, got \(0,\)"),
        (DigitsMLP, {"batch_size": 0}, "batch_size must be positive or None, got 0"),
        (DigitsMLP, {"num_train": 1798}, "num_train must be between 1 and 1797, got 1798"),
        (DigitsMLP, {"num_train": 0}, "num_train must be between 1 and 1797, got 0"),
        (DigitsMLP, {"init_std": 0.0}, "digits_mlp: init_std must be positive, got 0.0"),
        (DigitsMLP, {"activation": "tanhh"}, "unknown activation 'tanhh'; did you mean 'tanh'?"),
        (BreastCancerMLP, {"init_std": -1.0}, "init_std must be positive, got -1.0"),
        (DeepSigmoidMLP, {"depth": 0}, "deep_sigmoid_mlp: depth must be positive, got 0"),
        (ParityMLP, {"num_relevant": 21}, "num_relevant must be between 1 and num_inputs = 20"),
        (ParityMLP, {"hidden": (-1,)}, "hidden must hold positive numbers of units"),
        (ParityMLP, {"batch_size": -1}, "batch_size must be positive or None, got -1"),
        (ParityMLP, {"num_fixed": 0}, "num_fixed must be positive, got 0"),
    ],
)
def test_bad_settings_are_refused(factory, settings, message):
    with pytest.raises(LearnedOptError, match=message):
        factory(**settings)
