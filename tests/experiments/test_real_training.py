"""The parts of the experiment on real training: data, measures, and what is not made twice."""

import logging
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from learned_opt.rules import get_rule

EXPERIMENTS = str(Path(__file__).parents[2] / "experiments")
sys.path.insert(0, EXPERIMENTS)
try:
    import _fresh_problems as fresh
    import _real_measures as measures
    import _real_problems as data
    import real_training as script
finally:
    sys.path.remove(EXPERIMENTS)


def curves(train, horizon=4):
    rows = np.array(train, dtype=float)
    return measures.Curves(2 * np.arange(rows.shape[1]), rows, 10 * rows, horizon)


def run_with(**changes):
    made = {
        "steps": [0, 2, 4],
        "train": [1.0, 0.5, 0.25],
        "validation": [1.0, 0.6, 0.5],
        "seconds_per_step": 0.1,
        "handed_over": [],
        "handed_back": [],
    }
    return measures.Run(**{**made, **changes})


def test_mnist_1d_depends_on_the_seed_alone():
    one, same, other = (data.mnist_1d(200, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.targets, same.targets)
    assert not torch.equal(one.inputs, other.inputs)


def test_mnist_1d_is_balanced_standardised_and_made_of_its_digits():
    found = data.mnist_1d(4000, seed=0)
    assert found.inputs.shape == (4000, 40)
    assert torch.bincount(found.targets).tolist() == [400] * 10
    assert not torch.equal(found.targets, found.targets.sort().values)
    assert found.inputs.std() == pytest.approx(1, abs=1e-3)
    # Digits stand out of the noise beside them, and their place is random: not on average.
    assert found.inputs.std(1).mean() > 5 * found.inputs.mean(0).abs().max()


def test_classes_of_mnist_1d_can_be_told_apart_where_the_digit_was_put_back():
    found = data.mnist_1d(2000, seed=1)
    shapes = torch.from_numpy(data.TEMPLATES - data.TEMPLATES.mean(1, keepdims=True)).float()
    stretched = torch.nn.functional.interpolate(
        shapes[None], size=8, mode="linear", align_corners=True
    )[0]
    stretched = (stretched - stretched.mean(1, keepdim=True)) / stretched.std(1, keepdim=True)
    windows = found.inputs.unfold(1, 8, 1)
    windows = windows - windows.mean(2, keepdim=True)
    guess = torch.einsum("nwp,cp->nwc", windows, stretched).amax(1).argmax(1)
    assert (guess == found.targets).float().mean() > 0.3


@pytest.mark.parametrize(
    "problem", [*data.problems(), *fresh.fresh_problems()], ids=lambda problem: problem.name
)
def test_problems_start_where_chance_is_and_seeds_draw_weights_and_batches(problem):
    assert problem.num_steps % 40 == 0
    model, same, other = (problem.model(seed) for seed in (0, 0, 1))
    loss = float(problem.loss(model(problem.train.inputs), problem.train.targets).detach())
    is_regression = problem.train.targets.is_floating_point()
    num_classes = 0 if is_regression else int(problem.train.targets.max()) + 1
    assert loss == pytest.approx(1 if is_regression else np.log(num_classes), rel=0.2)
    for p, q, r in zip(*(m.parameters() for m in (model, same, other)), strict=True):
        assert torch.equal(p, q)
        # Norms start with ones and zeros.
        assert not torch.equal(p, r) or p.std() == 0
    batches, again = problem.batches(0), problem.batches(0)
    for _ in range(3):
        batch = next(batches)
        assert len(batch) == problem.batch_size
        assert torch.equal(batch.inputs, next(again).inputs)


def test_a_pass_over_the_data_sees_no_example_twice():
    problem = data.problems()[4]
    batches = problem.batches(0)
    seen = torch.cat([next(batches).inputs for _ in range(len(problem.train) // 32)])
    assert len(torch.unique(seen, dim=0)) == len(torch.unique(problem.train.inputs, dim=0)) - (
        len(problem.train) % 32
    )


def test_no_text_is_both_trained_on_and_held_out():
    sequences, num_kinds = data.characters()
    assert sequences.inputs.shape[1] == 32
    assert int(sequences.inputs.max()) == num_kinds - 1
    assert torch.equal(sequences.inputs[0, 1:], sequences.targets[0, :-1])
    for problem in (*data.problems(), *fresh.fresh_problems()):
        train, held_out = (
            {tuple(row.flatten().tolist()) for row in part.inputs}
            for part in (problem.train, problem.validation)
        )
        assert len(train & held_out) <= 0.01 * len(held_out)


def test_time_to_loss_is_the_first_measurement_at_or_below():
    losses = [[3, 2, 1, 2], [3, 3, 3, 3], [np.nan, np.nan, 1, 0], [1, 9, 9, 9]]
    found = measures.time_to_loss([0, 10, 20, 30], losses, 1.0)
    assert found.tolist() == [20, np.inf, 20, 0]


def test_ratios_of_hand_made_curves():
    baseline = curves([[8, 4, 2], [8, 4, 4], [8, 4, 3]])
    assert measures.target_of(baseline) == 3
    ours = curves([[8, 6, 6, 3, 1], [8, 3, 6, 6, 6], [8, 8, 12, np.inf, np.inf]])
    # Reached at 6 and 2 of 4 steps, and never: the median is that of 1.5, 0.5 and the end, 2.
    assert measures.times(ours, baseline).tolist() == [1.5, 0.5, np.inf]
    assert measures.time_ratio(ours, baseline) == 1.5
    assert measures.train_ratio(ours, baseline) == 2
    assert measures.validation_ratio(ours, baseline) == 2
    # 30, 30, and an end at infinity, over 30.
    assert measures.validation_there_ratio(ours, baseline) == 1
    later = curves([[8, 6, 2, 9, 9], [8, 3, 6, 6, 6], [8, 8, 12, 8, 1]])
    assert measures.validation_there_ratio(later, baseline) == pytest.approx(2 / 3)
    assert ours.diverged().tolist() == [False, False, True]
    never = curves([[8, 8, 8, 8, 8]] * 3)
    assert measures.time_ratio(never, baseline) == 2


def test_the_baseline_is_one_over_itself_and_intervals_hold_the_estimate():
    baseline = {"a": curves([[8, 4, 2], [8, 4, 4], [8, 4, 3]]), "b": curves([[8, 1, 1]] * 3)}
    ours = {"a": curves([[8, 4, 4, 2], [8, 3, 4, 2], [8, 8, 6, 6]]), "b": baseline["b"]}
    for ratio in ("train", "validation"):
        same = measures.over_problems(baseline, baseline, ratio)
        assert (same.estimate, same.low, same.high) == pytest.approx((1, 1, 1))
    found = measures.over_problems(ours, baseline, "train")
    assert found.estimate == pytest.approx(np.sqrt(4 / 3))
    assert found.low <= found.estimate <= found.high
    # Median of 1.5, 0.5 and 1.5, where the run ended; then 0.5.
    assert measures.over_problems(ours, baseline, "time").estimate == pytest.approx(0.75**0.5)


@pytest.mark.parametrize(
    ("over", "back", "share"),
    [
        ([], [], 0),
        ([40], [], 0.6),
        ([20, 60], [40], 0.6),
        ([20], [150], 0.8),
        ([120], [], 0),
        ([20, 120], [30, 130], 0.1),
    ],
)
def test_share_of_steps_by_the_fallback(over, back, share):
    run = run_with(handed_over=over, handed_back=back)
    assert run.fallback_share(100) == pytest.approx(share)


def test_a_run_is_not_made_twice_unless_its_settings_change(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return run_with(train=[1.0, float("inf"), 0.1])

    path = tmp_path / "folder" / "0.json"
    first = script.cached(path, {"lr": 1e-3}, compute)
    assert script.cached(path, {"lr": 1e-3}, compute) == first
    assert len(calls) == 1
    script.cached(path, {"lr": 1e-2}, compute)
    assert len(calls) == 2
    assert [p.name for p in path.parent.iterdir()] == ["0.json"]


def test_trials_spread_over_the_decades_and_more_of_them_keep_the_first():
    trials = [trial.settings for trial in script.sobol_trials(16)]
    logs = np.sort([np.log10(trial["lr"]) for trial in trials])
    assert np.array_equal(np.floor((logs + 4) / 3 * 16), np.arange(16))
    assert sum(trial["weight_decay"] > 0 for trial in trials) == 8
    assert [trial.settings for trial in script.sobol_trials(32)][:16] == trials


def test_training_is_repeatable_and_ends_at_a_rate_of_zero():
    problem = data.problems()[4]
    entrant = script.adamw("x", 1e-2, 0.0)
    first, again = (script.train(problem, entrant, seed=0, num_steps=40, every=4) for _ in range(2))
    assert first.train == again.train
    assert first.validation == again.validation
    assert first.steps == list(range(0, 41, 4))
    assert first.train[-1] < 0.2 * first.train[0]
    moves = [abs(b - a) for a, b in pairwise(first.train)]
    assert moves[-1] < 0.1 * max(moves)


def test_hand_overs_are_noted_and_the_logger_is_left_as_it_was():
    logger = logging.getLogger("learned_opt.rules.guarded")
    before = logger.level, list(logger.handlers), logger.propagate
    with script.guard_watch() as watch:
        watch.step = 7
        logger.warning("guard: %d of %d problems handed %s '%s'", 1, 1, "over to", "adam")
        watch.step = 9
        logger.info("guard: %d of %d problems handed %s '%s'", 1, 1, "back to", "lstm")
    assert (watch.handed_over, watch.handed_back) == ([7], [9])
    assert (logger.level, logger.handlers, logger.propagate) == before


def test_a_rule_that_diverges_is_noted_as_handed_over():
    problem = data.problems()[5]
    wild = script.Entrant(
        name="wild",
        settings={},
        build=lambda model, seed: script.LearnedOptimizer(
            model.parameters(), get_rule("sgd", learning_rate=1e3), guard="adam"
        ),
    )
    run = script.train(problem, wild, seed=0, num_steps=40, every=4)
    assert len(run.handed_over) >= 1
    assert run.fallback_share(40) > 0
    assert np.isfinite(run.train).all()


def test_labels_tell_files_of_the_same_name_apart():
    rules = ["a/best.safetensors", "b/best.safetensors", "c/one.safetensors", "lstm"]
    assert script.labels(rules) == ["a best", "b best", "one", "lstm"]


def test_learned_rules_are_known_by_their_weights():
    guarded, free = script.learned(["lstm"], no_guard=True)
    assert (guarded.name, free.name) == ("lstm", "lstm, no guard")
    assert guarded.settings["optimizer"] == free.settings["optimizer"]
    assert guarded.settings != free.settings
    (agent,) = script.learned(["hyper-control"], no_guard=False)
    assert agent.settings["optimizer"] != guarded.settings["optimizer"]
