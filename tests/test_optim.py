"""The torch.optim facade: parity, groups, schedulers, state, types, refusals."""

import copy
import io
import logging
import pickle

import pytest
import torch
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.optim import LearnedOptimizer
from learned_opt.rules.adaptive import Adam, AdamW
from learned_opt.rules.base import Rule, get_rule
from learned_opt.rules.classic import SGD, Momentum
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.noisy import NoisyGD
from learned_opt.rules.perturbed import PerturbedGDTheory
from learned_opt.rules.rnnprop import RNNProp
from learned_opt.rules.weights import save_rule
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.trees import leaves
from learned_opt.unroll import unroll
from learned_opt.workspace import PIECE

RULES = {
    "adam": lambda: Adam(learning_rate=0.05),
    "lstm": lambda: CoordinatewiseLSTM(seed=1),
    "rnnprop": lambda: RNNProp(seed=1),
    "noisy_gd": lambda: NoisyGD(learning_rate=0.05, noise=0.3),
}


def mlp(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def data(dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, generator=rng, dtype=torch.float64)
    y = torch.randn(16, 2, generator=rng, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def backward(model):
    """Zero the gradients, compute the loss and its gradients."""
    x, y = data(next(model.parameters()).dtype)
    for p in model.parameters():
        p.grad = None
    loss = (model(x) - y).square().mean()
    loss.backward()
    return loss


def train(model, optimizer, num_steps, *, after_step=lambda: None):
    """All parameters after each step, ``[T, P]``."""
    points = []
    for _ in range(num_steps):
        backward(model)
        optimizer.step()
        after_step()
        points.append(vector(model))
    return torch.stack(points)


def vector(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def assert_same(found, expected, atol=0.0):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_adam_equals_torch_adam_on_an_mlp(dtype, atol):
    ours, theirs = mlp(dtype), mlp(dtype)
    found = train(ours, LearnedOptimizer(ours.parameters(), Adam(learning_rate=0.01)), 60)
    expected = train(theirs, torch.optim.Adam(theirs.parameters(), lr=0.01), 60)
    assert_same(found, expected, atol)
    assert (found[-1] - found[0]).abs().max() > 0.05


def test_weight_decay_and_lr_are_those_of_adamw():
    # Rule steps of 1e-2 with lr=0.5; decay per step is lr * weight_decay = 0.5 * 0.02.
    ours, theirs, rule = mlp(), mlp(), mlp()
    optimizer = LearnedOptimizer(
        ours.parameters(), Adam(learning_rate=0.01), lr=0.5, weight_decay=0.02
    )
    expected = train(theirs, torch.optim.AdamW(theirs.parameters(), lr=5e-3, weight_decay=2.0), 40)
    assert_same(train(ours, optimizer, 40), expected, 1e-10)
    decayed = LearnedOptimizer(
        rule.parameters(), AdamW(learning_rate=5e-3, weight_decay=2.0), lr=1.0
    )
    assert_same(train(rule, decayed, 40), expected, 1e-10)


class Regression(Task):
    """The MLP above as a task."""

    name = "regression"
    shapes = {"param_0": (8, 3), "param_1": (8,), "param_2": (2, 8), "param_3": (2,)}  # noqa: RUF012

    def _sample(self, num_problems, rng):
        del rng
        zeros = torch.zeros(num_problems, dtype=torch.float64)
        params = {f"param_{i}": p.detach().unsqueeze(0) for i, p in enumerate(mlp().parameters())}
        facts = Facts(minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None])
        return Problems(params=params, constants={}, facts=facts)

    def loss(self, params, problems, batch=None):
        del problems, batch
        x, y = data(params["param_0"].dtype)
        hidden = torch.tanh(x @ params["param_0"].mT + params["param_1"].unsqueeze(1))
        output = hidden @ params["param_2"].mT + params["param_3"].unsqueeze(1)
        return (output - y).square().mean((1, 2))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_unroll(name, dtype):
    rule = RULES[name]()
    if dtype == torch.float64 and name in {"lstm", "rnnprop"}:
        rule = rule.double()
    model, losses = mlp(dtype), []
    optimizer = LearnedOptimizer(model.parameters(), rule, seed=5, guard=False)
    for _ in range(20):
        losses.append(backward(model).item())
        optimizer.step()
    task = Regression()
    expected = unroll(
        task,
        rule,
        task.sample(1, dtype=dtype),
        num_steps=20,
        rng=torch.Generator().manual_seed(5),
    )
    atol = 1e-12 if dtype == torch.float64 else 2e-5
    found = torch.tensor(losses, dtype=dtype)
    torch.testing.assert_close(found, expected.losses[0, :-1], rtol=0, atol=atol)
    flat = torch.cat([p.flatten() for p in expected.carry.params.values()])
    torch.testing.assert_close(vector(model), flat, rtol=0, atol=atol)


@pytest.mark.parametrize("name", RULES)
def test_state_dict_resumes_exactly(name):
    model = mlp(torch.float32)
    optimizer = LearnedOptimizer(model.parameters(), RULES[name](), lr=0.7, seed=3)
    train(model, optimizer, 5)
    weights, buffer = copy.deepcopy(model.state_dict()), io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    expected = train(model, optimizer, 5)
    buffer.seek(0)
    fresh = mlp(torch.float32, seed=9)
    fresh.load_state_dict(weights)
    # The seed and lr of the new optimizer must give way to those of the file.
    resumed = LearnedOptimizer(fresh.parameters(), RULES[name](), lr=0.1, seed=99)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same(train(fresh, resumed, 5), expected)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_go_on_alone(name, duplicate):
    model = mlp()
    optimizer = LearnedOptimizer(model.parameters(), RULES[name](), lr=0.7, seed=3)
    train(model, optimizer, 5)
    other_model, other = duplicate((model, optimizer))
    assert other.param_groups[0]["params"][0] is next(other_model.parameters())
    expected = train(model, optimizer, 5)
    assert_same(train(other_model, other, 5), expected)


def test_a_snapshot_of_the_state_does_not_change_with_later_steps():
    model = mlp()
    optimizer = LearnedOptimizer(model.parameters(), "adam")
    train(model, optimizer, 3)
    snapshot = optimizer.state_dict()
    before = copy.deepcopy(snapshot)
    train(model, optimizer, 3)
    assert str(snapshot) == str(before)
    assert str(optimizer.state_dict()) != str(before)


def test_half_precision_state_survives_saving_in_single_precision():
    model = mlp(torch.bfloat16)
    optimizer = LearnedOptimizer(model.parameters(), RULES["adam"]())
    train(model, optimizer, 4)
    weights, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    moment = saved["state"][0]["rule_state"]["second_moment"]["param_0"]
    assert moment.dtype == torch.float32
    assert not torch.equal(moment, moment.bfloat16().float())
    expected = train(model, optimizer, 4)
    model.load_state_dict(weights)
    fresh = LearnedOptimizer(model.parameters(), RULES["adam"]())
    fresh.load_state_dict(saved)
    loaded = fresh.state[next(model.parameters())]["rule_state"]["second_moment"]["param_0"]
    assert torch.equal(loaded, moment)
    assert_same(train(model, fresh, 4), expected)


def test_hooks_that_change_the_loaded_state_are_heeded():
    model = mlp()
    optimizer = LearnedOptimizer(model.parameters(), Momentum())
    train(model, optimizer, 2)
    fresh = LearnedOptimizer(model.parameters(), Momentum())

    def forget(optimizer, state_dict):
        del optimizer
        return {**state_dict, "state": {}}

    fresh.register_load_state_dict_pre_hook(forget)
    fresh.load_state_dict(optimizer.state_dict())
    assert not fresh.state


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parameters_of_every_type_learn(name, dtype):
    model = mlp(dtype)
    start = vector(model)
    optimizer = LearnedOptimizer(model.parameters(), RULES[name]())
    train(model, optimizer, 3)
    assert all(p.dtype == dtype for p in model.parameters())
    assert vector(model).isfinite().all()
    assert (vector(model) != start).any()


def test_half_precision_computes_in_single_precision():
    # A second moment of 1e-10 is zero in float16: computed there, Adam's step would be infinite.
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float16))
    optimizer = LearnedOptimizer([p], Adam(learning_rate=0.125, eps=1e-12))
    p.grad = torch.tensor([1e-5], dtype=torch.float16)
    optimizer.step()
    assert p.item() == 0.875


def test_double_precision_parameters_keep_their_digits_under_a_single_precision_rule():
    p = nn.Parameter(torch.tensor([1 + 1e-12], dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    LearnedOptimizer([p], RNNProp(), lr=0.0).step()
    assert p.item() == 1 + 1e-12


def test_groups_are_problems_of_their_own():
    # Normalised descent takes a step of the same length in each group, whatever the other does.
    a, b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(9))
    optimizer = LearnedOptimizer(
        [{"params": [a], "lr": 2.0}, {"params": [b], "weight_decay": 0.5}],
        get_rule("normalized_gd", learning_rate=0.3),
    )
    a.grad, b.grad = torch.full((4,), 1e6), torch.full((9,), 1e-6)
    optimizer.step()
    torch.testing.assert_close(a.detach(), torch.full((4,), 1 - 2 * 0.3 / 2))
    torch.testing.assert_close(b.detach(), torch.full((9,), 0.5 - 0.3 / 3))


@pytest.mark.parametrize("name", RULES)
def test_a_group_added_later_starts_afresh_and_disturbs_nobody(name):
    model, alone, late = mlp(), mlp(), mlp(seed=5)
    optimizer = LearnedOptimizer(model.parameters(), RULES[name](), seed=2)
    expected = train(alone, LearnedOptimizer(alone.parameters(), RULES[name](), seed=2), 8)
    train(model, optimizer, 4)
    optimizer.add_param_group({"params": list(late.parameters()), "lr": 0.5})
    # Its stream of random numbers is that of the second group: seed + 1.
    fresh = mlp(seed=5)
    fresh_optimizer = LearnedOptimizer(fresh.parameters(), RULES[name](), lr=0.5, seed=3)
    for _ in range(4):
        for each in (model, late, fresh):
            backward(each)
        optimizer.step()
        fresh_optimizer.step()
    assert_same(vector(model), expected[-1])
    assert_same(vector(late), vector(fresh))
    # ... and both groups come back from a file.
    saved = copy.deepcopy(optimizer.state_dict())
    assert len(saved["param_groups"]) == 2
    optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == str(saved)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=15),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    ],
    ids=["step", "cosine", "lambda"],
)
def test_learning_rate_schedules_scale_the_steps(make):
    ours, theirs = mlp(), mlp()
    optimizer = LearnedOptimizer(ours.parameters(), SGD(learning_rate=0.1))
    twin = torch.optim.SGD(theirs.parameters(), lr=0.1)
    found = train(ours, optimizer, 12, after_step=make(optimizer).step)
    expected = train(theirs, twin, 12, after_step=make(twin).step)
    assert_same(found, expected, 1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(10 * twin.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["lr"] != 1.0


def test_a_closure_is_called_once_with_gradients_on_and_its_loss_returned():
    ours, theirs, calls = mlp(), mlp(), []
    optimizer = LearnedOptimizer(ours.parameters(), SGD(learning_rate=0.1))
    twin = torch.optim.SGD(theirs.parameters(), lr=0.1)

    def closure():
        calls.append(torch.is_grad_enabled())
        return backward(ours)

    for _ in range(5):
        loss, expected = optimizer.step(closure), backward(theirs)
        twin.step()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert calls == [True] * 5
    assert_same(vector(ours), vector(theirs), 1e-12)
    assert optimizer.step() is None


class LossScaled(Rule):
    """Steps of minus the loss: shows what loss a rule is handed."""

    name = "loss scaled"
    needs_loss = True

    def init(self, params):
        return {}

    def forward(self, grads, state, params, *, loss=None, rng=None):
        return {k: -loss.reshape(-1, 1).expand_as(g) for k, g in grads.items()}, state


def test_the_loss_reaches_the_rule():
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.zeros(2)
    optimizer = LearnedOptimizer([p], LossScaled())
    with pytest.raises(LearnedOptError, match="rule 'loss scaled' needs the loss"):
        optimizer.step()
    optimizer.step(loss=2.0)
    optimizer.step(loss=torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True))
    optimizer.step(lambda: 4.0)
    assert p.tolist() == [-9.0, -9.0]
    with pytest.raises(LearnedOptError, match=r"loss must be one number, got shape \(2,\)"):
        optimizer.step(loss=torch.zeros(2))
    with pytest.raises(LearnedOptError, match="step takes a closure or a loss, got both"):
        optimizer.step(lambda: 1.0, loss=1.0)
    assert p.tolist() == [-9.0, -9.0]


def test_a_rule_that_needs_loss_and_noise_runs():
    model = mlp()
    optimizer = LearnedOptimizer(model.parameters(), PerturbedGDTheory(smoothness=10.0))
    before = backward(model).item()
    for _ in range(20):
        optimizer.step(lambda: backward(model))
    assert backward(model).item() < before


@pytest.mark.parametrize("factory", [torch.optim.SGD, torch.optim.Adam])
def test_a_parameter_without_gradient_is_skipped_and_keeps_its_momentum(factory):
    def run(make):
        model = mlp()
        optimizer, points = make(model.parameters()), []
        for step in range(9):
            backward(model)
            if step in {0, 3, 4}:
                model[0].weight.grad = None
            optimizer.step()
            points.append(vector(model))
        return torch.stack(points)

    if factory is torch.optim.SGD:
        found = run(lambda p: LearnedOptimizer(p, Momentum(learning_rate=0.05)))
        expected = run(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
        assert_same(found, expected, 1e-12)
    else:
        # Adam's step counter belongs to the group here: the tensors always present agree.
        found = run(lambda p: LearnedOptimizer(p, Adam(learning_rate=0.05)))
        assert_same(found[0][:24], vector(mlp())[:24])
        assert_same(found[2][:24], found[3][:24])
        assert_same(found[2][:24], found[4][:24])
        assert (found[5][:24] != found[4][:24]).all()
        assert (found[4][24:] != found[3][24:]).all()


def test_frozen_parameters_do_not_blind_a_rule_that_looks_at_all_of_them():
    """More than are looked at one by one: samples of them would miss the head."""
    head, frozen = mlp(), nn.Parameter(torch.randn(600_000).double(), requires_grad=False)
    alone = copy.deepcopy(head)
    together = [frozen, *head.parameters(), frozen.clone()]
    for model, params in ((head, together), (alone, list(alone.parameters()))):
        train(model, LearnedOptimizer(params, get_rule("controller"), guard=False), 20)
    for p, q in zip(head.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_state_starts_anew_where_parameters_are_thawed(caplog):
    model = mlp()
    model[0].requires_grad_(requires_grad=False)
    optimizer = LearnedOptimizer(model.parameters(), get_rule("controller"), guard=False)
    train(model, optimizer, 3)
    before = copy.deepcopy(model[0].weight.detach())
    model[0].requires_grad_()
    with caplog.at_level(logging.INFO, logger="learned_opt.optim"):
        train(model, optimizer, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "group 0: other parameters require gradients, its state starts anew"
    ]
    assert not torch.equal(model[0].weight, before)


def test_adam_keeps_its_momenta_where_parameters_are_thawed():
    model, twin = mlp(), mlp()
    optimizer = LearnedOptimizer(model.parameters(), "adam")
    other = torch.optim.Adam(twin.parameters())
    for m, o in ((model, optimizer), (twin, other)):
        m[0].requires_grad_(requires_grad=False)
        train(m, o, 3)
        m[0].requires_grad_()
        train(m, o, 1)
    torch.testing.assert_close(model[2].weight, twin[2].weight, rtol=0, atol=1e-12)


def test_recurrent_rules_do_not_move_a_parameter_without_gradient():
    model = mlp(torch.float32)
    optimizer = LearnedOptimizer(model.parameters(), CoordinatewiseLSTM(), weight_decay=0.1)
    start = vector(model)
    backward(model)
    model[0].weight.grad = None
    optimizer.step()
    moved = vector(model) != start
    assert not moved[:24].any()
    assert moved[24:].all()


def test_a_group_without_gradients_is_left_alone():
    model = mlp()
    optimizer = LearnedOptimizer(model.parameters(), "adam", weight_decay=0.1)
    start = vector(model)
    optimizer.step()
    assert_same(vector(model), start)
    assert not optimizer.state


@pytest.mark.parametrize("name", RULES)
def test_scalars_and_empty_parameters(name):
    scalar = nn.Parameter(torch.tensor(3.0))
    empty = nn.Parameter(torch.zeros(0, 4))
    other = nn.Parameter(torch.ones(2, 2))
    optimizer = LearnedOptimizer([{"params": [empty, scalar, other]}], RULES[name]())
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(0))]})
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.step()
    assert scalar.item() != 3.0
    assert (other != 1.0).all()
    assert empty.shape == (0, 4)
    # Rules may average over a tensor, so they never see one without elements.
    stored = optimizer.state[empty]["rule_state"]
    assert all(leaf.numel() for leaf in leaves(stored).values())
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == str(saved)


def test_a_rule_may_keep_what_it_is_given():
    class Secant(Rule):
        """Remembers the last point and gradient."""

        name = "secant"

        def init(self, params):
            return {"grads": params, "params": params}

        def forward(self, grads, state, params, *, loss=None, rng=None):
            self.seen = {
                k: torch.stack((params[k] - state["params"][k], grads[k] - state["grads"][k]))
                for k in params
            }
            return {k: -torch.ones_like(g) for k, g in grads.items()}, {
                "grads": grads,
                "params": params,
            }

    p = nn.Parameter(torch.tensor([5.0]))
    p.grad = torch.tensor([1.0])
    optimizer = LearnedOptimizer([p], Secant())
    optimizer.step()
    p.grad.mul_(4.0)
    optimizer.step()
    assert optimizer.rule.seen["param_0"].flatten().tolist() == [-1.0, 3.0]


def test_theta_is_a_copy_that_never_trains():
    rule = CoordinatewiseLSTM()
    model = mlp(torch.float32)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    backward(model)
    optimizer.step()
    assert all(p.requires_grad for p in rule.parameters())
    assert all(p.grad is None and not p.requires_grad for p in optimizer.rule.parameters())
    listed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert listed == {id(p) for p in model.parameters()}
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    with torch.no_grad():
        rule.head.bias.add_(1.0)
    assert not torch.equal(rule.head.bias, optimizer.rule.head.bias)


def test_rules_come_by_name_by_path_and_as_objects(tmp_path):
    path = save_rule(SGD(learning_rate=0.25), tmp_path / "mine.safetensors")
    for rule in (path, str(path), SGD(learning_rate=0.25)):
        p = nn.Parameter(torch.ones(1))
        p.grad = torch.ones(1)
        LearnedOptimizer([p], rule).step()
        assert p.item() == 0.75
    assert LearnedOptimizer([p], "adam").rule.name == "adam"
    with pytest.raises(LearnedOptError, match="unknown rule 'adem'; did you mean 'adam'"):
        LearnedOptimizer([p], "adem")


def test_gradient_scaler_and_step_hooks_work():
    model, steps = mlp(torch.float32), []
    optimizer = LearnedOptimizer(model.parameters(), "sgd")
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    x, y = data(torch.float32)
    start = vector(model)
    scaler.scale((model(x) - y).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    twin = mlp(torch.float32)
    backward(twin)
    torch.optim.SGD(twin.parameters(), lr=1e-2).step()
    assert steps == [1]
    assert (vector(model) != start).any()
    assert_same(vector(model), vector(twin), 1e-6)


def test_sparse_gradients_are_refused_before_anything_moves():
    first, table = nn.Parameter(torch.ones(2)), nn.Embedding(4, 2, sparse=True)
    optimizer = LearnedOptimizer([("first", first), ("table.weight", table.weight)], "momentum")
    first.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(LearnedOptError, match=r"parameter 'table\.weight' has a sparse gradient"):
        optimizer.step()
    assert first.tolist() == [1.0, 1.0]
    assert not optimizer.state


def test_complex_parameters_are_refused():
    with pytest.raises(LearnedOptError, match="parameter 1 of its group must be real floating-p"):
        LearnedOptimizer([torch.zeros(1), torch.zeros(1, dtype=torch.complex64)], "sgd")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr must not be negative, got -1\.0"),
        ({"weight_decay": -0.1}, r"weight_decay must not be negative, got -0\.1"),
        ({"rule": SGD(learning_rate=torch.ones(3))}, "learning_rate must be one number here"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(LearnedOptError, match=message):
        LearnedOptimizer([torch.zeros(1)], **{"rule": "sgd", **settings})


def test_a_refused_group_is_not_added():
    optimizer = LearnedOptimizer([torch.zeros(1)], "sgd")
    with pytest.raises(LearnedOptError, match="lr must not be negative"):
        optimizer.add_param_group({"params": [torch.ones(1)], "lr": -1.0})
    with pytest.raises(LearnedOptError, match="must be on one device, got cpu, meta"):
        optimizer.add_param_group({"params": [torch.ones(1), torch.ones(1, device="meta")]})
    assert len(optimizer.param_groups) == 1


def test_state_of_another_rule_or_other_shapes_is_refused():
    model = mlp()
    optimizer = LearnedOptimizer(model.parameters(), "momentum")
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    twin = torch.optim.Adam(model.parameters())
    train(model, twin, 1)
    adam = LearnedOptimizer(model.parameters(), "adam")
    train(model, adam, 1)
    wide = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    other = LearnedOptimizer(wide.parameters(), "momentum")
    train(wide, other, 1)
    for source in (twin, adam, other):
        with pytest.raises(LearnedOptError, match="state does not fit the rule 'momentum'"):
            optimizer.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(LearnedOptimizer([torch.ones(1)], "momentum").state_dict())
    assert str(optimizer.state_dict()) == str(before)


def test_parameters_are_still_leaves_and_zero_grad_works():
    model = mlp()
    optimizer = LearnedOptimizer(model.parameters(), "lion")
    train(model, optimizer, 2)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    optimizer.zero_grad(set_to_none=False)
    assert "weight_decay" in repr(optimizer)


@pytest.mark.parametrize("size", [1_000, PIECE + 1_000])
def test_the_controller_stands_still_after_a_gradient_that_is_not_finite(size):
    """Noise, too, is left out of what is not a step."""
    rng = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(size, generator=rng))
    optimizer = LearnedOptimizer([p], "controller", guard=False)
    for t in range(8):
        p.grad = p.detach() + torch.randn(size, generator=rng)
        if t == 3:
            p.grad[0] = torch.nan
        before = p.detach().clone()
        optimizer.step()
        assert torch.equal(before, p) == (t >= 3)
