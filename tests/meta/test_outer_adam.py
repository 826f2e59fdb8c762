"""Meta-training's Adam: parts of a rule learn at rates of their own, and a resumed run knows."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from learned_opt.errors import LearnedOptError
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.evaluation import draw_held_out, evaluate
from learned_opt.meta.horizons import Fixed
from learned_opt.meta.outer_adam import OuterAdam, learning_rate_factors, power_average
from learned_opt.meta.trainer import meta_train
from learned_opt.rules import get_rule
from learned_opt.rules.classic import SGD
from learned_opt.rules.guarded import Guarded
from learned_opt.rules.weights import load_rule
from learned_opt.tasks import get_task

CONFIG = TrainConfig(
    num_outer_steps=4,
    num_problems=2,
    truncation=2,
    horizon=Fixed(4),
    num_eval_problems=2,
    evaluate_every=2,
    learning_rate=0.01,
    checkpoint_seconds=0.0,
)


@pytest.mark.parametrize(("remembers", "rate"), [(True, 0.05), (False, 0.25)])
def test_the_net_for_noise_learns_slowly_wherever_it_is_but_for_its_bias(remembers, rate):
    rule = get_rule("controller", lstm_units=4, noise_remembers=remembers)
    last = f"layers.{len(rule.amid_noise.layers) - 1}.bias"
    for prefix, whole in (("", rule), ("rule.", Guarded(rule, "adam"))):
        for name, factor in learning_rate_factors(whole).items():
            # But for the bias of its decisions, in which what is best on average belongs.
            own = name.startswith(f"{prefix}amid_noise.") and not name.endswith(last)
            assert factor == (rate if own else 1), name


def test_factors_of_modules_within_modules_multiply():
    rule = get_rule("controller", lstm_units=4)
    rule.amid_noise.layers.learning_rate_factor = 0.5
    rule.judge.learning_rate_factor = 3
    factors = learning_rate_factors(rule)
    assert factors["amid_noise.layers.0.weight"] == pytest.approx(0.025)
    assert factors["amid_noise.layers.0.bias"] == pytest.approx(0.5)
    assert factors["amid_noise.lstm.bias_hh"] == 0.05
    assert factors["judge.layers.0.bias"] == 3 and factors["layers.0.bias"] == 1


def test_the_first_step_is_as_long_as_the_learning_rate():
    rule = get_rule("controller", lstm_units=4)
    before = {name: p.detach().clone() for name, p in rule.named_parameters()}
    optimizer = OuterAdam(rule, CONFIG)
    for parameter in rule.parameters():
        parameter.grad = torch.full_like(parameter, -3.0)
    optimizer.set_learning_rate(0.5)
    optimizer.step()
    for name, parameter in rule.named_parameters():
        is_slow = name.startswith("amid_noise.") and name != "amid_noise.layers.0.bias"
        step = torch.full_like(parameter, 0.025 if is_slow else 0.5)
        assert_close(parameter.detach() - before[name], step, rtol=1e-4, atol=1e-6)


def test_one_group_for_a_rule_that_does_not_care():
    assert len(OuterAdam(get_rule("lstm", hidden_size=3), CONFIG).param_groups) == 1


@pytest.mark.parametrize("mean_age", [0.05, 0.1, 0.3, 0.5])
def test_averages_follow_a_power_law_however_long_training_lasts(mean_age):
    rule, count = SGD(learning_rate=1.0), 2000
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    values = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = torch.cat((torch.zeros(1, dtype=torch.float64), steps))
    shares = (ends / count).pow(1 / mean_age - 1).diff()
    for series, want in ((values, shares @ values), (steps / count, 1 - mean_age)):
        (parameter,) = rule.double().parameters()
        average = power_average(rule, mean_age)
        for value in series:
            parameter.data.fill_(value)
            average.update_parameters(rule)
        (got,) = average.module.parameters()
        close = {} if series is values else {"rtol": 0.0, "atol": 1e-3}
        assert_close(got.detach(), torch.as_tensor(want, dtype=got.dtype).expand_as(got), **close)


def test_weights_that_are_kept_and_evaluated_are_averages(tmp_path):
    rule, seen = get_rule("lstm", hidden_size=3), []
    meta_train(
        rule,
        get_task("x2_y4_y2"),
        config=replace(CONFIG, averaging=0.25),
        out=tmp_path,
        on_progress=lambda *_: seen.append(parameters_to_vector(rule.parameters()).detach()),
    )
    shares = torch.arange(5.0).div(4).pow(3).diff()
    kept = parameters_to_vector(load_rule(tmp_path / "last.safetensors").parameters())
    assert_close(kept, shares @ torch.stack(seen))
    assert (kept - seen[-1]).norm() > 1e-3
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    held_out = draw_held_out([get_task("x2_y4_y2")], 2, dtype=torch.float32, device="cpu")
    found = evaluate(load_rule(tmp_path / "last.safetensors"), held_out, num_steps=4)
    assert lines[-1]["eval/score"] == pytest.approx(found.score)


def test_a_run_does_not_go_on_at_other_rates(tmp_path):
    rule, tasks = get_rule("controller", lstm_units=4), [get_task("x2_y4_y2")]
    meta_train(rule, tasks, config=CONFIG, out=tmp_path)
    rule = get_rule("controller", lstm_units=4)
    rule.amid_noise.learning_rate_factor = 0.01
    with pytest.raises(LearnedOptError, match=r"learning_rate_factors\..*: 0.05 there, 0.01 here"):
        meta_train(rule, tasks, config=CONFIG, out=tmp_path, resume=True)
