"""Policy search over update rules: closed forms, parity with the inner loop, and that it learns."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from learned_opt.errors import LearnedOptError
from learned_opt.meta import ppo
from learned_opt.meta.arena import Outcome
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.configured import configured_estimator
from learned_opt.meta.critic import Critic
from learned_opt.meta.estimators import trainable
from learned_opt.meta.hitting_time import divergence_cost, step_cost, unreached
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.meta.paces import Paces
from learned_opt.meta.ppo import ProximalPolicy
from learned_opt.meta.rollout import advantages, beside_twins, log_likelihood, standardised
from learned_opt.meta.trainer import meta_train
from learned_opt.rules import get_rule
from learned_opt.tasks import Mixture, NoisyGradient, get_task
from learned_opt.trees import tree_map

EPSILON = 1e-4
CONFIG = TrainConfig(
    estimator="ppo",
    num_outer_steps=8,
    num_problems=24,
    truncation=9,
    horizon=LogUniform(4, 20),
    epsilon=EPSILON,
    epochs=2,
    minibatches=2,
    evaluate_every=4,
    num_eval_problems=3,
    log_every=2,
    checkpoint_seconds=0.0,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tasks():
    return [
        get_task("strict_saddle", dim=4),
        NoisyGradient(get_task("random_quadratic", dim=3), noise=0.1),
        get_task("monkey_saddle"),
    ]


def controller(seed=0):
    return get_rule("controller", lstm_units=4, seed=seed)


def test_the_cost_of_an_episode_is_its_mean_time_over_the_pace():
    """A tenth at step 3, everything at step 10, and then it stays: one target of four decades."""
    gaps = torch.tensor([1.0] * 2 + [0.1] * 7 + [0.0] * 5)
    steps = torch.arange(1, 15)
    total = step_cost(gaps, gaps, steps, torch.full_like(gaps, 5.0), epsilon=EPSILON).sum()
    # Targets between 1 and 0.1 are a quarter of all: waited for at 2 steps, the others at 9.
    assert total.item() == pytest.approx((0.25 * 2 + 0.75 * 9) / 5)


def test_what_was_lost_again_costs_three_tenths_and_late_steps_nothing():
    zero, one = torch.zeros(1), torch.ones(1)
    paces = 4 * one
    assert step_cost(zero, one, one, paces, epsilon=EPSILON).item() == pytest.approx(0.3 / 4)
    assert step_cost(one, one, 81 * one, paces, epsilon=EPSILON).item() == 0
    assert unreached(torch.tensor(1e9), epsilon=EPSILON).item() == pytest.approx(1.25)


def test_diverging_costs_more_than_standing_still():
    for t in (1, 10, 399):
        left = torch.arange(t, 401).float()
        worst = torch.full_like(left, 1e9)
        for pace in (1.0, 10.0, 1000.0):
            paces = torch.full_like(left, pace)
            still = step_cost(worst, worst, left, paces, epsilon=EPSILON).sum()
            price = divergence_cost(left[:1], torch.tensor([400.0]), paces[:1], epsilon=EPSILON)
            assert price.item() > still.item() - 1e-4


def test_advantages_have_one_scale_with_noise_and_one_without():
    K, N = 30, 8
    is_noisy = torch.arange(N) >= 5
    weights = (torch.rand(K, N, generator=rng(4)) < 0.8).float()
    weights[:, 0] = 0
    costs = torch.randn(K, N, generator=rng()) * torch.where(is_noisy, 0.01, 3.0) + 1
    got = standardised(costs * weights, is_noisy, weights)
    for lanes, share in ((is_noisy, 0.2), (~is_noisy, 1)):
        moved = got[:, lanes][weights[:, lanes].bool()]
        assert moved.mean().abs() < 1e-5 and moved.std().item() == pytest.approx(share, rel=1e-4)
    assert (got[weights == 0] == 0).all()
    # A group without lanes is no group.
    assert standardised(costs, is_noisy & False, weights).isfinite().all()


def test_advantages_are_those_of_a_slow_reference():
    K, N, decay = 7, 5, 0.8
    costs, expected, following = (torch.randn(K, N, generator=rng(i)) for i in range(3))
    over = torch.rand(K, N, generator=rng(3)) < 0.3
    weights = (torch.rand(K, N, generator=rng(4)) < 0.8).float()
    got = advantages(costs, expected, following, over, weights, decay=decay)
    for n in range(N):
        for k in range(K):
            want, factor = 0.0, 1.0
            for j in range(k, K):
                if weights[j, n] == 0:
                    break
                want += factor * (costs[j, n] + following[j, n] - expected[j, n]).item()
                factor *= decay
                if over[j, n]:
                    break
            assert got[k, n].item() == pytest.approx(want, abs=1e-5)


def test_what_came_of_twins_is_compared():
    total, origins = torch.tensor([1.0, 5.0, 2.0, 3.0, 9.0]), torch.tensor([0, 1, 2, 0, 1])
    assert beside_twins(total, origins).tolist() == [-1, -2, 0, 1, 2]


def test_a_comparison_of_twins_has_the_right_mean_and_less_noise():
    """On what is smooth in a decision plus luck that twins share: the slope is the closed form."""
    num_pairs, slope = 4000, torch.tensor([1.0, -2.0, 0.5])
    drawn = torch.randn(num_pairs, 3, generator=rng())
    drawn = torch.cat((drawn, -drawn))
    luck = 30 * torch.randn(num_pairs, generator=rng(1)).repeat(2)
    total = drawn @ slope + drawn.square().sum(1) + luck
    origins = torch.arange(2 * num_pairs) % num_pairs
    scores = beside_twins(total, origins)[:, None] * drawn
    error = scores[:num_pairs].std(0) / num_pairs**0.5
    assert ((scores.mean(0) - slope).abs() < 4 * error).all()
    assert (error * 5 < (total[:, None] * drawn).std(0) / (2 * num_pairs) ** 0.5).all()


TWINS = {"twins": True, "noise_exploration": 0.5}


def deviations(state, settings):
    """``[N, 1]`` standard deviations of the decisions."""
    factor = settings.get("noise_exploration", 1.0)
    found = [factor * state.std if noisy else state.std for noisy in state.arenas.is_noisy]
    return torch.tensor(found, dtype=state.rollout.actions.dtype)[:, None]


@pytest.mark.parametrize("settings", [{}, TWINS])
def test_the_first_gradient_of_a_rollout_is_the_score_function_estimate(settings):
    """Nothing has moved yet, so nothing is cut: the gradient is that of advantage times log p.

    To that comes the likelihood of what the judge believes, whose truth is known.
    """
    config = replace(CONFIG, minibatches=1, **settings)
    rule, estimator = controller(), configured_estimator(config, tasks())
    estimate = estimator.estimate(rule, None, progress=0.0, rng=rng())
    rollout, is_noisy = estimate.state.rollout, estimate.state.arenas.is_noisy
    memory, total, told = rollout.memory, 0.0, 0.0
    std = deviations(estimate.state, settings)
    for k in range(9):
        if k == 8:
            memory = tree_map(lambda m: m * ~rollout.fresh[8, :, None], memory)
        mean, memory = rule.outputs_told(rollout.observations[k], memory, is_noisy)
        likelihood = log_likelihood(rollout.actions[k], mean, std)
        assert_close(likelihood, rollout.log_likelihoods[k])
        total = total + (rollout.advantages[k] * likelihood).sum()
        noisy = rule.belief(memory).sigmoid()
        told = told + (rollout.weights[k] * torch.where(is_noisy, noisy, 1 - noisy).log()).sum()
    want = torch.autograd.grad(-(total + told) / rollout.advantages.numel(), trainable(rule))
    for got, slope in zip(estimate.grads, want, strict=True):
        assert_close(got, slope, rtol=1e-4, atol=1e-7)
    assert estimate.metrics["kl_divergence"] == pytest.approx(0, abs=1e-6)
    for lanes, share in ((is_noisy, 0.2), (~is_noisy, 1)):
        moved = rollout.advantages[:, lanes][rollout.weights[:, lanes].bool()]
        assert moved.mean().item() == pytest.approx(0, abs=1e-5)
        assert moved.std().item() == pytest.approx(share, rel=1e-2)


@pytest.mark.parametrize("settings", [{}, TWINS])
@pytest.mark.parametrize(("moved", "is_far"), [(0.005, False), (0.3, True)])
def test_the_objective_of_a_policy_that_moved_is_that_of_a_slow_reference(moved, is_far, settings):
    """Lane by lane: amid noise one ratio for all steps, and nothing gained from far away."""
    config = replace(CONFIG, minibatches=1, **settings)
    rule, estimator = controller(), configured_estimator(config, tasks())
    state = estimator.estimate(rule, None, progress=0.0, rng=rng()).state
    generator = rng(7)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
        rollout, is_noisy = state.rollout, state.arenas.is_noisy
        memory, differences, outside, surprise = rollout.memory, [], [], 0.0
        for k in range(9):
            if k == 8:
                memory = tree_map(lambda m: m * ~rollout.fresh[8, :, None], memory)
            mean, memory = rule.outputs_told(rollout.observations[k], memory, is_noisy)
            new = log_likelihood(rollout.actions[k], mean, deviations(state, settings))
            differences.append(new - rollout.log_likelihoods[k])
            outside.append((mean.abs() - 1).clamp_min(0).square())
            chance = rule.belief(memory).sigmoid()
            right = torch.where(is_noisy, chance, 1 - chance)
            surprise -= (rollout.weights[k] * right.log()).sum()
        gains, divergence = torch.zeros(9, 24), {True: [], False: []}
        for n in range(24):
            steps = [k for k in range(9) if rollout.weights[k, n] == 1]
            whole = sum(differences[k][n] for k in steps) / max(len(steps), 1)
            for k in steps:
                change = whole if is_noisy[n] else differences[k][n]
                divergence[bool(is_noisy[n])].append((change.exp() - 1 - change).item())
                ratio, advantage = change.exp(), rollout.advantages[k, n]
                gains[k, n] = min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        noisy, calm = (sum(found) / len(found) for found in (divergence[True], divergence[False]))
        if is_far:
            gains[:, is_noisy] = 0
        want = 0.01 * torch.stack(outside).mean() - gains.mean() + surprise / gains.numel()
        loss, change = estimator._surrogate(rule, state, torch.arange(24))
    assert (noisy > 0.03) == is_far
    assert_close(loss, want, rtol=1e-4, atol=1e-6)
    assert change["kl_divergence"] == pytest.approx(calm, rel=1e-3)
    assert change["kl_divergence_amid_noise"] == pytest.approx(noisy, rel=1e-3)


def test_where_nothing_is_noisy_there_is_no_divergence_amid_noise():
    estimator = configured_estimator(CONFIG, tasks()[:1])
    metrics = estimator.estimate(controller(), None, progress=0.0, rng=rng()).metrics
    assert "kl_divergence" in metrics and "kl_divergence_amid_noise" not in metrics


def test_where_there_is_noise_a_change_of_decisions_is_kept_up():
    rule = controller()
    with torch.no_grad():
        for net in (rule, rule.amid_noise):
            for parameter in net.layers[-1].parameters():
                parameter.zero_()
    state = (
        configured_estimator(CONFIG, tasks()).estimate(rule, None, progress=0.0, rng=rng()).state
    )
    actions = state.rollout.actions
    is_noisy = state.arenas.is_noisy
    assert 0 < is_noisy.sum() < len(is_noisy)
    assert (actions[:, is_noisy] == actions[0, is_noisy]).all()
    assert (actions[1:, ~is_noisy] != actions[:-1, ~is_noisy]).all()
    assert actions[0].std().item() == pytest.approx(0.3, rel=0.1)


def test_twins_try_opposite_changes_and_are_worth_opposite_amounts():
    rule, config = controller(), replace(CONFIG, num_problems=240, **TWINS)
    with torch.no_grad():
        for net in (rule, rule.amid_noise):
            for parameter in net.layers[-1].parameters():
                parameter.zero_()
    estimator = configured_estimator(config, tasks())
    state = estimator.estimate(rule, None, progress=0.0, rng=rng()).state
    rollout, is_noisy = state.rollout, state.arenas.is_noisy
    assert is_noisy.sum() == 80
    some, others = rollout.actions[0, is_noisy].tensor_split(2)
    assert torch.equal(some, -others) and len(some.unique()) == some.numel()
    assert some.std().item() == pytest.approx(0.15, rel=0.1)
    some, others = rollout.actions[0, ~is_noisy].tensor_split(2)
    assert len(torch.cat((some, -others)).unique()) == some.numel() + others.numel()
    # Standardised over steps, so they are opposite up to what few lanes that stood still change.
    some, others = rollout.advantages[0, is_noisy].tensor_split(2)
    assert_close(some, -others, rtol=0.0, atol=0.05)
    assert torch.equal(
        rollout.observations[0, is_noisy][:40], rollout.observations[0, is_noisy][40:]
    )


def test_a_rule_that_does_not_ask_decides_as_ever():
    """Told of noise or not, its likelihoods are those of its own outputs."""
    rule = get_rule("policy", actuator="trust_region", hidden=(5,), scope="problem", seed=2)
    estimator = configured_estimator(replace(CONFIG, **TWINS), tasks())
    state = estimator.estimate(rule, None, progress=0.0, rng=rng()).state
    mean, _ = rule.outputs(state.rollout.observations[0], rule.init_memory([24]))
    want = log_likelihood(state.rollout.actions[0], mean, deviations(state, TWINS))
    assert_close(state.rollout.log_likelihoods[0], want)


def test_exploration_keeps_the_digits_of_the_problems():
    config = replace(CONFIG, dtype="float64", exploration=(0.3, 0.1))
    rule, estimator = controller().double(), configured_estimator(config, tasks())
    state = estimator.estimate(rule, None, progress=0.4, rng=rng()).state
    assert estimator._deviations(state).unique().item() == 0.3 * (1 / 3) ** 0.4


def test_the_next_rollout_begins_where_the_first_of_two_twins_went(bold):
    rule, config = bold, replace(CONFIG, horizon=Fixed(12), stochastic_stretch=1.0, **TWINS)
    estimator, generator, state = configured_estimator(config, tasks()), rng(), None
    for _ in range(4):
        state = estimator.estimate(rule, state, progress=0.0, rng=generator).state
    origins, is_noisy = state.arenas.origins, state.arenas.is_noisy
    went = [standing["point"] for standing in state.standings]
    assert not torch.equal(went[1][:4], went[1][4:])
    before = state.memory["hidden"]
    state = estimator.estimate(rule, state, progress=0.0, rng=generator).state
    rollout = state.rollout
    # Episodes of twelve steps end in the second rollout of nine; none begins before the next one.
    goes_on = is_noisy & ~rollout.fresh[0]
    assert goes_on.any() and torch.equal(goes_on[is_noisy][:4], goes_on[is_noisy][4:])
    assert not rollout.fresh[1:, is_noisy].any() and not rollout.weights[3:, goes_on].any()
    assert torch.equal(rollout.memory["hidden"][goes_on], before[origins][goes_on])
    assert before[goes_on].abs().min() > 0
    assert torch.equal(
        rollout.observations[0, is_noisy], rollout.observations[0, origins[is_noisy]]
    )
    for _ in range(4):
        state = estimator.estimate(rule, state, progress=0.0, rng=generator).state
    assert state.rollout.fresh[0, goes_on].all()
    assert torch.equal(state.standings[1]["index"][:4], state.standings[1]["index"][4:])


def test_what_twins_settings_say_is_checked():
    with pytest.raises(LearnedOptError, match="twins need the estimator 'ppo', got 'pes'"):
        TrainConfig(estimator="pes", twins=True)
    with pytest.raises(LearnedOptError, match="noise_exploration needs the estimator 'ppo', got"):
        TrainConfig(noise_exploration=0.5)
    with pytest.raises(LearnedOptError, match="noise_exploration must be positive, got 0"):
        TrainConfig(estimator="ppo", noise_exploration=0.0)


def test_episodes_with_noise_are_stretched():
    config = replace(CONFIG, horizon=Fixed(7), stochastic_stretch=2.5)
    state = configured_estimator(config, tasks()).estimate(
        controller(), None, progress=0.0, rng=rng()
    )
    assert [set(standing["horizon"].tolist()) for standing in state.state.standings] == [{7}, {18}]


def test_no_episode_is_shorter_than_a_step():
    config = replace(CONFIG, stochastic_stretch=0.01)
    state = configured_estimator(config, tasks()).estimate(
        controller(), None, progress=0.0, rng=rng()
    )
    assert set(state.state.standings[1]["horizon"].tolist()) == {1}


def test_a_critic_learns_what_it_is_shown():
    critic = Critic(2, 1, hidden=16, learning_rate=1e-2)
    seen = torch.rand(512, 3, generator=rng())
    targets = seen[:, 0] - 2 * seen[:, 1]
    for _ in range(30):
        critic.learn(seen, targets, rng=rng(1))
    assert (critic(seen) - targets).square().mean() < 1e-2 * targets.var()
    again = Critic.unpack(critic.pack())
    assert_close(again(seen), critic(seen))


@pytest.mark.parametrize("settings", [{}, {**TWINS, "averaging": 0.2}])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, settings):
    config = replace(CONFIG, **settings)

    def train(folder, stop_after, *, resume):
        def stop(done, total, note):
            del total, note
            if done == stop_after:
                raise KeyboardInterrupt

        rule = controller()
        with contextlib.suppress(KeyboardInterrupt):
            meta_train(rule, tasks(), config=config, out=folder, resume=resume, on_progress=stop)
        theta = torch.cat([p.detach().flatten() for p in rule.parameters()])
        return theta, (folder / "history.jsonl").read_text()

    whole, history = train(tmp_path / "whole", None, resume=False)
    for stop_after in (3, 4):
        cut = tmp_path / f"cut{stop_after}"
        train(cut, stop_after, resume=False)
        resumed, resumed_history = train(cut, None, resume=True)
        assert torch.equal(whole, resumed)
        assert history == resumed_history


def test_it_learns_to_hurry():
    """An untrained controller starts with short steps; thirty rollouts later it does not."""
    estimator = ProximalPolicy(
        tasks=[get_task("welsch", dim=2)],
        num_lanes=64,
        rollout_steps=16,
        horizon=Fixed(24),
        epsilon=1e-3,
        pool_size=256,
    )
    rule = controller()
    optimizer = torch.optim.Adam(rule.parameters(), lr=5e-3)
    generator, state, paces = rng(), None, []
    for step in range(25 * 12):
        estimate = estimator.estimate(rule, state, progress=step / 300, rng=generator)
        for parameter, grad in zip(rule.parameters(), estimate.grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        state = estimate.state
        if step % 12 == 0:
            paces.append(estimate.metrics["pace"])
    assert paces[-1] < 0.75 * paces[1]
    assert all(map(math.isfinite, paces))


def test_a_mixture_may_be_one_of_the_tasks():
    mixture = Mixture.of(tasks()[::2], [1.0, 1.0])
    for given in ([mixture], [mixture, tasks()[1]]):
        estimate = configured_estimator(CONFIG, given).estimate(
            controller(), None, progress=0.0, rng=rng()
        )
        assert torch.isfinite(estimate.meta_loss)


def test_rules_without_decisions_and_bad_settings_are_refused(tmp_path):
    estimator = configured_estimator(CONFIG, tasks())
    with pytest.raises(LearnedOptError, match=r"needs a rule that decides .*, got 'lstm'"):
        estimator.estimate(get_rule("lstm"), None, progress=0.0, rng=rng())
    # And before a folder is made.
    with pytest.raises(LearnedOptError, match=r"needs a rule that decides"):
        meta_train(get_rule("lstm"), tasks(), config=CONFIG, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    per_tensor = get_rule("controller", scope="tensor")
    with pytest.raises(LearnedOptError, match="once for all parameters"):
        estimator.estimate(per_tensor, None, progress=0.0, rng=rng())
    with pytest.raises(LearnedOptError, match=r"move together must be at least .*, 6, got 4"):
        configured_estimator(replace(CONFIG, num_problems=4), tasks())
    with pytest.raises(LearnedOptError, match="exploration must be two positive numbers"):
        replace(CONFIG, exploration=(0.1, 0.0))
    with pytest.raises(LearnedOptError, match="device must be cpu"):
        replace(CONFIG, device="cuda")
    for weights in ((1.0,), (0.0, 1.0, 1.0), (1.0,) * 4):
        with pytest.raises(LearnedOptError, match="task_weights must be positive, one for each"):
            configured_estimator(replace(CONFIG, task_weights=weights), tasks())
    for name, value in (
        ("clip_range", 0.0),
        ("gae_lambda", 2.0),
        ("exploration", (0.0, 1.0)),
        ("stochastic_stretch", 0.0),
    ):
        with pytest.raises(LearnedOptError, match=name):
            replace(estimator, **{name: value})
    with pytest.raises(LearnedOptError, match="epsilon must lie in"):
        configured_estimator(replace(CONFIG, epsilon=2.0), tasks())
    with pytest.raises(LearnedOptError, match=r"epsilon must lie in .* one for each of 3 tasks"):
        configured_estimator(replace(CONFIG, task_epsilons=(0.1, 0.1)), tasks())
    with pytest.raises(LearnedOptError, match="task_epsilons need the estimator 'ppo', got 'pes'"):
        replace(CONFIG, task_epsilons=(0.1, 0.1, 0.1), estimator="pes")


def test_paces_are_steps_over_targets_and_lengths_steps_over_episodes():
    """Two tasks, three steps of two lanes, of which the second stands still at the end."""
    kinds = [torch.tensor([0, 1])] * 3
    moving = torch.tensor([[True, True], [True, True], [True, False]])
    shares = {
        "waited": [[1.0, 1.0], [0.5, 1.0], [0.25, 9.0]],
        "reached": [[0, 0], [0.5, 0], [0.25, 9]],
    }
    outcomes = [
        Outcome(
            cost=torch.zeros(2),
            waited=torch.tensor(shares["waited"][k]),
            reached=torch.tensor(shares["reached"][k]),
            over=torch.tensor([k == 2, k == 1]),
        )
        for k in range(3)
    ]
    paces = Paces.of(2)
    assert paces.length.tolist() == [100, 100] and paces.pace.tolist() == [20, 20]
    after = paces.after(outcomes, kinds, moving)
    faded = 0.9
    assert_close(after.waited, faded * torch.tensor([1.75, 2.0]).double())
    assert_close(after.reached, faded * torch.tensor([0.75, 0.0]).double())
    assert after.moved.tolist() == pytest.approx([faded * 3, faded * 2])
    assert after.ended.tolist() == pytest.approx([faded, faded])
    assert after.length.tolist() == pytest.approx([102.7 / 1.9, 101.8 / 1.9])
    assert_close(
        after.after(outcomes, kinds, moving).moved, faded * (after.moved + torch.tensor([3.0, 2.0]))
    )
    assert vars(Paces.unpack(after.pack())) == vars(after)


def test_amid_noise_what_came_of_a_rollout_counts_by_the_length_of_episodes(monkeypatch):
    """A task whose episodes are four times as long has as many lanes, and counts as much."""
    noisy = NoisyGradient(get_task("random_quadratic", dim=3), noise=0.1)
    tasks = [get_task("strict_saddle", dim=4), noisy, noisy]
    estimator = configured_estimator(replace(CONFIG, num_problems=36), tasks)
    raw = []
    monkeypatch.setattr(ppo, "standardised", lambda surplus, *_: raw.append(surplus) or surplus)
    lengths = torch.tensor([50.0, 10.0, 40.0]).double()
    for length in (torch.ones(3), lengths):
        monkeypatch.setattr(Paces, "length", property(lambda _, length=length: length))
        state = estimator.estimate(controller(), None, progress=0.0, rng=rng()).state
    kinds = state.arenas.kinds(state.standings)
    assert (kinds.bincount() == 12).all()
    for kind, share in enumerate((1.0, 10.0, 40.0)):
        own = kinds == kind
        assert_close(raw[1][:, own], share * raw[0][:, own])
        assert raw[0][:, own].any()
