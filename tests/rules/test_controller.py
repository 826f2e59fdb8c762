"""The controller before training: a trust region that needs no scale and no tuning."""

import copy

import pytest
import torch
from torch.testing import assert_close

from learned_opt.actuators import get_actuator
from learned_opt.errors import LearnedOptError
from learned_opt.optim import LearnedOptimizer
from learned_opt.rules import get_rule
from learned_opt.rules.policy import Recurrent
from learned_opt.rules.weights import load_rule, save_rule
from learned_opt.tasks import Mixture, Rotated, get_task
from learned_opt.trees import flatten, leaves
from learned_opt.unroll import unroll

NOISE, STEADINESS = map(get_actuator("trust_region").actions.names.index, ("noise", "steadiness"))


def run(task, rule, num_steps, n=8, dtype=torch.float64, seed=0):
    problems = task.sample(n, seed=seed, dtype=dtype)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(1)
        return unroll(task, rule.to(dtype), problems, num_steps=num_steps, rng=rng), problems


def quiet(**settings):
    """A controller that leaves all controls alone and draws no noise: runs can be compared."""
    rule = get_rule("controller", **settings)
    with torch.no_grad():
        for net in (rule, rule.amid_noise):
            net.layers[-1].weight.zero_()
            net.layers[-1].bias.zero_()
            net.layers[-1].bias[NOISE] = -30.0
    return rule


def solved_after(losses, facts, target=1e-3):
    gaps = (losses - facts.minimum[:, None]) / (facts.reference - facts.minimum)[:, None]
    return torch.where((gaps <= target).any(1), (gaps <= target).int().argmax(1), 10**6)


def test_untrained_it_leaves_rotated_saddles_within_sixty_steps():
    task = Rotated(get_task("strict_saddle", dim=10))
    outcome, problems = run(task, quiet(), 60)
    assert (solved_after(outcome.losses, problems.facts) <= 60).all()


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 3.0)])
def test_the_loss_has_no_unit(scale, shift):
    """Powers of two times a power of ten would hide rounding; these do not."""
    params = {"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()}
    curvature = torch.linspace(-1, 3, 6).double()
    points = []
    for factor in (1.0, scale):
        rule, x = quiet().double(), params
        state = rule.init(x)
        for t in range(25):
            grads = {"x": factor * curvature * x["x"]}
            loss = factor * (curvature * x["x"].square()).sum(1) / 2 + shift
            rng = torch.Generator().manual_seed(t)
            updates, state = rule(grads, state, x, loss=loss, rng=rng)
            x = {"x": x["x"] + updates["x"]}
        points.append(x["x"].detach())
    assert_close(points[0], points[1], rtol=1e-5, atol=1e-8)


def test_parameters_have_no_unit():
    curvature = torch.linspace(-1, 3, 6).double()
    points = []
    for c in (1.0, 1e-3, 1e3):
        rule = quiet().double()
        x = {"x": c * torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()}
        state = rule.init(x)
        for t in range(25):
            # f(x / c): gradients shrink with 1 / c.
            grads = {"x": curvature * x["x"] / c**2}
            updates, state = rule(grads, state, x, rng=torch.Generator().manual_seed(t))
            x = {"x": x["x"] + updates["x"]}
        points.append(x["x"].detach() / c)
    assert_close(points[1], points[0], rtol=1e-5, atol=1e-8)
    assert_close(points[2], points[0], rtol=1e-5, atol=1e-8)


def test_a_quadratic_in_as_many_dimensions_as_it_remembers_is_solved_like_newton():
    curvature = torch.tensor([1.0, 10.0, 100.0]).double()
    rule = quiet(memory=3).double()
    x = {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()}
    state = rule.init(x)
    for t in range(30):
        grads = {"x": curvature * x["x"]}
        updates, state = rule(grads, state, x, rng=torch.Generator().manual_seed(t))
        x = {"x": x["x"] + updates["x"]}
    assert (x["x"].norm(dim=1) < 1e-6).all()


def test_gradients_of_theta_flow_and_what_is_remembered_has_no_graph():
    rule = get_rule("controller", lstm_units=4, seed=1)
    with torch.no_grad():
        rule.layers[-1].weight.mul_(30)
    task = get_task("strict_saddle", dim=4)
    problems = task.sample(4, seed=0, dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    outcome = unroll(task, rule, problems, num_steps=8, rng=rng, differentiable=True)
    outcome.losses.sum().backward()
    for name, parameter in rule.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    memory = outcome.carry.state["all"]["actuator"]["memory"]
    assert not any(leaf.requires_grad for leaf in leaves(memory).values())


def test_a_given_loss_says_how_far_to_trust():
    """The loss fell less than the gradients say: a step was too long, whatever they promise."""
    x = {"x": torch.ones(1, 2).double()}
    radii = {}
    for name, losses in (("kept", (1.0, 0.5)), ("broken", (1.0, 0.999)), ("hidden", (None, None))):
        rule = quiet().double()
        state = rule.init(x)
        for loss in losses:
            rng = torch.Generator().manual_seed(0)
            grads = {"x": torch.ones(1, 2).double()}
            given = None if loss is None else torch.tensor([loss]).double()
            _, state = rule(grads, state, x, loss=given, rng=rng)
        radii[name] = state["all"]["actuator"]["radius"].item()
    assert radii["broken"] < 0.5 * radii["kept"]
    assert radii["hidden"] == pytest.approx(radii["kept"])


def test_losses_may_be_hidden_problem_by_problem():
    task = get_task("welsch")
    problems = task.sample(2, seed=0, dtype=torch.float64)
    rule = quiet().double()

    def trajectory(hide):
        x, state, points = problems.params, rule.init(problems.params), []
        for t in range(10):
            x = {name: p.detach().requires_grad_() for name, p in x.items()}
            loss = task.loss(x, problems)
            grads = dict(zip(x, torch.autograd.grad(loss.sum(), list(x.values())), strict=True))
            shown = None if hide == "all" else loss.detach().where(torch.tensor(hide), torch.nan)
            rng = torch.Generator().manual_seed(t)
            updates, state = rule(grads, state, x, loss=shown, rng=rng)
            x = {name: (p + updates[name]).detach() for name, p in x.items()}
            points.append(x["x"])
        return torch.stack(points)

    shown, mixed, hidden = (trajectory(h) for h in ([True, True], [True, False], "all"))
    assert_close(mixed[:, 0], shown[:, 0])
    assert_close(mixed[:, 1], hidden[:, 1])
    assert not torch.allclose(shown[:, 1], hidden[:, 1])


def test_what_is_not_finite_moves_nothing():
    rule = get_rule("controller").double()
    x = {"x": torch.ones(2, 3).double()}
    state = rule.init(x)
    for t in range(6):
        grads = {"x": torch.tensor([[torch.nan] * 3, [1.0, 2.0, 3.0]]).double()}
        updates, state = rule(grads, state, x, rng=torch.Generator().manual_seed(t))
        assert torch.isfinite(updates["x"]).all()
        x = {"x": x["x"] + updates["x"]}
    assert_close(x["x"][0], torch.ones(3).double())


def test_a_gradient_of_zero_does_not_end_all_movement():
    rule = quiet().double()
    x = {"x": torch.ones(1, 3).double()}
    state = rule.init(x)
    for gradient in (1.0, 0.0, 0.0, 1.0):
        grads = {"x": torch.full((1, 3), gradient).double()}
        rng = torch.Generator().manual_seed(0)
        updates, state = rule(grads, state, x, loss=torch.ones(1).double(), rng=rng)
    assert updates["x"].norm() > 1e-3


def descend(rule, x, *, targets, zeros=0, offset=0.0):
    """Quadratic losses around one target after the other, first gradients that are zero."""
    curvature = torch.logspace(-1, 1, x.shape[1]).to(x)
    state, rng, losses = rule.init({"x": x}), torch.Generator().manual_seed(0), []
    for k, target in enumerate(targets):
        away = x - target
        loss = 0.5 * (curvature * away.square()).sum(1)
        losses.append(loss.item())
        slope = curvature * away * (k >= zeros)
        updates, state = rule({"x": slope}, state, {"x": x}, loss=loss + offset, rng=rng)
        x = x + updates["x"].detach()
    return losses


def test_gradients_of_zero_amid_noise_leave_a_radius():
    rule = get_rule("controller").double()  # Which draws a little noise.
    start = torch.ones(1, 10).double()
    losses = descend(rule, start, targets=[torch.zeros(10)] * 120, zeros=5)
    assert losses[-1] < 1e-10 * losses[0]


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_minimum_that_moves_is_found_again(dtype, offset):
    """By then the loss has long ceased to change, and that says nothing about the radius."""
    rule, start = get_rule("controller").to(dtype), torch.full((1, 10), 3.0, dtype=dtype)
    here, there = torch.ones(10, dtype=dtype), 1.5 * torch.ones(10, dtype=dtype)
    losses = descend(rule, start, targets=[here] * 300 + [there] * 120, offset=offset)
    assert losses[299] < 1e-6 * losses[0] and losses[-1] < 1e-4 * losses[300]


def by_the_clock():
    """A controller that leaves all controls alone but for the radius, which goes by the clock."""
    rule = quiet()
    with torch.no_grad():
        for net in (rule, rule.amid_noise):
            net.layers[-1].bias[STEADINESS] = 1.0
    return rule.double()


def test_a_start_at_the_origin_is_left():
    target = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    losses = descend(by_the_clock(), torch.zeros(1, 400).double(), targets=[0.1 * target] * 40)
    assert losses[-1] < 0.1 * losses[0]


def test_a_steady_radius_goes_by_the_clock_whatever_the_losses_are_below_the_first():
    # One large parameter does not make the steps of the others longer, as it would in the length.
    x = {"x": torch.tensor([[3.0, -3.0, 3.0, -3.0], [9.0, -1.0, 1.0, 1.0]]).double()}
    rule, rng = by_the_clock(), torch.Generator().manual_seed(0)
    state, level, highest = rule.init(x), 0.0, 0.0
    for count in range(1, 30):
        grads = {"x": torch.randn(2, 4, generator=rng).double()}
        # A mean with decay 0.9, of all so far, over the highest that it ever was.
        level = 0.9 * level + 0.1 * grads["x"].norm(dim=1)
        highest = (level / (1 - 0.9**count)).clamp_min(highest)
        # The first is so high that none after it is a spike.
        loss = torch.randn(2, generator=rng).double() + 9.0 * (count == 1)
        updates, state = rule(grads, state, x, loss=loss, rng=rng)
        radius = state["all"]["actuator"]["radius"]
        fallen = level / (1 - 0.9**count) / highest
        assert_close(radius, 0.17 * 3.0 * 2 * (fallen / count) ** 0.25)
        x = {"x": x["x"] + updates["x"].detach()}


def test_sizes_are_checked():
    features = get_actuator("trust_region").features
    assert len({feature.name for feature in features}) == len(features)
    with pytest.raises(LearnedOptError, match="memory must be positive, got 0"):
        get_rule("controller", memory=0)
    with pytest.raises(LearnedOptError, match="lstm_units must not be negative, got -1"):
        get_rule("controller", lstm_units=-1)
    with pytest.raises(LearnedOptError, match="prior must be finite, got inf"):
        get_rule("controller", prior=float("inf"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_span_that_is_all_of_space_leaves_no_direction_outside(dtype):
    """What is left of a gradient there is rounding, and must not be probed."""
    actuator = get_actuator("trust_region")
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    state = actuator.init(x, learning_rate=x[:, 0])
    curvature = torch.tensor([1.0, 30.0]).to(dtype)
    unknown = [feature.name for feature in actuator.features].index("unknown")
    num_whole, still = 0, torch.zeros(16, 2, dtype=dtype)
    for _ in range(8):
        grads = curvature * x
        loss = (curvature * x.square()).sum(1) / 2
        seen, state = actuator.observe(grads, loss, x, state)
        rest, is_whole = state["model"]["norm"], state["model"]["is_known"].sum(1) == 2
        num_whole += int(is_whole.sum())
        # The squares of smaller gradients are zero in float32.
        is_partial = ~is_whole & (grads.norm(dim=1) > 1e-18)
        assert (rest[is_whole] == 0).all() and (rest[is_partial] != 0).all()
        assert (seen[is_whole, unknown] == actuator.features[unknown].low).all()
        step = actuator.act(torch.zeros(16, 12), grads, x, state, lambda _: still)
        x, state = x + step.updates, step.state
    assert num_whole > 16


def with_a_judge_that_believes(odds, **settings):
    """Two nets that differ, of few parameters, and what the judge holds whatever it sees."""
    rule = get_rule("controller", lstm_units=5, seed=3, **settings).double()
    with torch.no_grad():
        for net in (rule, rule.amid_noise):
            net.layers[-1].weight.mul_(100)
        rule.judge.layers[-1].weight.zero_()
        rule.judge.layers[-1].bias.fill_(odds)
    return rule


def observations_of(*sizes):
    """``[sizes, F]`` drawn observations, of problems with so many parameters."""
    rng, features = torch.Generator().manual_seed(0), get_actuator("trust_region").features
    seen = torch.randn(len(sizes), len(features), generator=rng, dtype=torch.float64)
    seen[:, -1] = torch.tensor(sizes).log() / 10
    return seen


@pytest.mark.parametrize(("bias", "share"), [(-60.0, 0.0), (0.0, 0.5), (60.0, 1.0)])
@pytest.mark.parametrize("noise_remembers", [True, False])
def test_the_judge_weighs_the_decisions_of_two_nets(bias, share, noise_remembers):
    rule = with_a_judge_that_believes(bias, noise_remembers=noise_remembers)
    seen = torch.stack([observations_of(2.0, 50.0, 100.0) for _ in range(4)])
    memory = rule.init_memory((3,))
    calm, noisy = Recurrent.init_memory(rule, (3,)), rule.amid_noise.init_memory((3,))
    for observation in seen:
        decisions, memory = rule.outputs(observation, memory)
        first, calm = Recurrent.outputs(rule, observation, calm)
        second, noisy = rule.amid_noise.outputs(observation, noisy)
        assert not torch.allclose(first, second)
        assert_close(decisions, (1 - share) * first + share * second)
        assert rule.belief(memory).tolist() == [bias] * 3


def test_what_is_large_is_taken_to_be_noisy_until_the_judge_knows_better():
    """The odds are four units higher from a thousand parameters on, half that at their mean."""
    seen = observations_of(30.0, 10**2.5, 1e3, 2e3)
    rule = with_a_judge_that_believes(-1.0)
    decisions, memory = rule.outputs(seen, rule.init_memory((4,)))
    first, _ = Recurrent.outputs(rule, seen, Recurrent.init_memory(rule, (4,)))
    second, _ = rule.amid_noise.outputs(seen, rule.amid_noise.init_memory((4,)))
    shares = ((decisions - first) / (second - first)).mean(1)
    want = torch.tensor([-1.0, 1.0, 3.0, 3.0], dtype=torch.float64).sigmoid()
    assert_close(shares, want)
    assert_close(rule.belief(memory), torch.full((4,), -1.0, dtype=torch.float64))


@pytest.mark.parametrize("net", ["calm", "noisy"])
def test_decisions_are_cut_off_before_they_are_averaged(net):
    """However far off a net that is not meant, it shifts a decision by no more than its share."""
    seen, rule = observations_of(5.0, 5.0), with_a_judge_that_believes(0.0)
    wrong = rule.amid_noise if net == "noisy" else rule
    with torch.no_grad():
        wrong.layers[-1].weight.zero_()
        wrong.layers[-1].bias.fill_(50.0)
        decisions, _ = rule.outputs(seen, rule.init_memory((2,)))
        told, _ = rule.outputs_told(seen, rule.init_memory((2,)), torch.tensor([True, False]))
    assert decisions.amax() <= 1 and decisions.amin() > 0
    if net == "noisy":
        # What is taught is left as it is: its slope pulls it back.
        assert (told[0] == 50).all()
        assert_close(told[1], decisions[1])


def test_the_clocks_unit_is_the_same_alone_and_padded_in_a_mixture():
    """What pads a problem has no magnitude, and neither has what starts at zero."""
    actuator = get_actuator("trust_region")
    x = torch.tensor([[3.0, -1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0] * 4])
    unit = actuator.init(x, learning_rate=x[:, 0])["unit"]
    assert_close(unit, torch.tensor([2 * 2**0.5, 4.0, 0.0]))
    pair = [get_task("strict_saddle", dim=2), get_task("strict_saddle", dim=30)]
    both = Mixture.of(pair, [1.0, 1.0]).sample(8, seed=0, dtype=torch.float64)
    points = both.params["x"]
    units = actuator.init(points, learning_rate=points[:, 0])["unit"]
    for point, unit in zip(points, units, strict=True):
        alone = point[None, : 30 if point[2:].any() else 2]
        assert_close(unit, actuator.init(alone, learning_rate=alone[:, 0])["unit"][0])


@pytest.mark.parametrize("scope", ["problem", "tensor"])
@pytest.mark.parametrize(
    ("depth", "factors"), [(0, 3), (1, 2), (2, 2), (3, 3), (6, 6), (7, 7), (50, 7)]
)
def test_the_clock_goes_by_the_number_of_matrices(depth, factors, scope):
    """Three times a length over their number, from two to seven; vectors do not tell theirs."""
    rule = get_rule("controller", lstm_units=2, scope=scope)
    params = {f"w{k}": torch.full((1, 2, 3), 0.5) for k in range(depth)}
    params["b"] = torch.full((1, 4), 0.5)
    started = [
        rule.init(params),
        # As where a guard hands back.
        rule.restart(params, torch.tensor([9])),
    ]
    sizes = [flatten(params).shape[1]] if scope == "problem" else [*[6] * depth, 4]
    for state in started:
        units = [own["actuator"]["unit"].item() for own in state.values()]
        assert units == pytest.approx([0.5 * n**0.5 * 3 / factors for n in sizes])


def test_told_of_noise_each_net_learns_its_own_trade():
    seen, is_noisy = observations_of(5.0, 5.0, 2e3, 2e3), torch.tensor([True, False] * 2)
    rule = with_a_judge_that_believes(0.0)
    with torch.no_grad():
        _, memory = rule.outputs(seen.flip(1), rule.init_memory((4,)))
    told, _ = rule.outputs_told(seen, memory, is_noisy)
    averaged, _ = rule.outputs(seen, memory)
    alone, _ = rule.amid_noise.outputs(seen, memory["amid_noise"])
    assert_close(told[is_noisy], alone[is_noisy])
    assert_close(told[~is_noisy], averaged[~is_noisy])
    for lanes, taught in ((is_noisy, "amid_noise"), (~is_noisy, "calm")):
        rule.zero_grad()
        told[lanes].square().sum().backward(retain_graph=True)
        for name, parameter in rule.named_parameters():
            net = name.split(".")[0] if name.startswith(("amid_noise", "judge")) else "calm"
            is_moved = parameter.grad is not None and bool(parameter.grad.any())
            assert is_moved == (net == taught), name


def test_the_judge_sees_all_but_the_size_and_remembers():
    rule = get_rule("controller", lstm_units=5, seed=3).double()
    names = [feature.name for feature in rule.actuator.features]
    seen = torch.randn(2, len(names), dtype=torch.float64)

    def belief(*observations):
        memory = rule.init_memory(())
        for observation in observations:
            _, memory = rule.outputs(observation, memory)
        return rule.belief(memory).item()

    for place, name in enumerate(names):
        other = seen[0].clone()
        other[place] += 1
        assert (belief(other) == belief(seen[0])) == (name == "size"), name
        assert (belief(other, seen[1]) == belief(*seen)) == (name == "size"), name


def test_a_net_for_noise_without_memory_decides_by_what_it_sees_alone():
    """So at once, whatever was seen before; the net for none remembers still."""
    rule = get_rule("controller", noise_remembers=False, lstm_units=8, seed=0)
    rng = torch.Generator().manual_seed(0)
    seen = torch.rand(3, len(rule.actuator.features), generator=rng)
    memory = rule.init_memory((3,))
    assert memory["amid_noise"] == {} and set(memory) >= {"hidden", "cell", "judge"}
    told = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        first, memory = rule.outputs_told(seen, memory, told)
        calm, memory = rule.outputs_told(seen, memory, ~told)
        second, memory = rule.outputs_told(seen, memory, told)
        later, _ = rule.outputs_told(seen, memory, ~told)
    assert torch.equal(first, second) and not torch.allclose(calm, later)


def test_a_controller_without_memory_amid_noise_is_saved_and_resumed(tmp_path):
    path = save_rule(
        get_rule("controller", noise_remembers=False, seed=3),
        tmp_path / "a.safetensors",
        metadata={},
    )
    rule = load_rule(str(path))
    assert not rule.noise_remembers and rule.amid_noise.lstm is None
    points = []
    for stop in (6, 3):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 7))
        optimizer = LearnedOptimizer([p], rule)
        for t in range(6):
            if t == stop:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = LearnedOptimizer([p], load_rule(str(path)))
                optimizer.load_state_dict(state)
            p.grad = p.detach().clone() + 0.1 * t
            optimizer.step()
        points.append(p.detach().clone())
    assert torch.equal(*points)
