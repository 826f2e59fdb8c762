"""`unroll` against plain loops over single problems, written here with torch alone."""

import math

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.rules.base import Rule, get_rule
from learned_opt.rules.classic import SGD
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.tasks import Facts, Problems, Task, get_task
from learned_opt.trees import per_problem
from learned_opt.unroll import Carry, start, unroll

DTYPE = torch.float64


class Bumpy(Task):
    """A nonconvex function of a vector and a scalar; with `noise`, each evaluation tilts it."""

    name = "bumpy"
    family = "bumpy"
    kind = "multimodal"

    def __init__(self):
        self.shapes = {"x": (3,), "y": ()}

    def _sample(self, num_problems, rng):
        def draw(*shape):
            return torch.randn(num_problems, *shape, generator=rng, dtype=DTYPE)

        zeros = torch.zeros(num_problems, dtype=DTYPE)
        return Problems(
            params={"x": draw(3), "y": draw()},
            constants={"matrix": draw(3, 3), "shift": draw()},
            facts=Facts(
                minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None][:, :0]
            ),
        )

    def loss(self, params, problems, batch=None):
        c = problems.constants
        x = torch.einsum("nij,nj->ni", c["matrix"], params["x"])
        loss = x.square().sum(1) / 2 + torch.cos(params["y"] - c["shift"]) * (1 + x[:, 0].tanh())
        return loss if batch is None else loss + (batch["tilt"] * params["x"]).sum(1)


class NoisyBumpy(Bumpy):
    name = "noisy_bumpy"

    def batch(self, problems, rng):
        tilt = torch.randn(problems.num_problems, 3, generator=rng, dtype=DTYPE)
        return {"tilt": tilt.to(problems.facts.minimum.dtype)}


class Curious(Rule):
    """Uses all a rule may: a state, the point, the loss and random numbers."""

    name = "curious"
    needs_loss = True
    needs_rng = True

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.05, dtype=DTYPE))
        self.decay = torch.nn.Parameter(torch.tensor(0.7, dtype=DTYPE))
        self.start = torch.nn.Parameter(torch.tensor(0.3, dtype=DTYPE))

    def init(self, params):
        return {"velocity": {k: self.start * torch.ones_like(p) for k, p in params.items()}}

    def forward(self, grads, state, params, *, loss=None, rng=None):
        velocity = {k: self.decay * v + grads[k] for k, v in state["velocity"].items()}
        updates = {}
        for k, v in velocity.items():
            noise = torch.randn(v.shape, generator=rng, dtype=v.dtype)
            brake = 1 + 0.1 * torch.tanh(per_problem(loss, v))
            updates[k] = -self.rate * v * brake - 0.01 * params[k] + 1e-3 * noise
        return updates, {"velocity": velocity}


def plain_loop(problems, index, rates, tilts=None):
    """Gradient descent on one problem of `Bumpy` with its own loss formula: losses and point."""
    matrix = problems.constants["matrix"][index]
    shift = problems.constants["shift"][index]

    def f(x, y, tilt):
        z = matrix @ x
        value = z.dot(z) / 2 + math.e ** torch.log1p(torch.tanh(z[0])) * torch.cos(y - shift)
        return value + (0 if tilt is None else tilt.dot(x))

    x, y = problems.params["x"][index].clone(), problems.params["y"][index].clone()
    losses = []
    for step in range(len(rates) + 1):
        x.requires_grad_()
        y.requires_grad_()
        value = f(x, y, None if tilts is None else tilts[step][index])
        losses.append(value.detach())
        if step < len(rates):
            gx, gy = torch.autograd.grad(value, (x, y))
            x = (x - rates[step] * gx).detach()
            y = (y - rates[step] * gy).detach()
    return torch.stack(losses), x.detach(), y.detach()


def naive_unroll(task, rule, problems, num_steps, rng, *, second_order):
    """The same meta-graph with everything kept: gradients are detached from it, or not."""
    params, state, losses = dict(problems.params), rule.init(problems.params), []
    params = {k: p.clone().requires_grad_() for k, p in params.items()}
    for step in range(num_steps + 1):
        loss = task.loss(params, problems, task.batch(problems, rng))
        losses.append(loss)
        if step == num_steps:
            return torch.stack(losses, 1), params
        grads = torch.autograd.grad(loss.sum(), list(params.values()), create_graph=True)
        grads = dict(zip(params, grads, strict=True))
        if not second_order:
            grads = {k: g.detach() for k, g in grads.items()}
            loss = loss.detach()
        updates, state = rule(grads, state, params, loss=loss, rng=rng)
        params = {k: p + updates[k] for k, p in params.items()}
    raise AssertionError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("task", [Bumpy(), NoisyBumpy()], ids=lambda t: t.name)
def test_equals_a_plain_loop_over_single_problems(task, differentiable):
    problems = task.sample(4, seed=1, dtype=DTYPE)
    result = unroll(
        task,
        SGD(learning_rate=0.05),
        problems,
        num_steps=6,
        rng=rng(5),
        differentiable=differentiable,
    )
    draws = rng(5)
    tilts = None
    if task.is_stochastic:
        tilts = [task.batch(problems, draws)["tilt"] for _ in range(7)]
    for i in range(4):
        losses, x, y = plain_loop(problems, i, [0.05] * 6, tilts)
        torch.testing.assert_close(result.losses[i].detach(), losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result.carry.params["x"][i].detach(), x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result.carry.params["y"][i].detach(), y, rtol=1e-12, atol=1e-12)
    assert result.carry.step == 6
    assert result.losses.requires_grad == differentiable


def test_the_batch_dtype_follows_the_problems():
    task = NoisyBumpy()
    problems = task.sample(2, seed=0, dtype=torch.float32)
    result = unroll(task, SGD(learning_rate=0.05), problems, num_steps=2, rng=rng())
    assert result.losses.dtype == torch.float32


@pytest.mark.parametrize("rule", [Curious(), CoordinatewiseLSTM().double()], ids=lambda r: r.name)
def test_carrying_on_equals_one_long_run(rule):
    task = NoisyBumpy()
    problems = task.sample(3, seed=1, dtype=DTYPE)
    whole = unroll(task, rule, problems, num_steps=7, rng=rng(2))
    draws, carry, pieces = rng(2), None, []
    for num_steps in (2, 4, 1):
        before = draws.get_state()
        piece = unroll(task, rule, problems, num_steps=num_steps, rng=draws, carry=carry)
        carry = piece.carry
        pieces.append(piece.losses[:, : num_steps + (carry.step == 7)])
        # A piece ends with a batch for its last loss; the long run draws that one only once.
        draws.set_state(before)
        for _ in range(num_steps):
            task.batch(problems, draws)
            if rule.needs_rng:
                for p in problems.params.values():
                    torch.randn(p.shape, generator=draws, dtype=DTYPE)
    assert torch.equal(torch.cat(pieces, dim=1), whole.losses)
    for k, p in whole.carry.params.items():
        assert torch.equal(carry.params[k], p)
    assert carry.step == whole.carry.step == 7


def test_a_fresh_carry_is_the_start():
    task, rule = Bumpy(), Curious()
    problems = task.sample(3, seed=1, dtype=DTYPE)
    given = unroll(task, rule, problems, num_steps=3, rng=rng(), carry=start(rule, problems))
    absent = unroll(task, rule, problems, num_steps=3, rng=rng())
    assert torch.equal(given.losses, absent.losses)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("rule", [Curious(), CoordinatewiseLSTM().double()], ids=lambda r: r.name)
@pytest.mark.parametrize("task", [Bumpy(), NoisyBumpy()], ids=lambda t: t.name)
def test_meta_gradient_equals_that_of_the_graph_keeping_loop(task, rule, second_order):
    problems = task.sample(4, seed=1, dtype=DTYPE)
    weights = torch.rand(4, 9, generator=rng(9), dtype=DTYPE)
    result = unroll(
        task,
        rule,
        problems,
        num_steps=8,
        rng=rng(3),
        differentiable=True,
        second_order=second_order,
    )
    naive, points = naive_unroll(task, rule, problems, 8, rng(3), second_order=second_order)
    torch.testing.assert_close(result.losses, naive, rtol=1e-12, atol=1e-12)
    theta = list(rule.parameters())
    # Losses and the final point both lead back to theta.
    ours = torch.autograd.grad(
        (weights * result.losses.tanh()).sum() + result.carry.params["x"].square().sum(), theta
    )
    theirs = torch.autograd.grad((weights * naive.tanh()).sum() + points["x"].square().sum(), theta)
    for ours_k, theirs_k in zip(ours, theirs, strict=True):
        assert theirs_k.abs().max() > 0
        torch.testing.assert_close(ours_k, theirs_k, rtol=1e-10, atol=1e-12)


def test_dropping_second_derivatives_matters():
    task, rule = Bumpy(), Curious()
    problems = task.sample(4, seed=1, dtype=DTYPE)
    grads = []
    for second_order in (False, True):
        losses = unroll(
            task,
            rule,
            problems,
            num_steps=8,
            rng=rng(3),
            differentiable=True,
            second_order=second_order,
        ).losses
        grads.append(torch.autograd.grad(losses.sum(), rule.rate)[0])
    assert (grads[0] - grads[1]).abs() > 1e-2 * grads[1].abs()


@pytest.mark.parametrize("name", ["rate", "decay", "start"])
def test_second_order_equals_finite_differences(name):
    task, rule = NoisyBumpy(), Curious()
    problems = task.sample(4, seed=1, dtype=DTYPE)
    parameter = getattr(rule, name)

    def meta_loss(**options):
        losses = unroll(task, rule, problems, num_steps=6, rng=rng(3), **options).losses
        return losses.tanh().sum()

    (grad,) = torch.autograd.grad(meta_loss(differentiable=True, second_order=True), parameter)
    step = 1e-6
    with torch.no_grad():
        parameter += step
        high = meta_loss()
        parameter -= 2 * step
        low = meta_loss()
    assert grad.item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-6)


def test_first_order_gradient_of_one_step_by_hand():
    # losses f(x - a g): d/da = -g . grad f(x - a g), exactly, for one step
    task, rule = Bumpy(), SGD(learning_rate=0.1)
    problems = task.sample(1, seed=1, dtype=DTYPE)
    seen = []
    result = unroll(task, rule, problems, num_steps=1, rng=rng(), differentiable=True)
    unroll(task, rule, problems, num_steps=2, rng=rng(), observe=lambda **step: seen.append(step))
    (grad,) = torch.autograd.grad(result.losses[0, 1], rule.learning_rate)
    expected = -sum(
        (seen[0]["grads"][k] * seen[1]["grads"][k]).sum().item() for k in problems.params
    )
    assert grad.item() == pytest.approx(expected, rel=1e-12)


def test_truncation_cuts_the_graph():
    task, rule = Bumpy(), Curious()
    problems = task.sample(2, seed=1, dtype=DTYPE)
    first = unroll(task, rule, problems, num_steps=3, rng=rng(), differentiable=True)
    assert first.carry.params["x"].requires_grad
    cut = first.carry.detach()
    assert cut.step == 3
    assert not any(p.requires_grad for p in cut.params.values())
    second = unroll(task, rule, problems, num_steps=3, rng=rng(), carry=cut, differentiable=True)
    # the learned initial state acts before the cut only
    (grad,) = torch.autograd.grad(second.losses.sum(), rule.start, materialize_grads=True)
    assert grad == 0


@pytest.mark.parametrize("rule", [SGD(learning_rate=0.05), CoordinatewiseLSTM().double()])
def test_problems_are_independent(rule):
    task = Bumpy()
    problems = task.sample(5, seed=1, dtype=DTYPE)
    together = unroll(task, rule, problems, num_steps=10, rng=rng())
    for i in range(5):
        alone = unroll(task, rule, problems.select(torch.tensor([i])), num_steps=10, rng=rng())
        torch.testing.assert_close(alone.losses[0], together.losses[i], rtol=1e-12, atol=1e-12)


def test_a_diverging_problem_leaves_the_others_alone():
    task = Bumpy()
    problems = task.sample(3, seed=1, dtype=DTYPE)
    calm = unroll(task, SGD(learning_rate=0.05), problems, num_steps=50, rng=rng())
    rates = torch.tensor([0.05, 1e6, 0.05], dtype=DTYPE)
    mixed = unroll(task, SGD(learning_rate=rates), problems, num_steps=50, rng=rng())
    assert not mixed.losses[1].isfinite().all()
    keep = torch.tensor([0, 2])
    assert torch.equal(mixed.losses[keep], calm.losses[keep])
    selected = mixed.carry.select(keep)
    assert torch.equal(selected.params["x"], calm.carry.params["x"][keep])


def test_observers_see_every_step_before_the_update():
    task, rule = Bumpy(), Curious()
    problems = task.sample(3, seed=1, dtype=DTYPE)
    seen = []
    carry = Carry(params=problems.params, state=rule.init(problems.params), step=10)
    result = unroll(
        task,
        rule,
        problems,
        num_steps=4,
        rng=rng(),
        carry=carry,
        differentiable=True,
        second_order=True,
        observe=lambda **step: seen.append(step),
    )
    assert [s["step"] for s in seen] == [10, 11, 12, 13]
    assert torch.equal(torch.stack([s["losses"] for s in seen], 1), result.losses[:, :4])
    assert torch.equal(seen[0]["params"]["x"], problems.params["x"])
    for s in seen:
        at = {k: p.clone().requires_grad_() for k, p in s["params"].items()}
        expected = torch.autograd.grad(task.loss(at, problems).sum(), at["x"])[0]
        torch.testing.assert_close(s["grads"]["x"], expected, rtol=1e-12, atol=1e-12)
        assert not s["losses"].requires_grad
        assert not s["grads"]["x"].requires_grad


@pytest.mark.parametrize("differentiable", [False, True])
def test_stop_ends_the_loop_before_the_update(differentiable):
    task, rule = Bumpy(), SGD(learning_rate=0.05)
    problems = task.sample(3, seed=1, dtype=DTYPE)
    whole = unroll(task, rule, problems, num_steps=9, rng=rng())
    calls = []

    def stop(losses):
        calls.append(losses)
        return len(calls) == 4

    result = unroll(
        task, rule, problems, num_steps=9, rng=rng(), stop=stop, differentiable=differentiable
    )
    assert result.carry.step == 3
    assert result.losses.shape == (3, 4)
    assert torch.equal(result.losses.detach(), whole.losses[:, :4])
    assert torch.equal(torch.stack(calls, 1), whole.losses[:, :4])
    # the last loss is that of the carry's point
    here = task.loss(result.carry.params, problems).detach()
    torch.testing.assert_close(here, result.losses[:, -1].detach(), rtol=1e-14, atol=0.0)


def test_the_problems_are_not_modified():
    task, rule = Bumpy(), SGD(learning_rate=0.05)
    problems = task.sample(3, seed=1, dtype=DTYPE)
    before = {k: p.clone() for k, p in problems.params.items()}
    unroll(task, rule, problems, num_steps=3, rng=rng(), differentiable=True)
    for k, p in problems.params.items():
        assert torch.equal(p, before[k])
        assert not p.requires_grad


def test_bad_input_is_refused():
    task, rule = Bumpy(), SGD()
    problems = task.sample(1, seed=0, dtype=DTYPE)
    with pytest.raises(LearnedOptError, match="num_steps must be positive, got 0"):
        unroll(task, rule, problems, num_steps=0, rng=rng())
    with pytest.raises(LearnedOptError, match="second_order=True needs differentiable=True"):
        unroll(task, rule, problems, num_steps=1, rng=rng(), second_order=True)


def test_problems_of_another_task_are_refused():
    task, other = get_task("octopus", dim=3), get_task("octopus", dim=4)
    with pytest.raises(LearnedOptError, match=r"shapes .*\(3,\).*'octopus', got .*\(4,\)"):
        unroll(task, get_rule("sgd"), other.sample(2), num_steps=1, rng=torch.Generator())


def test_a_sweep_of_another_length_is_refused():
    task = get_task("octopus", dim=3)
    rule = get_rule("adam", learning_rate=torch.ones(5))
    with pytest.raises(LearnedOptError, match="hyperparameters for 5 problems, got 2"):
        unroll(task, rule, task.sample(2), num_steps=1, rng=torch.Generator())
