"""A nominal rule with a learned correction, and how composed rules are described."""

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.optim import LearnedOptimizer
from learned_opt.rules.adaptive import Adam
from learned_opt.rules.base import build_rule, describe_rule, get_rule
from learned_opt.rules.classic import SGD, Momentum
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.noisy import NoisyGD
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.residual import Residual
from learned_opt.rules.weights import load_rule, save_rule
from learned_opt.tasks.base import get_task
from learned_opt.unroll import unroll


def race(rule, *, num_steps=12, **settings):
    task = get_task("rosenbrock", dim=4)
    problems = task.sample(3, seed=0, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    return unroll(task, rule, problems, num_steps=num_steps, rng=rng, **settings).losses


@pytest.mark.parametrize(
    "nominal",
    [
        Adam(learning_rate=0.02),
        Momentum(learning_rate=1e-4),
        NoisyGD(learning_rate=1e-4, noise=0.1),
    ],
)
def test_without_gain_it_is_the_nominal_rule_to_the_last_bit(nominal):
    rule = Residual(nominal, CoordinatewiseLSTM().double(), gain=0.0)
    expected = race(nominal)
    assert expected.isfinite().all()
    assert torch.equal(race(rule), expected)


def test_the_correction_is_the_learned_step_times_the_gain():
    nominal, learned = SGD(learning_rate=0.1), CoordinatewiseLSTM(seed=1).double()
    rule = Residual(nominal, learned, gain=0.3)
    params = {"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    state, own = rule.init(params), learned.init(params)
    for step in range(3):
        grads = {k: torch.sin(p + step) for k, p in params.items()}
        updates, state = rule(grads, state, params)
        corrections, own = learned(grads, own, params)
        for k, g in grads.items():
            torch.testing.assert_close(updates[k], -0.1 * g + 0.3 * corrections[k])


def test_all_of_theta_is_trained():
    rule = Residual("learnable_adam", CoordinatewiseLSTM()).double()
    theta = dict(rule.named_parameters())
    assert {k.split(".")[0] for k in theta} == {"gain", "nominal", "learned"}
    grads = torch.autograd.grad(race(rule, differentiable=True).sum(), list(theta.values()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)


def test_parts_and_gain_come_back_from_a_file(tmp_path):
    learned = CoordinatewiseLSTM(hidden_size=3, seed=4).double()
    rule = Residual(Momentum(learning_rate=1e-3), learned, gain=0.25)
    with torch.no_grad():
        rule.gain.fill_(0.5)
    loaded = load_rule(save_rule(rule, tmp_path / "rule.safetensors"))
    assert loaded.gain.item() == 0.5
    assert loaded.config() == rule.config()
    assert torch.equal(race(loaded), race(rule))


def test_it_needs_what_its_parts_need():
    plain = Residual("adam", "lstm")
    noisy = Residual("noisy_gd", "lstm")
    agent = Residual("adam", PolicyRule(hidden=(4,)))
    assert (plain.needs_loss, plain.needs_rng) == (False, False)
    assert (noisy.needs_loss, noisy.needs_rng) == (False, True)
    assert (agent.needs_loss, agent.needs_rng) == (True, True)
    assert len({r.feature_schema for r in (plain, agent, Residual("adam", "rnnprop"))}) == 3
    assert Residual("lstm", "rnnprop").coordinatewise and not plain.coordinatewise


def test_it_computes_in_the_type_of_the_learned_rule():
    assert Residual("adam", "lstm").compute_dtype == torch.float32
    assert Residual("lstm", "learnable_adam").compute_dtype == torch.float32
    assert Residual("adam", "learnable_adam").compute_dtype is None
    x = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    x.grad = torch.ones_like(x)
    LearnedOptimizer([x], Residual("adam", "lstm")).step()
    assert x.dtype == torch.float64 and (x != 1).all()


def test_a_sweep_of_nominal_rules_moves_as_one_batch():
    sweep = SGD(learning_rate=torch.tensor([1e-4, 2e-4, 3e-4]))
    rule = Residual(sweep, CoordinatewiseLSTM().double(), gain=0.0)
    assert rule.sweep_size == 3
    assert torch.equal(race(rule), race(sweep))
    with pytest.raises(LearnedOptError, match="sgd': learning_rate must be one number here, got a"):
        LearnedOptimizer([torch.zeros(1)], rule)
    with pytest.raises(LearnedOptError, match="sweeps over equally many problems, got 3 and 2"):
        Residual(sweep, SGD(learning_rate=torch.ones(2)))


def test_descriptions_rebuild_rules():
    rule = Residual(Momentum(learning_rate=0.5), CoordinatewiseLSTM(hidden_size=3))
    again = build_rule(describe_rule(rule))
    assert describe_rule(again) == describe_rule(rule)
    assert build_rule(rule) is rule
    assert build_rule({"name": "adam"}).config() == get_rule("adam").config()
    with pytest.raises(LearnedOptError, match="a rule is described by 'name' and 'config', got"):
        build_rule({"rule": "adam"})
    with pytest.raises(LearnedOptError, match="unknown rule 'adem'; did you mean 'adam'"):
        Residual("adem")


def test_a_gain_that_is_not_finite_is_refused():
    with pytest.raises(LearnedOptError, match="gain must be finite, got nan"):
        Residual(gain=float("nan"))
