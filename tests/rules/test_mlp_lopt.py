"""MLPLOpt and small_fc_lopt against slow references in numpy, and their invariances."""

import numpy as np
import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.features import rms_normalized, time_features
from learned_opt.rules.base import get_rule

DOUBLE = torch.float64
NAMES = ("mlp_lopt", "small_fc_lopt")
SHAPES = {"scalar": (), "vector": (4,), "wide": (2, 5), "square": (3, 3), "deep": (3, 2, 4)}


def make(name, **settings):
    return get_rule(name, **settings).double()


def gradients(num_steps, shape, *, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, *shape)) * 3.0**t for t in range(num_steps)]


def run(rule, grads, params):
    """The updates of every step, at points that move."""
    found, state = [], rule.init({"x": params})
    with torch.no_grad():
        for g in grads:
            updates, state = rule({"x": torch.as_tensor(g)}, state, {"x": params})
            found.append(updates["x"])
            params = params + updates["x"]
    return found, state


class Reference:
    """The published definitions, one problem and one coordinate at a time, in numpy."""

    def __init__(self, rule, shape):
        self.layers = [
            (layer.weight.detach().numpy(), layer.bias.detach().numpy())
            for layer in rule.net.layers
        ]
        self.shape = shape or (1,)
        self.step = 0

    def __call__(self, g, p):
        g, p = g.reshape(self.shape), p.reshape(self.shape)
        columns = self.columns(g, p)
        columns = [c / np.sqrt(1e-5 + np.mean(c**2)) for c in columns]
        scales = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000]
        time = [np.tanh(self.step / s - 1.0) for s in scales]
        self.step += 1
        update = np.empty(self.shape)
        for i in np.ndindex(*self.shape):
            x = np.array([c[i] for c in columns] + time)
            for weight, bias in self.layers[:-1]:
                x = np.maximum(weight @ x + bias, 0.0)
            weight, bias = self.layers[-1]
            direction, magnitude = weight @ x + bias
            update[i] = -direction * np.exp(magnitude * 0.001) * 0.001
        return update


class MLPReference(Reference):
    def __init__(self, rule, shape):
        super().__init__(rule, shape)
        self.decays = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
        self.momenta = [np.zeros(self.shape) for _ in self.decays]

    def columns(self, g, p):
        self.momenta = [d * m + (1 - d) * g for d, m in zip(self.decays, self.momenta, strict=True)]
        return [g, p, *self.momenta]


class SmallFCReference(Reference):
    def __init__(self, rule, shape):
        super().__init__(rule, shape)

        def decays(theta, initial):
            # param_to_decay(decay_to_param(initial) + theta)
            logs = np.log(1 - np.array(initial)) / 10 + theta.detach().numpy()
            return np.clip(1 - np.exp(10 * logs), 0.0, 1.0)

        self.momentum = decays(rule.momentum_decays, (0.9, 0.99, 0.999))
        (self.second,) = decays(rule.second_decays, (0.999,))
        self.factored = decays(rule.factored_decays, (0.9, 0.99, 0.999))
        self.m = [np.zeros(self.shape) for _ in range(3)]
        self.v = np.zeros(self.shape)
        order = np.argsort(self.shape, kind="stable")
        self.dims = (int(order[-2]), int(order[-1])) if len(self.shape) > 1 else None
        self.row = [0.0] * 3
        self.column = [0.0] * 3
        self.full = [0.0] * 3

    def columns(self, g, p):
        self.m = [d * m + (1 - d) * g for d, m in zip(self.momentum, self.m, strict=True)]
        self.v = self.second * self.v + (1 - self.second) * g**2
        square = g**2 + 1e-30
        fac_g, rows, columns, inverse_rows, inverse_columns, fac_m = ([] for _ in range(6))
        for j, d in enumerate(self.factored):
            if self.dims is None:
                self.full[j] = d * self.full[j] + (1 - d) * square
                v = self.full[j]
                fac_g.append(g / np.sqrt(np.maximum(v + 1e-9, 1e-9)))
                fac_m.append(self.m[j] / np.sqrt(v + 1e-6))
                row = column = v
            else:
                d1, d0 = self.dims
                self.row[j] = d * self.row[j] + (1 - d) * square.mean(d0)
                self.column[j] = d * self.column[j] + (1 - d) * square.mean(d1)
                row, column = self.row[j], self.column[j]
                mean = row.mean(d1 - 1 if d1 > d0 else d1, keepdims=True)
                scale = np.expand_dims(1 / np.sqrt(np.maximum(row / (mean + 1e-9), 1e-9)), d0)
                scale = scale * np.expand_dims(1 / np.sqrt(np.maximum(column, 1e-9)), d1)
                fac_g.append(g * scale)
                fac_m.append(self.m[j] * scale)
                row = np.broadcast_to(np.expand_dims(row, d0), self.shape)
                column = np.broadcast_to(np.expand_dims(column, d1), self.shape)
            rows.append(row)
            columns.append(column)
            inverse_rows.append(1 / np.sqrt(row + 1e-8))
            inverse_columns.append(1 / np.sqrt(column + 1e-8))
        root = 1 / np.sqrt(self.v + 1e-6)
        return [
            *(g, p, *self.m, self.v, *(m * root for m in self.m), root),
            *(*fac_g, *rows, *columns, *inverse_rows, *inverse_columns, *fac_m),
        ]


REFERENCES = {"mlp_lopt": MLPReference, "small_fc_lopt": SmallFCReference}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_published_definition(name, shape):
    rule = make(name, hidden_size=5, seed=3)
    with torch.no_grad():
        for i, theta in enumerate(rule.parameters()):
            # Biases and decays start at zero, where an error in them would not show.
            shift = torch.sin(torch.arange(theta.numel(), dtype=DOUBLE) + i).reshape(theta.shape)
            theta.add_(0.02 * shift)
    grads = gradients(5, shape)
    params = torch.as_tensor(np.random.default_rng(1).normal(size=(1, *shape)))
    found, _ = run(rule, grads, params)
    reference, p = REFERENCES[name](rule, shape), params[0].numpy()
    for g, update in zip(grads, found, strict=True):
        expected = reference(g[0], p).reshape(shape)
        np.testing.assert_allclose(update[0].numpy(), expected, rtol=1e-10, atol=1e-16)
        p = p + expected
    assert np.abs(expected).max() > 1e-5


@pytest.mark.parametrize(
    ("name", "hidden_size", "size"),
    [("mlp_lopt", 32, 1_762), ("small_fc_lopt", 4, 197), ("small_fc_lopt", 32, 2_402 + 7)],
)
def test_theta_has_the_published_size(name, hidden_size, size):
    assert sum(p.numel() for p in get_rule(name, hidden_size=hidden_size).parameters()) == size


def test_learned_decays_start_at_the_published_ones_and_never_grow_an_average():
    rule = make("small_fc_lopt")
    g, zeros = torch.full((1, 3), 2.0, dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE)
    (_, state), decays = run(rule, [g], zeros), torch.tensor([0.9, 0.99, 0.999], dtype=DOUBLE)
    torch.testing.assert_close(state["momenta"]["x"][0, 0], (1 - decays) * 2)
    torch.testing.assert_close(state["factors"]["x"]["full"][0, 0], (1 - decays) * 4)
    with torch.no_grad():
        rule.momentum_decays.fill_(9.0)  # exp(90) times as fast: what is beyond 0 counts as 0
    _, state = run(rule, [g], zeros)
    torch.testing.assert_close(state["momenta"]["x"], torch.full((1, 3, 3), 2.0, dtype=DOUBLE))


def test_factors_are_small_and_lie_along_the_two_longest_dimensions():
    params = {"x": torch.zeros(2, 3, 7, 5), "m": torch.zeros(2, 4, 4), "v": torch.zeros(2, 6)}
    factors = get_rule("small_fc_lopt").init(params)["factors"]
    shapes = {k: {name: tuple(f.shape) for name, f in each.items()} for k, each in factors.items()}
    assert shapes == {
        "x": {"row": (2, 3, 1, 5, 3), "column": (2, 3, 7, 1, 3)},
        "m": {"row": (2, 4, 1, 3), "column": (2, 1, 4, 3)},
        "v": {"full": (2, 6, 3)},
    }


@pytest.mark.parametrize("name", NAMES)
def test_permuting_rows_and_columns_permutes_the_step(name):
    rule, rng = make(name, seed=1), np.random.default_rng(0)
    rows, columns = rng.permutation(4), rng.permutation(6)
    grads = gradients(4, (4, 6))
    params = torch.as_tensor(rng.normal(size=(1, 4, 6)))
    plain, _ = run(rule, grads, params)
    permuted, _ = run(
        rule, [g[:, rows][:, :, columns] for g in grads], params[:, rows][:, :, columns]
    )
    for expected, found in zip(plain, permuted, strict=True):
        torch.testing.assert_close(found, expected[:, rows][:, :, columns], rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", NAMES)
def test_a_transposed_tensor_takes_the_transposed_step(name):
    rule, grads = make(name, seed=1), gradients(4, (4, 6))
    params = torch.as_tensor(np.random.default_rng(0).normal(size=(1, 4, 6)))
    plain, _ = run(rule, grads, params)
    transposed, _ = run(rule, [g.transpose(0, 2, 1).copy() for g in grads], params.mT)
    for expected, found in zip(plain, transposed, strict=True):
        torch.testing.assert_close(found, expected.mT, rtol=1e-11, atol=1e-16)


def test_mlp_lopt_does_not_see_the_scale_of_gradients_well_above_its_floor():
    rule, grads = make("mlp_lopt", seed=1), [1e6 * g for g in gradients(4, (4, 6))]
    params = torch.as_tensor(np.random.default_rng(0).normal(size=(1, 4, 6)))
    plain, _ = run(rule, grads, params)
    scaled, _ = run(rule, [1e3 * g for g in grads], params)
    for expected, found in zip(plain, scaled, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_normalised_apart(name):
    rule, (g,), (h,) = make(name), gradients(1, (3,)), gradients(1, (2, 2), seed=1)
    params = {"x": torch.zeros(1, 3, dtype=DOUBLE), "y": torch.ones(1, 2, 2, dtype=DOUBLE)}
    grads = {"x": torch.as_tensor(g), "y": torch.as_tensor(1e6 * h)}
    with torch.no_grad():
        together, _ = rule(grads, rule.init(params), params)
        for k, p in params.items():
            alone, _ = rule({k: grads[k]}, rule.init({k: p}), {k: p})
            torch.testing.assert_close(alone[k], together[k], rtol=1e-12, atol=0)


def test_features_of_time_and_scale():
    steps = torch.tensor([0, 30])
    features = time_features(steps, dtype=DOUBLE)
    assert features.shape == (2, 11)
    assert features[0].tolist() == pytest.approx([np.tanh(-1.0)] * 11)
    assert features[1, 3] == 0.0
    assert features[1, 4] == pytest.approx(np.tanh(-0.7))
    x = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]], dtype=DOUBLE)
    expected = x / np.sqrt(12.5 + 1e-5)
    torch.testing.assert_close(rms_normalized(x), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("hidden_size", 0, "be positive"),
        ("num_layers", 0, "be positive"),
        ("step_scale", 0.0, "be positive"),
        ("exponent_scale", -1.0, "not be negative"),
    ],
)
def test_bad_settings_are_refused(name, setting, value, rule):
    with pytest.raises(LearnedOptError, match=f"{setting} must {rule}, got {value}"):
        get_rule(name, **{setting: value})


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_fixes_theta_and_leaves_the_global_generator_alone(name):
    before = torch.random.get_rng_state()
    one, same, other = (get_rule(name, seed=s).net.layers[0].weight for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    # Truncated at two deviations, one over the root of the number of inputs.
    assert one.abs().max() <= 2 / one.shape[1] ** 0.5
