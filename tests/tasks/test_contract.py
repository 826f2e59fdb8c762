"""What every registered task promises, whatever it is."""

import pytest
import torch

# Importing the package registers its tasks.
import learned_opt.tasks as _tasks  # noqa: F401
from learned_opt.errors import LearnedOptError
from learned_opt.tasks.base import ClosedFormTask, get_task, list_tasks, register_task
from learned_opt.trees import leaves, select, tree_map

# Smaller than the defaults wherever those would slow the suite down.
SMALL = {
    "deep_sigmoid_mlp": {"depth": 2, "width": 8, "num_train": 40},
    "digits_mlp": {"hidden": (5,), "num_train": 60, "batch_size": 16},
    "breast_cancer_mlp": {"hidden": (4,), "num_train": 60, "batch_size": 16},
    "parity_mlp": {"num_inputs": 8, "hidden": (6,), "num_fixed": 50, "batch_size": 16},
    "soft_committee": {"num_inputs": 10},
}
KINDS = {"saddle", "plateau", "valley", "quadratic", "multimodal", "net"}


@pytest.fixture(params=sorted(list_tasks()))
def task(request):
    return get_task(request.param, **SMALL.get(request.param, {}))


def losses_and_grads(task, params, problems, batch):
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    losses = task.loss(params, problems, batch)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    return losses.detach(), dict(zip(params, grads, strict=True))


def draw(task, problems, seed=7):
    return task.batch(problems, torch.Generator().manual_seed(seed))


def moved(problems, seed=3, size=0.1):
    """A point near the starts where no coordinate is special."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: p + size * torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype)
        for name, p in problems.params.items()
    }


def test_describes_itself(task):
    assert task.kind in KINDS
    assert task.family
    assert task.name in list_tasks()
    assert list_tasks()[task.name]
    assert task.budget >= 100
    assert task.smoothness > 0
    assert task.radius > 0
    assert task.dim >= 1


def test_shapes_carry_the_problem_axis_first(task):
    problems = task.sample(3)
    assert problems.num_problems == 3
    assert {name: p.shape[1:] for name, p in problems.params.items()} == task.shapes
    assert all(leaf.shape[0] == 3 for leaf in leaves(problems.constants).values())
    facts = problems.facts
    assert facts.minimum.shape == facts.reference.shape == facts.next_level.shape == (3,)
    assert facts.levels.dim() == 2
    assert facts.levels.shape[0] == 3
    assert task.loss(problems.params, problems).shape == (3,)
    batch = draw(task, problems)
    assert task.is_stochastic == (batch is not None)
    if batch is not None:
        assert all(leaf.shape[0] == 3 for leaf in leaves(batch).values())


def test_losses_and_gradients_are_finite_in_both_precisions_and_agree(task):
    results = {}
    for dtype in (torch.float32, torch.float64):
        problems = task.sample(4, seed=1, dtype=dtype)
        assert all(
            leaf.dtype == dtype
            for leaf in (
                *problems.params.values(),
                *leaves(problems.constants).values(),
                problems.facts.minimum,
            )
            if leaf.is_floating_point()
        )
        results[dtype] = losses_and_grads(task, problems.params, problems, draw(task, problems))
        assert torch.isfinite(results[dtype][0]).all()
        assert results[dtype][0].dtype == dtype
    (single, single_grads), (double, double_grads) = (
        results[torch.float32],
        results[torch.float64],
    )
    scale = float(double.abs().max())
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5 * scale)
    for name, grad in double_grads.items():
        assert torch.isfinite(grad).all()
        largest = float(grad.abs().max())
        torch.testing.assert_close(
            single_grads[name].double(), grad, rtol=1e-3, atol=1e-3 * largest + 1e-30
        )


def test_gradient_matches_finite_differences(task):
    problems = task.sample(4, seed=1, dtype=torch.float64)
    batch, params = draw(task, problems), moved(problems)
    rng = torch.Generator().manual_seed(5)
    direction = {
        name: torch.randn(p.shape, generator=rng, dtype=torch.float64) for name, p in params.items()
    }
    losses, grads = losses_and_grads(task, params, problems, batch)
    slope = sum((grads[name] * d).flatten(1).sum(1) for name, d in direction.items())
    step = 1e-5

    def along(distance):
        points = {name: p + distance * direction[name] for name, p in params.items()}
        return task.loss(points, problems, batch)

    # Fourth-order differences: quartic losses far from their minima are steep.
    measured = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (
        12 * step
    )
    rounding = 1e-9 * float(losses.abs().max()) + 1e-9
    torch.testing.assert_close(measured, slope, rtol=1e-5, atol=rounding)


def test_a_problem_depends_on_its_own_row_alone(task):
    problems = task.sample(4, seed=1, dtype=torch.float64)
    batch, params = draw(task, problems), moved(problems)
    losses, grads = losses_and_grads(task, params, problems, batch)
    other = {name: p.clone() for name, p in params.items()}
    for p in other.values():
        p[2] += 0.3
    new_losses, new_grads = losses_and_grads(task, other, problems, batch)
    rest = torch.tensor([0, 1, 3])
    assert torch.equal(new_losses[rest], losses[rest])
    assert not torch.equal(new_losses[2], losses[2])
    for name, grad in grads.items():
        assert torch.equal(new_grads[name][rest], grad[rest])


def test_problems_survive_selection_and_repetition(task):
    problems = task.sample(4, seed=1, dtype=torch.float64)
    batch = draw(task, problems)
    losses = task.loss(problems.params, problems, batch)
    index = torch.tensor([3, 1])
    chosen = problems.select(index)
    chosen_batch = None if batch is None else select(batch, index)
    torch.testing.assert_close(
        task.loss(chosen.params, chosen, chosen_batch), losses[index], rtol=1e-12, atol=1e-14
    )
    twice = problems.repeat(2)
    twice_batch = None if batch is None else tree_map(lambda t: torch.cat([t, t]), batch)
    torch.testing.assert_close(
        task.loss(twice.params, twice, twice_batch), losses.repeat(2), rtol=1e-12, atol=1e-14
    )


def test_a_seed_names_the_same_problems_in_every_precision(task):
    first, again = task.sample(3, seed=9), task.sample(3, seed=9)
    double = task.sample(3, seed=9, dtype=torch.float64)
    other = task.sample(3, seed=10)
    for name, leaf in leaves({"params": first.params, "constants": first.constants}).items():
        same = leaves({"params": again.params, "constants": again.constants})[name]
        exact = leaves({"params": double.params, "constants": double.constants})[name]
        assert torch.equal(leaf, same)
        assert torch.equal(leaf, exact.to(leaf.dtype))
    assert any(
        not torch.equal(leaf, leaves({"params": other.params, "constants": other.constants})[name])
        for name, leaf in leaves({"params": first.params, "constants": first.constants}).items()
    )


def test_a_generator_is_advanced(task):
    rng = torch.Generator().manual_seed(0)
    first, second = task.sample(2, seed=rng), task.sample(2, seed=rng)
    assert torch.equal(task.sample(2, seed=0).facts.reference, first.facts.reference)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            leaves({"p": first.params, "c": first.constants}).values(),
            leaves({"p": second.params, "c": second.constants}).values(),
            strict=True,
        )
    )


def test_levels_are_ordered_and_the_minimum_bounds_the_loss(task):
    problems = task.sample(16, seed=1, dtype=torch.float64)
    facts = problems.facts
    slack = 1e-9 * facts.reference.abs() + 1e-12
    assert (facts.reference + slack >= facts.next_level).all()
    assert (facts.next_level + slack >= facts.minimum).all()
    assert (facts.reference > facts.minimum).all()
    assert (facts.levels[:, 1:] <= facts.levels[:, :-1] + slack.unsqueeze(1)).all()
    for size in (0.0, 0.1, 1.0, 10.0):
        params = moved(problems, size=size)
        for batch in (None, draw(task, problems)):
            assert (task.loss(params, problems, batch) >= facts.minimum - slack).all()


def test_critical_points_are_critical_and_lowest_last(task):
    if not isinstance(task, ClosedFormTask):
        return
    points = task.critical_points()
    assert points
    for point in points:
        assert point.x.shape == point.eigenvalues.shape == (task.dim,)
        assert point.x.dtype == point.eigenvalues.dtype == torch.float64
        assert (point.eigenvalues.diff() >= 0).all()
        gradient = torch.func.grad(task.function)(point.x)
        assert gradient.abs().max() < 1e-8 * max(1.0, float(point.eigenvalues.abs().max()))
        value = float(task.function(point.x))
        assert value == pytest.approx(point.value, rel=1e-9, abs=1e-10)
    assert points[-1].value == min(point.value for point in points)
    assert points[-1].value >= task.minimum - 1e-9 * abs(task.minimum) - 1e-12


def test_no_problems_are_refused(task):
    with pytest.raises(LearnedOptError, match="num_problems must be positive, got 0"):
        task.sample(0)


def test_an_unknown_task_suggests_the_nearest():
    with pytest.raises(LearnedOptError, match="did you mean 'rosenbrock'"):
        get_task("rosenbrok")


def test_an_unknown_setting_is_named():
    with pytest.raises(LearnedOptError, match=r"task 'welsch': .*dimension"):
        get_task("welsch", dimension=3)


def test_a_name_is_taken_once():
    class Impostor:
        name = "welsch"

    with pytest.raises(LearnedOptError, match="task 'welsch' is registered twice"):
        register_task(Impostor)
