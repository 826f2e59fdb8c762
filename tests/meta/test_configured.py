"""Evolution strategies by name: what the settings build, and runs that are killed and resumed."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch

from learned_opt.cli.main import main
from learned_opt.errors import LearnedOptError
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.configured import configured_estimator
from learned_opt.meta.horizons import LogUniform
from learned_opt.meta.parallel import desynchronised
from learned_opt.meta.perturbations import Accumulated, PerEpisode, PerTruncation
from learned_opt.meta.trainer import meta_train
from learned_opt.rules.classic import SGD
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.tasks.quadratics import RandomQuadratic

TASK = RandomQuadratic(dim=3)
CONFIG = TrainConfig(
    num_outer_steps=6,
    num_problems=4,
    num_pairs=2,
    truncation=5,
    horizon=LogUniform(6, 18),
    evaluate_every=3,
    num_eval_problems=3,
    log_every=2,
    checkpoint_seconds=0.0,
)
EVOLVING = ["es", "pes", "es_single", "nres", "mixed"]


@pytest.mark.parametrize("name", EVOLVING)
def test_a_killed_run_ends_with_the_same_weights(name, tmp_path):
    tasks = [RandomQuadratic(dim=3), RandomQuadratic(dim=2)]

    def train(folder, stop_after, *, resume):
        def stop(done, total, note):
            del total, note
            if done == stop_after:
                raise KeyboardInterrupt

        rule = CoordinatewiseLSTM(hidden_size=3)
        config = replace(CONFIG, estimator=name, num_problems=8, num_pairs=4)
        with contextlib.suppress(KeyboardInterrupt):
            meta_train(rule, tasks, config=config, out=folder, resume=resume, on_progress=stop)
        theta = torch.cat([p.detach().flatten() for p in rule.parameters()])
        return theta, (folder / "history.jsonl").read_text()

    whole, history = train(tmp_path / "whole", None, resume=False)
    train(tmp_path / "cut", 3, resume=False)
    resumed, resumed_history = train(tmp_path / "cut", None, resume=True)
    assert torch.equal(whole, resumed)
    assert history == resumed_history
    lines = [json.loads(line) for line in history.splitlines()]
    training = [line for line in lines if "meta_loss" in line]
    assert len(training) == 3
    for line in training:
        assert line["estimator/gradient_std"] > 0
        assert line["estimator/nonfinite_pairs"] == 0
        assert -1 <= line["estimator/cosine_to_last"] <= 1
        assert (line["estimator/clock_spread"] > 0) or name == "es_single"
        assert ("estimator/backpropagation_share" in line) == (name == "mixed")
    changed = replace(CONFIG, estimator=next(n for n in EVOLVING if n != name))
    with pytest.raises(LearnedOptError, match="estimator: "):
        meta_train(
            CoordinatewiseLSTM(hidden_size=3), tasks, config=changed, out=tmp_path / "cut",
            resume=True,
        )  # fmt: skip


def test_names_stand_for_schedules_and_clocks():
    def built(name, **changes):
        return configured_estimator(replace(CONFIG, estimator=name, **changes), [TASK])

    found = {name: built(name) for name in ("es", "pes", "es_single", "nres")}
    assert {name: (e.schedule, e.is_staggered) for name, e in found.items()} == {
        "es": (PerTruncation(), True),
        "pes": (Accumulated(), True),
        "es_single": (PerEpisode(), False),
        "nres": (PerEpisode(), True),
    }
    assert built("es", truncation=18).schedule == PerEpisode()
    assert built("es", objective="final").over_steps == "last"
    mixed = built("mixed", second_order=True)
    assert (mixed.evolution.schedule, mixed.second_order) == (PerTruncation(), True)


def test_the_command_trains_resumes_and_logs(tmp_path, capsys):
    arguments = [
        "train", "lstm", "--estimator", "pes", "--num-pairs", "2", "--num-problems", "4",
        "--truncation", "3", "--horizon", "6", "--num-outer-steps", "2", "--wandb", "disabled",
        "--out", str(tmp_path),
    ]  # fmt: skip
    main(arguments)
    assert "best.safetensors" in capsys.readouterr().out
    history = (tmp_path / "history.jsonl").read_text()
    assert '"estimator/gradient_std"' in history
    main([*arguments, "--resume"])
    assert (tmp_path / "history.jsonl").read_text() == history
    with pytest.raises(SystemExit) as stop:
        main([*arguments[:-1], str(tmp_path / "other"), "--num-pairs", "3"])
    assert stop.value.code == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "num_problems must be a multiple of num_pairs=3, got 4" in err


def test_a_run_without_finite_pairs_is_given_up(tmp_path):
    config = replace(CONFIG, estimator="pes", max_nonfinite_in_a_row=2)
    rule = SGD(learning_rate=1e30)
    with pytest.raises(LearnedOptError, match=r"not finite 2 outer steps.*nonfinite_pairs 2"):
        meta_train(rule, TASK, config=config, out=tmp_path)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"estimator": "pse"}, "unknown estimator 'pse'; did you mean 'pes'?"),
        ({"sigma": -1.0}, "sigma must be positive, got -1"),
        ({"num_pairs": 0}, "num_pairs must be positive, got 0"),
        (
            {"estimator": "pes", "second_order": True},
            "second_order=True needs an estimator that back-propagates, got 'pes'",
        ),
        (
            {"estimator": "mixed", "coordinate_share": 0.5},
            "coordinate_share below 1 needs the estimator 'truncated_backpropagation', got 'mixed'",
        ),
    ],
)
def test_bad_configurations_are_refused(settings, match):
    with pytest.raises(LearnedOptError, match=match):
        TrainConfig(**settings)


def test_other_estimators_run_all_tasks_by_themselves():
    with pytest.raises(LearnedOptError, match=r"estimator must be 'truncated_b.* got 'nres'"):
        desynchronised(replace(CONFIG, estimator="nres"), [TASK])
