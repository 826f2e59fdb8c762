"""Presets: what they promise not to train on, and the file that they make."""

import json
from dataclasses import replace

import pytest
import torch

from learned_opt.cli.main import main
from learned_opt.cli.train import _fresh_rule
from learned_opt.errors import LearnedOptError
from learned_opt.meta.configured import configured_estimator
from learned_opt.meta.presets import PRESETS, get_preset
from learned_opt.meta.trainer import meta_train
from learned_opt.rules.base import get_rule
from learned_opt.rules.weights import load_rule, read_metadata
from learned_opt.tasks.deep_linear import DeepLinear

UNSEEN = ("octopus", "phase_retrieval", "soft_committee")


@pytest.mark.parametrize("name", PRESETS)
def test_whole_families_stay_unseen(name):
    tasks = [part.task for part in get_preset(name).mixture()]
    for task in tasks:
        assert not any(family in task.name for family in UNSEEN)
        assert not isinstance(task, DeepLinear) or len(task.shapes) == 2


@pytest.mark.parametrize("name", PRESETS)
def test_settings_fit_the_mixture_and_build_the_estimator(name):
    preset = get_preset(name)
    config = preset.config(seed=3)
    tasks = [part.task for part in preset.mixture()]
    assert config.seed == 3 and len(config.task_weights) == len(tasks)
    configured_estimator(config, tasks)
    assert get_rule(preset.rule).name == preset.rule


@pytest.mark.parametrize(
    ("name", "keeps_last", "horizon"),
    [
        ("lstm", False, "50 to 400"),
        ("lstm", True, "50 to 400"),
        ("controller", True, "20 to 400, 2 times as long amid noise"),
    ],
)
def test_the_file_that_is_shipped_says_where_it_is_from(name, keeps_last, horizon, tmp_path):
    preset = replace(get_preset(name), keeps_last=keeps_last)
    tasks = [part.task for part in preset.mixture()]
    config = preset.config(
        num_outer_steps=2,
        num_problems=2 if name == "lstm" else 4 * len(tasks),
        num_eval_problems=2,
        eval_steps=2,
        evaluate_every=1,
        seed=5,
    )
    rule = get_rule(name, seed=5)
    result = meta_train(rule, tasks, config=config, out=tmp_path)
    path = preset.export(result, tmp_path)
    made = load_rule(str(result.last if keeps_last else result.best))
    for got, want in zip(load_rule(str(path)).parameters(), made.parameters(), strict=True):
        assert torch.equal(got, want)
    about = read_metadata(path)
    assert path.name == f"{name}.safetensors"
    assert about["seed"] == "5" and about["horizon"] == horizon
    assert json.loads(about["tasks"]) == [task.name for task in tasks]
    (score,) = json.loads(about["scores"]).values()
    assert score == (result.last_score if keeps_last else result.best_score)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"controller"}))
def test_every_rule_of_a_preset_trains_by_one_command(name, tmp_path):
    words = ("train", name, "--num-outer-steps", "2", "--num-problems", "4", "--horizon", "20")
    main((*words, "--seed", "3", "--wandb", "disabled", "--out", str(tmp_path)))
    trained, fresh = load_rule(str(tmp_path / "last.safetensors")), _fresh_rule(name, 3)
    assert trained.name == name
    pairs = list(zip(trained.parameters(), fresh.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in pairs)
    torch.testing.assert_close(*map(list, zip(*pairs, strict=True)), atol=0.02, rtol=0)


def test_a_preset_is_not_changed_by_flags(capsys, tmp_path):
    words = ("train", "lstm", "--preset", "zoo", "--num-outer-steps", "3", "--out", str(tmp_path))
    with pytest.raises(SystemExit):
        main(words)
    assert "--num-outer-steps is set by the preset" in capsys.readouterr().err
    with pytest.raises(LearnedOptError, match="did you mean 'lstm'"):
        get_preset("lsmt")
