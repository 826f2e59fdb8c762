import math

import pytest
import torch

from learned_opt.bench import tuning
from learned_opt.bench.events import EventTracker
from learned_opt.bench.tuning import Trial, defaults, select_trial, sweep, tune
from learned_opt.tasks.base import Facts, Problems, Task, get_task
from learned_opt.trees import Params, Tree


class Bowl(Task):
    """``l sum x^2 / 2``: gradient descent is best at a learning rate of ``1 / l``."""

    name = "bowl"
    family, kind = "bowl", "quadratic"
    smoothness = 50.0
    budget = 400

    def __init__(self, dim: int = 3) -> None:
        self.shapes = {"x": (dim,)}

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        start = torch.randn(num_problems, self.dim, generator=rng, dtype=torch.float64)
        reference = self.smoothness * start.square().sum(1) / 2
        zeros = torch.zeros_like(reference)
        facts = Facts(minimum=zeros, reference=reference, next_level=zeros, levels=zeros[:, None])
        return Problems(params={"x": start}, constants={}, facts=facts)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None):
        return self.smoothness * params["x"].square().sum(1) / 2


def trial(index: int, rmst: float, gap: float = 0.0) -> Trial:
    return Trial(index=index, hyperparameters={}, rmst=rmst, success=0.0, diverged=0.0, log_gap=gap)


def test_tuning_finds_the_best_learning_rate_of_a_bowl() -> None:
    task = Bowl()
    problems = task.sample(8, dtype=torch.float64)
    trials = tune(task, "sgd", problems, num_trials=64, budget=400, seed=1)
    assert [t.index for t in trials] == list(range(65))
    best = select_trial(trials, 64)
    relative = [t.hyperparameters["learning_rate"] * 50 for t in trials]
    assert abs(relative[best.index] - 1) < 0.15
    assert best.rmst == min(t.rmst for t in trials)
    for t, rate in zip(trials, relative, strict=True):
        steps = math.ceil(math.log(1e-3) / (2 * math.log(abs(1 - rate)))) if rate != 1 else 1
        expected = steps if abs(1 - rate) < 1 and steps < 400 else 400
        assert t.rmst == expected
        assert t.success == float(expected < 400)


def test_budgets_are_nested() -> None:
    task = Bowl()
    problems = task.sample(2, dtype=torch.float64)
    few = tune(task, "adam", problems, num_trials=4, budget=200, seed=3)
    many = tune(task, "adam", problems, num_trials=16, budget=200, seed=3)
    for one, other in zip(few, many, strict=False):
        assert (one.hyperparameters, one.rmst) == (other.hyperparameters, other.rmst)
    assert select_trial(few, 4).index == select_trial(many, 4).index
    assert select_trial(many, 0).hyperparameters == defaults("adam")
    best = [select_trial(many, k).rmst for k in (0, 4, 16)]
    assert best == sorted(best, reverse=True)


def test_selection_breaks_ties_by_the_final_gap_then_by_order() -> None:
    trials = [trial(0, 9, -1), trial(1, 5, -1), trial(2, 5, -2), trial(3, 5, -2), trial(4, 4, 1)]
    assert [select_trial(trials, k).index for k in range(5)] == [0, 1, 2, 2, 4]
    assert select_trial([trial(0, 5, math.nan), trial(1, 5, 0.5)], 1).index == 1


def test_a_trial_survives_its_row() -> None:
    one = Trial(
        index=3,
        hyperparameters={"learning_rate": 0.1},
        rmst=2.0,
        success=1.0,
        diverged=0.0,
        log_gap=-3.0,
        is_pruned=True,
        seconds=0.5,
    )
    assert Trial.from_row(one.row()) == one


def test_a_sweep_gives_each_block_its_setting() -> None:
    make = sweep("sgd", [{"learning_rate": 0.1}, {"learning_rate": 0.2}], 3, "cpu")
    assert make(None).learning_rate.tolist() == [0.1] * 3 + [0.2] * 3
    assert make(torch.tensor([0, 5])).learning_rate.tolist() == [0.1, 0.2]


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_pruning_selects_as_running_all_trials_to_the_end_does(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = get_task("random_quadratic", dim=4)
    problems = task.sample(4, dtype=torch.float64)
    full = tune(task, rule, problems, num_trials=24, budget=600, seed=2)
    monkeypatch.setattr(tuning, "LARGE_DIM", 0)
    pruned = tune(task, rule, problems, num_trials=24, budget=600, seed=2)
    assert any(t.is_pruned for t in pruned) and not any(t.is_pruned for t in full)
    for k in range(25):
        assert select_trial(pruned, k).index == select_trial(full, k).index
    for one, other in zip(pruned, full, strict=True):
        assert one.rmst <= other.rmst if one.is_pruned else one.rmst == other.rmst
        assert one.success <= other.success


def test_only_an_earlier_trial_can_make_one_hopeless() -> None:
    """A later trial is no candidate for the smaller budgets that the earlier one is there for."""
    two = torch.ones(2, dtype=torch.float64)
    events = EventTracker(
        Facts(minimum=0 * two, reference=two, next_level=0 * two, levels=two[:, None])
    )
    losses = torch.ones(2, 51)
    losses[1, 10:] = 0.0
    events.feed(losses, torch.arange(51))
    later = tuning._Bounds(2, 100, best=math.inf, prunes=True)
    assert later.leave(events, 50).tolist() == [False, True]
    other = tuning._Bounds(2, 100, best=40.0, prunes=True)
    assert other.leave(events, 50).tolist() == [True, True]
    assert other.stopped_at.tolist() == [50.0, math.inf]
    assert other.means(events, other.stopped_at).tolist() == [50.0, 10.0]
    patient = tuning._Bounds(2, 100, best=40.0, prunes=False)
    assert patient.leave(events, 50).tolist() == [False, True]


def test_noisy_rules_are_tuned_reproducibly() -> None:
    task = get_task("x2_y4_y2")
    problems = task.sample(4, dtype=torch.float64)
    trials = tune(task, "perturbed_gd", problems, num_trials=16, budget=300, seed=0)
    # All but the clock is a function of the arguments.
    assert trials == [
        Trial(**{**vars(t), "seconds": trials[i].seconds})
        for i, t in enumerate(
            tune(task, "perturbed_gd", problems, num_trials=16, budget=300, seed=0)
        )
    ]
    assert select_trial(trials, 16).success > 0
