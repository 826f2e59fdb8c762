"""Lanes side by side: parity with the inner loop, fresh episodes, twins."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from learned_opt.meta.arena import Arena
from learned_opt.meta.arenas import Arenas
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.rules import get_rule
from learned_opt.tasks import Mixture, NoisyGradient, get_task
from learned_opt.trees import flatten, leaves
from learned_opt.unroll import unroll

EPSILON = 1e-4


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def controller(seed=0):
    return get_rule("controller", lstm_units=4, seed=seed)


def arenas(tasks, **settings):
    given = {
        "weights": (1.0,) * len(tasks),
        "epsilons": (EPSILON,) * len(tasks),
        "actuator": controller().actuator,
        "num_lanes": 24,
        "pool_size": 50,
        "pool_seed": 0,
        "horizon": LogUniform(4, 20),
        "stochastic_stretch": 1.0,
        "twins": False,
        "dtype": torch.float32,
    }
    return Arenas.build(tasks, **given | settings)


def test_lanes_are_shared_out_and_know_their_task_and_their_twin():
    both = [get_task("strict_saddle", dim=4), get_task("monkey_saddle")]
    noisy = NoisyGradient(get_task("random_quadratic", dim=3), noise=0.1)
    more = NoisyGradient(get_task("monkey_saddle"), noise=0.3)
    found = arenas([both[0], noisy, both[1], more], weights=(1.0, 1.0, 2.0, 2.0), twins=True)
    assert [arena.num_lanes for arena in found.parts] == [12, 4, 8]
    assert found.is_noisy.tolist() == [False] * 12 + [True] * 12
    twins = [12, 13, 12, 13, 16, 17, 18, 19, 16, 17, 18, 19]
    assert found.origins.tolist() == [*range(12), *twins]
    standings = found.start(0.0, rng())
    kinds = found.kinds(standings)
    saddles = standings[0].problems.params["x"][:, 2:].eq(0).all(1)
    assert kinds[:12].tolist() == saddles.long().tolist()
    # A task that is itself a mixture counts as one, whose kinds have the same target.
    alone = arenas([Mixture.of(both, [1.0, 1.0]), noisy])
    assert [arena.epsilons for arena in alone.parts] == [(EPSILON,) * 2, (EPSILON,)]
    assert alone.kinds(alone.start(0.0, rng())).tolist() == [0] * 12 + [1] * 12


def test_lanes_move_as_they_would_in_their_own_arena():
    """Decisions and paces reach the right lanes, and what came of them is put together again."""
    noisy = NoisyGradient(get_task("random_quadratic", dim=3), noise=0.1)
    found = arenas([get_task("monkey_saddle"), noisy, get_task("strict_saddle", dim=4)])
    standings = found.start(0.0, rng())
    action = torch.rand(24, found.parts[0].actuator.actions.size, generator=rng(2))
    pace = torch.linspace(1, 50, 24)
    with torch.no_grad():
        after, outcome = found.step(standings, action, pace, rng(1))
        generator = rng(1)
        for part, lanes in enumerate((slice(0, 16), slice(16, 24))):
            moved, alone = found.parts[part].step(
                standings[part], action[lanes], pace[lanes], generator
            )
            assert_close(after[part]["point"], moved["point"])
            assert_close(outcome.cost[lanes], alone.cost)
            assert_close(outcome.over[lanes], alone.over)
    seen = found.seen_by_critic(after)
    assert_close(seen[:, -3:].argmax(1), found.kinds(after))
    assert_close(seen[:, : found.observation(after).shape[1]], found.observation(after).float())


def test_pools_hold_their_tasks_share_and_differ():
    given = [get_task("strict_saddle", dim=4), get_task("monkey_saddle")]
    noisy = [NoisyGradient(given[0], noise=0.1), NoisyGradient(given[0], noise=0.1)]
    weights = (3.0, 1.0, 2.0, 2.0)
    found = arenas([*given, *noisy], weights=weights, num_lanes=48, pool_size=8000)
    assert [arena.pool.num_problems for arena in found.parts] == [4000, 2000, 2000]
    kinds = found.parts[0].pool.constants["kind"]
    assert (kinds == 0).float().mean().item() == pytest.approx(0.75, abs=0.03)
    first, second = (arena.pool.params["x"] for arena in found.parts[1:])
    assert not torch.equal(first, second)


def test_twins_wait_for_fresh_episodes_until_a_rollout_begins():
    """And so do their origins: a fresh episode would end the comparison."""
    noisy = NoisyGradient(get_task("random_quadratic", dim=3), noise=0.1)
    found = arenas([get_task("monkey_saddle"), noisy], twins=True, horizon=Fixed(2))
    standings, generator = found.start(0.0, rng()), rng(1)
    size = found.parts[0].actuator.actions.size
    with torch.no_grad():
        for _ in range(2):
            standings, outcome = found.step(
                standings, torch.zeros(24, size), torch.ones(24), generator
            )
        assert outcome.over.all() and found.observation(standings).shape[0] == 24
        waiting, fresh = found.refill(standings, False, 0.0, generator)
        assert fresh.tolist() == [True] * 12 + [False] * 12
        assert waiting[1] is standings[1] and (waiting[0]["time"] == 0).all()
        _, fresh = found.refill(waiting, True, 0.0, generator)
    assert fresh.tolist() == [False] * 12 + [True] * 12


def test_each_task_has_its_own_smallest_target():
    """Lanes rest where their own target is reached, and wait for no other."""
    given = [get_task("strict_saddle", dim=4), get_task("monkey_saddle")]
    (arena,) = arenas(given, epsilons=(0.5, 1e-9)).parts
    standing = arena.start(0.0, rng())
    kinds = arena.kinds(standing)
    gap = torch.full((arena.num_lanes,), 0.4, dtype=torch.float64)
    there = replace(standing, tree={**standing.tree, "gap": gap, "best": gap})
    still_to_reach = arena.privileged(there)[:, 0]
    assert (still_to_reach[kinds == 0] == 0).all()
    expected = 1 - torch.tensor(0.4).log() / torch.tensor(1e-9).log()
    assert still_to_reach[kinds == 1].tolist() == pytest.approx(
        [expected.item()] * int((kinds == 1).sum()), abs=1e-6
    )


@pytest.mark.parametrize(
    "task", [get_task("strict_saddle", dim=4), get_task("deep_linear", depth=5)]
)
def test_an_arena_plays_what_the_inner_loop_runs(bold, task):
    """With the rule's own decisions and the loss in sight, lanes are runs of `unroll`."""
    rule = bold.double()
    problems = task.sample(6, seed=3, dtype=torch.float64)
    arena = Arena(
        task=task,
        pool=problems,
        actuator=rule.actuator,
        num_lanes=6,
        horizon=Fixed(12),
        epsilons=(1e-12,),
    )
    with torch.no_grad():
        standing = arena.start(0.0, rng(1))
        index, memory, gaps = standing["index"], rule.init_memory([6]), [standing["gap"]]
        noise = rng(2)
        for _ in range(12):
            action, memory = rule.decide(standing["observation"], memory)
            standing, outcome = arena.step(standing, action, torch.ones(6), noise)
            gaps.append(standing["gap"])
        run = unroll(task, rule, problems.select(index), num_steps=12, rng=rng(2))
    assert bool(outcome.over.all()) and bool(standing["over"].all())
    facts = problems.select(index).facts
    want = (run.losses - facts.minimum[:, None]) / (facts.reference - facts.minimum)[:, None]
    seen = torch.arange(6) % 5 != 0  # the others never see their loss
    assert_close(torch.stack(gaps, 1)[seen], want.clamp_min(0)[seen])
    assert_close(standing["point"][seen], flatten(run.carry.params)[seen])


def test_lanes_that_ended_are_filled_again_when_asked():
    task, rule = get_task("strict_saddle", dim=2), controller()
    arena = Arena(
        task=task,
        pool=task.sample(50, seed=0, dtype=torch.float32),
        actuator=rule.actuator,
        num_lanes=20,
        horizon=LogUniform(2, 9),
        epsilons=(EPSILON,),
    )
    generator = rng()
    with torch.no_grad():
        standing = arena.start(0.0, generator)
        for _ in range(4):
            standing, _ = arena.step(
                standing, torch.zeros(20, rule.actuator.actions.size), torch.ones(20), generator
            )
        over = standing["over"]
        assert 0 < over.sum() < 20
        assert_close(over, standing["horizon"] <= 4)
        filled, fresh = arena.refill(standing, 0.0, generator)
    assert_close(fresh, over)
    assert (filled["time"][fresh] == 0).all() and (filled["time"][~fresh] == 4).all()
    assert not filled["over"].any()
    assert_close(filled["point"][~fresh], standing["point"][~fresh])
    start = flatten(filled.problems.params)
    assert_close(filled["point"][fresh], start[fresh])


def noisy_tasks():
    both = [get_task("strict_saddle", dim=4), get_task("random_quadratic", dim=3)]
    return [
        NoisyGradient(both[0], noise=0.3),
        NoisyGradient(Mixture.of(both, [1.0, 1.0]), noise=0.3),
        get_task("digits_mlp", hidden=(2,), batch_size=4, num_train=8),
    ]


@pytest.mark.parametrize("task", noisy_tasks(), ids=lambda task: task.name)
@pytest.mark.parametrize("num_lanes", [5, 6])
def test_twins_differ_by_their_decisions_alone(num_lanes, task, bold):
    rule = bold.double()
    arena = Arena(
        task=task,
        pool=task.sample(50, seed=0, dtype=torch.float64),
        actuator=rule.actuator,
        num_lanes=num_lanes,
        horizon=LogUniform(2, 9),
        epsilons=(EPSILON,) * 2,
        has_twins=True,
    )
    assert arena.origins.tolist() == [0, 1, 2, 0, 1, 2][:num_lanes]
    first, second = torch.arange(num_lanes - 3), torch.arange(3, num_lanes)
    same = torch.full((num_lanes, rule.actuator.actions.size), 0.5)
    other = same.clone()
    other[second] = 0.1
    generator, ones = rng(1), torch.ones(num_lanes)

    def are_alike(standing):
        # But for rounding: products of batches may depend on a problem's place among them.
        trees = leaves(standing.tree), leaves(standing.problems.params)
        return all(
            torch.allclose(leaf[first], leaf[second], rtol=1e-12, atol=1e-14, equal_nan=True)
            for tree in trees
            for leaf in tree.values()
        )

    with torch.no_grad():
        standing = arena.start(0.0, generator)
        assert are_alike(standing) and not torch.equal(standing["point"][0], standing["point"][1])
        for decisions, alike in ((same, True), (same, True), (other, False)):
            standing, _ = arena.step(standing, decisions, ones, generator)
            assert are_alike(standing) is alike
        aligned = arena.align(standing)
        assert are_alike(aligned)
        assert torch.equal(aligned["point"][:3], standing["point"][:3])
        for _ in range(9):
            standing, fresh = arena.refill(aligned, 0.0, generator)
            assert are_alike(standing) and torch.equal(fresh, aligned["over"])
            aligned, _ = arena.step(standing, same, ones, generator)


def test_coordinates_that_a_problem_does_not_use_get_no_noise():
    """And those it uses as much as if there were no others."""
    mixture = Mixture.of(
        [get_task("strict_saddle", dim=2), get_task("strict_saddle", dim=32)], [1.0, 1.0]
    )
    rule = controller()
    arena = Arena(
        task=mixture,
        pool=mixture.sample(200, seed=0, dtype=torch.float64),
        actuator=rule.actuator,
        num_lanes=200,
        horizon=Fixed(5),
        epsilons=(EPSILON,) * 2,
    )
    names = rule.actuator.actions.names
    still, shaken = (torch.zeros(200, len(names)) for _ in range(2))
    still[:, names.index("noise")], shaken[:, names.index("noise")] = -1.0, 1.0
    with torch.no_grad():
        standing = arena.start(0.0, rng())
        points = [
            arena.step(standing, action, torch.ones(200), rng(1))[0]["point"]
            for action in (still, shaken)
        ]
    moved = points[1] - points[0]
    radius = standing.tree["actuator"]["radius"]
    is_small = mixture.used(standing.problems).sum(1) == 2
    assert (moved[is_small, 2:] == 0).all()
    for lanes in (is_small, ~is_small):
        relative = moved[lanes].norm(dim=1) / radius[lanes] * math.e
        assert relative.square().mean().item() == pytest.approx(1, rel=0.3)
