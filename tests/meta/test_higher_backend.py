"""`unroll` and the higher backend, independent of each other, give the same meta-gradients."""

import pytest
import torch
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.meta.higher_backend import higher_unroll
from learned_opt.rules.adaptive import Adam
from learned_opt.rules.base import Rule
from learned_opt.rules.classic import SGD, Momentum
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.trees import per_problem
from learned_opt.unroll import unroll

DTYPE = torch.float64
NUM_STEPS = 7


class BatchedMLP(Task):
    """A 3-4-2 tanh network for regression, all problems at once, on minibatches of 5 of 12 rows."""

    name = "batched_mlp"
    family = "batched_mlp"
    kind = "net"

    def __init__(self):
        self.shapes = {
            "0.weight": (4, 3),
            "0.bias": (4,),
            "2.weight": (2, 4),
            "2.bias": (2,),
        }

    def _sample(self, num_problems, rng):
        def draw(*shape):
            return torch.randn(num_problems, *shape, generator=rng, dtype=DTYPE)

        zeros = torch.zeros(num_problems, dtype=DTYPE)
        return Problems(
            params={name: draw(*shape) for name, shape in self.shapes.items()},
            constants={"x": draw(12, 3), "y": draw(12, 2)},
            facts=Facts(
                minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None][:, :0]
            ),
        )

    def batch(self, problems, rng):
        return {"rows": torch.randint(12, (problems.num_problems, 5), generator=rng)}

    def loss(self, params, problems, batch=None):
        rows = batch["rows"]
        index = torch.arange(rows.shape[0])[:, None]
        x, y = problems.constants["x"][index, rows], problems.constants["y"][index, rows]
        hidden = torch.baddbmm(
            params["0.bias"].unsqueeze(1), x, params["0.weight"].transpose(1, 2)
        ).tanh()
        output = torch.baddbmm(
            params["2.bias"].unsqueeze(1), hidden, params["2.weight"].transpose(1, 2)
        )
        return (output - y).square().mean((1, 2))


class LossAware(Rule):
    """A rule that sees the loss and draws noise."""

    name = "loss_aware"
    needs_loss = True
    needs_rng = True

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1, dtype=DTYPE))

    def init(self, params):
        del params
        return {}

    def forward(self, grads, state, params, *, loss=None, rng=None):
        updates = {}
        for name, g in grads.items():
            noise = torch.randn(g.shape, generator=rng, dtype=g.dtype)
            updates[name] = self.rate * (per_problem(loss.tanh(), g) * 0.1 * noise - g)
        return updates, state


def mse(network, batch):
    x, y = batch
    return (network(x) - y).square().mean()


def setting():
    """One problem of the task, and the same as a torch module with its batches."""
    task = BatchedMLP()
    problems = task.sample(1, seed=3, dtype=DTYPE)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    network.load_state_dict({k: p[0] for k, p in problems.params.items()})
    rng = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(NUM_STEPS + 1):
        rows = task.batch(problems, rng)["rows"][0]
        batches.append((problems.constants["x"][0, rows], problems.constants["y"][0, rows]))
    return task, problems, network, batches


def ours(task, rule, problems, *, second_order):
    losses = unroll(
        task,
        rule,
        problems,
        num_steps=NUM_STEPS,
        rng=torch.Generator().manual_seed(1),
        differentiable=True,
        second_order=second_order,
    ).losses[0]
    return losses, torch.autograd.grad(
        losses.log().sum(), list(rule.parameters()), materialize_grads=True
    )


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize(
    "rule",
    [
        SGD(learning_rate=0.3),
        Momentum(learning_rate=0.2, momentum=0.8),
        Adam(learning_rate=0.1),
        CoordinatewiseLSTM().double(),
    ],
    ids=lambda rule: rule.name,
)
def test_rules_agree(rule, second_order):
    task, problems, network, batches = setting()
    losses, grads = ours(task, rule, problems, second_order=second_order)
    theirs = higher_unroll(network, mse, batches, rule, second_order=second_order)
    assert_same(theirs, losses)
    for mine, other in zip(
        grads,
        torch.autograd.grad(theirs.log().sum(), list(rule.parameters()), materialize_grads=True),
        strict=True,
    ):
        assert_same(other, mine)
    assert max(g.abs().max() for g in grads) > 1e-3


def test_a_rule_that_sees_losses_and_draws_noise_agrees():
    task, problems, network, _ = setting()
    rule = LossAware()
    full = [(problems.constants["x"][0], problems.constants["y"][0])] * (NUM_STEPS + 1)
    rows = torch.arange(12)[None]
    task.batch = lambda problems, rng: {"rows": rows}
    losses, (grad,) = ours(task, rule, problems, second_order=True)
    theirs = higher_unroll(
        network, mse, full, rule, second_order=True, rng=torch.Generator().manual_seed(1)
    )
    assert_same(theirs, losses)
    assert_same(torch.autograd.grad(theirs.log().sum(), rule.rate)[0], grad)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_torch_optimizers_agree_with_their_twins(name, second_order):
    task, problems, network, batches = setting()
    params = list(network.parameters())
    lr, momentum = (torch.tensor(v, dtype=DTYPE, requires_grad=True) for v in (0.2, 0.8))
    if name == "adam":
        # With this epsilon, adding it before or after the bias correction is the same to 1e-8.
        optimizer = torch.optim.Adam(params, lr=1.0, eps=1e-14)
        rule, override = Adam(learning_rate=0.2, eps=1e-14), {"lr": lr}
    elif name == "momentum":
        optimizer = torch.optim.SGD(params, lr=1.0, momentum=0.1)
        rule = Momentum(learning_rate=0.2, momentum=0.8)
        override = {"lr": lr, "momentum": momentum}
    else:
        optimizer = torch.optim.SGD(params, lr=1.0)
        rule, override = SGD(learning_rate=0.2), {"lr": lr}
    losses, grads = ours(task, rule, problems, second_order=second_order)
    theirs = higher_unroll(
        network, mse, batches, optimizer, override=override, second_order=second_order
    )
    assert_same(theirs, losses)
    for mine, other in zip(
        grads, torch.autograd.grad(theirs.log().sum(), list(override.values())), strict=False
    ):
        assert_same(other, mine)


def test_losses_are_those_of_the_optimizer_itself():
    _, _, network, batches = setting()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, nesterov=True)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    losses = higher_unroll(network, mse, batches, optimizer)
    assert not optimizer.state
    for k, v in network.state_dict().items():
        assert torch.equal(v, before[k])
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = mse(network, batch)
        assert_same(losses[step].detach(), loss.detach())
        loss.backward()
        optimizer.step()


def test_meta_gradient_through_an_optimizer_equals_finite_differences():
    _, _, network, batches = setting()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)

    def meta_loss(lr):
        return higher_unroll(
            network, mse, batches, optimizer, override={"lr": lr}, second_order=True
        ).sum()

    lr = torch.tensor(0.2, dtype=DTYPE, requires_grad=True)
    (grad,) = torch.autograd.grad(meta_loss(lr), lr)
    step = 1e-6
    difference = (meta_loss(lr.detach() + step) - meta_loss(lr.detach() - step)) / (2 * step)
    assert grad.item() == pytest.approx(difference.item(), rel=1e-6)


class HalfUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 1).double(), nn.Linear(2, 1).double()

    def forward(self, x):
        return self.used(x)


def test_a_parameter_that_the_loss_ignores_has_gradient_zero():
    network, points = HalfUsed(), []
    x = torch.ones(3, 2, dtype=DTYPE)

    def loss_function(net, data):
        points.append(net.unused.weight)
        return net(data).square().mean()

    losses = higher_unroll(network, loss_function, [x] * 3, SGD(learning_rate=0.1))
    # mean of (w.x + b)^2 with x = 1: each step multiplies the output by 1 - 0.2 * 3
    torch.testing.assert_close(losses[1:] / losses[:-1], torch.full((2,), 0.16, dtype=DTYPE))
    assert torch.equal(points[-1], network.unused.weight)


def test_bad_input_is_refused():
    _, _, network, batches = setting()
    params = list(network.parameters())
    one = torch.tensor(1.0)
    for optimizer, override, match in (
        (torch.optim.SGD(params, lr=0.1), {"lrr": one}, "'lrr', which is no setting of SGD"),
        (torch.optim.SGD(params, lr=0.1), {"params": one}, "'params', which is no setting"),
        (torch.optim.SGD(params, lr=0.1, maximize=True), {}, r"SGD\(maximize=True\) is unknown"),
        (torch.optim.AdamW(params), {}, "AdamW is not among those"),
        (torch.optim.Adam(params), {"betas": one}, "override must not name betas"),
        (SGD(), {"lr": one}, "override must be empty for a rule"),
    ):
        with pytest.raises(LearnedOptError, match=match):
            higher_unroll(network, mse, batches, optimizer, override=override)
    with pytest.raises(LearnedOptError, match="batches must hold at least two, got 1"):
        higher_unroll(network, mse, batches[:1], SGD())
