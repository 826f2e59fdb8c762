"""Several estimators at once: their mean, their clocks, their resumption."""

import contextlib

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.horizons import Fixed
from learned_opt.meta.parallel import Parallel, desynchronised
from learned_opt.meta.trainer import meta_train, truncated_backpropagation
from learned_opt.rules import get_rule
from learned_opt.tasks import get_task

TASKS = [get_task("random_quadratic", dim=3), get_task("monkey_saddle")]
CONFIG = TrainConfig(
    num_outer_steps=6,
    num_problems=3,
    truncation=5,
    horizon=Fixed(20),
    num_eval_problems=4,
    evaluate_every=3,
    dtype="float64",
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_estimate_is_the_mean_of_its_parts():
    rule = get_rule("lstm").double()
    estimator = truncated_backpropagation(CONFIG, TASKS[:1])
    pair = Parallel(estimators=[estimator, estimator], head_starts=[0, 0])
    found = pair.estimate(rule, None, progress=0.0, rng=rng())
    draws = rng()
    parts = [estimator.estimate(rule, None, progress=0.0, rng=draws) for _ in range(2)]
    assert found.meta_loss.item() == pytest.approx(
        sum(p.meta_loss.item() for p in parts) / 2, rel=1e-12
    )
    for grad, *own in zip(found.grads, *[p.grads for p in parts], strict=True):
        torch.testing.assert_close(grad, (own[0] + own[1]) / 2)


def test_clocks_are_evenly_spaced_and_stay_so():
    estimator = desynchronised(CONFIG, TASKS, num_clocks=4)
    rule, state, draws = get_rule("lstm").double(), None, rng()
    assert list(estimator.head_starts) == [0, 0, 1, 1, 2, 2, 3, 3]
    for update in range(6):
        estimate = estimator.estimate(rule, state, progress=0.0, rng=draws)
        state = estimate.state
        steps = [estimate.diagnostics[f"inner_step {i}"] for i in range(8)]
        expected = [5 * ((update + lead) % 4 + 1) for lead in estimator.head_starts]
        assert steps == expected
    tasks = [state[i].problems.params["x"].shape[1] for i in range(8) if state[i] is not None]
    assert set(tasks) == {3, 2}


def test_task_weights_play_no_part():
    weighted = TrainConfig(**{**vars(CONFIG), "task_weights": (1.0, 5.0)})
    rule = get_rule("lstm").double()
    found = [
        desynchronised(config, TASKS).estimate(rule, None, progress=0.0, rng=rng()).meta_loss
        for config in (CONFIG, weighted)
    ]
    assert torch.equal(*found)


def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    def train(folder, num_outer_steps, *, resume):
        rule = get_rule("lstm", seed=1)
        config = TrainConfig(**{**vars(CONFIG), "checkpoint_seconds": 0.0})
        estimator = desynchronised(config, TASKS)
        done = []

        def stop(now, total, note):
            done.append(now)
            if now == num_outer_steps:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            meta_train(
                rule, TASKS, config=config, out=folder, estimator=estimator, resume=resume,
                on_progress=stop,
            )  # fmt: skip
        return torch.cat([p.flatten() for p in rule.parameters()])

    whole = train(tmp_path / "whole", None, resume=False)
    train(tmp_path / "cut", 3, resume=False)
    assert torch.equal(train(tmp_path / "cut", None, resume=True), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimators": [], "head_starts": []}, "at least one, got none"),
        ({"estimators": [None], "head_starts": [0, 1]}, "head_starts must be 1 numbers"),
        ({"estimators": [None], "head_starts": [-1]}, "head_starts must be 1 numbers"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(LearnedOptError, match=message):
        Parallel(**settings)
    with pytest.raises(LearnedOptError, match="num_clocks must be positive, got 0"):
        desynchronised(CONFIG, TASKS, num_clocks=0)
