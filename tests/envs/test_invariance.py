"""Nothing that is seen, earned or done depends on units: ``f -> a f + b``, ``x -> c x``."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.core import OptimizationCore, Settings, episode_keys
from learned_opt.actuators import get_actuator, list_actuators
from learned_opt.actuators.saddle_escape import RETURN
from learned_opt.tasks import Scaled

LANES, STEPS = 16, 12

exponents = st.floats(-6, 6)
units = {"a": exponents, "b": st.floats(-1, 1), "c": st.floats(-3, 3)}


def run(actuator, task, *, a=1.0, b=0.0, c=1.0, avoid=()):
    """Observations, rewards and points in units of `c`, until lanes end."""
    core = OptimizationCore(
        Settings(
            task=task,
            transforms=[
                {"name": "scaled", "value_scale": a, "value_shift": b, "coordinate_scale": c}
            ],
            dtype="float64",
            num_instances=16,
        ),
        actuator,
    )
    rng = np.random.default_rng(0)
    keys = episode_keys(np.arange(LANES, dtype=np.uint64), np.zeros(LANES, np.int64))
    state, is_open = core.initial(keys), torch.ones(LANES, dtype=torch.bool)
    told = []
    for _ in range(STEPS):
        if actuator.actions.is_discrete:
            choices = [n for n in range(actuator.actions.size) if n not in avoid]
            action = torch.from_numpy(rng.choice(choices, LANES))
        else:
            action = torch.from_numpy(rng.uniform(-1, 1, (LANES, *core.action_shape)))
        after = core.transition(state, action)
        told.append((
            is_open.clone(),
            after.observation,
            core.reward(state, after),
            after.point / c,
            core.terminal(after),
        ))
        is_open, state = is_open & ~core.terminal(after), after
    return told


def assert_same(found, expected):
    names = ("observation", "reward", "point", "end")
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(ours[0], theirs[0]), step
        for name, x, y in zip(names, ours[1:], theirs[1:], strict=True):
            np.testing.assert_allclose(
                x[ours[0]].double(),
                y[ours[0]].double(),
                rtol=1e-6,
                atol=1e-6,
                err_msg=f"{name} {step}",
            )


@pytest.mark.parametrize("task", ["rosenbrock", "random_quadratic", "strict_saddle"])
@pytest.mark.parametrize("name", list_actuators())
def test_units_do_not_matter(name, task):
    # Going back to the best point lands within rounding of it, see below.
    actuator = get_actuator(name)
    expected = run(actuator, task)
    assert all(is_open.any() for is_open, *_ in expected)

    @settings(derandomize=True, deadline=None, max_examples=5, database=None)
    @given(**units)
    def check(a, b, c):
        found = run(actuator, task, a=10**a, b=b * 10**a, c=10**c)
        assert_same(found, expected)

    check()


# A trust region finds its first radius itself: it has no learning rate that could have a unit.
@pytest.mark.parametrize("name", [name for name in list_actuators() if name != "trust_region"])
def test_the_check_sees_units(name):
    """A learning rate that did not scale along would be noticed."""
    actuator = get_actuator(name)
    expected = run(actuator, "rosenbrock")
    original = Scaled.__init__

    def forgets(self, inner, **scales):
        original(self, inner, **scales)
        self.smoothness = inner.smoothness

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scaled, "__init__", forgets)
        found = run(actuator, "rosenbrock", a=2.0)
    with pytest.raises(AssertionError):
        assert_same(found, expected)


def test_units_do_not_matter_after_a_return():
    actuator = get_actuator("saddle_escape")
    others = set(range(2, RETURN))
    for task in ("strict_saddle", "rosenbrock", "random_quadratic"):
        expected = run(actuator, task, avoid=others)
        for a, b, c in ((3.7, -1.0, 0.3), (1e6, 0.0, 1.0), (1e-6, 0.0, 1e3)):
            assert_same(run(actuator, task, a=a, b=b, c=c, avoid=others), expected)
