import math

import pytest
import torch

from learned_opt.bench.events import event_thresholds
from learned_opt.bench.race import evaluate_every, log_grid, race
from learned_opt.rules.base import Rule, get_rule
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.trees import Params, Tree


class Bowl(Task):
    """``sum x^2 / 2`` in the plane; gradient descent contracts by ``1 - learning_rate``."""

    name = "bowl"
    family, kind = "bowl", "quadratic"
    budget = 250

    def __init__(self) -> None:
        self.shapes = {"x": (2,)}

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        start = torch.randn(num_problems, 2, generator=rng, dtype=torch.float64)
        reference = start.square().sum(1) / 2
        zeros = torch.zeros_like(reference)
        facts = Facts(minimum=zeros, reference=reference, next_level=zeros, levels=zeros[:, None])
        return Problems(params={"x": start}, constants={}, facts=facts)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None):
        loss = params["x"].square().sum(1) / 2
        return loss if batch is None else loss + 100 * batch["noise"]


class NoisyBowl(Bowl):
    """The same bowl, whose evaluations are off by noise that the gradient does not see."""

    name = "noisy_bowl"

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree:
        return {"noise": torch.randn(problems.num_problems, generator=rng, dtype=torch.float64)}


def sgd(rates: torch.Tensor):
    def make(rows: torch.Tensor | None) -> Rule:
        return get_rule("sgd", learning_rate=rates if rows is None else rates[rows])

    return make


def test_times_of_gradient_descent_on_a_bowl_are_exact() -> None:
    rates = torch.tensor([0.02, 0.1, 0.5, 1.9], dtype=torch.float64)
    task = Bowl()
    out = race(task, sgd(rates), task.sample(4, dtype=torch.float64), budget=250, seed=0)
    contraction = (1 - rates).square().log()
    for column, target in zip((0, 1, 2, 6), (0.9, 0.5, 1e-3, 1e-4), strict=True):
        expected = (math.log(target) / contraction).ceil()
        expected[expected >= 250] = math.inf
        assert torch.equal(out.events.times[:, column], expected)
    assert out.curve_step[0] == 0 and out.curve_step[-1] == 250
    start = task.sample(4, dtype=torch.float64).facts.reference
    steps = out.curve_step.double()
    expected = start[:, None] * torch.exp(contraction[:, None] * steps)
    torch.testing.assert_close(out.curve_loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.events.final, expected[:, -1], rtol=1e-9, atol=0)


def test_paths_are_the_trajectories_of_the_runs_asked_for() -> None:
    task = Bowl()
    problems = task.sample(6, dtype=torch.float64)
    rates = torch.full((6,), 0.1, dtype=torch.float64)
    out = race(task, sgd(rates), problems, budget=500, seed=0, path_rows=[1, 4])
    assert sorted(out.paths) == [1, 4]
    assert len(out.path_step) <= 200
    assert out.path_step[0] == 0 and out.path_step[-1] == 500
    for row in (1, 4):
        expected = problems.params["x"][row] * 0.9 ** out.path_step.double()[:, None]
        torch.testing.assert_close(out.paths[row], expected, rtol=1e-9, atol=1e-300)


def test_divergence_ends_the_batch_only_when_all_have_diverged() -> None:
    task = Bowl()
    problems = task.sample(2, dtype=torch.float64)
    mixed = race(task, sgd(torch.tensor([0.5, 3.0])), problems, budget=250, seed=0)
    assert mixed.events.diverged.tolist() == [False, True]
    assert math.isfinite(mixed.events.final[0]) and mixed.events.times[0, 2] == 5
    both = race(task, sgd(torch.tensor([3.0, 3.0])), problems, budget=250, seed=0, path_rows=[0, 1])
    # Doubling every step, the loss is 1e6 times its scale after ten.
    assert both.events.diverged_at.tolist() == [10.0, 10.0]
    assert torch.isnan(both.curve_loss[:, -1]).all()
    assert both.path_step[-1] < 250 and len(both.paths[0]) == len(both.path_step)


def test_a_run_that_leaves_for_infinity_on_a_flat_loss_has_diverged() -> None:
    class Flat(Bowl):
        def loss(self, params: Params, problems: Problems, batch: Tree | None = None):
            return problems.facts.reference + 1e-9 * params["x"].sum(1)

    task = Flat()
    out = race(
        task,
        sgd(torch.tensor([8e12], dtype=torch.float64)),
        task.sample(1, dtype=torch.float64),
        budget=250,
        seed=0,
    )
    assert out.events.diverged_at.tolist() == [200.0]  # the first look beyond a coordinate of 1e6


def test_zero_gradients_are_counted() -> None:
    task = Bowl()
    problems = task.sample(3, dtype=torch.float64)
    problems.params["x"][0, 1] = 0.0  # never moves
    rates = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)  # the second arrives in one step
    out = race(task, sgd(rates), problems, budget=50, seed=0)
    assert out.zero_gradient_steps.tolist() == [50, 49, 0]


def test_stochastic_tasks_are_judged_on_the_full_loss() -> None:
    task = NoisyBowl()
    assert evaluate_every(task, 1000) == 10 and evaluate_every(Bowl(), 1000) == 1
    assert evaluate_every(task, 50) == 1 and evaluate_every(task, 10**6) == 50
    problems = task.sample(3, dtype=torch.float64)
    rates = torch.full((3,), 0.1, dtype=torch.float64)
    out = race(task, sgd(rates), problems, budget=400, seed=0)
    plain = race(Bowl(), sgd(rates), problems, budget=400, seed=0)
    expected = (plain.events.times / 4).ceil() * 4
    assert torch.equal(out.events.times, expected)
    assert torch.isfinite(out.curve_loss).all()
    assert all(step % 4 == 0 for step in out.curve_step.tolist())
    assert torch.equal(out.events.final, plain.events.final)


def test_runs_that_leave_early_change_no_other_run() -> None:
    task = Bowl()
    problems = task.sample(40, dtype=torch.float64)
    rates = torch.logspace(-2.5, 0.4, 40, dtype=torch.float64)
    sizes: list[int] = []

    def make(rows: torch.Tensor | None) -> Rule:
        sizes.append(40 if rows is None else len(rows))
        return sgd(rates)(rows)

    def leave(events, step):
        return torch.isfinite(events.time("solve")) | events.diverged

    early = race(task, make, problems, budget=800, seed=0, leave=leave)
    full = race(task, sgd(rates), problems, budget=800, seed=0)
    assert torch.equal(early.events.time("solve"), full.events.time("solve"))
    assert len(sizes) > 2 and sizes[-1] < 20
    assert early.curve_loss.shape == (40, 0) and early.paths == {}


def test_a_plateau_of_many_chunks_is_sat_out() -> None:
    class Ledge(Bowl):
        def loss(self, params: Params, problems: Problems, batch: Tree | None = None):
            return 1 - torch.sigmoid((params["x"][:, 0] - 700) * 10) + 0 * params["x"][:, 1]

    task = Ledge()
    one = torch.ones(1, dtype=torch.float64)
    facts = Facts(minimum=0 * one, reference=one, next_level=0 * one, levels=one[:, None])
    problems = Problems(params={"x": torch.zeros(1, 2)}, constants={}, facts=facts)

    class March(Rule):
        name = "march"

        def init(self, params):
            return {}

        def forward(self, grads, state, params, *, loss=None, rng=None):
            return {"x": torch.tensor([[1.0, 0.0]])}, state

    out = race(task, lambda rows: March(), problems, budget=1000, seed=0)
    assert out.events.time("solve").item() == 701
    assert event_thresholds(facts)[0, 2].item() == pytest.approx(1e-3)


def test_log_grid() -> None:
    grid = log_grid(10_000, 64)
    assert grid[:4] == [0, 1, 2, 3] and grid[-1] == 10_000 and 40 < len(grid) <= 64
    assert log_grid(995, 64, multiple=10)[-2:] == [920, 995]
    assert log_grid(2, 64) == [0, 1, 2]
