"""Meta-gradients from a share of the coordinates: exact with all of them, unbiased with fewer."""

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.horizons import Fixed
from learned_opt.meta.objectives import get_objective
from learned_opt.meta.replay import replay, unroll_with_gradients
from learned_opt.meta.truncated import TruncatedBackpropagation
from learned_opt.rules import get_rule
from learned_opt.tasks import get_task
from learned_opt.unroll import start, unroll

DTYPE = torch.float64
NETWORK = {"hidden": (3,), "batch_size": 16, "num_train": 64}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def estimator(share, *, task="random_quadratic", truncation=5, horizon=9, **settings):
    sampler = EpisodeSampler(
        tasks=[get_task(task, **settings)], num_problems=3, horizon=Fixed(horizon), dtype=DTYPE
    )
    return TruncatedBackpropagation(
        sampler=sampler,
        objective=get_objective("log_gap"),
        truncation=truncation,
        coordinate_share=share,
    )


def gradients(backpropagation, rule, *, num_estimates=2, seed=0):
    """The estimates of a whole episode in truncations, each flat."""
    draws, state, found = rng(seed), None, []
    for _ in range(num_estimates):
        estimate = backpropagation.estimate(rule, state, progress=0.0, rng=draws)
        state = estimate.state
        found.append((estimate.meta_loss, torch.cat([g.flatten() for g in estimate.grads])))
    return found


@pytest.mark.parametrize("name", ["lstm", "rnnprop"])
@pytest.mark.parametrize(("task", "settings"), [("random_quadratic", {}), ("digits_mlp", NETWORK)])
def test_all_coordinates_give_the_exact_gradient(name, task, settings):
    rule = get_rule(name).double()
    # A share so close to 1 that rounding keeps every coordinate.
    exact = gradients(estimator(1.0, task=task, **settings), rule)
    replayed = gradients(estimator(1 - 1e-9, task=task, **settings), rule)
    for (loss, grad), (expected_loss, expected) in zip(replayed, exact, strict=True):
        assert loss.item() == expected_loss.item()
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-14)


def test_a_share_is_unbiased():
    rule = get_rule("lstm").double()
    task, steps = get_task("random_quadratic"), 4
    problems = task.sample(3, seed=1, dtype=DTYPE)
    carry = start(rule, problems)
    _, seen = unroll_with_gradients(task, rule, problems, num_steps=steps, rng=rng(), carry=carry)
    weights = torch.rand(3, steps + 1, dtype=DTYPE, generator=rng(2))

    def flat(share, seed):
        grads = replay(rule, carry.state, seen, weights, share=share, rng=rng(seed))
        return torch.cat([g.flatten() for g in grads])

    whole = flat(1.0, 0)
    draws = torch.stack([flat(0.3, seed) for seed in range(400)])
    error = draws.std(0) / 400**0.5
    is_random = error > 1e-12
    assert is_random.double().mean() > 0.9
    z = (draws.mean(0) - whole)[is_random] / error[is_random]
    assert z.abs().max() < 5
    assert z.square().mean() < 2


def test_gradients_belong_to_the_losses():
    task, rule = get_task("digits_mlp", **NETWORK), get_rule("adam")
    problems = task.sample(2, seed=0, dtype=DTYPE)
    draws = rng(7)
    run, seen = unroll_with_gradients(task, rule, problems, num_steps=3, rng=draws)
    plain_draws = rng(7)
    plain = unroll(task, rule, problems, num_steps=3, rng=plain_draws)
    assert torch.equal(run.losses, plain.losses)
    assert torch.equal(run.carry.params["w0"], plain.carry.params["w0"])
    assert run.carry.step == 3
    assert len(seen) == 4
    assert torch.equal(draws.get_state(), plain_draws.get_state())


def test_the_last_truncation_of_an_episode_may_be_shorter():
    found = gradients(estimator(0.5, truncation=6, horizon=8), get_rule("lstm").double())
    assert all(torch.isfinite(grad).all() for _, grad in found)


def test_rules_that_tie_coordinates_together_are_refused():
    with pytest.raises(LearnedOptError, match="'momentum' is not coordinatewise"):
        estimator(0.5).estimate(get_rule("momentum"), None, progress=0.0, rng=rng())


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_must_be_one(share):
    with pytest.raises(LearnedOptError, match=f"coordinate_share must lie in .* got {share}"):
        estimator(share)
