"""Frames show what happened: values, planes and windows by formula, marks where kicks were."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs  # noqa: F401  (registers the ids)
from envs.core import OptimizationCore, Settings, episode_keys
from envs.rendering import Recorder
from envs.surfaces import Plane, Trail, Window, plane_of, relative_gaps, window_of
from learned_opt.actuators import get_actuator
from learned_opt.actuators.saddle_escape import CONTINUE, KICK_LARGE
from learned_opt.tasks import get_task, list_tasks

KICK_COLOUR = (0xD5, 0x5E, 0x00)


def make(name="HyperControl", **settings):
    return gym.make(
        f"LearnedOpt/{name}-v0", render_mode="rgb_array", num_instances=8, **settings
    ).unwrapped


def make_vec(name="HyperControl", num_envs=3, **settings):
    return gym.make_vec(
        f"LearnedOpt/{name}-v0",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        render_mode="rgb_array",
        num_instances=8,
        **settings,
    ).unwrapped


def trail_of(points, gap=None):
    points = np.asarray(points, float)
    count = len(points)
    return Trail(
        points=points,
        gap=np.ones(count) if gap is None else np.asarray(gap, float),
        kicked=np.zeros(count, bool),
        steps=np.arange(count),
        controls={},
    )


def count_kick_pixels(frame):
    return int((frame == KICK_COLOUR).all(-1).sum())


def test_the_same_history_gives_the_same_pixels_alone_and_among_lanes():
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype(np.float32)
    lanes, alone = make_vec(), [make() for _ in range(2)]
    lanes.reset(seed=4)
    for env in alone:
        env.reset(seed=5)
    for action in actions:
        lanes.step(np.tile(action, (3, 1)))
        for env in alone:
            env.step(action)
    first = alone[0].render()
    assert first.shape == (540, 900, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, alone[0].render())
    np.testing.assert_array_equal(first, alone[1].render())
    frames = lanes.render()
    np.testing.assert_array_equal(first, frames[1])
    assert (frames[0] != frames[1]).any()
    alone[0].step(actions[0])
    assert (alone[0].render() != first).any()


def test_kicks_are_marked_where_they_were_given():
    env = make("SaddleEscape")
    env.reset(seed=0)
    for step in range(12):
        env.step(KICK_LARGE if step in {2, 11} else CONTINUE)
    trail = env._recorder.trail(0)
    assert np.flatnonzero(trail.kicked).tolist() == [3, 12]
    with_kicks = env.render()
    env.reset(seed=0)
    for _ in range(12):
        env.step(CONTINUE)
    assert not env._recorder.trail(0).kicked.any()
    assert count_kick_pixels(env.render()) == 0
    # Two lines in each of four strips, and triangles.
    assert count_kick_pixels(with_kicks) > 400


def test_the_trail_holds_points_gaps_and_controls():
    env = make(task="octopus", dtype="float64")
    env.reset(seed=1)
    states = [env.state]
    for _ in range(3):
        env.step(np.array([0.5, -0.5, -1.0]))
        states.append(env.state)
    trail = env._recorder.trail(0)
    for row, state in enumerate(states):
        np.testing.assert_array_equal(trail.points[row], state.point[0].numpy())
        assert trail.gap[row] == state.gap[0]
        shown = env.core.actuator.controls(state.actuator)
        assert {k: v[row] for k, v in trail.controls.items()} == {k: v[0] for k, v in shown.items()}
    np.testing.assert_array_equal(trail.colours, trail.controls["step size"])
    assert trail.steps.tolist() == [0, 1, 2, 3]


def test_the_map_of_himmelblaus_function_is_himmelblaus_function():
    env = make(task="himmelblau")
    env.reset(seed=0)
    state = env.state
    plane = plane_of(env._recorder.trail(0), state.grads[0].double().numpy())
    np.testing.assert_array_equal(plane.axes, np.eye(2))
    window = Window(x=1.0, y=-2.0, side=8.0)
    found = relative_gaps(env.core, state, 0, plane, window, resolution=5)
    x0, y0 = state.point[0].double().numpy()

    def f(x, y):
        return (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2

    expected = [[f(x, y) / f(x0, y0) for x in (-3, -1, 1, 3, 5)] for y in (-6, -4, -2, 0, 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("task", list_tasks())
def test_every_map_passes_through_the_current_point(task):
    settings = Settings(task=task, num_instances=2, learning_rate=(-3, -3), dtype="float64")
    core = OptimizationCore(settings, get_actuator("coord_update"))
    state = core.initial(episode_keys(np.arange(2, dtype=np.uint64), np.zeros(2, np.int64)))
    recorder = Recorder(core, 2)
    recorder.start(state, np.ones(2, bool))
    for _ in range(3):
        before, action = state, torch.zeros(2, core.task.dim, 3)
        state = core.transition(before, action)
        recorder.follow(before, state, restarted=np.zeros(2, bool))
    plane = plane_of(recorder.trail(1), state.grads[1].numpy())
    np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-12)
    x, y = plane.project(state.point[1:].numpy())[0]
    window = Window(x=float(x), y=float(y), side=0.1 * core.task.radius)
    found = relative_gaps(core, state, 1, plane, window, resolution=3)
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found[1, 1], state.gap[1], rtol=1e-6, atol=1e-9)


def test_the_plane_of_a_flat_trajectory_holds_all_of_it():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(7, 2)))[0].T
    for count in (3, 20):
        points = rng.normal(size=7) + rng.normal(size=(count, 2)) * (3, 0.5) @ basis
        plane = plane_of(trail_of(points), np.zeros(7))
        np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(plane.lift(plane.project(points)), points, atol=1e-12)
        np.testing.assert_array_equal(plane.origin, points[-1])
        spread = plane.project(points).var(0)
        assert spread[0] > spread[1]
        share = 100 * spread[0] / spread.sum()
        assert plane.labels[0] == f"principal direction 1, {share:.3g} % of the variance"
        # The start lies behind, never ahead.
        assert (plane.project(points[:1]) <= 1e-12).all()


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([[1, 2, 3, 4]], ("along the gradient", "parameter 0")),
        ([[1, 2, 3, 4], [1, 2, 5, 4]], ("principal direction 1", "along the gradient")),
        ([[1, 2, 3, 4], [1, 4, 3, 4]], ("principal direction 1", "parameter 0")),
        (
            np.outer(np.arange(9) ** 0.5, [0.1, 0.7, 0.3, 0.9]),
            ("principal direction 1", "along the gradient"),
        ),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], ("along the gradient", "parameter 0")),
        ([[np.nan] * 4], ("along the gradient", "parameter 0")),
        ([[1, 2, 3, 4], [np.inf, 0, 0, 0]], ("along the gradient", "parameter 0")),
        ([[1.0]], ("along the gradient", "nothing varies")),
    ],
)
def test_a_trajectory_that_spans_no_plane_is_completed(points, labels):
    gradient = np.array([0.0, 2.0, 0.0, 0.0]) if len(points[0]) == 4 else np.array([2.0])
    plane = plane_of(trail_of(points), gradient)
    assert tuple(label.split(",")[0] for label in plane.labels) == labels
    assert np.isfinite(plane.origin).all()
    known = np.diag([1.0, 0.0 if labels[1] == "nothing varies" else 1.0])
    np.testing.assert_allclose(plane.axes @ plane.axes.T, known, atol=1e-12)


def test_points_far_above_the_start_do_not_turn_the_plane():
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 1, 0], [0, 0, 1e6]], float)
    plane = plane_of(trail_of(points, gap=[1, 0.5, 9, 11]), np.ones(3))
    assert np.abs(plane.axes[:, 2]).max() < 1e-12
    np.testing.assert_array_equal(plane.origin, points[2])


def test_a_window_holds_its_points_with_a_margin_and_moves_in_notches():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(200, 2)), 0)
    windows = [window_of(walk[:count], 1.0) for count in range(1, 201)]
    assert windows[0].side == 2.0
    for count, window in enumerate(windows, start=1):
        left, right, bottom, top = window.extent
        xy = walk[:count]
        inside = np.array([left, bottom]) + 0.03 * window.side, np.array([right, top])
        assert (xy >= inside[0]).all()
        assert (xy <= inside[1] - 0.03 * window.side).all()
        assert (2 * np.log2(window.side)).is_integer()
    sides = [window.side for window in windows[1:]]
    assert sides == sorted(sides)
    assert len(set(windows)) < 40
    # What stands still is looked at from a distance.
    assert window_of(np.full((5, 2), 0.3), 1.0).side >= 1e-2
    assert window_of(np.zeros((0, 2)), 2.0) == Window(x=0.0, y=0.0, side=4.0)


def test_a_projection_is_linear_and_a_window_is_sampled_from_edge_to_edge():
    plane = Plane(origin=np.ones(3), axes=np.eye(2, 3), labels=("a", "b"))
    np.testing.assert_array_equal(plane.project(np.array([[2.0, 4.0, 9.0]])), [[1, 3]])
    np.testing.assert_array_equal(plane.lift(np.array([[1.0, 3.0]])), [[2, 4, 1]])
    x, y = Window(x=1, y=2, side=4).ticks(3)
    assert (x.tolist(), y.tolist()) == ([-1, 1, 3], [0, 2, 4])


def test_episodes_of_lanes_are_kept_apart():
    env = make_vec(max_episode_steps=3)
    env.reset(seed=0)
    stay = np.array([[0, 0, -1]] * 3, np.float32)
    env.step(stay)
    first = env._recorder.trail(0)
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert [len(env._recorder.trail(i).steps) for i in range(3)] == [2, 1, 2]
    np.testing.assert_array_equal(env._recorder.trail(0).points, first.points)
    env.step(stay)
    steps = [env._recorder.trail(i).steps.tolist() for i in range(3)]
    assert steps == [[0, 1, 2], [0, 1], [0, 1, 2]]
    env.step(stay)
    env.step(stay)  # next-step mode: lanes 0 and 2 begin again here
    lengths = [len(env._recorder.trail(i).steps) for i in range(3)]
    assert lengths == [1, 4, 1]
    for _ in range(20):
        env.step(stay)
    assert len(env._recorder._records) <= 5


def test_a_state_from_elsewhere_has_no_past():
    env, other = make_vec(num_envs=2), make_vec(num_envs=2)
    stay = np.array([[0, 0, -1]] * 2, np.float32)
    for each, seed in ((env, 0), (other, 9)):
        each.reset(seed=seed)
        each.step(stay)
    env.set_state(other.get_state())
    env.render()
    assert env._recorder.trail(0).steps.tolist() == [1]
    env.set_state(other.get_state())
    env.step(stay)
    trail = env._recorder.trail(0)
    assert trail.steps.tolist() == [1, 2]
    np.testing.assert_array_equal(trail.points[0], other.state.point[0].numpy())


def test_a_flat_map_is_evaluated_again_only_for_a_new_window_or_instance(monkeypatch):
    env = make(task="monkey_saddle", learning_rate=(-9, -9))
    env.reset(seed=0)
    seen = []

    def counted(*args, **kwargs):
        seen.append(args)
        return relative_gaps(*args, **kwargs)

    monkeypatch.setattr("envs.rendering.relative_gaps", counted)
    monkeypatch.setattr(
        "envs.rendering.window_of",
        lambda xy, radius: Window(x=0.0, y=0.0, side=2.0 if len(xy) > 2 else 1.0),
    )
    env.render()
    env.step(np.array([0, 0, -1], np.float32))
    env.render()
    assert len(seen) == 1
    env.step(np.array([0, 0, -1], np.float32))
    env.render()
    assert len(seen) == 2
    env.reset(seed=1)
    for _ in range(2):
        env.step(np.array([0, 0, -1], np.float32))
    env.render()
    assert len(seen) == 3


def _poisoned(env, value):
    """A step to a point that is not finite or far away, whatever the actuator would do."""
    before = env.state
    point = torch.full_like(before.point, value)
    after = type(before)(**{
        **vars(before),
        "point": point,
        "loss": torch.full_like(before.loss, value),
        "grads": point,
        "steps": before.steps + 1,
    })
    env._recorder.follow(before, after, restarted=np.zeros(1, bool))
    return env._recorder.frame(after, 0)


@pytest.mark.parametrize(
    ("task", "value"),
    [("monkey_saddle", np.nan), ("monkey_saddle", 1e30), ("octopus", np.inf), ("octopus", 1e30)],
)
def test_diverged_lanes_are_drawn(task, value):
    env = make(task=task)
    env.reset(seed=0)
    env.step(np.array([0, 0, -1], np.float32))
    healthy = env.render()
    frame = _poisoned(env, value)
    assert frame.shape == healthy.shape
    # The map is still the surface around what was finite, in greys, and not blank.
    middle = frame[150:400, 100:400].astype(int)
    is_grey = (np.ptp(middle, axis=-1) == 0) & (middle.max(-1) < 250) & (middle.min(-1) >= 0x8A)
    assert is_grey.mean() > 0.5
    assert (frame != healthy).any()


def test_maps_are_coarser_for_networks_and_left_out_for_large_ones(monkeypatch):
    resolutions = {}

    def fake(core, *args, resolution, **kwargs):
        resolutions[core.task.dim] = resolution
        return np.ones((resolution, resolution))

    monkeypatch.setattr("envs.rendering.relative_gaps", fake)
    for task in ("monkey_saddle", "digits_mlp", "deep_sigmoid_mlp"):
        env = make("LearningRate", task=task)
        env.reset(seed=0)
        env.step(0)
        assert env.render().std() > 0
    assert resolutions == {2: 48, get_task("digits_mlp").dim: 9}


def test_a_frame_without_a_step_size_is_coloured_by_length():
    trail = trail_of([[0, 0], [3, 4], [3, 5]])
    assert trail.colours.tolist() == [0, 5, 1]
    assert trail.is_shown.tolist() == [True, True, True]
