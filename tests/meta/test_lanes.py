"""Many thetas in one batch: as a loop over them would run, with draws that a pair shares."""

import copy

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.lanes import Lanes, SharedDraws
from learned_opt.rules import get_rule
from learned_opt.rules.base import registered_rules
from learned_opt.tasks.networks import DigitsMLP
from learned_opt.tasks.quadratics import RandomQuadratic

DTYPE = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


BRANCHING = {"guarded", "perturbed_gd", "perturbed_gd_theory"}


@pytest.mark.parametrize("name", sorted(registered_rules()))
def test_lanes_are_what_a_loop_over_thetas_would_be(name):
    rule = get_rule(name).double()
    theta = torch.cat([p.detach().flatten() for p in rule.parameters()])
    noise = 1e-3 * torch.rand(3, len(theta), generator=rng(1), dtype=DTYPE)
    # Lanes 0 and 2 of a pair run under one theta: all that they draw must agree.
    thetas = theta + torch.stack((noise, 0 * noise, noise), dim=1)
    problems = RandomQuadratic(dim=4).sample(3 * 3 * 2, seed=0, dtype=DTYPE)
    x = problems.params["x"].view(3, 3, 2, 4)
    x[:, 2] = x[:, 0]
    params, loss = {"x": x.view(18, 4)}, torch.rand(18, generator=rng(), dtype=DTYPE)
    loss.view(3, 3, 2)[:, 2] = loss.view(3, 3, 2)[:, 0]
    lanes = Lanes(rule, thetas)
    state, draws, updates = lanes.init(params), rng(), {}

    def two_steps(rule, params, state, loss, draws):
        for _ in range(2):
            updates, state = rule(params, state, params, loss=loss, rng=draws)
        return updates["x"]

    if name in BRANCHING:
        with pytest.raises(LearnedOptError, match=f"rule '{name}' branches on what its tensors"):
            two_steps(lanes, params, state, loss, draws)
        return
    updates = two_steps(lanes, params, state, loss, draws).view(3, 3, 2, 4)
    torch.testing.assert_close(updates[:, 0], updates[:, 2], rtol=1e-12, atol=0.0)
    if rule.needs_rng:
        assert not torch.allclose(*two_steps_of_one_problem(lanes, two_steps))
        return
    for pair in range(3):
        for lane in range(3):
            one = copy.deepcopy(rule)
            torch.nn.utils.vector_to_parameters(thetas[pair, lane], one.parameters())
            own = {"x": x[pair, lane]}
            expected = two_steps(one, own, one.init(own), loss.view(3, 3, 2)[pair, lane], rng())
            torch.testing.assert_close(updates[pair, lane], expected, rtol=1e-9, atol=1e-12)


def two_steps_of_one_problem(lanes, two_steps):
    """The same problem in every pair, so that the pairs' own draws alone tell them apart."""
    params, loss = {"x": torch.ones(18, 4, dtype=DTYPE)}, torch.ones(18, dtype=DTYPE)
    lanes.thetas = {k: v[:1].expand_as(v) for k, v in lanes.thetas.items()}
    updates = two_steps(lanes, params, lanes.init(params), loss, rng()).view(3, 3, 2, 4)
    return updates[0], updates[1]


def test_lanes_share_minibatches_and_pairs_do_not():
    task = DigitsMLP(batch_size=5)
    groups = task.sample(4, seed=0)
    rows = torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])  # 2 pairs, 2 lanes, 2 problems
    index = SharedDraws(task, groups, rows).batch(groups.select(rows), rng())["index"]
    assert torch.equal(index, task.batch(groups, rng())["index"][rows])
    assert len(index.unique(dim=0)) == 4
    whole = DigitsMLP(batch_size=None)
    assert SharedDraws(whole, groups, rows).batch(groups.select(rows), rng()) is None
