"""The outer loop: what it learns, what it records, and what it does when losses are not finite."""

import itertools
import json
import logging
import math
from dataclasses import replace

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.config import TrainConfig, stream_seed
from learned_opt.meta.estimators import MetaGradient
from learned_opt.meta.horizons import Curriculum, Fixed, LogUniform
from learned_opt.meta.trainer import meta_train, truncated_backpropagation
from learned_opt.rules.classic import SGD
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.weights import load_rule, read_metadata
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.tasks.quadratics import RandomQuadratic

TASK = RandomQuadratic(dim=3)
CONFIG = TrainConfig(
    num_outer_steps=6,
    num_problems=4,
    truncation=3,
    horizon=Fixed(6),
    evaluate_every=2,
    num_eval_problems=5,
    log_every=2,
)


class Parabola(Task):
    """``f(x) = curvature x^2 / 2`` in one variable: the best single step is ``1 / curvature``."""

    name = "parabola"
    family = "parabola"
    kind = "quadratic"
    curvature = 4.0

    def __init__(self):
        self.shapes = {"x": (1,)}

    def _sample(self, num_problems, rng):
        x = torch.randn(num_problems, 1, generator=rng, dtype=torch.float64)
        zeros = torch.zeros(num_problems, dtype=torch.float64)
        return Problems(
            params={"x": x},
            constants={},
            facts=Facts(
                minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None][:, :0]
            ),
        )

    def loss(self, params, problems, batch=None):
        del problems, batch
        return self.curvature * params["x"][:, 0].square() / 2


class Recorder:
    """A tracker that remembers."""

    def __init__(self):
        self.logged, self.summaries, self.artifacts = [], {}, []

    def log(self, metrics, *, step):
        self.logged.append((step, dict(metrics)))

    def summary(self, metrics):
        self.summaries.update(metrics)

    def artifact(self, name, path, *, kind):
        self.artifacts.append((name, path, kind))


class Poisoned(MetaGradient):
    """Spoils some estimates of another estimator."""

    def __init__(self, inner, spoil):
        self.inner, self.spoil, self.states = inner, spoil, []

    def estimate(self, rule, state, *, progress, rng):
        self.states.append(state)
        estimate = self.inner.estimate(rule, state, progress=progress, rng=rng)
        return self.spoil(len(self.states), estimate)

    def pack(self, state):
        return self.inner.pack(state)

    def unpack(self, packed):
        return self.inner.unpack(packed)


def lstm():
    return CoordinatewiseLSTM(hidden_size=4)


def history(result):
    return [json.loads(line) for line in result.history.read_text().splitlines()]


def test_learns_the_closed_form_optimum(tmp_path):
    rule = SGD(learning_rate=0.05)
    config = TrainConfig(
        num_outer_steps=150,
        horizon=Fixed(1),
        truncation=1,
        objective="final",
        num_problems=8,
        learning_rate=0.02,
        evaluate_every=75,
        num_eval_problems=4,
        dtype="float64",
    )
    result = meta_train(rule, Parabola(), config=config, out=tmp_path)
    assert rule.learning_rate.item() == pytest.approx(1 / Parabola.curvature, abs=1e-3)
    best = load_rule(result.best)
    assert best.learning_rate.item() == pytest.approx(1 / Parabola.curvature, abs=1e-3)
    assert result.best_score < -4
    first = history(result)[0]
    # log10 (1 - 0.05 * 4)^2 before training
    assert first["eval/score"] == pytest.approx(2 * math.log10(0.8), rel=1e-9)


def test_an_lstm_gets_better_at_quadratics(tmp_path):
    config = replace(
        CONFIG,
        num_outer_steps=60,
        num_problems=32,
        truncation=10,
        horizon=Fixed(20),
        learning_rate=1e-2,
        evaluate_every=30,
        num_eval_problems=64,
    )
    result = meta_train(CoordinatewiseLSTM(), TASK, config=config, out=tmp_path)
    scores = [line["eval/score"] for line in history(result) if "eval/score" in line]
    assert len(scores) == 3
    assert scores[-1] < scores[0] - 0.3
    assert result.best_score == min(scores)


def test_history_and_tracker_record_the_same(tmp_path):
    tracker, progress = Recorder(), []
    result = meta_train(
        lstm(),
        [TASK, RandomQuadratic(dim=2), Parabola()],
        config=CONFIG,
        out=tmp_path,
        tracker=tracker,
        on_progress=lambda done, total, note: progress.append((done, total, note)),
    )
    lines = history(result)
    assert [(line.pop("step"), line) for line in lines] == tracker.logged
    training = [(step, m) for step, m in tracker.logged if "meta_loss" in m]
    assert [step for step, _ in training] == [2, 4, 6]
    assert [m["learning_rate"] for _, m in training] == [
        CONFIG.learning_rate_at(k) for k in (1, 3, 5)
    ]
    evaluations = [(step, m) for step, m in tracker.logged if "eval/score" in m]
    assert [step for step, _ in evaluations] == [0, 2, 4, 6]
    labels = ("random_quadratic-0", "random_quadratic-1", "parabola")
    for _, metrics in evaluations:
        per_task = [metrics[f"eval/{label}/mean_log10_gap"] for label in labels]
        assert metrics["eval/score"] == pytest.approx(sum(per_task) / 3)
    scores = [m["eval/score"] for _, m in evaluations]
    assert result.last_score == scores[-1]
    assert result.best_score == min(scores) == tracker.summaries["best_score"]
    assert result.best_step == 2 * scores.index(min(scores))
    assert tracker.artifacts == [("lstm-best", result.best, "model")]
    assert [p[:2] for p in progress] == [(k, 6) for k in range(1, 7)]


def test_weight_files_hold_theta_and_say_where_it_comes_from(tmp_path):
    rule = lstm()
    result = meta_train(rule, TASK, config=replace(CONFIG, seed=7), out=tmp_path)
    loaded = load_rule(result.last)
    for k, v in rule.state_dict().items():
        assert torch.equal(loaded.state_dict()[k], v)
    header = read_metadata(result.last)
    assert json.loads(header["tasks"]) == ["random_quadratic"]
    assert json.loads(header["horizon"]) == {"kind": "Fixed", "steps": 6}
    assert header["seed"] == "7"
    assert json.loads(header["scores"])["held_out_mean_log10_gap"] == result.last_score
    assert json.loads(header["training"])["learning_rate"] == CONFIG.learning_rate


def test_seeds_change_training_but_not_the_held_out_problems(tmp_path):
    results = [
        meta_train(lstm(), TASK, config=replace(CONFIG, seed=seed), out=tmp_path / name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    records = [history(result) for result in results]
    assert records[0] == records[1]
    assert records[0][0] == records[2][0]  # the evaluation before the first step
    assert records[0][1] != records[2][1]


def test_random_scaling_is_for_training_alone(tmp_path):
    config = replace(CONFIG, random_scaling=3.0)
    scaled = truncated_backpropagation(config, [TASK])
    episode = scaled.sampler.draw(0.0, torch.Generator().manual_seed(0))
    assert "inner" in episode.problems.constants
    results = [
        meta_train(lstm(), TASK, config=c, out=tmp_path / name)
        for c, name in ((CONFIG, "plain"), (config, "scaled"))
    ]
    records = [history(result) for result in results]
    assert records[0][0] == records[1][0]
    assert records[0][1] != records[1][1]


def test_gradients_are_clipped(tmp_path):
    # One gradient a million times too long must not outlast its step in Adam's second moment.
    thetas = []
    for name, factor in (("plain", 1.0), ("huge", 1e6)):
        config = replace(CONFIG, num_outer_steps=3, clip_norm=1e-3, log_every=1)
        rule = lstm()
        inner = truncated_backpropagation(config, [TASK])

        def spoil(count, estimate, factor=factor):
            scale = factor if count == 1 else 1.0
            return replace(estimate, grads=tuple(scale * g for g in estimate.grads))

        result = meta_train(
            rule, TASK, config=config, out=tmp_path / name, estimator=Poisoned(inner, spoil)
        )
        thetas.append(rule.head.weight.detach().clone())
        norms = [m["meta_gradient_norm"] for m in history(result) if "meta_loss" in m]
        assert norms[0] > 1e-3  # what is recorded is the norm before clipping
    torch.testing.assert_close(thetas[0], thetas[1])


def test_each_update_uses_the_decayed_learning_rate(tmp_path):
    # Under a constant gradient Adam moves every coordinate by exactly the learning rate.
    config = replace(CONFIG, dtype="float64", final_learning_rate_fraction=0.1)
    rule, thetas = lstm(), []

    def spoil(count, estimate):
        del count
        thetas.append(rule.head.weight.detach().clone())
        return replace(estimate, grads=tuple(torch.ones_like(g) for g in estimate.grads))

    inner = truncated_backpropagation(config, [TASK])
    meta_train(rule, TASK, config=config, out=tmp_path, estimator=Poisoned(inner, spoil))
    for k, (before, after) in enumerate(itertools.pairwise([*thetas, rule.head.weight.detach()])):
        move = torch.full_like(before, config.learning_rate_at(k))
        torch.testing.assert_close(before - after, move, rtol=1e-5, atol=0.0)


def nan_loss(estimate):
    return replace(estimate, meta_loss=torch.tensor(math.nan))


def inf_grad(estimate):
    return replace(estimate, grads=(estimate.grads[0] * math.inf, *estimate.grads[1:]))


@pytest.mark.parametrize("poison", [nan_loss, inf_grad])
def test_nonfinite_steps_are_skipped_counted_and_said(tmp_path, caplog, poison):
    thetas, rule, tracker = [], lstm(), Recorder()

    def spoil(count, estimate):
        thetas.append(torch.cat([p.detach().flatten() for p in rule.parameters()]))
        return poison(estimate) if count in {2, 4} else estimate

    config = replace(CONFIG, horizon=Fixed(100))
    estimator = Poisoned(truncated_backpropagation(config, [TASK]), spoil)
    with caplog.at_level(logging.WARNING):
        result = meta_train(
            rule, TASK, config=config, out=tmp_path, estimator=estimator, tracker=tracker
        )
    assert result.nonfinite_meta_losses == 2
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(thetas)]
    assert moved == [True, False, True, False, True]
    # the episode starts anew after a skipped step and goes on after others
    assert [state is None for state in estimator.states] == [True, False, True, False, True, False]
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "outer step 2 skipped",
        "outer step 4 skipped",
    ]
    counts = [m["nonfinite_meta_losses"] for _, m in tracker.logged if len(m) == 1]
    assert counts == [1, 2]
    last = [line for line in history(result) if "meta_loss" in line][-1]
    assert last["nonfinite_meta_losses"] == 2
    assert math.isfinite(last["meta_loss"])


def test_a_hopeless_run_is_given_up(tmp_path):
    rule = SGD(learning_rate=1e30)
    config = replace(CONFIG, num_outer_steps=100, max_nonfinite_in_a_row=5)
    match = "not finite 5 outer steps in a row, up to step 5 .*horizon 6"
    with pytest.raises(LearnedOptError, match=match):
        meta_train(rule, TASK, config=config, out=tmp_path)
    first = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    assert first["eval/random_quadratic/nonfinite"] == 1.0
    assert first["eval/score"] == 10.0  # what a loss that is not finite counts as
    assert first["eval/random_quadratic/final_log10_loss"] in {"nan", "inf"}


def test_the_learning_rate_decays_by_a_cosine():
    config = TrainConfig(num_outer_steps=100, learning_rate=0.5, final_learning_rate_fraction=0.2)
    assert config.learning_rate_at(0) == 0.5
    assert config.learning_rate_at(50) == pytest.approx(0.5 * 0.6)
    assert config.learning_rate_at(100) == pytest.approx(0.1)


def test_the_learning_rate_warms_up_along_the_cosine():
    cold = TrainConfig(num_outer_steps=100, learning_rate=0.5)
    warm = TrainConfig(num_outer_steps=100, learning_rate=0.5, warmup_steps=9)
    for step in range(9):
        share = (step + 1) / 10
        assert warm.learning_rate_at(step) == pytest.approx(share * cold.learning_rate_at(step))
    assert warm.learning_rate_at(9) == cold.learning_rate_at(9)
    assert warm.learning_rate_at(80) == cold.learning_rate_at(80)
    with pytest.raises(LearnedOptError, match="warmup_steps must not be negative, got -1"):
        TrainConfig(warmup_steps=-1)


def test_evaluations_last_as_long_as_the_longest_episode():
    assert TrainConfig(horizon=LogUniform(5, 70)).num_eval_steps == 70
    assert TrainConfig(horizon=LogUniform(5, 70), eval_steps=9).num_eval_steps == 9


def test_settings_survive_json():
    config = TrainConfig(horizon=Curriculum((Fixed(5), LogUniform(5, 9))), task_weights=(1.0, 2.0))
    settings = config.to_json()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["horizon"]["stages"][1] == {"kind": "LogUniform", "low": 5, "high": 9}


def test_streams_do_not_meet():
    seeds = {stream_seed(purpose, k) for purpose in ("meta-training", "held-out") for k in range(9)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_outer_steps": 0}, "num_outer_steps must be positive, got 0"),
        ({"learning_rate": math.inf}, "learning_rate must be positive, got inf"),
        ({"epsilon": -1.0}, "epsilon must be positive, got -1.0"),
        ({"final_learning_rate_fraction": 2.0}, r"must lie in \[0, 1\], got 2.0"),
        ({"second_moment_decay": 1.0}, r"second_moment_decay must lie in \(0, 1\), got 1.0"),
        ({"averaging": 0.6}, r"averaging must lie in \(0, 0.5\] or be None, got 0.6"),
        ({"eval_steps": 0}, "eval_steps must be positive or None, got 0"),
        ({"random_scaling": 0.0}, "random_scaling must be positive or None, got 0.0"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must not be negative, got -1.0"),
        ({"objective": "loggap"}, "did you mean 'log_gap'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ],
)
def test_bad_settings_are_refused(changes, match):
    with pytest.raises(LearnedOptError, match=match):
        replace(CONFIG, **changes)


def test_a_rule_without_parameters_is_refused(tmp_path):
    rule = lstm().requires_grad_(requires_grad=False)
    with pytest.raises(LearnedOptError, match="rule 'lstm' has no parameters that require grad"):
        meta_train(rule, TASK, config=CONFIG, out=tmp_path)
