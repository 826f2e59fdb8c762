"""Robust regression and the tiny classifier: the loss of one problem, written out; their data."""

import pytest
import torch
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.tasks import get_task

DOUBLE = torch.float64


def test_robust_regression_is_the_mean_saturated_residual():
    task = get_task("robust_regression", dim=2, num_points=8)
    problems = task.sample(3, seed=1, dtype=DOUBLE)
    losses = task.loss(problems.params, problems)
    for n in range(3):
        total = 0.0
        for x, y in zip(
            problems.constants["inputs"][n], problems.constants["labels"][n], strict=True
        ):
            residual = float(y - x @ problems.params["w"][n] - problems.params["b"][n])
            total += residual**2 / (1 + residual**2) / 8
        assert losses[n].item() == pytest.approx(total, rel=1e-12)
    assert problems.facts.is_lower_bound
    torch.testing.assert_close(problems.facts.reference, losses)


def test_the_classifier_is_a_two_layer_relu_network():
    task = get_task("gaussian_mlp", num_points=12, weight_decay=0.1)
    problems = task.sample(2, seed=3, dtype=DOUBLE)
    losses = task.loss(problems.params, problems)
    for n in range(2):
        p = {k: v[n] for k, v in problems.params.items()}
        inputs, labels = problems.constants["inputs"][n], problems.constants["labels"][n]
        logits = nn.functional.relu(inputs @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]
        expected = nn.functional.cross_entropy(logits, labels)
        expected = expected + 0.05 * sum(v.square().sum() for v in p.values())
        assert losses[n].item() == pytest.approx(expected.item(), rel=1e-12)


def test_each_problem_has_two_clusters_of_each_class_and_data_of_its_own():
    problems = get_task("gaussian_mlp").sample(50, seed=0)
    labels = problems.constants["labels"]
    assert (labels.sum(1) == 50).all()
    by_cluster = labels.reshape(50, 4, 25)
    assert (by_cluster == by_cluster[..., :1]).all()
    assert len({tuple(row.tolist()) for row in by_cluster[..., 0]}) == 6  # all orders occur
    inputs = problems.constants["inputs"]
    assert not torch.equal(inputs[0], inputs[1])


@pytest.mark.parametrize("name", ["robust_regression", "gaussian_mlp"])
@pytest.mark.parametrize(("setting", "value"), [("dim", 0), ("num_points", 10)])
def test_bad_settings(name, setting, value):
    with pytest.raises(LearnedOptError, match=f"{name}: {setting} must be .* got {value}"):
        get_task(name, **{setting: value})
