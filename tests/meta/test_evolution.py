"""Evolution strategies: whose gradient they estimate, what is credited to whom, what survives."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.evolution import EvolutionStrategies, weighted_mean
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.meta.mixed import Mixed, inverse_variance_mean
from learned_opt.meta.objectives import get_objective
from learned_opt.meta.parallel import Parallel
from learned_opt.meta.perturbations import Accumulated, PerEpisode, PerTruncation
from learned_opt.rules.base import Rule
from learned_opt.rules.classic import SGD, Momentum
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.unroll import unroll

DTYPE = torch.float64
RATE, SIGMA, HORIZON = 0.5, 0.2, 6
SIX_STEPS = Fixed(HORIZON)
SCHEDULES = (PerTruncation(), Accumulated(), PerEpisode())


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Slope(Task):
    """``f(x) = x^2 / 2 + offset`` from ``x = 1``: after t steps of rate r, ``(1 - r)^2t / 2``."""

    name = family = "slope"
    kind = "quadratic"

    def __init__(self, *, offset=0.0, limit=-math.inf):
        self.shapes, self.offset, self.limit = {"x": (1,)}, offset, limit

    def _sample(self, num_problems, rng):
        del rng
        zeros = torch.zeros(num_problems, dtype=DTYPE)
        facts = Facts(minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None])
        return Problems(params={"x": 1 + zeros[:, None]}, constants={}, facts=facts)

    def loss(self, params, problems, batch=None):
        del problems, batch
        x = params["x"][:, 0]
        return torch.where(x < self.limit, math.inf, x.square() / 2 + self.offset)


SLOPE = (Slope(),)


def evolution(
    schedule,
    *,
    tasks=SLOPE,
    num_pairs=4,
    group=1,
    horizon=SIX_STEPS,
    over_steps="sum",
    objective="sum",
    **options,
):
    sampler = EpisodeSampler(
        tasks=tasks,
        weights=options.pop("weights", None),
        num_problems=num_pairs * group,
        horizon=horizon,
        dtype=DTYPE,
    )
    options = {"sigma": SIGMA, "truncation": 2, "is_staggered": False, **options}
    return EvolutionStrategies(
        sampler=sampler,
        objective=get_objective(objective),
        over_steps=over_steps,
        schedule=schedule,
        num_pairs=num_pairs,
        **options,
    )


def sgd(rate=RATE):
    return SGD(learning_rate=rate)


def smoothed_gradient(*, truncation):
    """d/dr of the expected sum of losses where every `truncation` steps have noise of their own."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    noise = torch.as_tensor(SIGMA * nodes)
    weights = torch.as_tensor(weights / weights.sum())
    rate = torch.tensor(RATE, dtype=DTYPE, requires_grad=True)

    def contraction(steps):  # E (1 - rate - noise)^(2 steps)
        return (weights * (1 - rate - noise) ** (2 * steps)).sum()

    total = 0.0
    for t in range(1, HORIZON + 1):
        whole, rest = divmod(t, truncation)
        total = total + contraction(truncation) ** whole * contraction(rest) / 2
    return torch.autograd.grad(total, rate)[0].item()


def episode_samples(strategy):
    """What each pair says of a whole episode, truncation after truncation, theta at rest."""
    population, total, draws = None, 0.0, rng()
    for _ in range(HORIZON // strategy.truncation):
        (runner,) = strategy.runners
        outcome = runner.advance(sgd(), population, progress=0.0, rng=draws)
        population, total = outcome.population, total + outcome.evolution[:, 0]
    return total


@pytest.mark.parametrize(
    ("schedule", "truncation", "noise_lasts"),
    [
        (PerEpisode(), HORIZON, HORIZON),  # full-horizon ES
        (PerTruncation(), HORIZON, HORIZON),  # the same
        (PerEpisode(), 2, HORIZON),  # ES-Single
        (Accumulated(), 2, 2),  # PES
        (Accumulated(), 1, 1),
    ],
)
def test_unbiased_for_the_smoothed_meta_loss(schedule, truncation, noise_lasts):
    samples = episode_samples(evolution(schedule, num_pairs=6000, truncation=truncation))
    exact = smoothed_gradient(truncation=noise_lasts)
    error = samples.std() / len(samples) ** 0.5
    assert abs(samples.mean() - exact) < 4 * error
    assert 4 * error < 0.2 * abs(exact)  # the test has teeth


def test_truncated_es_is_biased_where_pes_is_not():
    exact = smoothed_gradient(truncation=2)
    means = {}
    for schedule in (PerTruncation(), Accumulated()):
        samples = episode_samples(evolution(schedule, num_pairs=6000))
        error = samples.std() / len(samples) ** 0.5
        means[type(schedule)] = abs(samples.mean() - exact) / error
    assert means[PerTruncation] > 8
    assert means[Accumulated] < 4


@pytest.mark.parametrize(("schedule", "noise_lasts"), [(PerEpisode(), HORIZON), (Accumulated(), 2)])
def test_staggered_clocks_see_all_parts_of_the_episode_at_once(schedule, noise_lasts):
    # NRES and PES: one estimate holds a third of the steps of every part.
    strategy = evolution(schedule, num_pairs=6000, is_staggered=True)
    estimate = strategy.estimate(sgd(), None, progress=0.0, rng=rng())
    exact = smoothed_gradient(truncation=noise_lasts) * 2 / HORIZON
    error = estimate.metrics["gradient_std"]
    assert abs(estimate.grads[0].item() - exact) < 4 * error < 0.4 * abs(exact)
    # ended, after one of three and after two of three truncations, a third each
    spread = np.std([0, 1 / 3, 2 / 3])
    assert estimate.metrics["clock_spread"] == pytest.approx(spread, rel=1e-9)
    following = strategy.estimate(sgd(), estimate.state, progress=0.0, rng=rng(1))
    assert following.metrics["clock_spread"] == pytest.approx(spread, rel=1e-9)
    together = replace(strategy, is_staggered=False).estimate(sgd(), None, progress=0.0, rng=rng())
    assert together.metrics["clock_spread"] == pytest.approx(0, abs=1e-12)


def test_slopes_at_perturbed_thetas_are_unbiased_too():
    strategy = evolution(PerTruncation(), num_pairs=4000, truncation=HORIZON)
    (outcome,) = strategy.outcomes(
        sgd(), None, progress=0.0, rng=rng(), differentiable=True, second_order=True
    )
    exact = smoothed_gradient(truncation=HORIZON)
    slopes = outcome.backpropagation[:, 0]
    assert abs(slopes.mean() - exact) < 4 * slopes.std() / len(slopes) ** 0.5
    assert slopes.var() < outcome.evolution[:, 0].var()
    mixed = Mixed(evolution=strategy, second_order=True)
    estimate = mixed.estimate(sgd(), None, progress=0.0, rng=rng())
    assert abs(estimate.grads[0] - exact) < 5 * estimate.metrics["gradient_std"]
    assert 0.5 < estimate.metrics["backpropagation_share"] < 1


def test_without_truncation_all_schedules_agree_exactly():
    strategies = [evolution(schedule, truncation=HORIZON) for schedule in SCHEDULES]
    states, draws = [None] * 3, [rng() for _ in SCHEDULES]
    for _ in range(3):
        estimates = [
            strategy.estimate(sgd(), state, progress=0.0, rng=own)
            for strategy, state, own in zip(strategies, states, draws, strict=True)
        ]
        states = [estimate.state for estimate in estimates]
        assert len({estimate.grads[0].item() for estimate in estimates}) == 1
        assert len({estimate.meta_loss.item() for estimate in estimates}) == 1


def reference(schedule, *, num_pairs, truncation, horizon, num_estimates, over_steps, draws):
    """Step by step and pair by pair in plain numbers; the slow twin of `PairRunner.advance`."""
    kind = type(schedule)
    points = [{1: 1.0, -1: 1.0, 0: 1.0} for _ in range(num_pairs)]
    steps, horizons = [0] * num_pairs, [0] * num_pairs
    noise, credit = [0.0] * num_pairs, [0.0] * num_pairs
    leads = [i * -(-horizon.longest // truncation) // num_pairs for i in range(num_pairs)]
    found = []

    def draw(count):
        return (SIGMA * torch.randn(count, 1, generator=draws, dtype=DTYPE))[:, 0].tolist()

    for now in range(-max(leads), num_estimates):
        if kind is not PerEpisode:
            for i, drawn in enumerate(draw(num_pairs)):
                noise[i] = drawn
                credit[i] = drawn + (credit[i] if kind is Accumulated else 0.0)
        if kind is PerTruncation:
            points = [dict.fromkeys(own, own[0]) for own in points]
        gradients, losses = [0.0] * num_pairs, [0.0] * num_pairs
        for _ in range(truncation):
            over = [i for i in range(num_pairs) if steps[i] >= horizons[i]]
            if over and kind is PerEpisode:
                for i, drawn in zip(over, draw(len(over)), strict=True):
                    noise[i] = credit[i] = drawn
            for i in over:
                points[i], steps[i] = {1: 1.0, -1: 1.0, 0: 1.0}, 0
                horizons[i] = horizon.draw(0.0, draws)
                if kind is Accumulated:
                    credit[i] = noise[i]
            for i in range(num_pairs):
                points[i] = {s: x * (1 - RATE - s * noise[i]) for s, x in points[i].items()}
                steps[i] += 1
                counts = over_steps != "last" or steps[i] == horizons[i]
                weight = (1 / truncation if over_steps == "mean" else 1.0) * counts
                plus, minus = weight * points[i][1] ** 2 / 2, weight * points[i][-1] ** 2 / 2
                gradients[i] += credit[i] * (plus - minus) / (2 * SIGMA**2)
                losses[i] += (plus + minus) / 2
        for i in range(num_pairs):
            if now < 0 and leads[i] == -now - 1:
                horizons[i] = steps[i]  # ends here, to begin anew in its turn
        if now >= 0:
            found.append((np.mean(gradients), np.mean(losses)))
    return found


@pytest.mark.parametrize("over_steps", ["sum", "mean", "last"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resets_within_a_truncation_credit_the_right_perturbation(schedule, over_steps):
    setting = {"num_pairs": 5, "truncation": 4, "horizon": LogUniform(2, 9)}
    strategy = evolution(schedule, over_steps=over_steps, is_staggered=True, **setting)
    state, draws, found = None, rng(3), []
    for _ in range(12):
        estimate = strategy.estimate(sgd(), state, progress=0.0, rng=draws)
        state = estimate.state
        found.append((estimate.grads[0].item(), estimate.meta_loss.item()))
    expected = reference(schedule, num_estimates=12, over_steps=over_steps, draws=rng(3), **setting)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pairs_cancel_a_constant(schedule):
    plain, lifted = (
        evolution(schedule, tasks=(Slope(offset=offset),)).estimate(
            sgd(), None, progress=0.0, rng=rng()
        )
        for offset in (0.0, 1000.0)
    )
    assert lifted.meta_loss.item() == pytest.approx(plain.meta_loss.item() + 2000)
    assert lifted.grads[0].item() == pytest.approx(plain.grads[0].item(), rel=1e-9)
    assert lifted.grads[0].abs() > 1e-3


def test_one_perturbation_an_episode():
    strategy, state, seen, draws = evolution(PerEpisode()), None, [], rng()
    for _ in range(6):
        state = strategy.estimate(sgd(), state, progress=0.0, rng=draws).state
        (population,) = state.populations
        assert torch.equal(population.noise.current, population.noise.credit)
        seen.append(population.noise.current)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert not (seen[2] == seen[3]).any()
    assert torch.equal(seen[3], seen[5])


def test_back_propagation_through_all_pairs_equals_that_through_each():
    task, rule = RandomQuadratic(dim=3), CoordinatewiseLSTM(hidden_size=4).double()
    strategy = evolution(
        PerTruncation(), tasks=(task,), num_pairs=3, group=2, truncation=4, horizon=Fixed(8)
    )
    (outcome,) = strategy.outcomes(rule, None, progress=0.0, rng=rng(), differentiable=True)
    particles, noise = outcome.population.particles, outcome.population.noise.current
    for i in range(3):
        problems = particles.problems.select(torch.tensor([2 * i, 2 * i + 1]))
        slopes, values = 0.0, []
        for sign in (1, -1):
            moved = copy.deepcopy(rule)
            start = torch.nn.utils.parameters_to_vector(rule.parameters())
            torch.nn.utils.vector_to_parameters(start + sign * noise[i], moved.parameters())
            losses = unroll(
                task, moved, problems, num_steps=4, rng=rng(), differentiable=True
            ).losses
            value = losses[:, 1:].sum(1).mean()
            grads = torch.autograd.grad(value, list(moved.parameters()))
            slopes = slopes + torch.cat([g.flatten() for g in grads]) / 2
            values.append(value.item())
        torch.testing.assert_close(outcome.backpropagation[i], slopes, rtol=1e-9, atol=1e-11)
        expected = (values[0] - values[1]) / (2 * SIGMA**2) * noise[i]
        torch.testing.assert_close(outcome.evolution[i], expected, rtol=1e-8, atol=1e-9)


class LearnedStart(Rule):
    """Steps whose first length is learned: the initial state depends on theta."""

    name = "learned_start"

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.tensor(0.1, dtype=DTYPE))
        self.frozen = torch.nn.Parameter(torch.tensor(2.0, dtype=DTYPE), requires_grad=False)

    def init(self, params):
        return {"length": self.first.expand(len(params["x"]))}

    def forward(self, grads, state, params, *, loss=None, rng=None):
        del params, loss, rng
        length = state["length"]
        return {"x": -length[:, None] * grads["x"]}, {"length": length * self.frozen}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_initial_states_that_depend_on_theta_are_perturbed(schedule):
    strategy = evolution(schedule, truncation=2, horizon=Fixed(2))
    estimate = strategy.estimate(LearnedStart(), None, progress=0.0, rng=rng())
    (noise,) = [p.noise.current[:, 0] for p in estimate.state.populations]

    def meta_loss(first):
        return ((1 - first) ** 2 + ((1 - first) * (1 - 2 * first)) ** 2) / 2

    samples = (meta_loss(0.1 + noise) - meta_loss(0.1 - noise)) / (2 * SIGMA**2) * noise
    assert estimate.grads[0].item() == pytest.approx(samples.mean().item(), rel=1e-10)


class Draws(Slope):
    """Every evaluation sees a random slope."""

    def batch(self, problems, rng):
        return {"tilt": torch.randn(problems.num_problems, generator=rng, dtype=DTYPE)}

    def loss(self, params, problems, batch=None):
        return super().loss(params, problems) + batch["tilt"] * params["x"][:, 0]


def test_minibatches_are_shared_by_a_pair_and_drawn_apart_by_pairs():
    # x1 = 1 - r (1 + tilt1) and m = x1^2 / 2 + tilt2 x1, so d E m / dr = r - (1 - r).
    estimate = evolution(PerEpisode(), tasks=(Draws(),), num_pairs=3000, truncation=1).estimate(
        sgd(0.3), None, progress=0.0, rng=rng()
    )
    error = estimate.metrics["gradient_std"]
    assert abs(estimate.grads[0].item() - (0.3 - 0.7)) < 4 * error < 0.3


def test_a_pair_with_one_infinite_run_is_left_out_and_begins_anew():
    # After one step at rate r +- noise, x < limit has an infinite loss: one sign of a pair at most.
    strategy = evolution(
        PerEpisode(), tasks=(Slope(limit=0.3),), num_pairs=8, truncation=1, over_steps="mean"
    )
    estimate = strategy.estimate(sgd(), None, progress=0.0, rng=rng())
    (population,) = estimate.state.populations
    noise = population.noise.current[:, 0]
    is_bad = noise.abs() > 0.2
    assert 0 < is_bad.sum() < 8
    assert estimate.metrics["nonfinite_pairs"] == is_bad.sum()
    good = noise[~is_bad]
    samples = ((0.5 - good) ** 2 - (0.5 + good) ** 2) / (4 * SIGMA**2) * good
    assert estimate.grads[0].item() == pytest.approx(samples.mean().item(), rel=1e-12)
    std = samples.std().item() / len(samples) ** 0.5
    assert estimate.metrics["gradient_std"] == pytest.approx(std, rel=1e-9)
    assert torch.equal(population.particles.over, is_bad.nonzero().flatten())
    following = strategy.estimate(sgd(), estimate.state, progress=0.0, rng=rng(1))
    after = following.state.populations[0].noise.current[:, 0]
    assert torch.equal(after == noise, ~is_bad)


def test_no_finite_pair_is_for_the_trainer_to_see():
    task = Slope(limit=2.0)
    estimate = evolution(Accumulated(), tasks=(task,)).estimate(
        sgd(), None, progress=0.0, rng=rng()
    )
    assert math.isnan(estimate.meta_loss.item())
    assert estimate.metrics["nonfinite_pairs"] == 4


class Steep(Rule):
    """Gradient descent whose steps are finite while their derivative by the rate is not."""

    name = "steep"

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(RATE, dtype=DTYPE))

    def init(self, params):
        return {}

    def forward(self, grads, state, params, *, loss=None, rng=None):
        return {"x": -(self.rate + (0 * self.rate).sqrt()) * grads["x"]}, state


def test_slopes_that_overflow_leave_the_field_to_evolution():
    strategy = evolution(PerTruncation())
    mixed = Mixed(evolution=strategy).estimate(Steep(), None, progress=0.0, rng=rng())
    plain = strategy.estimate(sgd(), None, progress=0.0, rng=rng())
    assert mixed.metrics["nonfinite_slopes"] == 4
    assert mixed.metrics["nonfinite_pairs"] == 0
    assert mixed.metrics["backpropagation_share"] == 0
    assert torch.equal(mixed.grads[0], plain.grads[0])
    assert mixed.metrics["gradient_std"] == plain.metrics["gradient_std"]


def test_inverse_variance_weights():
    def t(*values):
        return torch.tensor(values, dtype=DTYPE)

    first = (t(1.0, 1.0, math.nan, 2.0, 5.0), t(1.0, 0.0, math.nan, math.inf, 0.0))
    second = (t(4.0, 3.0, 7.0, 6.0, 9.0), t(4.0, 2.0, 1.0, 3.0, 0.0))
    (mean, variance), share = inverse_variance_mean(first, second)
    assert share.tolist() == pytest.approx([0.8, 1.0, 0.0, 0.0, 0.5])
    assert mean.tolist() == pytest.approx([1.6, 1.0, 7.0, 6.0, 7.0])
    assert variance.tolist() == pytest.approx([0.8, 0.0, 1.0, 3.0, 0.0])


def test_variance_of_a_weighted_mean():
    samples = torch.randn(7, 3, generator=rng(), dtype=DTYPE)
    mean, variance = weighted_mean(samples, torch.full((7,), 1 / 7, dtype=DTYPE))
    torch.testing.assert_close(mean, samples.mean(0))
    torch.testing.assert_close(variance, samples.var(0) / 7)
    _, unknown = weighted_mean(samples[:1], torch.ones(1, dtype=DTYPE))
    assert unknown.isnan().all()


def test_tasks_have_pairs_and_a_share_each():
    tasks = (Slope(), Slope(offset=10.0), Slope(offset=100.0), Slope(offset=math.nan))
    strategy = evolution(
        PerEpisode(), tasks=tasks, weights=(5.0, 2.0, 1.0, 0.0), num_pairs=8, group=2
    )
    assert [(r.task, r.num_pairs, r.num_problems) for r in strategy.runners] == [
        (0, 5, 2),
        (1, 2, 2),
        (2, 1, 2),
    ]
    odd = replace(strategy, sampler=replace(strategy.sampler, weights=(97.0, 2.0, 1.0, 0.0)))
    assert [r.num_pairs for r in odd.runners] == [6, 1, 1]
    estimate = odd.estimate(sgd(), None, progress=0.0, rng=rng())
    outcomes = odd.outcomes(sgd(), None, progress=0.0, rng=rng())
    expected = sum(
        share * outcome.evolution.mean()
        for share, outcome in zip((0.97, 0.02, 0.01), outcomes, strict=True)
    )
    assert estimate.grads[0].item() == pytest.approx(expected.item(), rel=1e-12)
    broken = replace(odd.sampler, weights=(1.0, 1.0, 1.0, 1.0))
    estimate = replace(odd, sampler=broken).estimate(sgd(), None, progress=0.0, rng=rng())
    assert estimate.metrics["nonfinite_pairs"] == 2
    assert math.isfinite(estimate.meta_loss.item())


def test_metrics_say_how_the_estimate_turned():
    strategy = evolution(Accumulated())
    first = strategy.estimate(sgd(), None, progress=0.0, rng=rng())
    assert "cosine_to_last" not in first.metrics
    second = strategy.estimate(Momentum(learning_rate=RATE), None, progress=0.0, rng=rng())
    third = strategy.estimate(Momentum(learning_rate=RATE), second.state, progress=0.0, rng=rng(1))
    a, b = (torch.stack(e.grads) for e in (second, third))
    cosine = (a @ b / (a.norm() * b.norm())).item()
    assert third.metrics["cosine_to_last"] == pytest.approx(cosine, rel=1e-9)
    lonely = evolution(Accumulated(), num_pairs=1).estimate(sgd(), None, progress=0.0, rng=rng())
    assert "gradient_std" not in lonely.metrics
    both = Parallel(estimators=[strategy, strategy], head_starts=[0, 0]).estimate(
        sgd(), None, progress=0.0, rng=rng()
    )
    assert both.metrics["nonfinite_pairs 1"] == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"truncation": 0}, "truncation must be positive, got 0"),
        ({"epsilon": 0.0}, "epsilon must be positive, got 0"),
        ({"sigma": 0.0}, "sigma must be positive, got 0"),
        ({"num_pairs": 0}, "num_pairs must be positive, got 0"),
        ({"num_pairs": 3}, "num_problems must be a multiple of num_pairs=3, got 4"),
        (
            {"num_pairs": 1, "sampler": evolution(PerEpisode(), tasks=(Slope(), Slope())).sampler},
            "num_pairs must be at least the number of tasks, 2, got 1",
        ),
    ],
)
def test_bad_settings_are_refused(options, match):
    with pytest.raises(LearnedOptError, match=match):
        replace(evolution(PerEpisode()), **options)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(LearnedOptError, match=r"num_pairs must be at least 2 .* got 1"):
        Mixed(evolution=evolution(PerTruncation(), num_pairs=1))
    with pytest.raises(LearnedOptError, match=r"schedule must be PerTruncation\(\) .* got PerEpi"):
        Mixed(evolution=evolution(PerEpisode()))
    sweep = SGD(learning_rate=torch.ones(4))
    with pytest.raises(LearnedOptError, match=r"rule 'sgd' must have one theta .* each of 4"):
        evolution(PerEpisode()).estimate(sweep, None, progress=0.0, rng=rng())
