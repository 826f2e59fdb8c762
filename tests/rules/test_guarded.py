"""The guard: fine rules untouched, bad ones undone, and what its docstring promises."""

import copy
import io
import logging
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from learned_opt.errors import LearnedOptError
from learned_opt.optim import LearnedOptimizer
from learned_opt.rules.adaptive import Adam
from learned_opt.rules.base import Rule
from learned_opt.rules.classic import SGD, Momentum
from learned_opt.rules.guarded import Guarded
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.noisy import NoisyGD
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import load_rule
from learned_opt.tasks.base import get_task
from learned_opt.unroll import unroll

DOUBLE = torch.float64
LOGGER = "learned_opt.rules.guarded"


class Scripted(Rule):
    """``move(gradient, point, step)`` for each tensor; counts the steps since it took charge."""

    name = "scripted"

    def __init__(self, move):
        super().__init__()
        self.move = move

    def init(self, params):
        first = next(iter(params.values()))
        return {"step": torch.zeros(len(first), dtype=torch.int64)}

    def forward(self, grads, state, params, *, loss=None, rng=None):
        steps = state["step"]
        updates = {
            k: self.move(g, params[k], steps.reshape(-1, *[1] * (g.dim() - 1)))
            for k, g in grads.items()
        }
        return updates, {"step": steps + 1}


def uphill(g, x, t):
    return 0.01 * g.sign()


def race(rule, *, task="strict_saddle", num_steps=60, num_problems=4, dtype=DOUBLE, **settings):
    task = get_task(task, **settings)
    problems = task.sample(num_problems, seed=3, dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    return unroll(task, rule, problems, num_steps=num_steps, rng=rng)


def bowl(rule, *, start=(3.0, -2.0), num_steps=40, dtype=DOUBLE, with_loss=True, slope=None):
    """Points ``[T + 1, 2]`` on ``|x|^2 / 2``, or on the linear function of a slope; last state."""
    x = torch.tensor([start], dtype=dtype)
    state, points = rule.init({"x": x}), [x[0]]
    for _ in range(num_steps):
        g = x if slope is None else torch.full_like(x, slope)
        loss = x.square().sum(1) / 2 if slope is None else slope * x.sum(1)
        with torch.no_grad():
            updates, state = rule({"x": g}, state, {"x": x}, loss=loss if with_loss else None)
        x = x + updates["x"]
        points.append(x[0])
    return torch.stack(points), state


def is_rule(state):
    return state["book"]["is_rule"].item()


# A rule that does well


@pytest.mark.parametrize(
    ("task", "settings", "num_steps"),
    [("octopus", {"dim": 5}, 120), ("strict_saddle", {"dim": 10}, 60), ("monkey_saddle", {}, 15)],
)
def test_a_fine_rule_is_untouched_to_the_last_bit(task, settings, num_steps):
    rule = load_rule("lstm").double()
    guarded = race(Guarded(rule, "adam"), task=task, num_steps=num_steps, **settings)
    plain = race(rule, task=task, num_steps=num_steps, **settings)
    assert torch.equal(guarded.losses, plain.losses)
    assert guarded.carry.state["book"]["is_rule"].all()


def test_noise_alone_does_not_cost_a_rule_its_charge():
    rng = torch.Generator().manual_seed(0)
    guard = Guarded(SGD(learning_rate=0.05), SGD(learning_rate=0.01))
    x = torch.full((64, 10), 2.0, dtype=DOUBLE)
    state = guard.init({"x": x})
    for _ in range(200):
        g = x + 0.1 * torch.randn(x.shape, generator=rng, dtype=DOUBLE)
        loss = x.square().sum(1) / 2 + torch.randn(64, generator=rng, dtype=DOUBLE)
        updates, state = guard({"x": g}, state, {"x": x}, loss=loss)
        x = x + updates["x"]
        if x.square().mean() < 0.05:
            break
    assert state["book"]["is_rule"].double().mean() > 0.9


@pytest.mark.parametrize(("share", "keeps"), [(0.92, True), (0.88, False)])
@pytest.mark.parametrize("with_loss", [True, False])
def test_windows_are_kept_from_the_demanded_share_of_the_promise_on(share, keeps, with_loss):
    # On a linear function progress is exactly this share of the promise, in windows of any length.
    guard = Guarded(SGD(learning_rate=0.1 * share), SGD(learning_rate=0.1), demand=0.9)
    _, state = bowl(guard, num_steps=17, slope=0.7, with_loss=with_loss)
    assert is_rule(state) == keeps
    _, state = bowl(guard, num_steps=300, slope=0.7, with_loss=with_loss)
    assert is_rule(state) == keeps


# A rule that does not


@pytest.mark.parametrize("bad", ["uphill", "idle", "nan", "late nan"])
def test_with_bad_windows_struck_out_the_fallback_runs_as_if_alone(bad):
    moves = {
        "uphill": lambda g, x, t: 0.05 * g,
        "idle": lambda g, x, t: 0 * g,
        "nan": lambda g, x, t: torch.full_like(g, torch.nan),
        "late nan": lambda g, x, t: torch.where(t < 2, -0.2 * g, torch.nan),
    }
    fallback = Adam(learning_rate=0.05)
    guard = Guarded(Scripted(moves[bad]), fallback, window=4, rest=3)
    alone, _ = bowl(fallback, num_steps=42)
    found, _ = bowl(guard, num_steps=70)
    # What an undone window costs: its steps, and the step back. The second trial is twice as long,
    # after windows that are twice as long.
    costs = {"uphill": (5, 5, 9), "idle": (5, 5, 9), "nan": (1, 1, 1), "late nan": (3, 3, 3)}[bad]
    offset = 0
    for begin, cost in zip((0, 12, 36), costs, strict=True):
        offset += cost
        expected = alone[begin : begin + 6]
        assert torch.equal(found[begin + offset : begin + offset + 6], expected)
    assert found.isfinite().all()


@pytest.mark.parametrize("move", [uphill, lambda g, x, t: 0 * g], ids=["uphill", "idle"])
@pytest.mark.parametrize(
    ("task", "settings"), [("four_fold_saddle", {}), ("deep_linear", {"depth": 3})]
)
def test_it_is_never_much_later_than_the_fallback_alone(task, settings, move):
    fallback, times = Adam(), []
    for rule in (fallback, Guarded(Scripted(move), fallback)):
        run = race(rule, task=task, num_steps=620, **settings)
        facts = get_task(task, **settings).sample(4, seed=3, dtype=DOUBLE).facts
        level = facts.minimum + 1e-3 * (facts.reference - facts.minimum)
        reached = run.losses <= level[:, None]
        times.append(torch.where(reached.any(dim=1), reached.int().argmax(dim=1), torch.inf))
    early = times[0] < 560  # the others may end after the run
    assert early.sum() >= 3
    late = (times[1] - times[0])[early]
    assert (late <= 18 * (1 + times[0][early] / 384)).all()
    assert (late <= 0.1 * times[0][early]).all()


@pytest.mark.parametrize("needs_rng", [False, True])
def test_while_the_fallback_acts_the_rule_costs_nothing(needs_rng):
    calls = []

    class Counted(Scripted):
        def forward(self, *args, **kwargs):
            calls.append(len(calls))
            return super().forward(*args, **kwargs)

    Counted.needs_rng = needs_rng
    rule = Guarded(Counted(uphill), "adam")
    state, x = rule.init({"x": torch.ones(1, 2)}), torch.ones(1, 2)
    charge = []
    for _ in range(60):
        before = len(calls)
        rng = torch.Generator().manual_seed(0)
        updates, state = rule({"x": x}, state, {"x": x}, loss=x.square().sum(1) / 2, rng=rng)
        x = x + updates["x"]
        charge.append(len(calls) > before)
    assert sum(charge) < 30
    assert not any(charge[18:40])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rule_that_has_arrived_keeps_its_charge(dtype):
    """At a minimum Adam goes on promising what nobody can keep."""
    rng = torch.Generator().manual_seed(0)
    b = torch.randn(20, 20, generator=rng).to(dtype)
    hessian = b @ b.T / 20 + torch.eye(20, dtype=dtype)
    x = torch.randn(1, 20, generator=rng).to(dtype)
    rule = Guarded(load_rule("controller"), "adam")
    state, charge, losses = rule.init({"x": x}), [], []
    for _ in range(200):
        g = x @ hessian
        loss = (g * x).sum(1) / 2
        with torch.no_grad():
            updates, state = rule({"x": g}, state, {"x": x}, loss=loss, rng=rng)
        x = x + updates["x"]
        charge.append(is_rule(state))
        losses.append(loss.item())
    assert all(map(bool, charge))
    # How still it lies then is a matter of its weights: it was trained to 1e-5.
    assert max(losses[100:]) < 1e-8 * losses[0]


def test_problems_are_judged_one_by_one():
    def move(g, x, t):
        return torch.where(torch.arange(len(g)).reshape(-1, 1) == 1, 0.01 * g, -0.1 * g)

    fallback = SGD(learning_rate=0.01)
    mixed = race(Guarded(Scripted(move), fallback), num_steps=50, dim=3)
    fine = race(SGD(learning_rate=0.1), num_steps=50, dim=3)
    alone = race(fallback, num_steps=33, dim=3)
    assert mixed.carry.state["book"]["is_rule"].tolist() == [True, False, True, True]
    assert torch.equal(mixed.losses[[0, 2, 3]], fine.losses[[0, 2, 3]])
    assert torch.equal(mixed.losses[1, 17:], alone.losses[1])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_way_back_is_exact_however_far(dtype):
    far = Scripted(lambda g, x, t: torch.full_like(g, 1e15))
    points, state = bowl(Guarded(far, SGD(learning_rate=0.0)), num_steps=30, dtype=dtype)
    assert points[16].min() > 1e15
    assert points[-1].tolist() == [3.0, -2.0]
    assert not is_rule(state) and state["book"]["away"].item() == 0
    # One step back is lost to rounding: 3 - 1e16 + 1e16 is not 3.
    assert (points[17] != points[0]).any() and (points[20:] == points[0]).all()


def test_a_rise_in_a_long_window_ends_it_early():
    def move(g, x, t):
        return torch.where(t < 1050, -0.003 * g, 0.2 * g)

    guard = Guarded(Scripted(move), SGD(learning_rate=1e-3))
    points, state = bowl(guard, num_steps=1090)
    assert not is_rule(state)
    # Windows last a tenth of the tenure by now; at their end it would have grown 1.2^50 times.
    assert points[1050].norm() < 0.2
    assert 1 < points[1050:].norm(dim=1).max() < 12
    assert points[-1].norm() < 0.3


def test_nothing_moves_where_both_rules_fail():
    broken = Scripted(lambda g, x, t: torch.full_like(g, torch.nan))
    points, state = bowl(Guarded(broken, copy.deepcopy(broken)), num_steps=30)
    assert (points == points[0]).all()
    # The fallback's clock stands still with it.
    assert state["fallback"]["step"].item() == 0


def test_gradients_that_are_not_finite_are_survived():
    class Cliff(nn.Module):
        def forward(self, x):
            return torch.where(x > 1.5, torch.nan, x.square() / 2).sum()

    x, cliff = nn.Parameter(torch.tensor([1.0, 0.5])), Cliff()
    optimizer = LearnedOptimizer([x], Scripted(uphill), guard=Adam(learning_rate=0.05))
    for _ in range(80):
        optimizer.zero_grad()
        loss = cliff(x)
        loss.backward()
        optimizer.step(loss=loss)
        assert x.isfinite().all()
    assert x.abs().max() < 0.3


# The way back into charge


def test_it_hands_over_and_back_with_one_message_each(caplog):
    def move(g, x, t):
        return torch.where(x.norm(dim=1, keepdim=True) > 1, 0.1, -0.1) * g

    caplog.set_level(logging.INFO, LOGGER)
    guard = Guarded(Scripted(move), SGD(learning_rate=0.01), window=8, rest=5)
    points, state = bowl(guard, num_steps=500)
    assert is_rule(state) and not state["book"]["is_trial"].item()
    assert points[-1].norm() < 1e-4
    over, back = caplog.records
    assert (over.levelname, back.levelname) == ("WARNING", "INFO")
    assert over.getMessage() == "guard: 1 of 1 problems handed over to 'sgd' after 9 steps"
    assert back.getMessage().startswith("guard: 1 of 1 problems handed back to 'scripted' after ")


def test_a_rule_on_trial_starts_from_a_fresh_state():
    seen = []

    def move(g, x, t):
        seen.append(t.item())
        return 0.1 * g

    bowl(Guarded(Scripted(move), SGD(learning_rate=0.01), window=4, rest=2), num_steps=16)
    assert seen == [0, 1, 2, 3, 0, 1, 2]


def test_a_controller_on_trial_begins_with_steps_as_short_as_after_so_many():
    """From a fresh state its first steps are long, and such a trial cannot be won."""
    guard, x = Guarded("controller", SGD(learning_rate=0.1)), {"x": torch.full((3, 4), 2.0)}
    radius = guard.rule.restart(x, torch.tensor([1, 100, 10_000]))["all"]["actuator"]
    assert_close(radius["first_radius"], 0.4 / torch.tensor([1.0, 10.0, 100.0]))
    fresh = guard.rule.init(x)["all"]["actuator"]
    assert all(
        torch.equal(fresh[k], v)
        for k, v in radius.items()
        if isinstance(v, torch.Tensor)
        if k not in {"first_radius", "earlier"}
    )


def test_the_guard_restarts_a_rule_with_the_steps_that_were_taken():
    told = []

    class Late(Scripted):
        def restart(self, params, steps):
            told.append(steps.item())
            return self.init(params)

    bowl(Guarded(Late(uphill), SGD(learning_rate=0.01), window=4, rest=2), num_steps=60)
    # A window of 4 and the way back, two windows of the fallback.
    assert told[0] == 5 + 2 * 4 and told == sorted(set(told)) and len(told) >= 2


# What it can see


def test_a_first_loss_that_is_not_finite_is_no_level_to_fall_from():
    guard = Guarded(SGD(learning_rate=0.1), SGD(learning_rate=0.01))
    x = {"x": torch.tensor([[3.0]], dtype=DOUBLE)}
    state = guard.init(x)
    for value in (math.inf, 23.0, 23.0):
        loss = torch.tensor([value], dtype=DOUBLE)
        _, state = guard({"x": torch.ones(1, 1, dtype=DOUBLE)}, state, x, loss=loss)
    assert state["book"]["highest"].item() == state["book"]["before"].item() == 23


def test_without_a_loss_changes_are_added_up_from_gradients():
    guard = Guarded(SGD(learning_rate=0.3), SGD(learning_rate=0.01))
    points, state = bowl(guard, num_steps=13, with_loss=False)
    values = points.square().sum(1) / 2
    # The loss at the last point has not been seen yet.
    assert state["book"]["last"].item() == pytest.approx((values[12] - values[0]).item(), rel=1e-12)


def test_learning_rates_are_read_off_the_distance_moved():
    for lr in (0.25, 1.0, 3.0):
        x = nn.Parameter(torch.tensor([5.0], dtype=DOUBLE))
        optimizer = LearnedOptimizer(
            [x], SGD(learning_rate=0.095), lr=lr, guard=SGD(learning_rate=0.1)
        )
        for _ in range(60):
            x.grad = torch.ones_like(x)
            optimizer.step(loss=x.item())
        assert is_rule(optimizer.state[x]["rule_state"])


def test_a_loss_that_comes_and_goes_is_no_rise():
    guard = Guarded(SGD(learning_rate=0.1), SGD(learning_rate=0.01))
    x = torch.tensor([[3.0]], dtype=DOUBLE)
    state = guard.init({"x": x})
    for step in range(100):
        loss = 1e3 + x.square().sum(1) / 2 if step // 7 % 2 else None
        updates, state = guard({"x": x}, state, {"x": x}, loss=loss)
        x = x + updates["x"]
    assert is_rule(state)


# In the optimizer


def train(x, optimizer, num_steps):
    points = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (x.pow(4) / 4 + x.square()).sum()
        loss.backward()
        optimizer.step(loss=loss)
        points.append(x.detach().clone())
    return torch.stack(points)


@pytest.mark.parametrize("lr", [0.01, 1.0])
def test_an_optimizer_goes_back_whatever_its_learning_rate(lr):
    start = torch.tensor([1.0, -0.7])
    x = nn.Parameter(start.clone())
    optimizer = LearnedOptimizer([x], Scripted(uphill), lr=lr, weight_decay=1e-3)
    points = train(x, optimizer, 400)
    assert (points[31] != start).all()
    assert torch.equal(points[32], start)  # after one window of the optimizer's guard
    assert (points[399].abs() < points[32].abs()).all()


@pytest.mark.parametrize("num_steps", [3, 33, 50, 820])
def test_resuming_goes_on_exactly(num_steps):
    def fresh():
        x = nn.Parameter(torch.tensor([1.0, -0.7]))
        return x, LearnedOptimizer([x], Scripted(uphill), guard=Adam(learning_rate=1e-3))

    x, optimizer = fresh()
    train(x, optimizer, num_steps)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    again, resumed = fresh()
    again.data.copy_(x.data)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(train(again, resumed, 30), train(x, optimizer, 30))


def test_half_precision_parameters_stay_finite():
    x = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float16))
    # Fits float32, in which rules compute, but not the parameter.
    optimizer = LearnedOptimizer([x], Scripted(lambda g, x, t: torch.full_like(g, 1e5)))
    for _ in range(40):
        x.grad = x.detach().clone()
        optimizer.step()
        assert x.isfinite().all()


def test_learned_rules_are_guarded_unless_told_otherwise():
    bad = Scripted(lambda g, x, t: torch.full_like(g, torch.nan))
    for guard, stays in ((True, True), ("sgd", True), (SGD(), True), (False, False)):
        x = nn.Parameter(torch.ones(2))
        optimizer = LearnedOptimizer([x], bad, guard=guard)
        assert optimizer.rule.name == "scripted"
        train(x, optimizer, 2)
        assert x.isfinite().all() == stays
    # A hand-made rule is what the guard would fall back to; one that is guarded already stays so.
    x = nn.Parameter(torch.ones(2))
    for rule in (SGD(), Guarded(bad, "sgd")):
        optimizer = LearnedOptimizer([x], rule)
        train(x, optimizer, 1)
        state = optimizer.state[x]["rule_state"]
        assert ("book" in state) == isinstance(rule, Guarded)
        assert "book" not in state.get("rule", {})


def test_unguarded_state_is_refused_by_a_guarded_optimizer():
    x = nn.Parameter(torch.ones(2))
    plain = LearnedOptimizer([x], CoordinatewiseLSTM(), guard=False)
    train(x, plain, 1)
    with pytest.raises(LearnedOptError, match="with the same rule, guard and shapes"):
        LearnedOptimizer([x], CoordinatewiseLSTM()).load_state_dict(plain.state_dict())


# Settings


def test_it_needs_what_its_rules_need():
    assert not Guarded(Momentum(), "adam").needs_loss
    agent = Guarded(PolicyRule(hidden=(4,)), "adam")
    assert agent.needs_loss and agent.needs_rng
    assert agent.feature_schema == agent.rule.feature_schema
    assert Guarded(CoordinatewiseLSTM(), "adam").compute_dtype == torch.float32
    assert Guarded(SGD(learning_rate=torch.ones(3)), "adam").sweep_size == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 3}, "window must be at least 4, got 3"),
        ({"rest": 0}, "rest must be positive, got 0"),
        ({"demand": 1.5}, "demand must be between 0 and 1, got 1.5"),
        ({"tolerance": -1.0}, "tolerance must not be negative, got -1.0"),
        ({"fallback": NoisyGD()}, "fallback must not need random numbers, got 'noisy_gd'"),
        (
            {
                "rule": SGD(learning_rate=torch.ones(3)),
                "fallback": SGD(learning_rate=torch.ones(2)),
            },
            "rule and fallback must be sweeps over equally many problems, got 3 and 2",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(LearnedOptError, match=message):
        Guarded(**settings)


@pytest.mark.parametrize("loss", [None, torch.ones(2)])
def test_a_gradient_that_is_not_finite_leaves_no_trace_in_what_was_promised(loss):
    """Where the fallback is in charge it does not move, so there is nothing to keep."""
    rule = Guarded("sgd", "adam")
    params = {"x": torch.ones(2, 3, dtype=torch.float64)}
    grads = {"x": torch.ones(2, 3, dtype=torch.float64)}
    grads["x"][0, 0] = torch.nan
    state = rule.init(params)
    state["book"]["is_rule"] = torch.zeros(2, dtype=torch.bool)
    _, state = rule(grads, state, params, loss=loss)
    for name in ("length", "slope", "promise"):
        assert state["step"][name].isfinite().all()
    assert state["step"]["promise"][0] == 0 < state["step"]["promise"][1]


def test_reach_bounds_points_and_updates_and_is_infinite_on_the_way_back():
    rule = Guarded(SGD(learning_rate=3.0), "adam", window=4)
    params = {"x": torch.tensor([[3.0, -4.0], [1e-3, 0.0]], dtype=torch.float64)}
    state, has_returned = rule.init(params), torch.zeros(2, dtype=torch.bool)
    for _ in range(12):
        updates, state = rule(params, state, params, loss=params["x"].square().sum(1) / 2)
        reach, back = rule.reach(state), rule.returns(state)
        assert torch.equal(reach.isinf(), back)
        length = params["x"].norm(dim=1) + updates["x"].norm(dim=1)
        assert_close(reach[~back], length[~back])
        has_returned |= back
        params = {"x": params["x"] + updates["x"]}
    assert has_returned.all()
    assert Adam().reach({}) is None
