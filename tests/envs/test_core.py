"""The decision process: rewards that telescope, ends of episodes, score, bad settings."""

import math
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from envs.core import (
    OptimizationCore,
    Settings,
    episode_keys,
    has_compiler,
)
from envs.state import State, copy_state, write_lanes
from learned_opt.actuators import CoordUpdate, HyperControl, SaddleEscape, get_actuator
from learned_opt.errors import LearnedOptError
from learned_opt.tasks import Rosenbrock, get_task
from learned_opt.trees import leaves


def make_core(actuator=None, **settings):
    small = {"num_instances": 16, "dtype": "float64", **settings}
    return OptimizationCore(Settings(**small), actuator or HyperControl())


def keys(n, episode=0):
    return episode_keys(np.arange(n, dtype=np.uint64), np.full(n, episode))


def actions(core, n, seed=0):
    rng = np.random.default_rng(seed)
    if core.actuator.actions.is_discrete:
        return torch.from_numpy(rng.integers(0, core.actuator.actions.size, n))
    return torch.from_numpy(rng.uniform(-1, 1, (n, *core.action_shape)))


def follow(core, n=8, num_steps=10):
    """States of a run with random decisions."""
    states = [core.initial(keys(n))]
    for t in range(num_steps):
        states.append(core.transition(states[-1], actions(core, n, seed=t)))
    return states


@pytest.mark.parametrize("name", ["hyper_control", "coord_update", "saddle_escape"])
@pytest.mark.parametrize("best_so_far", [False, True])
def test_rewards_telescope(name, best_so_far):
    core = make_core(get_actuator(name), best_so_far=best_so_far)
    states = follow(core)
    total = sum(core.reward(a, b) for a, b in pairwise(states))
    assert_close(total, states[-1].potential - states[0].potential)


def test_a_closed_loop_earns_nothing():
    # Up the wall with too large a step, and back to the best point, where it began.
    core = make_core(SaddleEscape(), task="rosenbrock", learning_rate=(2.0, 2.0))
    start = core.initial(keys(4))
    there = core.transition(start, torch.zeros(4, dtype=torch.int64))
    back = core.transition(there, torch.full((4,), 8))
    assert (core.reward(start, there) < -1).all()
    assert_close(back.point, start.point)
    loop = core.reward(start, there) + core.reward(there, back)
    assert_close(loop, torch.zeros(4).double())


def test_the_potential_is_the_floored_log_gap():
    core = make_core(task="random_quadratic", target=1e-3)
    state = follow(core, num_steps=4)[-1]
    inner = core.task.loss(unflat(core, state), state.problems)
    start = core.task.loss(state.problems.params, state.problems)
    minimum = state.problems.facts.minimum
    expected = -torch.log((inner - minimum) / (start - minimum) + 1e-3)
    assert_close(state.potential, expected)
    assert_close(core.initial(keys(4)).potential, torch.full((4,), -math.log1p(1e-3)).double())


def unflat(core, state):
    ((name, shape),) = core.task.shapes.items()
    return {name: state.point.reshape(-1, *shape)}


def test_best_so_far_never_loses_but_by_divergence():
    core = make_core(SaddleEscape(), best_so_far=True)
    states = follow(core, n=32, num_steps=30)
    for a, b in pairwise(states):
        stays = ~b.has_diverged
        assert (core.reward(a, b)[stays & ~a.has_diverged] >= 0).all()
        assert_close(
            b.potential[stays],
            -torch.log(b.best_gap + core.settings.target)[stays],
            check_dtype=False,
        )


def test_kicks_cost():
    free, paid = (make_core(SaddleEscape(), kick_cost=cost) for cost in (0.0, 0.5))
    kick = torch.tensor([6, 0, 6])
    start = free.initial(keys(3))
    after = free.transition(start, kick)
    assert after.kicks.tolist() == [1, 0, 1]
    lost = free.reward(start, after) - paid.reward(start, after)
    assert_close(lost, torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))


def test_divergence_is_terminal_and_the_lowest():
    core = make_core(task="rosenbrock", learning_rate=(3.0, 3.0))
    state = core.initial(keys(8))
    for _ in range(30):
        state = core.transition(state, torch.ones(8, 3, dtype=torch.float64))
        assert torch.isfinite(state.potential).all()
        assert torch.isfinite(state.observation).all()
    assert state.has_diverged.all()
    assert core.terminal(state).all()
    assert_close(state.potential, torch.full((8,), -math.log(1e3) - 1).double())
    # The highest gap that has not diverged is still better.
    assert -math.log(1e3) - 1 < -math.log(1e3 + core.settings.target)


def test_gaps_in_units_of_the_saddle():
    settings = {"task_settings": {"dim": 10, "spread": 0.5}, "target": 1e-3, "dtype": "float64"}
    start, saddle = (
        make_core(SaddleEscape(), gap_unit=unit, best_so_far=True, **settings)
        for unit in ("start", "saddle")
    )
    state, other = start.initial(keys(16)), saddle.initial(keys(16))
    facts = other.problems.facts
    assert_close(other.gap, (other.loss - facts.minimum) / (facts.reference - facts.minimum))
    assert_close(other.best_gap, other.gap)
    assert_close(other.ceiling, 1e3 * other.gap)
    # Starts on the stable manifold lie far above the saddle; coming down is most of their gap.
    assert other.gap.median() > 10
    for t in range(30):
        action = actions(start, 16, seed=t)
        last = other
        state, other = start.transition(state, action), saddle.transition(other, action)
        assert_close(state.gap * state.unit, other.gap * other.unit, equal_nan=True)
        assert torch.equal(state.has_diverged, other.has_diverged)
        fine = ~(other.has_diverged | last.has_diverged)
        assert fine.any()
        rise = ((last.best_gap + 1e-3) / (other.best_gap + 1e-3)).log()
        assert_close(saddle.reward(last, other)[fine], rise[fine])
    with pytest.raises(LearnedOptError, match="unknown gap_unit 'sadle'"):
        make_core(gap_unit="sadle")


def test_diverging_never_pays_even_where_the_start_lies_below_the_target():
    core = make_core(task="rosenbrock", learning_rate=(3.0, 3.0), gap_unit="saddle", target=0.5)
    start = core.initial(keys(8))
    start = replace(start, ceiling=1e-4 * start.ceiling)  # a thousandth of the saddle's gap
    state = core.transition(start, torch.ones(8, 3, dtype=torch.float64))
    assert state.has_diverged.all()
    assert (state.potential < -torch.log(start.ceiling + 0.5)).all()


def test_gaps_of_a_problem_without_a_saddle_are_measured_from_its_start():
    core = make_core(task="random_quadratic", gap_unit="saddle")
    assert_close(core.initial(keys(2)).gap, torch.ones(2, dtype=torch.float64))


def test_not_a_number_diverges_in_its_own_lane():
    core = make_core()
    action = torch.zeros(3, 3, dtype=torch.float64)
    action[1] = math.nan
    state = core.transition(core.initial(keys(3)), action)
    assert state.has_diverged.tolist() == [False, True, False]
    assert core.terminal(state).tolist() == [False, True, False]
    assert torch.isfinite(state.observation).all()


def test_reaching_the_target_is_terminal():
    # Step size one over the curvature, no momentum to speak of: a quadratic is solved at once.
    core = make_core(
        HyperControl(momentum=0.01, noise=False),
        task="strict_saddle",
        task_settings={"dim": 2, "start": "natural"},
        learning_rate=(0.0, 0.0),
        target=0.9,
    )
    state = core.transition(core.initial(keys(4)), torch.zeros(4, 2, dtype=torch.float64))
    assert (state.gap <= 0.9).any()
    assert torch.equal(core.terminal(state), state.gap <= 0.9)
    assert not state.has_diverged.any()


def test_the_minimum_moves_rewards_but_nothing_that_is_seen():
    plain, moved = (make_core(SaddleEscape()) for _ in range(2))
    start = plain.initial(keys(6))
    facts = replace(start.problems.facts, minimum=start.problems.facts.minimum - 3)
    other = replace(
        start,
        problems=replace(start.problems, facts=facts),
        unit=start.unit + 3,
    )
    rewards = []
    for t in range(8):
        action = actions(plain, 6, seed=t)
        following, following_other = (
            plain.transition(start, action),
            moved.transition(other, action),
        )
        rewards.append((plain.reward(start, following), moved.reward(other, following_other)))
        start, other = following, following_other
        assert torch.equal(start.observation, other.observation)
        assert torch.equal(start.point, other.point)
        for path, leaf in leaves(start.actuator).items():
            assert torch.equal(leaf, leaves(other.actuator)[path]), path
    assert all((a != b).any() for a, b in rewards)


def test_transition_leaves_its_arguments_alone():
    core = make_core(CoordUpdate())
    state = core.initial(keys(3))
    before = {path: leaf.clone() for path, leaf in leaves(state.actuator).items()}
    point, action = state.point.clone(), actions(core, 3)
    given = action.clone()
    core.transition(state, action)
    assert torch.equal(action, given)
    assert torch.equal(state.point, point)
    for path, leaf in leaves(state.actuator).items():
        assert torch.equal(leaf, before[path]), path


def test_instances_and_step_sizes_are_spread_as_promised():
    core = make_core(num_instances=8, learning_rate=(-2.0, 1.0), task="rosenbrock")
    state = core.initial(keys(4000))
    decades = torch.log10(state.actuator["learning_rate"] * core.task.smoothness).numpy()
    assert -2 <= decades.min() < -1.95
    assert 0.95 < decades.max() <= 1
    assert abs(decades.mean() + 0.5) < 5 * (9 / 12 / 4000) ** 0.5
    pool = Rosenbrock().sample(8, seed=0, dtype=torch.float64)
    counts = [(state.point == start).all(1).sum() for start in pool.params["x"]]
    assert sum(counts) == 4000
    assert all(abs(int(c) - 500) < 5 * 500**0.5 for c in counts)


def test_the_pool_is_named_by_its_seed():
    points = [make_core(instance_seed=s).initial(keys(16)).point for s in (0, 0, 1)]
    assert torch.equal(points[0], points[1])
    assert not (points[0][:, None] == points[2][None]).all(2).any()


def test_episodes_differ():
    core = make_core(num_instances=4096)
    first, second = core.initial(keys(5)), core.initial(keys(5, episode=1))
    assert (first.point != second.point).any(1).all()
    assert (first.actuator["learning_rate"] != second.actuator["learning_rate"]).all()


def test_minibatches_belong_to_a_lane_and_its_step():
    settings = {"task": "digits_mlp", "num_instances": 2, "dtype": "float32"}
    core = make_core(get_actuator("learning_rate"), **settings)
    many, alone = core.initial(keys(4)), core.initial(keys(4)[2:3])
    assert torch.equal(many.grads[2], alone.grads[0])
    keep = torch.zeros(4, dtype=torch.int64)
    many, alone = core.transition(many, keep), core.transition(alone, keep[:1])
    assert torch.equal(many.grads[2], alone.grads[0])
    # The score is on all data: it does not depend on the minibatch.
    exact = core.task.loss(many.problems.params, many.problems)
    assert_close(core.initial(keys(4)).loss, exact.double())


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(LearnedOptError, match="compile must be False without a C\\+\\+ compiler"):
        make_core(compile=True)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("hyper_control", "rippled_quadratic"),
        ("hyper_control", "strict_saddle"),  # other constants, in the same process
        ("saddle_escape", "rippled_quadratic"),
    ],
)
def test_a_compiled_step_is_the_step(name, task):
    plain, compiled = (
        make_core(get_actuator(name), task=task, compile=compile) for compile in (False, True)
    )
    state, other = plain.initial(keys(8)), compiled.initial(keys(8))
    for t in range(4):
        action = actions(plain, 8, seed=t)
        state, other = plain.transition(state, action), compiled.transition(other, action)
        for path, leaf in leaves(state.actuator).items():
            assert_close(leaves(other.actuator)[path], leaf, msg=path)
        for field in ("point", "grads", "loss", "observation", "gap", "potential", "kicks"):
            assert_close(getattr(other, field), getattr(state, field), msg=field)


@pytest.mark.parametrize("num_steps", [0, 5])
def test_written_lanes_are_the_fresh_ones_and_others_stay(num_steps):
    """Written into as they are: tensors of a fresh state share memory, of a stepped one some do."""
    core = make_core(SaddleEscape())
    state, fresh = follow(core, n=4, num_steps=num_steps)[-1], core.initial(keys(2, episode=1))
    before = copy_state(state)
    write_lanes(state, np.array([3, 1]), fresh, np.array([0, 1]))
    for position, source, lane in ((3, fresh, 0), (1, fresh, 1), (0, before, 0), (2, before, 2)):
        assert state.keys[position] == source.keys[lane]
        for field in fields(State):
            value = getattr(state, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value[position], getattr(source, field.name)[lane]), field.name
        assert state.problems.facts.minimum[position] == source.problems.facts.minimum[lane]
        for path, leaf in leaves(state.actuator).items():
            assert torch.equal(leaf[position], leaves(source.actuator)[path][lane]), path


def test_a_saddle_escape_mask_is_honoured():
    core = make_core(SaddleEscape(cooldown=3, kick_budget=2))
    state = core.initial(keys(5))
    kicks = []
    for t in range(12):
        mask = core.actuator.mask(state.actuator)
        forbidden = torch.full((5,), 5)
        after = core.transition(state, forbidden)
        if not bool(mask[0, 5]):
            instead = core.transition(state, torch.zeros(5, dtype=torch.int64))
            assert torch.equal(after.point, instead.point)
        kicks.append(bool(mask[0, 5]))
        assert after.kicks.tolist() == [sum(kicks)] * 5
        state = after
        del t
    assert kicks == [True, False, False, False, True] + [False] * 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": (1.0, 0.0)}, "learning_rate must be two decades, low and high"),
        ({"learning_rate": (1.0,)}, "learning_rate must be two decades, low and high"),
        ({"num_instances": 0}, "num_instances must be positive, got 0"),
        ({"target": 1.0}, r"target must lie in \(0, 1\), got 1.0"),
        ({"task": "digits_mlp", "compile": True}, "compile must be False for a task with minibatc"),
        ({"kick_cost": -0.1}, "kick_cost must not be negative, got -0.1"),
        ({"dtype": "float16"}, "dtype must be float32 or float64, got 'float16'"),
        ({"task": "octopsu"}, "unknown task 'octopsu'; did you mean 'octopus'"),
        ({"task_settings": {"size": 3}}, "task 'strict_saddle': .*'size'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(LearnedOptError, match=message):
        make_core(**settings)


def test_the_unit_of_the_step_size_is_the_tasks():
    core = make_core(task="rosenbrock", learning_rate=(-1.0, -1.0))
    rate = core.initial(keys(2)).actuator["learning_rate"]
    assert_close(rate, torch.full((2,), 0.1 / get_task("rosenbrock").smoothness).double())


def test_an_actuator_is_told_the_number_of_matrices():
    core = make_core(
        get_actuator("trust_region"), task="deep_linear", task_settings={"depth": 6}, compile=False
    )
    state = core.initial(keys(2))
    unknown = core.actuator.init(state.point, learning_rate=torch.ones(2))
    assert_close(state.actuator["unit"], 0.5 * unknown["unit"])


def test_kicks_are_spent_on_the_coordinates_that_a_problem_uses():
    """In a mixture a kick moves the problem's own coordinates, by as much as it would alone."""
    entries = [{"task": "monkey_saddle"}, {"task": "strict_saddle", "task_settings": {"dim": 30}}]
    core = OptimizationCore(
        Settings(task="mixture", task_settings={"tasks": entries}, dtype="float64"), SaddleEscape()
    )
    state = core.initial(keys(400))
    state = core.transition(state, torch.zeros(400, dtype=torch.int64))
    kick = torch.full((400,), 6)
    kicked, plain = core.transition(state, kick), core.transition(state, torch.zeros_like(kick))
    move = kicked.point - plain.point
    is_small = state.problems.constants["kind"] == 0
    assert (move[is_small][:, 2:] == 0).all()
    stride = (plain.point - state.point).norm(dim=1)
    size = move.norm(dim=1) / torch.maximum(state.actuator["longest"], stride)
    # A random vector of d coordinates with variance 1/d has length 1 on average (squared).
    for mask in (is_small, ~is_small):
        assert size[mask].square().mean().sqrt().item() == pytest.approx(0.1, rel=0.2)
