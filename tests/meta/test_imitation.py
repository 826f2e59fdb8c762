"""Imitation: whose steps are taken, what is learned from them, and what follows."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.config import TEACHERS, TrainConfig
from learned_opt.meta.configured import configured_estimator, warm_started
from learned_opt.meta.episodes import EpisodeSampler
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.meta.imitation import Imitation, Shadowed, WarmStart
from learned_opt.meta.trainer import meta_train
from learned_opt.rules.adaptive import Adam
from learned_opt.rules.base import get_rule
from learned_opt.rules.classic import SGD, Momentum
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.policy import PolicyRule
from learned_opt.tasks.networks import DigitsMLP
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.tasks.transforms import Scaled
from learned_opt.unroll import unroll

DTYPE = torch.float64
TASK = RandomQuadratic(dim=3)
MINIBATCHES = DigitsMLP(hidden=(3,), num_train=50, batch_size=8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def imitation(teacher, *, task=TASK, truncation=5, horizon=12):
    sampler = EpisodeSampler(tasks=[task], num_problems=4, horizon=Fixed(horizon), dtype=DTYPE)
    return Imitation(sampler=sampler, teacher=teacher, truncation=truncation)


@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_loss_and_gradient_have_a_closed_form_for_two_learning_rates(factor):
    # Steps -a g and -b g: whatever the gradients, the loss is ((a - b) / b)^2.
    task = Scaled(TASK, value_scale=factor)
    a, b = 0.03 / factor, 0.02 / factor
    estimator = imitation(SGD(learning_rate=b), task=task)
    estimate = estimator.estimate(SGD(learning_rate=a), None, progress=0.0, rng=rng())
    assert estimate.meta_loss.item() == pytest.approx(0.25, rel=1e-12)
    assert estimate.grads[0].item() == pytest.approx(2 * (a - b) / b**2, rel=1e-12)
    assert estimate.metrics == {"imitation_error": estimate.meta_loss.item()}


@pytest.mark.parametrize("task", [TASK, MINIBATCHES], ids=lambda task: task.name)
def test_the_teacher_moves_and_the_learner_keeps_its_own_memory(task):
    estimator = imitation(Adam(learning_rate=0.05), task=task)
    learner, draws, state = Momentum(learning_rate=0.01, momentum=0.5), rng(), None
    losses = []
    for _ in range(2):
        estimate = estimator.estimate(learner, state, progress=0.0, rng=draws)
        state = estimate.state
        losses.append(estimate.meta_loss.item())
    assert not any(p.requires_grad for p in state.carry.params.values())
    draws = rng()
    problems = task.sample(4, seed=draws, dtype=DTYPE)
    seen = []
    whole = unroll(
        task,
        Adam(learning_rate=0.05),
        problems,
        num_steps=10,
        rng=draws,
        final_loss=False,
        observe=lambda **step: seen.append((step["params"], step["grads"])),
    )
    for name, p in whole.carry.params.items():
        torch.testing.assert_close(state.carry.params[name], p, rtol=1e-12, atol=0.0)
    # the squared distances by hand, over the gradients that Adam met
    points = [params for params, _ in seen] + [whole.carry.params]
    velocity = {name: torch.zeros_like(p) for name, p in problems.params.items()}
    missed, length = torch.zeros(2, 10, 4, dtype=DTYPE)
    for t, (_, grads) in enumerate(seen):
        for name, g in grads.items():
            velocity[name] = 0.5 * velocity[name] + g
            step = points[t + 1][name] - points[t][name]
            missed[t] += (-0.01 * velocity[name] - step).square().flatten(1).sum(1)
            length[t] += step.square().flatten(1).sum(1)
    expected = [missed[s].sum(0) / length[s].sum(0) for s in (slice(0, 5), slice(5, 10))]
    assert losses == pytest.approx([e.mean().item() for e in expected], rel=1e-9)


def test_there_is_no_graph_through_the_teacher():
    shadowed = Shadowed(Momentum(), Momentum())
    params = {"x": torch.ones(2, 3, dtype=DTYPE)}
    updates, state = shadowed(params, shadowed.init(params), params)
    assert not updates["x"].requires_grad
    assert not state["teacher"]["velocity"]["x"].requires_grad
    assert state["missed"].requires_grad


def test_the_same_rule_misses_nothing():
    estimator, draws, state, steps = imitation(Momentum(learning_rate=0.02)), rng(), None, []
    for _ in range(3):
        estimate = estimator.estimate(Momentum(learning_rate=0.02), state, progress=0.0, rng=draws)
        state = estimate.state
        steps.append(estimate.diagnostics["inner_step"])
        assert estimate.meta_loss == 0
    assert steps == [5, 10, 12]
    assert state is None  # the horizon is reached


def test_a_teacher_that_stands_still_is_no_unit():
    estimator = imitation(SGD(learning_rate=0.0))
    estimate = estimator.estimate(SGD(learning_rate=0.0), None, progress=0.0, rng=rng())
    assert estimate.meta_loss == 0
    assert estimate.grads[0] == 0


def test_an_lstm_becomes_its_teacher(tmp_path):
    config = TrainConfig(
        num_outer_steps=60,
        imitation_steps=60,
        imitation_learning_rate=0.05,
        num_problems=16,
        truncation=10,
        horizon=Fixed(20),
        learning_rate=0.02,
        evaluate_every=60,
        log_every=10,
        eval_steps=1,
        num_eval_problems=2,
    )
    result = meta_train(CoordinatewiseLSTM(hidden_size=8), TASK, config=config, out=tmp_path)
    lines = [json.loads(line) for line in result.history.read_text().splitlines()]
    errors = [line["estimator/imitation_error"] for line in lines if "meta_loss" in line]
    assert errors[0] > 0.5
    assert errors[-1] < 0.3


def test_a_learning_rate_is_copied_and_then_forgotten(tmp_path):
    config = TrainConfig(
        num_outer_steps=120,
        imitation_steps=80,
        imitation_teacher="sgd",
        imitation_learning_rate=0.05,
        num_problems=4,
        truncation=5,
        horizon=LogUniform(5, 15),
        learning_rate=2e-3,
        final_learning_rate_fraction=1.0,
        evaluate_every=120,
        log_every=40,
        num_eval_problems=3,
        dtype="float64",
    )
    rates = []
    rule = SGD(learning_rate=0.01)
    result = meta_train(
        rule,
        TASK,
        config=config,
        out=tmp_path,
        on_progress=lambda *_: rates.append(rule.learning_rate.item()),
    )
    assert rates[79] == pytest.approx(0.05, abs=2e-3)
    assert abs(rates[-1] - 0.05) > 0.01
    lines = [json.loads(line) for line in result.history.read_text().splitlines()]
    training = [line for line in lines if "meta_loss" in line]
    assert ["estimator/imitation_error" in line for line in training] == [True, True, False]


def test_what_follows_begins_afresh_and_is_what_was_asked_for():
    config = TrainConfig(num_outer_steps=10, imitation_steps=4, estimator="nres")
    after = configured_estimator(config, [TASK])
    warm = warm_started(config, [TASK], after)
    assert warm_started(replace(config, imitation_steps=0), [TASK], after) is after
    assert isinstance(warm, WarmStart)
    assert warm.estimator is after
    rule, draws, state, imitating = CoordinatewiseLSTM(hidden_size=3), rng(), None, []
    for step in range(6):
        estimate = warm.estimate(rule, state, progress=step / 10, rng=draws)
        imitating.append("imitation_error" in estimate.metrics)
        # a skipped step loses the state, but not the count
        state = None if step == 1 else warm.unpack(warm.pack(estimate.state))
    assert imitating == [True] * 4 + [False] * 2


@pytest.mark.parametrize("cut", [3, 5, 8])
@pytest.mark.parametrize("estimator", ["truncated_backpropagation", "backpropagation", "pes"])
def test_a_killed_run_ends_with_the_same_weights(estimator, cut, tmp_path):
    config = TrainConfig(
        num_outer_steps=10,
        imitation_steps=5,
        estimator=estimator,
        num_problems=4,
        num_pairs=2,
        truncation=3,
        horizon=LogUniform(4, 9),
        evaluate_every=5,
        num_eval_problems=3,
        log_every=2,
        checkpoint_seconds=0.0,
    )

    def train(folder, stop_after, *, resume):
        def stop(done, total, note):
            del total, note
            if done == stop_after:
                raise KeyboardInterrupt

        rule = CoordinatewiseLSTM(hidden_size=3)
        tasks = [RandomQuadratic(dim=3), MINIBATCHES]
        with contextlib.suppress(KeyboardInterrupt):
            meta_train(rule, tasks, config=config, out=folder, resume=resume, on_progress=stop)
        theta = torch.cat([p.detach().flatten() for p in rule.parameters()])
        return theta, (folder / "history.jsonl").read_text()

    whole, history = train(tmp_path / "whole", None, resume=False)
    train(tmp_path / "cut", cut, resume=False)
    resumed, resumed_history = train(tmp_path / "cut", None, resume=True)
    assert torch.equal(whole, resumed)
    assert history == resumed_history


@pytest.mark.parametrize("name", TEACHERS)
def test_every_teacher_can_be_built_and_imitated(name):
    config = TrainConfig(imitation_steps=1, imitation_teacher=name, imitation_learning_rate=0.3)
    warm = warm_started(config, [TASK], configured_estimator(config, [TASK]))
    assert warm.imitation.teacher.name == name
    assert warm.imitation.teacher.learning_rate.item() == 0.3
    own = get_rule(name, learning_rate=0.3)
    assert warm.imitation.estimate(own, None, progress=0.0, rng=rng()).meta_loss == 0


def test_a_rule_of_choices_cannot_imitate():
    rule = PolicyRule(actuator="saddle_escape", head="argmax").double()
    with pytest.raises(LearnedOptError, match=r"rule 'policy' .* imitation_steps must be 0"):
        imitation(SGD()).estimate(rule, None, progress=0.0, rng=rng())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"imitation_steps": 11, "num_outer_steps": 10},
            "imitation_steps must lie between 0 and num_outer_steps=10, got 11",
        ),
        ({"imitation_steps": -1}, "got -1"),
        ({"imitation_teacher": "adm"}, "unknown imitation_teacher 'adm'; did you mean 'adam'"),
        ({"imitation_learning_rate": 0.0}, "imitation_learning_rate must be positive, got 0.0"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(LearnedOptError, match=match):
        TrainConfig(**settings)


def test_bad_truncations_are_refused():
    with pytest.raises(LearnedOptError, match="truncation must be positive, got 0"):
        imitation(SGD(), truncation=0)
