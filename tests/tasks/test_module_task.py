"""`ModuleTask` against a plain loop over single modules."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from learned_opt.errors import LearnedOptError
from learned_opt.rules.classic import SGD
from learned_opt.tasks.module_task import ModuleTask
from learned_opt.unroll import unroll


def regression(num_examples=12):
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_examples, 3, generator=rng)
    return inputs, inputs.sin().sum(1, keepdim=True)


def network():
    return nn.Sequential(nn.Linear(3, 5), nn.GroupNorm(1, 5), nn.Tanh(), nn.Linear(5, 1))


class Scale(nn.Module):
    """Has a parameter and no `reset_parameters`."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 4.0]))

    def forward(self, x):
        return (self.scale * x).sum(1, keepdim=True)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_losses_and_gradients_equal_a_loop_over_modules(batch_size):
    module, (inputs, targets) = network(), regression()
    task = ModuleTask(module, nn.functional.mse_loss, (inputs, targets), batch_size=batch_size)
    problems = task.sample(4, dtype=torch.float64)
    batch = task.batch(problems, torch.Generator().manual_seed(1))
    params = {name: p.requires_grad_() for name, p in problems.params.items()}
    losses = task.loss(params, problems, batch)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    for n in range(4):
        single = copy.deepcopy(module).double()
        single.load_state_dict({name: p[n].detach() for name, p in params.items()})
        index = torch.arange(12) if batch is None else batch["index"][n]
        loss = nn.functional.mse_loss(single(inputs[index].double()), targets[index].double())
        torch.testing.assert_close(losses[n], loss, rtol=1e-10, atol=1e-10)
        plain = torch.autograd.grad(loss, list(single.parameters()))
        for ours, theirs in zip(grads, plain, strict=True):
            torch.testing.assert_close(ours[n], theirs, rtol=1e-10, atol=1e-10)


def test_unrolled_descent_equals_torch_sgd():
    module, (inputs, targets) = network(), regression()
    task = ModuleTask(module, nn.functional.mse_loss, (inputs, targets))
    problems = task.sample(2, dtype=torch.float64)
    losses = unroll(
        task, SGD(learning_rate=0.1), problems, num_steps=10, rng=torch.Generator()
    ).losses
    for n in range(2):
        single = copy.deepcopy(module).double()
        single.load_state_dict({name: p[n] for name, p in problems.params.items()})
        optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
        for step in range(11):
            loss = nn.functional.mse_loss(single(inputs.double()), targets.double())
            assert loss.item() == pytest.approx(float(losses[n, step]), rel=1e-10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_copies_are_reinitialised_without_touching_the_module_or_the_global_generator():
    module = network()
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    task = ModuleTask(module, nn.functional.mse_loss, regression())
    weights = task.sample(64, seed=3, dtype=torch.float64).params["0.weight"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert len(weights[:, 0, 0].unique()) == 64
    # nn.Linear draws uniformly between -1/sqrt(fan_in) and 1/sqrt(fan_in).
    assert float(weights.std()) == pytest.approx(1 / 3, rel=0.05)
    assert torch.equal(task.sample(64, seed=3, dtype=torch.float64).params["0.weight"], weights)
    assert not torch.equal(task.sample(64, seed=4, dtype=torch.float64).params["0.weight"], weights)


def test_parameters_without_reset_start_at_their_current_values():
    task = ModuleTask(Scale(), nn.functional.mse_loss, regression())
    assert task.sample(3).params["scale"].tolist() == [[2.0, 3.0, 4.0]] * 3


def test_frozen_parameters_and_buffers_are_held_fixed():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    module[0].weight.requires_grad_(requires_grad=False)
    module[1].running_mean.fill_(0.5)
    inputs, targets = regression()
    task = ModuleTask(module, nn.functional.mse_loss, (inputs, targets))
    assert "0.weight" not in task.shapes
    problems = task.sample(1, dtype=torch.float64)
    single = copy.deepcopy(module).double()
    single.load_state_dict({name: p[0] for name, p in problems.params.items()}, strict=False)
    expected = nn.functional.mse_loss(single(inputs.double()), targets.double())
    torch.testing.assert_close(task.loss(problems.params, problems)[0], expected)


def test_tied_weights_count_once():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    module[2].weight = module[0].weight
    inputs, _ = regression()
    task = ModuleTask(module, nn.functional.mse_loss, (inputs, inputs))
    assert task.dim == 9
    problems = task.sample(1, dtype=torch.float64)
    weight = problems.params["0.weight"][0]
    x = inputs.double()
    expected = nn.functional.mse_loss(torch.tanh(x @ weight.T) @ weight.T, x)
    torch.testing.assert_close(task.loss(problems.params, problems)[0], expected)


def test_a_data_set_of_pairs_equals_its_tensors():
    inputs, targets = regression()
    labels = (targets[:, 0] > 0).long()
    module, loss_fn = nn.Linear(3, 2), nn.functional.cross_entropy
    tensors = ModuleTask(module, loss_fn, (inputs, labels))
    pairs = ModuleTask(module, loss_fn, TensorDataset(inputs, labels))
    listed = ModuleTask(module, loss_fn, list(zip(inputs, labels.tolist(), strict=True)))
    problems = tensors.sample(2, dtype=torch.float64)
    expected = tensors.loss(problems.params, problems)
    assert torch.equal(pairs.loss(problems.params, problems), expected)
    assert torch.equal(listed.loss(problems.params, problems), expected)


def test_facts_default_to_the_initial_loss_and_can_be_told():
    task = ModuleTask(network(), nn.functional.mse_loss, regression())
    problems = task.sample(3, dtype=torch.float64)
    torch.testing.assert_close(problems.facts.reference, task.loss(problems.params, problems))
    told = ModuleTask(
        network(), nn.functional.mse_loss, regression(), reference=2.0, minimum=0.5, name="mine"
    )
    facts = told.sample(2).facts
    assert (facts.reference.tolist(), facts.minimum.tolist()) == ([2.0, 2.0], [0.5, 0.5])
    assert facts.next_level.tolist() == [0.5, 0.5]
    assert (told.name, told.family, told.kind) == ("mine", "mine", "net")


class Sampled(nn.Linear):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
            r"must not update running statistics, but 1 \(BatchNorm1d\) does; call module.eval\(\)",
        ),
        (
            nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)),
            r"must not draw random numbers, but 1 \(Dropout\) does",
        ),
        (Sampled(3, 1), "module and loss_fn must run under torch.func.vmap: .*random"),
        (nn.Linear(4, 1), "module and loss_fn must run under torch.func.vmap: .*dimension"),
        (nn.Tanh(), "module must have trainable parameters, got none"),
    ],
)
def test_unfit_modules_are_refused(module, message):
    with pytest.raises(LearnedOptError, match=message):
        ModuleTask(module, nn.functional.mse_loss, regression())


def test_dropout_and_batch_norm_are_fit_in_evaluation_mode():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    task = ModuleTask(module.eval(), nn.functional.mse_loss, regression())
    problems = task.sample(2)
    assert torch.equal(task.loss(problems.params, problems), task.loss(problems.params, problems))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive or None, got 0"),
        ({"reference": -1.0}, "reference must not be below minimum = 0.0, got -1.0"),
        ({"loss_fn": lambda y, t: (y - t).square()}, r"must return a scalar, got .* \(2, 1\)"),
        ({"dataset": (torch.zeros(3, 3), torch.zeros(2, 1))}, "must pair inputs .*got 3 and 2"),
        ({"dataset": (torch.zeros(0, 3), torch.zeros(0, 1))}, "must not be empty, got 0 examples"),
        ({"dataset": []}, "dataset must not be empty, got 0 examples"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    arguments = {"loss_fn": nn.functional.mse_loss, "dataset": regression(), **settings}
    with pytest.raises(LearnedOptError, match=message):
        ModuleTask(network(), **arguments)
