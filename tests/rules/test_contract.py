"""What every registered rule keeps, whoever wrote it."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from learned_opt.errors import LearnedOptError
from learned_opt.rules.base import HandMade, get_rule, registered_rules
from learned_opt.rules.weights import load_rule, save_rule
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.trees import leaves, tree_map
from learned_opt.unroll import unroll

RULES = sorted(registered_rules())
LEARNED = [name for name in RULES if not isinstance(get_rule(name), HandMade)]
HAND_MADE = [name for name in RULES if name not in LEARNED]

# Steps of these depend on thresholds and signs only: the derivative is zero almost everywhere.
# A guard's fallback does not act in the few steps of these tests.
WITHOUT_GRADIENT = {
    "guarded": {f"fallback.{key}" for key in ("learning_rate", "beta1", "beta2", "eps")},
    "lion": {"beta1", "beta2"},
    "perturbed_gd": {"gradient_threshold", "interval"},
}
# What makes every hyperparameter act in the few steps of the tests below.
ACTIVE = {
    "clipped_gd": {"threshold": 0.1},
    "lion": {"weight_decay": 0.1},
    "perturbed_gd": {"gradient_threshold": 1.9, "interval": 0.0},
    "perturbed_gd_theory": {"accuracy": 300.0},
}


def make(name, dtype=torch.float64):
    """The rule, learned theta in `dtype`."""
    rule = get_rule(name, **ACTIVE.get(name, {}))
    return rule if isinstance(rule, HandMade) else rule.to(dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Bowls(Task):
    """Quadratics of several curvatures over tensors of rank 0, 1 and 2."""

    name = "bowls"
    shapes = {"s": (), "v": (3,), "m": (2, 2)}  # noqa: RUF012

    def _sample(self, num_problems, rng):
        zeros = torch.zeros(num_problems, dtype=torch.float64)
        params = {
            k: torch.randn(num_problems, *shape, generator=rng, dtype=torch.float64)
            for k, shape in self.shapes.items()
        }
        facts = Facts(minimum=zeros, reference=zeros, next_level=zeros, levels=zeros[:, None])
        return Problems(params=params, constants={}, facts=facts)

    def loss(self, params, problems, batch=None):
        del problems, batch
        weights = torch.tensor([0.1, 1.0, 0.4], dtype=params["v"].dtype)
        return (
            params["s"].square()
            + (params["v"].square() * weights).sum(1)
            + params["m"].square().sum((1, 2)) / 2
            + params["s"] * params["m"][:, 0, 1]
        )


def run(name, *, num_steps=6, num_problems=4, dtype=torch.float64, rule=None, **settings):
    task = Bowls()
    return unroll(
        task,
        make(name, dtype) if rule is None else rule,
        task.sample(num_problems, dtype=dtype),
        num_steps=num_steps,
        rng=generator(),
        **settings,
    )


@torch.no_grad()
def one_step(rule, grads, params, *, state=None, num_steps=1):
    """The last of a few calls on fixed arguments."""
    state = rule.init(params) if state is None else state
    rng = generator()
    loss = torch.zeros(len(params["v"]), dtype=torch.float64)
    for _ in range(num_steps):
        updates, state = rule(grads, state, params, loss=loss, rng=rng)
    return updates, state


def arguments(num_problems=3, dtype=torch.float64):
    rng = generator(5)
    params = {
        k: torch.randn(num_problems, *shape, generator=rng, dtype=torch.float64).to(dtype)
        for k, shape in Bowls.shapes.items()
    }
    grads = {
        k: torch.randn(p.shape, generator=rng, dtype=torch.float64).to(dtype)
        for k, p in params.items()
    }
    return grads, params


@pytest.mark.parametrize("name", RULES)
def test_shapes_and_types_are_kept(name):
    for dtype in (torch.float32, torch.float64):
        rule = make(name, dtype)
        grads, params = arguments(dtype=dtype)
        initial = leaves(rule.init(params))
        updates, state = one_step(rule, grads, params)
        assert list(updates) == list(params)
        for key, p in params.items():
            assert (updates[key].shape, updates[key].dtype) == (p.shape, p.dtype)
        final = leaves(state)
        assert {k: (v.shape, v.dtype) for k, v in final.items()} == {
            k: (v.shape, v.dtype) for k, v in initial.items()
        }
        assert all(leaf.shape[0] == 3 for leaf in final.values())


@pytest.mark.parametrize("name", RULES)
def test_arguments_are_not_modified(name):
    rule = make(name)
    grads, params = arguments()
    _, state = one_step(rule, grads, params)
    before = copy.deepcopy((grads, params, state, rule.state_dict()))
    one_step(rule, grads, params, state=state)
    for tree, original in zip((grads, params, state, rule.state_dict()), before, strict=True):
        for found, expected in zip(leaves(tree).values(), leaves(original).values(), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", RULES)
def test_the_same_arguments_give_the_same_step(name):
    rule = make(name)
    grads, params = arguments()
    first, _ = one_step(rule, grads, params, num_steps=3)
    second, _ = one_step(rule, grads, params, num_steps=3)
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", RULES)
def test_init_does_not_remember_another_problem(name):
    rule = make(name)
    _, params = arguments()
    before = leaves(tree_map(torch.clone, rule.init(params)))
    one_step(rule, *arguments(), num_steps=3)
    after = leaves(rule.init(params))
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", [n for n in RULES if not get_rule(n).needs_rng])
def test_permuting_coordinates_permutes_the_step(name):
    # All rules here are coordinatewise or see coordinates through norms alone.
    rule = make(name)
    order = torch.tensor([2, 0, 1])
    grads, params = arguments()
    grads, params = {"v": grads["v"]}, {"v": params["v"]}
    updates, _ = one_step(rule, grads, params, num_steps=3)
    permuted, _ = one_step(
        rule, {"v": grads["v"][:, order]}, {"v": params["v"][:, order]}, num_steps=3
    )
    torch.testing.assert_close(permuted["v"], updates["v"][:, order], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", RULES)
def test_problems_do_not_see_each_other(name):
    # Noise is drawn for the whole batch, so it is the same in both runs.
    rule = make(name)
    grads, params = arguments()
    updates, state = one_step(rule, grads, params, num_steps=2)
    for tree in (grads, params):
        for tensor in tree.values():
            tensor[1] = 1e3 * tensor[1] + 7
    other_updates, other_state = one_step(rule, grads, params, num_steps=2)
    for found, expected in (
        *zip(other_updates.values(), updates.values(), strict=True),
        *zip(leaves(other_state).values(), leaves(state).values(), strict=True),
    ):
        torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", RULES)
def test_batch_of_one_equals_row_of_batch(name):
    rule = make(name)
    if rule.needs_rng:
        pytest.skip("a noise stream belongs to a batch")
    grads, params = arguments()
    together, _ = one_step(rule, grads, params, num_steps=3)
    for i in range(3):
        alone, _ = one_step(
            rule,
            {k: g[i : i + 1] for k, g in grads.items()},
            {k: p[i : i + 1] for k, p in params.items()},
            num_steps=3,
        )
        for key, expected in together.items():
            torch.testing.assert_close(alone[key][0], expected[i], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [n for n in RULES if not get_rule(n).needs_rng])
def test_float32_follows_float64(name):
    single, double = (run(name, dtype=dtype).losses for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_zero_gradients_give_finite_steps_and_states(name):
    rule = make(name)
    grads, params = arguments()
    zero = {k: torch.zeros_like(g) for k, g in grads.items()}
    updates, state = one_step(rule, zero, params, num_steps=3)
    assert all(u.isfinite().all() for u in updates.values())
    assert not any(leaf.isnan().any() for leaf in leaves(state).values())


@pytest.mark.parametrize("name", RULES)
def test_huge_and_tiny_gradients_give_finite_steps(name):
    rule = make(name, torch.float32)
    for scale in (1e-30, 1e12):
        grads, params = arguments(dtype=torch.float32)
        updates, _ = one_step(rule, {k: scale * g for k, g in grads.items()}, params, num_steps=2)
        assert all(u.isfinite().all() for u in updates.values())


@pytest.mark.parametrize("name", RULES)
def test_saving_and_loading_changes_nothing(name, tmp_path):
    rule = make(name)
    path = save_rule(rule, tmp_path / "rule.safetensors")
    assert set(load_file(path)) == set(rule.state_dict())
    expected, found = run(name, rule=rule), run(name, rule=load_rule(path))
    assert torch.equal(found.losses, expected.losses)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_gradients_reach_every_theta(name, second_order):
    rule = make(name)
    losses = run(name, rule=rule, differentiable=True, second_order=second_order).losses
    names, theta = zip(*rule.named_parameters(), strict=True)
    grads = torch.autograd.grad(losses.sum(), theta, allow_unused=True)
    reached = {n for n, g in zip(names, grads, strict=True) if g is not None and g.abs().max() > 0}
    assert all(g.isfinite().all() for g in grads if g is not None)
    if name == "perturbed_gd_theory":
        # Its constants are a theorem's, used through thresholds: the step length alone is smooth.
        assert reached >= {"constant", "smoothness"}
    else:
        assert reached == set(names) - WITHOUT_GRADIENT.get(name, set())


@pytest.mark.parametrize("name", RULES)
def test_derivatives_are_finite_where_a_coordinate_never_sees_a_gradient(name):
    class Flat(Bowls):
        def loss(self, params, problems, batch=None):
            del problems, batch
            # `v` lies on a plateau: its gradient is zero, yet connected to where it lies.
            plateau = (1e-200 * params["v"]).pow(3).sum(1)
            return params["s"].square() + plateau + 0 * params["m"].sum((1, 2))

    task, rule = Flat(), make(name)
    problems = task.sample(2, dtype=torch.float64)
    problems.params["s"][1] = 0.0  # a whole problem without any gradient
    losses = unroll(
        task,
        rule,
        problems,
        num_steps=4,
        rng=generator(),
        differentiable=True,
        second_order=True,
    ).losses
    grads = torch.autograd.grad(losses.sum(), list(rule.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in grads)
    assert all(g.isfinite().all() for g in grads if g is not None)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_moves(name):
    carry = run(name).carry
    start = Bowls().sample(4, dtype=torch.float64).params
    assert all((carry.params[k] - p).abs().max() > 0 for k, p in start.items())


@pytest.mark.parametrize("name", RULES)
def test_config_rebuilds_the_rule(name):
    rule = make(name)
    again = get_rule(name, **rule.config())
    assert again.config() == rule.config()
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in rule.state_dict().items()
    }


@pytest.mark.parametrize("name", HAND_MADE)
def test_negative_and_infinite_hyperparameters_are_refused(name):
    for key in get_rule(name).config():
        for value in (-0.1, float("inf"), torch.tensor([0.1, -0.1])):
            with pytest.raises(LearnedOptError, match=f"{name}: {key} must be finite and not neg"):
                get_rule(name, **{key: value})


@pytest.mark.parametrize("name", RULES)
def test_unknown_settings_are_refused(name):
    with pytest.raises(LearnedOptError, match=f"rule '{name}': .*learning_rat'"):
        get_rule(name, learning_rat=0.1)


@pytest.mark.parametrize("name", RULES)
def test_docstrings_start_with_one_full_line(name):
    line = registered_rules()[name]
    assert line.endswith((".", ")")) or "." in line
    assert len(line) > 20


@pytest.mark.parametrize(
    ("setting", "value"),
    [("output_scale", 0.0), ("beta1", 1.0), ("beta2", -0.1), ("eps", 0.0), ("hidden_size", 0)],
)
def test_rnnprop_refuses_bad_settings(setting, value):
    with pytest.raises(LearnedOptError, match=f"{setting} must be .*, got {value}"):
        get_rule("rnnprop", **{setting: value})


def test_rnnprop_ignores_the_scale_of_the_loss_and_bounds_its_steps():
    rule = get_rule("rnnprop", output_scale=0.05).double()
    grads, params = arguments()
    updates, _ = one_step(rule, grads, params, num_steps=4)
    scaled, _ = one_step(rule, {k: 1e6 * g for k, g in grads.items()}, params, num_steps=4)
    for key, update in updates.items():
        torch.testing.assert_close(scaled[key], update, rtol=1e-4, atol=1e-7)
        assert update.abs().max() <= 0.05


def test_rnnprop_equals_the_published_equations():
    rule = get_rule("rnnprop", hidden_size=4, output_scale=0.05, seed=2).double()
    theta, size = rule.state_dict(), 4

    def cell(layer, x, h, c):
        gates = theta[f"lstm.weight{layer}"] @ torch.cat((x, h)) + theta[f"lstm.bias{layer}"]
        i, f, o = (gates[k * size : (k + 1) * size].sigmoid() for k in range(3))
        c = f * c + i * gates[3 * size :].tanh()
        return o * c.tanh(), c

    _, params = arguments(1)
    params = {"v": params["v"]}
    state = rule.init(params)
    moments = torch.zeros(2, 3, dtype=torch.float64)
    memory = [[torch.zeros(size, dtype=torch.float64)] * 4 for _ in range(3)]
    for t in range(1, 7):
        g = torch.sin(torch.arange(3.0, dtype=torch.float64) * t + t)
        moments = 0.95 * moments + 0.05 * torch.stack((g, g**2))
        first, second = moments / (1 - 0.95**t)
        expected = torch.empty(3, dtype=torch.float64)
        for p in range(3):
            scale = second[p].sqrt() + 1e-8
            x = torch.stack((g[p] / scale, first[p] / scale))
            x = nn.functional.elu(theta["embed.weight"] @ x + theta["embed.bias"])
            h0, c0, h1, c1 = memory[p]
            h0, c0 = cell(0, x, h0, c0)
            h1, c1 = cell(1, h0, h1, c1)
            memory[p] = [h0, c0, h1, c1]
            expected[p] = -0.05 * torch.tanh(theta["head.weight"][0] @ h1 + theta["head.bias"][0])
        updates, state = rule({"v": g.unsqueeze(0)}, state, params)
        torch.testing.assert_close(updates["v"][0].detach(), expected, rtol=1e-12, atol=1e-15)
