"""Every remedy at once, in one config, with every estimator."""

import contextlib
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from learned_opt.cli.main import main
from learned_opt.errors import LearnedOptError
from learned_opt.meta.augmentation import augmented
from learned_opt.meta.checkpoint import read_checkpoint, write_checkpoint
from learned_opt.meta.config import ESTIMATORS, TrainConfig
from learned_opt.meta.configured import configured_estimator, truncated_backpropagation
from learned_opt.meta.horizons import Curriculum, Fixed, LogUniform
from learned_opt.meta.trainer import meta_train
from learned_opt.rules.base import get_rule
from learned_opt.rules.weights import read_metadata
from learned_opt.tasks.mixture import Mixture
from learned_opt.tasks.networks import DigitsMLP
from learned_opt.tasks.quadratics import RandomQuadratic
from learned_opt.tasks.strict_saddle import StrictSaddle

AUGMENTATIONS = {
    "gradient_noise": (0.01, 0.1),
    "dimension_factor": 2.0,
    "convex_term": 0.5,
    "reparametrisation": "tensor",
    "reparametrisation_range": (0.1, 10.0),
    "random_scaling": 1.0,
}
NOTHING = {name: None for name in AUGMENTATIONS if name != "reparametrisation_range"}
EVERYTHING = TrainConfig(
    num_outer_steps=6,
    num_problems=8,
    num_pairs=4,
    truncation=3,
    horizon=Curriculum((Fixed(3), LogUniform(4, 9))),
    imitation_steps=2,
    epochs=1,
    minibatches=2,
    evaluate_every=3,
    num_eval_problems=3,
    eval_steps=3,
    log_every=1,
    checkpoint_seconds=0.0,
    dtype="float64",
    **AUGMENTATIONS,
)
TASKS = [RandomQuadratic(dim=3), DigitsMLP(hidden=(2,), num_train=50, batch_size=8)]


def build(estimator):
    if estimator == "ppo":
        return get_rule("controller")
    return get_rule("lstm", hidden_size=3)


def train(estimator, folder, *, stop_after=None, resume=False, config=EVERYTHING):
    thetas, rule = [], build(estimator)

    def on_progress(done, total, note):
        del total, note
        thetas.append(torch.cat([p.detach().flatten() for p in rule.parameters()]))
        if done == stop_after:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        meta_train(
            rule,
            TASKS,
            config=replace(config, estimator=estimator),
            out=folder,
            resume=resume,
            on_progress=on_progress,
        )
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return thetas, lines


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_everything_at_once_trains_and_resumes(estimator, tmp_path):
    thetas, lines = train(estimator, tmp_path / "whole")
    training = [line for line in lines if "meta_loss" in line]
    assert len(training) == 6
    assert ["estimator/imitation_error" in line for line in training] == [True] * 2 + [False] * 4
    for line in training:
        assert math.isfinite(line["meta_loss"])
        assert line["meta_gradient_norm"] > 0
        assert line["nonfinite_meta_losses"] == 0
    for before, after in itertools.pairwise(thetas):
        assert not torch.equal(before, after)
    # cut once in the imitation and once after it
    train(estimator, tmp_path / "cut", stop_after=1)
    train(estimator, tmp_path / "cut", stop_after=4, resume=True)
    resumed, resumed_lines = train(estimator, tmp_path / "cut", resume=True)
    assert torch.equal(resumed[-1], thetas[-1])
    assert resumed_lines == lines


@pytest.mark.parametrize("estimator", ["truncated_backpropagation", "backpropagation", "mixed"])
def test_second_derivatives_go_through_everything(estimator, tmp_path):
    config = replace(EVERYTHING, num_outer_steps=4, imitation_steps=1)
    (_, one), (_, other) = (
        train(estimator, tmp_path / str(exact), config=replace(config, second_order=exact))
        for exact in (False, True)
    )
    losses = [[line["meta_loss"] for line in run if "meta_loss" in line] for run in (one, other)]
    assert losses[0][:2] == losses[1][:2]  # the first update after the imitation tells them apart
    assert losses[0][2:] != losses[1][2:]
    assert all(math.isfinite(loss) for run in losses for loss in run)


def test_augmentations_are_in_one_order_and_in_training_alone(tmp_path):
    (name, net) = (task.name for task in augmented(EVERYTHING, TASKS))
    assert name == (
        "randomly_scaled(reparametrised(convex_term(random_dimension(noisy(random_quadratic)))))"
    )
    assert net.endswith("noisy(digits_mlp)))))")
    assert augmented(TrainConfig(), TASKS) == TASKS
    for key, part in (
        ("gradient_noise", "noisy"),
        ("dimension_factor", "random_dimension"),
        ("convex_term", "convex_term"),
        ("reparametrisation", "reparametrised"),
        ("random_scaling", "randomly_scaled"),
    ):
        (task,) = augmented(TrainConfig(**{key: AUGMENTATIONS[key]}), TASKS[:1])
        assert task.name == f"{part}(random_quadratic)"
    # evaluation sees the tasks themselves
    (_, with_them), (_, without) = (
        train("truncated_backpropagation", tmp_path / name, config=config, stop_after=1)
        for name, config in (
            ("with", EVERYTHING),
            ("without", replace(EVERYTHING, **NOTHING)),
        )
    )
    assert with_them[0] == without[0]
    assert with_them[1] != without[1]


def test_settings_reach_the_augmentations():
    (task,) = augmented(EVERYTHING, TASKS[:1])
    problems = task.sample(200, dtype=torch.float64)
    assert task.log_range == 1.0
    assert (task.inner.level, task.inner.scale_range) == ("tensor", (0.1, 10.0))
    assert task.inner.inner.weight == 0.5
    assert task.inner.inner.inner.shapes == {"x": (6,)}
    assert task.inner.inner.inner.inner.noise == (0.01, 0.1)
    # levels are the inner ones, and the minimum is one
    plain = TASKS[0].sample(200, dtype=torch.float64)
    assert torch.equal(problems.facts.minimum, plain.facts.minimum)
    assert (task.loss(problems.params, problems) >= problems.facts.minimum).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_trains_on_the_same_tasks(estimator):
    config = replace(EVERYTHING, estimator=estimator)
    built = configured_estimator(config, TASKS)
    if estimator == "mixed":
        built = built.evolution
    tasks = built.tasks if estimator == "ppo" else built.sampler.tasks
    assert [task.name for task in tasks] == [task.name for task in augmented(config, TASKS)]
    after = truncated_backpropagation(config, TASKS)
    assert [task.name for task in after.sampler.tasks] == [task.name for task in tasks]


def test_ppo_knows_idle_coordinates_in_its_mixture():
    # Without noise all tasks are played in one batch, padded twice: by the mixture and within it.
    config = replace(EVERYTHING, estimator="ppo", gradient_noise=None)
    tasks = augmented(config, [RandomQuadratic(dim=3), StrictSaddle(dim=4)])
    mixture = Mixture.of(tasks, [1.0, 1.0])
    problems = mixture.sample(60, dtype=torch.float64)
    params = {k: (p + 0.1).requires_grad_() for k, p in problems.params.items()}
    (grad,) = torch.autograd.grad(mixture.loss(params, problems).sum(), list(params.values()))
    assert torch.equal(mixture.used(problems), grad != 0)
    assert len(mixture.used(problems).sum(1).unique()) > 3


def test_settings_survive_json():
    settings = EVERYTHING.to_json()
    assert json.loads(json.dumps(settings)) == settings
    for name, value in AUGMENTATIONS.items():
        assert settings[name] == (list(value) if isinstance(value, tuple) else value)
    assert settings["imitation_steps"] == 2
    assert settings["segment_length"] is None


def test_a_checkpoint_from_before_these_settings_goes_on(tmp_path):
    config = replace(EVERYTHING, imitation_steps=0, reparametrisation_range=(1e-3, 1e3), **NOTHING)
    train("truncated_backpropagation", tmp_path, stop_after=3, config=config)
    path = tmp_path / "checkpoint.pt"
    content = read_checkpoint(path)
    younger = {"imitation_steps", "imitation_teacher", "imitation_learning_rate", "segment_length"}
    younger |= {"convex_term", "reparametrisation", "reparametrisation_range", "dimension_factor"}
    content["settings"] = {k: v for k, v in content["settings"].items() if k not in younger}
    write_checkpoint(path, content)
    thetas, _ = train("truncated_backpropagation", tmp_path, resume=True, config=config)
    assert 3 <= len(thetas) <= 4  # the checkpoint is written after or before the third step
    other = replace(config, convex_term=1.0)
    with pytest.raises(LearnedOptError, match=r"convex_term: None there, 1\.0 here"):
        train("truncated_backpropagation", tmp_path, resume=True, config=other)


def test_the_command_takes_all_of_it(tmp_path, capsys):
    arguments = [
        "train", "lstm", "--estimator", "backpropagation", "--segment-length", "2",
        "--num-problems", "4", "--horizon", "6", "--num-outer-steps", "3", "--wandb", "disabled",
        "--imitation-steps", "1", "--imitation-teacher", "momentum",
        "--imitation-learning-rate", "0.02", "--gradient-noise", "0.01", "0.1",
        "--dimension-factor", "2", "--convex-term", "0.5", "--reparametrisation", "global",
        "--reparametrisation-range", "0.1", "10", "--random-scaling", "1",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    main(arguments)
    assert "best.safetensors" in capsys.readouterr().out
    settings = json.loads(read_metadata(tmp_path / "run" / "best.safetensors")["training"])
    asked = {
        "estimator": "backpropagation",
        "segment_length": 2,
        "imitation_steps": 1,
        "imitation_teacher": "momentum",
        "imitation_learning_rate": 0.02,
        "gradient_noise": [0.01, 0.1],
        "dimension_factor": 2.0,
        "convex_term": 0.5,
        "reparametrisation": "global",
        "reparametrisation_range": [0.1, 10.0],
        "random_scaling": 1.0,
    }
    assert {name: settings[name] for name in asked} == asked
    with pytest.raises(SystemExit) as stop:
        main([*arguments[:-1], str(tmp_path / "other"), "--estimator", "nres", "--num-pairs", "2"])
    assert stop.value.code == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "segment_length needs the estimator 'backpropagation', got 'nres'" in err


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"segment_length": 5},
            "segment_length needs the estimator 'backpropagation', got 'truncated_backpropagation'",
        ),
        ({"estimator": "backpropagation", "segment_length": 0}, "segment_length must be positive"),
        (
            {"estimator": "backpropagation", "coordinate_share": 0.5},
            "coordinate_share below 1 needs the estimator 'truncated_backpropagation', "
            "got 'backpropagation'",
        ),
        ({"gradient_noise": (0.1, 0.01)}, r"gradient_noise must be two .* got \(0.1, 0.01\)"),
        ({"dimension_factor": 0.9}, "dimension_factor must be at least 1 or None, got 0.9"),
        ({"convex_term": -1.0}, "convex_term must be positive or None, got -1.0"),
        ({"reparametrisation": "globl"}, "unknown reparametrisation 'globl'; did you mean 'glob"),
        ({"reparametrisation_range": (0.0, 1.0)}, "reparametrisation_range must be two positive"),
    ],
)
def test_what_does_not_fit_is_refused(settings, match):
    with pytest.raises(LearnedOptError, match=match):
        TrainConfig(**settings)
