"""Changes of times, and a rule that knows no units."""

import sys
from pathlib import Path

import pytest
import torch

from learned_opt.rules import get_rule, load_rule
from learned_opt.tasks import Scaled, get_task

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
from invariance import TARGETS, change, play

RUN = {"num_instances": 3, "seed": 0, "dtype": torch.float64}


def test_times_are_those_of_a_closed_form():
    """Gradient descent on a bowl divides the gap by four at each step."""

    class Halving(type(get_rule("sgd"))):
        def forward(self, grads, state, params, *, loss=None, rng=None):
            return {name: -p / 2 for name, p in params.items()}, state

    class Bowl(type(get_task("geman_mcclure"))):
        def law(self, x):
            return x.square() / 2

    times, left = play(Halving(), Bowl(dim=1, start=(1.0, 1.0)), budget=120, **RUN)
    # The unit is a plateau of height 1, the start lies at 1/2: 4^-3 / 2 < 1e-2 < 4^-2 / 2 and
    # 4^-7 / 2 < 1e-4 < 4^-6 / 2.
    assert times.tolist() == [3.0, 7.0]
    assert left.max() < 1e-60
    assert len(TARGETS) == 2


def test_what_is_not_reached_counts_as_the_budget():
    times, _ = play(get_rule("sgd", learning_rate=1e-9), get_task("welsch"), budget=7, **RUN)
    assert times.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("scales", [{"value_scale": 1e6}, {"coordinate_scale": 1e-3}])
def test_the_bundled_controller_knows_no_units(scales):
    task, rule = get_task("strict_saddle", dim=10), load_rule("controller")
    base, _ = play(rule, task, budget=40, **RUN)
    scaled, _ = play(rule, Scaled(task, **scales), budget=40, **RUN)
    assert base.max() < 20
    assert change(scaled, base) < 0.01
    assert change(2 * base, base) == 1
