"""Training for a given time, and what the comparison of ways of training makes of it."""

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from learned_opt.errors import LearnedOptError
from learned_opt.meta.configured import configured_estimator
from learned_opt.meta.estimators import Estimate, MetaGradient
from learned_opt.meta.horizons import Fixed
from learned_opt.meta.presets import get_preset
from learned_opt.meta.trainer import TrainConfig, meta_train
from learned_opt.rules import get_rule
from learned_opt.tasks import get_task

EXPERIMENTS = str(Path(__file__).parents[2] / "experiments")
sys.path.insert(0, EXPERIMENTS)
try:
    import _ways_runs as runs
    import ways_of_training as script
    from _capped import GROUPS, Times, entries_of
    from _timed_training import Timed, train_for
finally:
    sys.path.remove(EXPERIMENTS)

CONFIG = TrainConfig(
    num_outer_steps=10, num_problems=4, truncation=5, horizon=Fixed(10), num_eval_problems=2
)


class Clock:
    """Stands still but when told."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


@dataclass
class Costly(MetaGradient):
    """The slope of the sum of theta, at prices that change; some estimates are not finite."""

    clock: Clock
    prices: Any
    bad: tuple = ()
    calls: int = 0

    def __post_init__(self):
        self.progress, self.states = [], []

    def estimate(self, rule, state, *, progress, rng):
        del rng
        self.clock.time += next(self.prices)
        self.progress.append(progress)
        self.states.append(state)
        self.calls += 1
        loss = torch.tensor(torch.nan if self.calls in self.bad else 1.0)
        grads = tuple(torch.ones_like(p) for p in rule.parameters())
        return Estimate(meta_loss=loss, grads=grads, state=self.calls, diagnostics={})

    def pack(self, state):
        raise NotImplementedError

    def unpack(self, packed):
        raise NotImplementedError


def test_steps_of_equal_price_train_as_the_trainer_does(tmp_path):
    task, first, second = get_task("random_quadratic"), *map(get_rule, ["learnable_adam"] * 2)
    meta_train(first, task, config=CONFIG, out=tmp_path)
    ticks = itertools.count()
    run = train_for(
        CONFIG.num_outer_steps,
        second,
        configured_estimator(CONFIG, [task]),
        config=CONFIG,
        score=lambda rule: 0.0,
        now=lambda: float(next(ticks)),
    )
    assert (run.seconds, run.outer_steps, run.nonfinite) == (10, 10, 0)
    assert not torch.equal(*map(_flat, (second, get_rule("learnable_adam"))))
    torch.testing.assert_close(_flat(first), _flat(second), rtol=1e-6, atol=0)


def _flat(rule):
    return torch.cat([p.detach().flatten() for p in rule.parameters()])


def test_time_ends_training_and_scores_are_off_the_clock():
    clock = Clock()
    estimator = Costly(clock, itertools.cycle([5.0, 1.0, 1.0]))

    def score(rule):
        del rule
        clock.time += 1000
        return -clock.time

    rule = get_rule("learnable_adam")
    run = train_for(20, rule, estimator, config=CONFIG, score=score, num_scores=4, now=clock)
    # 5 6 7, 12 13 14, 19 20
    assert (run.seconds, run.outer_steps) == (20, 8)
    assert estimator.progress == [at / 20 for at in (0, 5, 6, 7, 12, 13, 14, 19)]
    assert run.clock == [0, 5, 12, 19, 20] and run.steps == [0, 1, 4, 7, 8]
    assert run.scores == [-1000, -2005, -3012, -4019, -5020]


def test_a_step_that_outlasts_the_time_is_the_last_one():
    clock = Clock()
    estimator = Costly(clock, itertools.repeat(7.0))
    run = train_for(
        10,
        get_rule("learnable_adam"),
        estimator,
        config=CONFIG,
        score=lambda _: 0.0,
        num_scores=5,
        now=clock,
    )
    assert (run.seconds, run.steps[-1], run.clock[-1]) == (14, 2, 14)


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    clock = Clock()
    estimator = Costly(clock, itertools.repeat(1.0), bad=(2,))
    rule = get_rule("learnable_adam")
    run = train_for(3, rule, estimator, config=CONFIG, score=lambda _: 0.0, now=clock)
    assert (run.outer_steps, run.nonfinite) == (3, 1)
    assert estimator.states == [None, 1, None]


def test_parts_keep_their_weights_and_targets():
    mixture = get_preset("controller").mixture()
    parts = runs.all_parts()
    assert len(parts) == len(runs.PARTS) == 11
    known = [(part.task.name, part.task.dim, part.weight, part.epsilon) for part in mixture]
    assert all((p.task.name, p.task.dim, p.weight, p.epsilon) in known for p in parts)
    tasks, weights = runs.batched(parts)
    assert [task.is_stochastic for task in tasks] == [False, True, True, True]
    assert weights[1:] == tuple(part.weight for part in parts if part.task.is_stochastic)
    assert weights[0] == sum(part.weight for part in parts if not part.task.is_stochastic)
    assert tasks[0]._weights.sum() == weights[0]
    with pytest.raises(LearnedOptError, match="the preset's mixture has no nothing-3"):
        runs.picked(mixture, ["nothing-3"])


@pytest.mark.parametrize("way", runs.WAYS)
def test_every_way_has_settings_that_its_estimator_takes(way, tmp_path):
    job = runs.Job(
        way=way, rate=0.01, seed=3, seconds=1.0, folder=tmp_path, num_scores=1, small=True
    )
    tasks, config = runs.configured(job, runs.all_parts(small=True))
    estimator = configured_estimator(config, tasks)
    assert config.estimator == runs.WAYS[way].estimator and config.seed == 3
    assert getattr(estimator, "twins", False) == runs.WAYS[way].plays


def test_the_noisy_mixture_holds_what_is_called_seen():
    (noisy,) = runs.picked(get_preset("controller").mixture(), ["noisy(mixture)-16"])
    names = [task.name.rsplit("(", 1)[-1].rstrip(")") for task in noisy.task.inner.tasks]
    assert sorted(names) == sorted(runs.SEEN)


def test_the_rate_is_chosen_by_the_mean_over_seeds(tmp_path):
    def tried(rate, seed, score):
        job = runs.Job(
            way="ppo", rate=rate, seed=seed, seconds=1, folder=tmp_path, num_scores=1, small=True
        )
        return job, Timed(seconds=1, outer_steps=1, nonfinite=0, clock=[], steps=[], scores=[score])

    found = [tried(1e-3, 0, -2.0), tried(1e-3, 1, -2.0), tried(3e-3, 0, -2.9), tried(3e-3, 1, -1.0)]
    assert script.chosen_rates(found) == {"ppo": 1e-3}


def test_the_table_has_means_and_each_seed(tmp_path):
    settings = script.Settings(suites=("quick",), out=tmp_path)
    names = runs.names_of(runs.all_parts())
    labels = list(entries_of(settings.suites, names))

    def measured(way, seed, steps):
        job = runs.Job(
            way=way, rate=1e-3, seed=seed, seconds=60, folder=tmp_path, num_scores=1, small=False
        )
        # One run was scored once less: a step of it was too long.
        clock = [0.0, 30.0, 60.0][seed:]
        scores = [-seed - k for k in range(len(clock))]
        run = Timed(
            seconds=60, outer_steps=9, nonfinite=0, clock=clock, steps=[0] * 3, scores=scores
        )
        times = {label: Times(means=np.full(3, steps), solved=0.5) for label in labels}
        return runs.Measured(job, run, times)

    factors = dict(zip(runs.WAYS, (1, 2, 3, 4), strict=True))
    found = [measured(w, s, f * (20.0, 80.0)[s]) for w, f in factors.items() for s in (0, 1)]
    script.write(settings, [], found, Console(quiet=True))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["groups"]["unseen"] == [
        "x2_y4_y2",
        "monkey_saddle",
        "octopus-5",
        "geman_mcclure",
    ]
    for way, factor in factors.items():
        own = results["ways"][way]
        for group in GROUPS:
            ratios = [own[of]["ratio"][group] for of in ("mean",)]
            ratios += [own["seeds"][seed]["ratio"][group] for seed in "01"]
            # PPO's seeds take 20 and 80 steps, 40 in the geometric mean.
            assert ratios == pytest.approx([factor, factor / 2, factor * 2])
        assert own["mean"]["score"] == -2 and own["mean"]["minutes"] == 1
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 4 * 3
    assert table[2].startswith("| PPO | mean | 1.00 | 9 | 0.001 | -2.00 | 1.00 | 1.00 | 50% |")
    assert (tmp_path / "ways_of_training.png").stat().st_size > 10_000
