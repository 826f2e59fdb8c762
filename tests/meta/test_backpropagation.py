"""Full back-propagation: the gradient of one graph for all steps, in the memory of a few."""

import pytest
import torch
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.meta.backpropagation import Backpropagation, checkpointed_gradient
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.meta.objectives import get_objective
from learned_opt.meta.truncated import TruncatedBackpropagation
from learned_opt.rules.base import Rule
from learned_opt.rules.classic import SGD, Momentum
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.policy import PolicyRule
from learned_opt.tasks.networks import DigitsMLP
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.tasks.transforms import NoisyGradient
from learned_opt.unroll import unroll

DTYPE = torch.float64
QUADRATIC = RandomQuadratic(dim=4)
MINIBATCHES = DigitsMLP(hidden=(3,), num_train=50, batch_size=8)
RULES = {
    "momentum": lambda: Momentum(learning_rate=0.01),
    "lstm": lambda: CoordinatewiseLSTM(hidden_size=5),
    # draws noise, and so does its state depend on it
    "policy": lambda: PolicyRule(actuator="hyper_control", hidden=(4,), lstm_units=3),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(task, rule, judge, *, num_steps, second_order, draws):
    problems = task.sample(3, seed=1, dtype=DTYPE)
    losses = unroll(
        task,
        rule,
        problems,
        num_steps=num_steps,
        rng=draws,
        differentiable=True,
        second_order=second_order,
    ).losses
    meta_loss = judge(losses)
    return meta_loss, torch.autograd.grad(
        meta_loss, list(rule.parameters()), materialize_grads=True
    )


def weighted(losses):
    """Every loss counts differently, so that none can be exchanged for another."""
    weights = torch.linspace(-1.0, 2.0, losses.numel(), dtype=DTYPE).reshape(losses.shape)
    return (weights * losses).sum()


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("segment_length", [1, 3, 4, 10, 25])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "task", [QUADRATIC, NoisyGradient(QUADRATIC, noise=0.5), MINIBATCHES], ids=lambda t: t.name
)
def test_the_gradient_is_that_of_one_graph(task, name, segment_length, second_order):
    rule = RULES[name]().double()
    ours, theirs = rng(), rng()
    meta_loss, grads = checkpointed_gradient(
        task,
        rule,
        task.sample(3, seed=1, dtype=DTYPE),
        weighted,
        num_steps=10,
        segment_length=segment_length,
        second_order=second_order,
        rng=ours,
    )
    expected, slopes = plain(
        task, rule, weighted, num_steps=10, second_order=second_order, draws=theirs
    )
    assert meta_loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not meta_loss.requires_grad
    scale = torch.cat([s.flatten() for s in slopes]).abs().max()
    assert scale > 0
    for grad, slope in zip(grads, slopes, strict=True):
        torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-12 * scale.item())
    assert torch.equal(ours.get_state(), theirs.get_state())


class LearnedStart(Rule):
    """Its state begins with a parameter, and holds what no gradient can flow into."""

    name = "learned_start"

    def __init__(self):
        super().__init__()
        self.velocity = nn.Parameter(torch.tensor(0.3, dtype=DTYPE))
        self.unused = nn.Parameter(torch.tensor(1.0, dtype=DTYPE))

    def init(self, params):
        x = params["x"]
        count = torch.zeros(len(x), dtype=torch.long)
        return {"velocity": self.velocity * torch.ones_like(x), "count": count}

    def forward(self, grads, state, params, *, loss=None, rng=None):
        velocity = 0.9 * state["velocity"] - 0.02 * grads["x"]
        return {"x": velocity}, {"velocity": velocity, "count": state["count"] + 1}


def test_gradients_reach_a_learned_start_through_all_segments():
    rule = LearnedStart()
    _, grads = checkpointed_gradient(
        QUADRATIC,
        rule,
        QUADRATIC.sample(3, seed=1, dtype=DTYPE),
        lambda losses: losses[:, -1].mean(),
        num_steps=9,
        segment_length=2,
        rng=rng(),
    )
    _, (slope, _) = plain(
        QUADRATIC,
        rule,
        lambda losses: losses[:, -1].mean(),
        num_steps=9,
        second_order=False,
        draws=rng(),
    )
    assert abs(slope) > 0.1
    torch.testing.assert_close(grads[0], slope, rtol=1e-12, atol=0.0)
    assert grads[1] == 0


def live_bytes(run):
    """The most that graphs hold at a time."""

    class Held:
        now = most = 0

        def __init__(self, tensor):
            # Attached, it would be part of a cycle that nothing frees.
            self.tensor, self.size = tensor.detach(), tensor.numel() * tensor.element_size()
            Held.now += self.size
            Held.most = max(Held.most, Held.now)

        def __del__(self):
            Held.now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        run()
    assert Held.now == 0
    return Held.most


@pytest.mark.parametrize("second_order", [False, True])
def test_graphs_hold_one_segment_at_a_time(second_order):
    rule = RULES["momentum"]() if second_order else RULES["lstm"]().double()

    def checkpointed(num_steps, segment_length):
        checkpointed_gradient(
            MINIBATCHES,
            rule,
            MINIBATCHES.sample(3, seed=1, dtype=DTYPE),
            weighted,
            num_steps=num_steps,
            segment_length=segment_length,
            second_order=second_order,
            rng=rng(),
        )

    def whole(num_steps):
        plain(
            MINIBATCHES,
            rule,
            weighted,
            num_steps=num_steps,
            second_order=second_order,
            draws=rng(),
        )

    one_graph = live_bytes(lambda: whole(64))
    segments = live_bytes(lambda: checkpointed(64, 8))
    assert segments < 1.15 * one_graph / 8
    # for a given segment the length of the episode does not matter
    assert live_bytes(lambda: checkpointed(32, 8)) == pytest.approx(segments, rel=0.02)


def test_an_outer_step_is_an_episode():
    sampler = EpisodeSampler(tasks=[QUADRATIC], num_problems=3, horizon=LogUniform(3, 40))
    rule, draws = Momentum(learning_rate=0.01), rng()
    estimator = Backpropagation(sampler=sampler, objective=get_objective("log_gap"))
    horizons = []
    for _ in range(6):
        estimate = estimator.estimate(rule, None, progress=0.0, rng=draws)
        assert estimate.state is None
        horizons.append(estimate.diagnostics["horizon"])
    assert len(set(horizons)) > 3
    assert estimator.unpack(estimator.pack(None)) is None


@pytest.mark.parametrize("objective", ["sum", "final", "log_gap", "balanced"])
def test_it_is_what_a_truncation_of_the_whole_horizon_gives(objective):
    rule = CoordinatewiseLSTM(hidden_size=4).double()
    sampler = EpisodeSampler(tasks=[MINIBATCHES], num_problems=3, horizon=Fixed(12), dtype=DTYPE)
    judged = {"sampler": sampler, "objective": get_objective(objective), "epsilon": 1e-3}
    full = Backpropagation(**judged).estimate(rule, None, progress=0.0, rng=rng())
    truncated = TruncatedBackpropagation(**judged, truncation=12).estimate(
        rule, None, progress=0.0, rng=rng()
    )
    assert full.meta_loss.item() == pytest.approx(truncated.meta_loss.item(), rel=1e-12)
    for ours, theirs in zip(full.grads, truncated.grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


def test_a_loss_that_overflows_is_passed_on():
    sampler = EpisodeSampler(tasks=[QUADRATIC], num_problems=3, horizon=Fixed(30))
    estimator = Backpropagation(sampler=sampler, objective=get_objective("sum"))
    estimate = estimator.estimate(SGD(learning_rate=1e30), None, progress=0.0, rng=rng())
    assert not estimate.meta_loss.isfinite()


def test_a_call_without_the_final_loss_goes_on_as_if_never_interrupted():
    rule = PolicyRule(actuator="hyper_control", hidden=(4,)).double()
    problems = MINIBATCHES.sample(3, dtype=DTYPE)
    draws = rng()
    whole = unroll(MINIBATCHES, rule, problems, num_steps=7, rng=draws)
    after = draws.get_state()
    draws = rng()
    first = unroll(MINIBATCHES, rule, problems, num_steps=4, rng=draws, final_loss=False)
    second = unroll(MINIBATCHES, rule, problems, num_steps=3, rng=draws, carry=first.carry)
    assert torch.equal(torch.cat((first.losses, second.losses), dim=1), whole.losses)
    assert second.carry.step == 7
    for name, p in whole.carry.params.items():
        assert torch.equal(second.carry.params[name], p)
    assert torch.equal(draws.get_state(), after)


def test_bad_settings_are_refused():
    sampler = EpisodeSampler(tasks=[QUADRATIC], num_problems=3, horizon=Fixed(5))
    with pytest.raises(LearnedOptError, match="epsilon must be positive, got 0"):
        Backpropagation(sampler=sampler, objective=get_objective("sum"), epsilon=0.0)
    with pytest.raises(LearnedOptError, match="segment_length must be positive or None, got 0"):
        Backpropagation(sampler=sampler, objective=get_objective("sum"), segment_length=0)
