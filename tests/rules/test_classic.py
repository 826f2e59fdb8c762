"""Deterministic hand-made rules: torch twins, sweeps, derivatives, closed forms."""

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.rules.adaptive import Adagrad, Adam, AdamW, Lion, RMSprop
from learned_opt.rules.base import HandMade, get_rule, registered_rules
from learned_opt.rules.classic import SGD, ClippedGD, Momentum, Nesterov, NormalizedGD
from learned_opt.rules.norms import nonzero, problem_norm, root
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.unroll import unroll

NUM_STEPS = 60


def losses_of(params):
    """Coupled, nonconvex, of very different curvatures; works with and without a problem axis."""
    a, b = params["a"], params["b"]
    bowl = (a.square() * torch.tensor([1.0, 30.0, 0.01])).flatten(-1).sum(-1)
    return bowl + torch.cos(b).flatten(-2).sum(-1) + a.sum(-1) * b.flatten(-2).mean(-1)


def starting_points(num_problems):
    rng = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(num_problems, 3, generator=rng, dtype=torch.float64),
        "b": torch.randn(num_problems, 2, 2, generator=rng, dtype=torch.float64),
    }


class Coupled(Task):
    """The same loss as a task."""

    name = "coupled"
    shapes = {"a": (3,), "b": (2, 2)}  # noqa: RUF012

    def _sample(self, num_problems, rng):
        del rng
        zeros = torch.zeros(num_problems, dtype=torch.float64)
        facts = Facts(
            minimum=zeros, reference=zeros, next_level=zeros, levels=zeros.unsqueeze(1)[:, :0]
        )
        return Problems(params=starting_points(num_problems), constants={}, facts=facts)

    def loss(self, params, problems, batch=None):
        del problems, batch
        return losses_of(params)


def trajectory(rule, num_problems=1, num_steps=NUM_STEPS):
    """Points after each step, ``[T, N, 7]``."""
    task = Coupled()
    points = []
    unroll(
        task,
        rule,
        task.sample(num_problems, dtype=torch.float64),
        num_steps=num_steps + 1,
        rng=torch.Generator().manual_seed(0),
        observe=lambda *, step, params, grads, losses: points.append(
            torch.cat([p.flatten(1) for p in params.values()], dim=1)
        ),
    )
    return torch.stack(points)


def torch_trajectory(make):
    """The same with an optimizer of torch."""
    params = {k: p[0].clone().requires_grad_() for k, p in starting_points(1).items()}
    optimizer = make(params.values())
    points = []
    for _ in range(NUM_STEPS + 1):
        points.append(torch.cat([p.detach().flatten() for p in params.values()]))
        optimizer.zero_grad()
        losses_of(params).backward()
        optimizer.step()
    return torch.stack(points).unsqueeze(1)


O = torch.optim  # noqa: E741
TWINS = {
    "sgd": (SGD(learning_rate=0.01), lambda p: O.SGD(p, lr=0.01)),
    "sgd at the edge": (SGD(learning_rate=0.033), lambda p: O.SGD(p, lr=0.033)),
    "sgd defaults": (SGD(), lambda p: O.SGD(p, lr=1e-2)),
    "momentum": (
        Momentum(learning_rate=0.02, momentum=0.8),
        lambda p: O.SGD(p, lr=0.02, momentum=0.8),
    ),
    "momentum heavy": (
        Momentum(learning_rate=0.001, momentum=0.99),
        lambda p: O.SGD(p, lr=0.001, momentum=0.99),
    ),
    "momentum none": (
        Momentum(learning_rate=0.01, momentum=0.0),
        lambda p: O.SGD(p, lr=0.01),
    ),
    "nesterov": (
        Nesterov(learning_rate=0.01, momentum=0.8),
        lambda p: O.SGD(p, lr=0.01, momentum=0.8, nesterov=True),
    ),
    "nesterov heavy": (
        Nesterov(learning_rate=0.003, momentum=0.99),
        lambda p: O.SGD(p, lr=0.003, momentum=0.99, nesterov=True),
    ),
    "adagrad": (Adagrad(), O.Adagrad),
    "adagrad large": (
        Adagrad(learning_rate=0.5, eps=0.1),
        lambda p: O.Adagrad(p, lr=0.5, eps=0.1),
    ),
    "rmsprop": (RMSprop(), O.RMSprop),
    "rmsprop short": (
        RMSprop(learning_rate=0.003, decay=0.5, eps=1e-3),
        lambda p: O.RMSprop(p, lr=0.003, alpha=0.5, eps=1e-3),
    ),
    "adam": (Adam(), O.Adam),
    "adam fast": (
        Adam(learning_rate=0.1, beta1=0.5, beta2=0.9, eps=1e-3),
        lambda p: O.Adam(p, lr=0.1, betas=(0.5, 0.9), eps=1e-3),
    ),
    "adam no averages": (
        Adam(learning_rate=0.01, beta1=0.0, beta2=0.0, eps=1e-16),
        lambda p: O.Adam(p, lr=0.01, betas=(0.0, 0.0), eps=1e-16),
    ),
    "adamw": (AdamW(), O.AdamW),
    "adamw strong": (
        AdamW(learning_rate=0.05, beta1=0.8, beta2=0.99, weight_decay=0.5),
        lambda p: O.AdamW(p, lr=0.05, betas=(0.8, 0.99), weight_decay=0.5),
    ),
}


@pytest.mark.parametrize("case", TWINS)
def test_equals_its_torch_twin_at_every_step(case):
    rule, make = TWINS[case]
    ours, theirs = trajectory(rule), torch_trajectory(make)
    assert ours.isfinite().all()
    assert (ours[-1] - ours[0]).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_lion_equals_a_plain_loop():
    rule = Lion(learning_rate=0.01, beta1=0.8, beta2=0.95, weight_decay=0.3)
    params = {k: p[0].clone().requires_grad_() for k, p in starting_points(1).items()}
    moment = dict.fromkeys(params, 0.0)
    points = []
    for _ in range(NUM_STEPS + 1):
        points.append(torch.cat([p.detach().flatten() for p in params.values()]))
        grads = torch.autograd.grad(losses_of(params), params.values())
        with torch.no_grad():
            for (k, p), g in zip(params.items(), grads, strict=True):
                p.sub_(0.01 * (torch.sign(0.8 * moment[k] + 0.2 * g) + 0.3 * p))
                moment[k] = 0.95 * moment[k] + 0.05 * g
    expected = torch.stack(points).unsqueeze(1)
    torch.testing.assert_close(trajectory(rule), expected, rtol=0, atol=1e-10)


def test_normalized_gd_moves_by_the_learning_rate_over_all_tensors():
    points = trajectory(NormalizedGD(learning_rate=0.03), num_problems=4)
    lengths = points.diff(dim=0).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.03), rtol=1e-12, atol=0)


def test_normalized_gd_survives_gradients_whose_squares_underflow():
    grads = {"x": torch.tensor([[3e-30, 4e-30], [0.0, 0.0]])}
    updates, _ = NormalizedGD(learning_rate=1.0)(grads, {}, grads)
    torch.testing.assert_close(updates["x"], torch.tensor([[-0.6, -0.8], [0.0, 0.0]]))


def test_clipped_gd_equals_torch_clip_grad_norm():
    params = {k: p[0].clone().requires_grad_() for k, p in starting_points(1).items()}
    points = []
    for _ in range(NUM_STEPS + 1):
        points.append(torch.cat([p.detach().flatten() for p in params.values()]))
        grads = torch.autograd.grad(losses_of(params), params.values())
        factor = min(1.0, 2.0 / torch.cat([g.flatten() for g in grads]).norm().item())
        with torch.no_grad():
            for p, g in zip(params.values(), grads, strict=True):
                p.sub_(0.02 * factor * g)
    expected = torch.stack(points).unsqueeze(1)
    ours = trajectory(ClippedGD(learning_rate=0.02, threshold=2.0))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    unclipped = trajectory(SGD(learning_rate=0.02))
    assert (ours - unclipped).abs().max() > 0.1


def test_clipped_gd_leaves_short_gradients_alone():
    rule = ClippedGD(learning_rate=0.1, threshold=5.0)
    grads = {"x": torch.tensor([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0], [0.0, 0.0]])}
    updates, _ = rule(grads, {}, grads)
    expected = [[-0.3, -0.4], [-0.03, -0.04], [-0.3, -0.4], [0.0, 0.0]]
    torch.testing.assert_close(updates["x"], torch.tensor(expected))
    frozen, _ = ClippedGD(threshold=0.0)(grads, {}, grads)
    assert not frozen["x"].any()


DETERMINISTIC = [
    "adagrad",
    "adam",
    "adamw",
    "clipped_gd",
    "lion",
    "momentum",
    "nesterov",
    "normalized_gd",
    "rmsprop",
    "sgd",
]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_sweep_equals_single_runs(name):
    num_problems = 5
    scale = torch.tensor([0.3, 0.6, 1.0, 0.9, 0.0], dtype=torch.float64)
    config = {key: value * scale for key, value in get_rule(name).config().items()}
    swept = trajectory(get_rule(name, **config), num_problems)
    for i in range(num_problems):
        single = get_rule(name, **{key: float(value[i]) for key, value in config.items()})
        alone = trajectory(single, num_problems)
        torch.testing.assert_close(swept[:, i], alone[:, i], rtol=0, atol=1e-12)


SMOOTH = [
    (SGD, "learning_rate", 0.01),
    (Momentum, "learning_rate", 0.01),
    (Momentum, "momentum", 0.7),
    (Nesterov, "momentum", 0.7),
    (NormalizedGD, "learning_rate", 0.05),
    (ClippedGD, "threshold", 0.5),
    (Adagrad, "learning_rate", 0.1),
    (Adagrad, "eps", 0.1),
    (RMSprop, "decay", 0.9),
    (Adam, "learning_rate", 0.05),
    (Adam, "beta1", 0.8),
    (Adam, "beta2", 0.9),
    (Adam, "eps", 0.1),
    (AdamW, "weight_decay", 0.1),
    (Lion, "learning_rate", 0.01),
    (Lion, "weight_decay", 0.1),
]


def final_losses(rule, **settings):
    task = Coupled()
    problems = task.sample(2, dtype=torch.float64)
    return unroll(
        task, rule, problems, num_steps=8, rng=torch.Generator().manual_seed(0), **settings
    ).losses[:, 1:]


@pytest.mark.parametrize(("factory", "key", "value"), SMOOTH)
def test_hypergradient_equals_finite_differences(factory, key, value):
    rule = factory(**{key: value})
    objective = final_losses(rule, differentiable=True, second_order=True).sum()
    (exact,) = torch.autograd.grad(objective, [getattr(rule, key)])
    h = 1e-4 * value

    def at(point):
        return final_losses(factory(**{key: point})).sum()

    far, near = ((at(value + k * h) - at(value - k * h)) / (2 * k * h) for k in (2, 1))
    estimate = (4 * near - far) / 3  # exact up to h^4
    assert exact.abs() > 1e-6
    torch.testing.assert_close(exact, estimate, rtol=1e-6, atol=1e-9)


def test_root_matches_sqrt_and_its_slope_away_from_zero():
    x = torch.tensor([0.0, 1e-300, 0.25, 9.0, float("nan")], dtype=torch.float64)
    torch.testing.assert_close(root(x), x.sqrt(), rtol=0, atol=0, equal_nan=True)
    y = x.clone().requires_grad_()
    torch.testing.assert_close(root(y).detach(), x.sqrt(), rtol=0, atol=0, equal_nan=True)
    (slope,) = torch.autograd.grad(root(y)[:4].sum(), y)
    torch.testing.assert_close(
        slope[:4], torch.tensor([0.0, 5e149, 1.0, 1 / 6], dtype=torch.float64)
    )


def test_problem_norm_and_its_gradient():
    params = starting_points(3)
    flat = torch.cat([p.flatten(1) for p in params.values()], dim=1)
    torch.testing.assert_close(problem_norm(params), flat.norm(dim=1), rtol=1e-14, atol=0)
    leaf = {k: p.requires_grad_() for k, p in params.items()}
    torch.autograd.gradcheck(lambda a, b: problem_norm({"a": a, "b": b}), (leaf["a"], leaf["b"]))
    assert nonzero(torch.tensor([0.0, -2.0])).tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (SGD, {"learning_rate": -0.1}, "sgd: learning_rate must be finite and not negative"),
        (SGD, {"learning_rate": float("nan")}, "sgd: learning_rate must be finite"),
        (Adam, {"beta1": 1.0}, "adam: beta1 must be below 1, got 1.0"),
        (Adam, {"beta2": torch.tensor([0.5, 1.5])}, r"adam: beta2 must be below 1, got \[0.5"),
        (AdamW, {"beta2": 1.0}, "adamw: beta2 must be below 1"),
        (RMSprop, {"decay": 1.0}, "rmsprop: decay must be below 1"),
        (Lion, {"beta2": 2.0}, "lion: beta2 must be below 1"),
        (Momentum, {"momentum": torch.zeros(2, 2)}, "momentum must be a scalar or"),
    ],
)
def test_bad_hyperparameters_are_refused(factory, settings, message):
    with pytest.raises(LearnedOptError, match=message):
        factory(**settings)


def test_defaults_are_those_of_torch():
    assert get_rule("adam").config() == {
        "learning_rate": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
    }
    assert get_rule("adamw").config()["weight_decay"] == 1e-2
    assert get_rule("rmsprop").config() == {"learning_rate": 1e-2, "decay": 0.99, "eps": 1e-8}
    assert get_rule("adagrad").config() == {"learning_rate": 1e-2, "eps": 1e-10}


def test_every_deterministic_hand_made_rule_is_tested_here():
    hand_made = {
        name
        for name in registered_rules()
        if isinstance(rule := get_rule(name), HandMade) and not rule.needs_rng
    }
    assert hand_made <= {*DETERMINISTIC}
