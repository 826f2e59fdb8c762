"""A mixture's problems are those of its tasks, in one batch."""

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.tasks import get_task
from learned_opt.tasks.transforms import Rotated
from learned_opt.trees import select

DOUBLE = torch.float64
ENTRIES = (
    {"task": "strict_saddle", "task_settings": {"dim": 6}, "transforms": [{"name": "rotated"}]},
    {"task": "matrix_factorization", "weight": 2},
    {"task": "rosenbrock", "task_settings": {"dim": 3}},
)


def mixture():
    return get_task("mixture", tasks=ENTRIES)


def test_losses_are_those_of_the_tasks_over_their_curvature():
    task = mixture()
    problems = task.sample(40, seed=0, dtype=DOUBLE)
    kind = problems.constants["kind"]
    assert set(kind.tolist()) == {0, 1, 2}
    losses = task.loss(problems.params, problems)
    for k, inner in enumerate(task.tasks):
        index = (kind == k).nonzero().squeeze(1)
        own = problems.select(index)
        flat = own.params["x"][:, : inner.dim]
        shapes, params, start = inner.shapes, {}, 0
        for name, shape in shapes.items():
            size = int(torch.Size(shape).numel())
            params[name] = flat[:, start : start + size].reshape(-1, *shape)
            start += size
        inside = type(own)(params=params, constants=own.constants[f"task{k}"], facts=own.facts)
        expected = inner.loss(params, inside) / inner.smoothness
        torch.testing.assert_close(losses[index], expected, rtol=1e-12, atol=0)


def test_unused_coordinates_have_no_gradient():
    task = mixture()
    problems = task.sample(30, seed=1, dtype=DOUBLE)
    x = problems.params["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss({"x": x}, problems).sum(), x)
    for k, inner in enumerate(task.tasks):
        mine = gradient[problems.constants["kind"] == k]
        assert (mine[:, inner.dim :] == 0).all()
        assert (mine[:, : inner.dim] != 0).any(1).all()


def test_used_coordinates_are_those_with_a_gradient():
    task = mixture()
    problems = task.sample(30, seed=1, dtype=DOUBLE)
    used = task.used(problems)
    for k, inner in enumerate(task.tasks):
        mine = used[problems.constants["kind"] == k]
        assert mine[:, : inner.dim].all()
        assert not mine[:, inner.dim :].any()
    assert get_task("rosenbrock").used(problems) is None


def test_problems_can_be_chosen_and_reordered():
    task = mixture()
    problems = task.sample(12, seed=2, dtype=DOUBLE)
    index = torch.tensor([7, 0, 0, 11, 3])
    chosen = problems.select(index)
    torch.testing.assert_close(
        task.loss(chosen.params, chosen), task.loss(problems.params, problems)[index]
    )


def test_facts_are_in_the_mixtures_units():
    task = get_task("mixture", tasks=[{"task": "strict_saddle", "task_settings": {"dim": 4}}])
    inner = get_task("strict_saddle", dim=4)
    problems = task.sample(5, seed=0, dtype=DOUBLE)
    torch.testing.assert_close(
        problems.facts.minimum, torch.full((5,), inner.minimum / inner.smoothness, dtype=DOUBLE)
    )


def test_weights_are_frequencies():
    kind = mixture().sample(4000, seed=0).constants["kind"]
    share = (kind == 1).double().mean().item()
    assert share == pytest.approx(0.5, abs=4 * (0.25 / 4000) ** 0.5)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "at least one task"),
        ([{"tsk": "rosenbrock"}], "an entry must hold 'task'"),
        ([{"task": "rosenbrok"}], "did you mean 'rosenbrock'"),
        ([{"task": "rosenbrock", "weight": -1.0}], "weights must be non-negative"),
        ([{"task": "digits_mlp"}], "must not draw minibatches"),
    ],
)
def test_bad_settings(tasks, message):
    with pytest.raises(LearnedOptError, match=message):
        get_task("mixture", tasks=tasks)


def test_rotations_are_kept_apart():
    task = get_task("mixture", tasks=ENTRIES[:1])
    assert isinstance(task.tasks[0], Rotated)
    constants = task.sample(2, seed=0).constants["task0"]
    assert select(constants, torch.tensor([0]))
