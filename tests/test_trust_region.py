"""The trust region against the straightforward way to compute it, which writes out all vectors."""

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from learned_opt import subspace
from learned_opt.actuators import get_actuator
from learned_opt.actuators.base import Step, clip_to
from learned_opt.features import dot, safe_ratio
from learned_opt.subspace import trust_region_step
from learned_opt.tasks import Rotated, get_task
from learned_opt.trees import Tree, flatten, unflatten
from learned_opt.unroll import loss_and_grads
from learned_opt.workspace import PIECE, Workspace

_FAST, _SLOW = 0.9, 0.99
_SHRINK, _GROW = math.log(0.35), math.log(2.5)
_BACK = 0.75
_PARALLEL = 1e-2


class Model(NamedTuple):
    basis: Tensor
    curvatures: Tensor
    is_known: Tensor


def remember(memory: Tree, step: Tensor, change: Tensor) -> Tree:
    """Unit steps and changes, copied."""
    m: dict[str, Tensor] = memory
    step, change = step.detach(), change.detach()
    length = step.norm(dim=1, keepdim=True)
    scale = torch.where(length > 0, 1 / length, torch.zeros_like(length))
    return {
        "steps": torch.cat((m["steps"][:, 1:], (step * scale)[:, None]), dim=1),
        "changes": torch.cat((m["changes"][:, 1:], (change * scale)[:, None]), dim=1),
    }


def curvature_model(memory: Tree) -> Model:
    """Ritz values and the Ritz vectors themselves."""
    m: dict[str, Tensor] = memory
    steps, changes = m["steps"], m["changes"]
    is_there = dot(steps, steps) > 0.5
    both = is_there[:, :, None] & is_there[:, None, :]
    cosines = steps @ steps.mT
    mixed = steps @ changes.mT
    mixed = torch.where(both, (mixed + mixed.mT) / 2, torch.zeros_like(mixed))
    # Steps so large that their change overflowed say nothing, here and in eigenvalue routines.
    is_sound = torch.isfinite(mixed).flatten(1).all(1)
    mixed = torch.where(is_sound[:, None, None], mixed, torch.zeros_like(mixed))
    cosines = torch.where(both & is_sound[:, None, None], cosines, torch.zeros_like(cosines))
    spread, frame = torch.linalg.eigh(cosines)
    is_kept = spread > _PARALLEL * spread[:, -1:].clamp_min(_PARALLEL)
    scale = torch.where(is_kept, spread, torch.ones_like(spread)).rsqrt() * is_kept
    whiten = frame * scale[:, None]
    projected = whiten.mT @ mixed @ whiten
    values, vectors = torch.linalg.eigh(projected)
    basis = (whiten @ vectors).mT @ steps
    # Left-out directions are eigenvectors with the eigenvalue 0 and map to zero rows.
    is_known = dot(basis, basis) > 0.5
    return Model(
        basis=basis * is_known[..., None],
        curvatures=values * is_known,
        is_known=is_known,
    )


class Straightforward:
    """What `TrustRegion` stands for, every vector written out."""

    def __init__(self, memory):
        self.memory = memory
        self.features = get_actuator("trust_region").features

    def init(self, params, *, learning_rate):
        del learning_rate
        vector, scalar = torch.zeros_like(params), params.new_zeros(len(params))
        empty = params.new_zeros(params.shape[0], self.memory, params.shape[1])
        return {
            "memory": {"steps": empty, "changes": empty},
            "grads": vector,
            "step": vector,
            "square": vector,
            "momentum": vector,
            "radius": scalar,
            "first_radius": scalar,
            "unit": scalar,
            "predicted": scalar,
            "loss": scalar,
            "best_loss": scalar,
            "losses": params.new_zeros(len(params), 0),
            "norms": params.new_zeros(len(params), 0),
            "usual_changes": params.new_zeros(len(params), 0),
            "is_spike": scalar,
            "curvature": scalar,
            "first_norm": scalar,
            "least_norm": scalar,
            "surprise": scalar,
            "fall": scalar,
            "swing": scalar,
            "turned": scalar,
            "is_inside": scalar,
            "inside_lately": scalar,
            "steps": scalar,
            "forgets": scalar + 0.1,
            "remembers": scalar,
        }

    def observe(self, grads, loss, params, state):
        # What is seen has no graph, as in Andrychowicz et al. 2016; what is decided has one.
        g, x, loss = grads.detach(), params.detach(), loss.detach().to(grads)
        s: dict[str, Tensor] = state
        is_first = s["steps"] == 0
        last, old_grads = s["step"], s["grads"]
        change = torch.where(is_first[:, None], torch.zeros_like(g), g - old_grads)
        memory = remember(state["memory"], last, change)
        model = curvature_model(memory)

        count = s["steps"] + 1
        adaptive, root, momentum, moments = _adam_direction(g, s, count)
        norm, old_norm, stride, size = (v.norm(dim=1) for v in (g, old_grads, last, x))
        slopes = (model.basis @ g[..., None])[..., 0]
        rest = _outside(g, slopes, model.basis)
        largest = model.curvatures.abs().amax(1)
        largest = torch.where(largest > 0, largest, s["curvature"])
        fallen = s["loss"] - loss
        is_known = ~is_first & ~fallen.isnan()
        is_told = is_known & (s["predicted"] > 16 * torch.finfo(g.dtype).eps * loss.abs())
        decrease = torch.where(is_told, fallen, -0.5 * dot(g + old_grads, last))
        best_loss = torch.where(is_first, loss, torch.fmin(s["best_loss"], loss))
        above = loss - best_loss
        height = safe_ratio(above, above + decrease.abs())
        height = torch.where(is_known, height, torch.zeros_like(height))
        ratio = safe_ratio(decrease, s["predicted"]).clamp(-2, 2)
        surprise = torch.where(
            is_first, torch.zeros_like(norm), torch.lerp(s["surprise"], (ratio - 1).abs(), 0.2)
        )
        fall = torch.lerp(s["fall"], decrease, 1 - _FAST)
        swing = torch.lerp(s["swing"], decrease.abs(), 1 - _FAST)
        first_norm = torch.where(is_first, norm, s["first_norm"])
        least_norm = torch.where(is_first, norm, torch.minimum(norm, s["least_norm"]))
        scale = torch.where(size > 0, 0.1 * size, 0.02 * (g != 0).sum(1).clamp_min(1).sqrt())
        there = (x != 0).sum(1).to(x)
        unit = x.abs().sum(1) / there.clamp_min(1).sqrt()
        unit = torch.where(there > 0, unit, 0.15 * (g != 0).sum(1).clamp_min(1).sqrt())
        # The loss's changes so far, but for those at spikes and those that rounding makes.
        before, usual_changes = s["losses"], s["usual_changes"]
        leap = torch.where(is_known, (loss - s["loss"]).abs(), 0.0)
        none = torch.full_like(loss[:, None], -torch.inf)
        highest = torch.cat((before, none), 1).nan_to_num(nan=-torch.inf).amax(1)
        leap = leap * (leap > 16 * torch.finfo(loss.dtype).eps * highest.abs())
        changes = torch.cat((usual_changes, leap[:, None]), 1)
        usual = torch.zeros_like(loss)
        for lane, every in enumerate(changes):
            told = every[every > 0]
            fade = _FAST ** torch.arange(len(told) - 1, -1, -1).to(told)
            usual[lane] = (told * fade).sum() / fade.sum() if len(told) else 0
        is_spike = (leap > 0) & (loss - highest > 2 * torch.maximum(usual, s["predicted"]))
        is_spike = is_spike & (s["is_spike"] == 0)
        leap = leap * (~is_spike & (s["is_spike"] == 0))
        unit = torch.where(is_first, unit, s["unit"] * 0.5 ** is_spike.to(unit))
        radius, first_radius, is_bad = _nominal_radius(s, ratio, stride, scale, is_first)
        held = torch.where(is_first, radius, s["radius"])
        features = torch.stack(
            [
                safe_ratio(dot(g, old_grads), norm * old_norm),
                safe_ratio(dot(g, last), norm * stride),
                s["turned"],
                _log_ratio(norm, old_norm),
                _log_ratio(norm, first_norm) / 5,
                _log_ratio(norm, least_norm) / 5,
                ratio,
                surprise,
                _log_ratio(radius, size) / 5,
                _log_ratio(held, first_radius) / 5,
                _log_ratio(stride, radius),
                safe_ratio(slopes.norm(dim=1), norm),
                (safe_ratio(rest.norm(dim=1), norm) + torch.finfo(g.dtype).tiny).log() / 5,
                _log_ratio(largest * radius, norm) / 3,
                safe_ratio(model.curvatures.amin(1), largest),
                safe_ratio(slopes[:, 0].abs(), norm),
                s["is_inside"],
                s["inside_lately"],
                safe_ratio(dot(g, adaptive), norm * adaptive.norm(dim=1)),
                _log_ratio(root.norm(dim=1), norm),
                height,
                _log_ratio(momentum.norm(dim=1), norm),
                safe_ratio(fall, swing),
                count.log() / 5,
                (g != 0).sum(1).clamp_min(1).to(g).log() / 10,
            ],
            dim=1,
        )
        new: Tree = {
            **state,
            **moments,
            "memory": memory,
            "grads": g,
            "radius": radius,
            "first_radius": first_radius,
            "unit": unit,
            "loss": loss,
            "best_loss": best_loss,
            "losses": torch.cat((before, loss[:, None]), 1),
            "norms": torch.cat((s["norms"], norm[:, None]), 1),
            "usual_changes": torch.cat((usual_changes, leap[:, None]), 1),
            "is_spike": is_spike.to(loss),
            "curvature": largest,
            "first_norm": first_norm,
            "least_norm": least_norm,
            "surprise": surprise,
            "fall": fall,
            "swing": swing,
            "steps": count,
            # Only for `act`.
            "model": {
                **model._asdict(),
                "slopes": slopes,
                "rest": rest,
                "adaptive": adaptive,
                "is_bad": is_bad,
            },
        }
        return clip_to(features, self.features), new

    def act(self, action, grads, params, state, noise):
        s: dict[str, Tensor] = state
        seen: dict[str, Tensor] = state["model"]
        last, largest = s["step"], s["curvature"]
        a = action.to(grads).unbind(1)
        # Means of the gradient's norms up to each step, every term written out.
        norms = s["norms"]
        means = []
        for count in range(1, norms.shape[1] + 1):
            by = _FAST ** torch.arange(count - 1, -1, -1).to(norms)
            means.append((norms[:, :count] * by).sum(1) / by.sum())
        means = torch.stack(means, 1)
        share = means[:, -1] / means.amax(1) / norms.shape[1]
        timed, steady = 0.17 * s["unit"] * share.sqrt().sqrt(), a[9].clamp_min(0)
        radius = s["radius"] ** (1 - steady) * timed**steady * (2 * a[0]).exp()
        gain = (1.5 * a[4]).exp()
        whole = a[6].clamp_min(0)
        shake = (7 * a[7] - 8).exp() * (a[7] > -1)
        goes_back = seen["is_bad"] * (5 * a[8] + 2).sigmoid()
        goes_back = torch.where(s["is_spike"] > 0, 1.0, goes_back)
        # As steep as what is known, or just so steep that a step outside fills the radius.
        filling = safe_ratio(seen["rest"].norm(dim=1), radius.detach())
        tiny = torch.finfo(filling.dtype).tiny
        steep, filling = (3 * a[1]).exp() * largest, filling.clamp_min(tiny)
        probe = a[2].clamp_min(0)
        elsewhere = ((1 - probe) * steep.clamp_min(tiny).log() + probe * filling.log()).exp()
        move, trusted = _trusted_move(
            Model(seen["basis"], seen["curvatures"], seen["is_known"]),
            g=grads,
            rest=seen["rest"],
            slopes=seen["slopes"],
            adaptive=seen["adaptive"],
            share=(4 * a[3] - 2).sigmoid(),
            largest=largest,
            elsewhere=elsewhere,
            radius=radius,
            gain=gain,
            flatness=0.5 * a[5],
        )
        # Where noise drowns what the steps say about curvature, Adam's step of the radius' length.
        active = (grads != 0).sum(1).clamp_min(1).to(grads)
        agreement = seen["adaptive"].norm(dim=1) / active.sqrt()
        shorter = agreement.clamp_min(1e-4) ** a[10].clamp_min(0)
        plain = -(radius * shorter)[:, None] * _unit(seen["adaptive"])
        move = torch.lerp(move, plain, whole[:, None])
        promise = -dot(grads, plain).detach().clamp_min(0)
        predicted = torch.lerp(trusted.decrease, promise, whole.detach())
        move = move + (shake * radius * grads.shape[1] ** -0.5)[:, None] * noise(grads.shape[1])
        move = torch.lerp(move, -_BACK * last, goes_back[:, None])
        move = torch.where(torch.isfinite(move), move, torch.zeros_like(move))
        known = move.detach()
        turned = safe_ratio(dot(known, last), known.norm(dim=1) * last.norm(dim=1))
        is_inside = trusted.is_inside.to(grads.dtype)
        new: Tree = {
            **{name: leaf for name, leaf in state.items() if name != "model"},
            "step": known,
            "radius": radius,
            "predicted": predicted * (1 - s["is_spike"]),
            "forgets": 0.1 ** (1 + a[11].detach().clamp_min(0)),
            "turned": turned,
            "is_inside": is_inside,
            "inside_lately": torch.lerp(s["inside_lately"], is_inside, 0.2),
        }
        return Step(updates=move, state=new)


def _nominal_radius(
    s: dict[str, Tensor], ratio: Tensor, stride: Tensor, first: Tensor, is_first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The radius by the book, the first one, and whether the last step went uphill."""
    old = s["radius"]
    is_poor = (ratio < 0.25) & (s["predicted"] > 0)
    is_cut = stride > 0.8 * old
    factor = torch.where(is_poor, _SHRINK, torch.where((ratio > 0.7) & is_cut, _GROW, 0.0))
    held = torch.where(is_poor & (stride > 0), torch.minimum(old, stride), old)
    radius = torch.where(is_first, first, held * factor.to(old).exp())
    return (
        radius,
        torch.where(is_first, first, s["first_radius"]),
        (~is_first & (ratio < 0)).to(old),
    )


def _adam_direction(
    g: Tensor, s: dict[str, Tensor], count: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Adam's direction, the root mean square and the mean behind it, and the new moments."""
    forgets = s["forgets"]
    momentum = torch.lerp(s["momentum"], g, forgets[:, None])
    remembers = s["remembers"] + forgets * (1 - s["remembers"])
    square = torch.lerp(s["square"], g.square(), 1 - _SLOW)
    root = (square / (1 - _SLOW**count)[:, None]).sqrt()
    active = (g != 0).sum(1, keepdim=True).clamp_min(1).to(g)
    floor = 1e-2 * root.norm(dim=1, keepdim=True) / active.sqrt()
    mean = momentum / remembers[:, None]
    direction = safe_ratio(mean, root + floor)
    return (
        direction,
        root,
        mean,
        {
            "momentum": momentum,
            "square": square,
            "remembers": remembers,
        },
    )


def _trusted_move(
    model: Model,
    *,
    g: Tensor,
    rest: Tensor,
    slopes: Tensor,
    adaptive: Tensor,
    share: Tensor,
    largest: Tensor,
    elsewhere: Tensor,
    radius: Tensor,
    gain: Tensor,
    flatness: Tensor,
) -> tuple[Tensor, object]:
    """The step within the radius, ``[N, P]``; decisions keep their graph, the model has none."""
    # Outside of the span: gradient and Adam's direction, less what lies in the span.
    spread = _outside(adaptive, (model.basis @ adaptive[..., None])[..., 0], model.basis)
    outside = _unit(_unit(rest) * (1 - share)[:, None] + _unit(spread) * share[:, None])
    slopes = torch.cat((slopes, dot(outside, g)[:, None]), dim=1)
    # Directions much flatter than the steepest one count as flatter still, or as less flat.
    relative = safe_ratio(model.curvatures.abs(), largest[:, None]).clamp_min(1e-6)
    bent = model.curvatures * relative ** flatness.detach()[:, None]
    curvatures = torch.where(model.is_known, bent, elsewhere.detach()[:, None])
    curvatures = torch.cat((curvatures, elsewhere[:, None]), dim=1)
    # Nothing is known of curvature yet: the radius alone decides.
    is_flat = largest == 0
    curvatures = curvatures.masked_fill(is_flat[:, None], 0)
    trusted = trust_region_step(slopes, curvatures, radius)
    length = torch.where(trusted.is_inside, gain, radius / radius.detach())
    # An unbounded step outside of the span is inverse to the curvature that the net chose there.
    tiny = torch.finfo(g.dtype).tiny
    bend = elsewhere.detach() / elsewhere.clamp_min(tiny)
    bend = bend.where(trusted.is_inside & ~is_flat, torch.ones_like(bend))
    inner = (trusted.coefficients[:, None, :-1] @ model.basis)[:, 0]
    move = inner + (trusted.coefficients[:, -1] * bend)[:, None] * outside
    return move * length[:, None], trusted


def _outside(vector: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
    """What of ``[N, P]`` lies outside of the span; nothing where only rounding is left."""
    rest = vector - (coefficients[:, None] @ basis)[:, 0]
    size = vector.norm(dim=1, keepdim=True)
    is_there = rest.norm(dim=1, keepdim=True) > 100 * torch.finfo(rest.dtype).eps * size
    return torch.where(is_there, rest, torch.zeros_like(rest))


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length one; zero rows stay."""
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(length > 0, length, torch.ones_like(length))


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Logarithm of a ratio of sizes; 0 where either is zero."""
    is_known = (above > 0) & (below > 0)
    one = torch.ones_like(above)
    return torch.where(is_known, above, one).log() - torch.where(is_known, below, one).log()


def decisions(n, rng, dtype):
    action = 1.4 * torch.rand(n, 12, generator=rng, dtype=dtype) - 0.7
    action[::2, 7] = -1  # no noise
    return action


def adopt(new, old, moved):
    """The state `new`, gone on from the move and the scalars of the other computation."""
    memory = new["memory"]
    steps = {**memory["steps"], max(memory["steps"]): moved}
    shared = ("radius", "predicted", "turned", "is_inside", "inside_lately")
    return {**new, "memory": {**memory, "steps": steps}, **{k: old[k] for k in shared}}


TASKS = {
    "saddle": lambda: get_task("strict_saddle", dim=10),
    "rotated saddle": lambda: Rotated(get_task("strict_saddle", dim=100)),
    "quadratic": lambda: get_task("random_quadratic"),
    "ripples": lambda: get_task("rippled_quadratic", dim=40),
}


@pytest.mark.parametrize("memory", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "tight", "loose"),
    [
        (torch.float64, 1e-12, 1e-8),
        (torch.float32, 1e-4, 5e-2),
    ],
)
@pytest.mark.parametrize("name", TASKS)
def test_it_agrees_with_the_straightforward_way_along_trajectories(
    name, dtype, tight, loose, memory
):
    task, n = TASKS[name](), 16
    problems = task.sample(n, seed=0, dtype=dtype)
    fast, slow = get_actuator("trust_region", memory=memory), Straightforward(memory)
    x = flatten(problems.params)
    rate = x.new_ones(n)
    left, right = fast.init(x, learning_rate=rate), slow.init(x, learning_rate=rate)
    rng = torch.Generator().manual_seed(0)
    seen, moved = [], []
    for t in range(30):
        loss, grads = loss_and_grads(
            task, unflatten(x, problems.params), problems, task.batch(problems, rng)
        )
        g, action = flatten(grads), decisions(n, rng, dtype)
        loss = loss * torch.nan if t % 7 == 3 else loss
        drawn = torch.randn(x.shape, generator=rng, dtype=dtype)
        features, left = fast.observe(g, loss, x, left)
        expected, right = slow.observe(g, loss, x, right)
        step = fast.act(action, g, x, left, lambda n, z=drawn: z[:, :n])
        wanted = slow.act(action, g, x, right, lambda n, z=drawn: z[:, :n])
        seen.append((features - expected).abs())
        error = (step.updates - wanted.updates).norm(dim=1)
        moved.append(error / wanted.updates.norm(dim=1))
        right = wanted.state
        left = adopt(step.state, right, wanted.updates)
        x = x + wanted.updates
    # Near-ties between curvatures turn rounding into more, in few places.
    for errors in (torch.stack(seen), torch.stack(moved)):
        assert errors.flatten().quantile(0.9) < tight
        assert errors.flatten().quantile(0.99) < loose


@pytest.mark.parametrize("curvature", [1.0, 0.0])
def test_long_vectors_in_pieces_agree_with_all_at_once(curvature):
    size = 2 * PIECE + 77
    rng = torch.Generator().manual_seed(0)
    actuator, space = get_actuator("trust_region"), Workspace()
    x = torch.randn(1, size, generator=rng)
    states = [actuator.init(x, learning_rate=torch.ones(1)) for _ in range(2)]
    bends = torch.linspace(-0.1, 1, size)
    for _ in range(12):
        # Without noise in it the gradient comes to lie in the span of the steps.
        g = (
            bends * x * curvature
            + torch.randn(1, size, generator=rng) * curvature
            + (1 - curvature)
        )
        action = decisions(1, rng, torch.float32)
        drawn = torch.randn(1, size, generator=rng)
        whole, states[0] = actuator.observe(g, torch.full((1,), torch.nan), x, states[0])
        step = actuator.act(action, g, x, states[0], lambda n, z=drawn: z[:, :n])
        with torch.no_grad(), space.use():
            pieces, states[1] = actuator.observe(g, torch.full((1,), torch.nan), x, states[1])
            other = actuator.act(action, g, x, states[1], lambda n, z=drawn: z[:, :n])
        if curvature:
            assert_close(pieces, whole, rtol=1e-3, atol=1e-3)
            assert_close(
                other.updates, step.updates, rtol=0, atol=1e-3 * step.updates.abs().max().item()
            )
        assert torch.isfinite(other.updates).all()
        states = [step.state, adopt(other.state, step.state, step.updates)]
        x = x + step.updates


def act_in_a_workspace(*, level, rng, seed=0, radius=None):
    """A step from a given state; with the state, the radius and the last step."""
    size, draw = 2 * PIECE + 77, torch.Generator().manual_seed(seed)
    actuator, x = get_actuator("trust_region"), torch.randn(1, size, generator=draw)
    state = actuator.init(x, learning_rate=torch.ones(1))
    decision, unknown = torch.zeros(1, 12), torch.full((1,), torch.nan)
    decision[:, 7] = -1.0
    g = torch.randn(1, size, generator=draw)
    with torch.no_grad(), Workspace().use():
        _, state = actuator.observe(g, unknown, x, state)
        first = actuator.act(decision, g, x, state, lambda n: torch.zeros(1, n))
        x, g = x + first.updates, g + torch.randn(1, size, generator=draw)
        _, state = actuator.observe(g, unknown, x, first.state)
        if radius is not None:
            state = {**state, "radius": torch.tensor([radius])}
        decision[:, 7] = level
        step = actuator.act(decision, g, x, state, lambda n: torch.randn(1, n, generator=rng))
    return step, step.state["radius"], first.updates


def test_noise_of_long_vectors_falls_on_a_run_by_chance():
    """On all coordinates alike in the mean, as long as it would be, and noted as it is."""
    rng = torch.Generator().manual_seed(1)
    still, radius, last = act_in_a_workspace(level=-1.0, rng=rng)
    num_draws, places, squares = 200, [], []
    for _ in range(num_draws):
        shaken, _, _ = act_in_a_workspace(level=0.8, rng=rng)
        turn = torch.cosine_similarity(shaken.updates.double(), last.double())
        assert_close(shaken.state["turned"].double(), turn, rtol=0, atol=1e-5)
        change = (shaken.updates - still.updates)[0]
        touched = change.nonzero()[:, 0]
        # All of one of 32 parts, but for what rounding swallows.
        assert 0.95 * change.numel() / 32 < len(touched) <= change.numel() / 32 + 1
        assert touched[-1] - touched[0] <= change.numel() / 32 + 1
        places.append(touched[0] / change.numel())
        squares.append(change.square().sum())
    wanted = ((7 * 0.8 - 8.0) * torch.ones(1)).exp() * radius
    assert_close(torch.stack(squares).mean().sqrt()[None], wanted, rtol=0.02, atol=0.0)
    # Uniform on [0, 31/32]: mean and variance within four standard errors.
    places = torch.stack(places)
    assert abs(places.mean() - 31 / 64) < 4 * (1 / 12 / num_draws) ** 0.5
    assert abs(places.var() - 1 / 12) < 4 * (1 / 180 / num_draws) ** 0.5


def test_noise_of_long_vectors_makes_nothing_infinite():
    step, _, _ = act_in_a_workspace(level=1.0, rng=torch.Generator().manual_seed(0), radius=3e38)
    assert step.updates.isfinite().all()
    assert step.state["turned"].isfinite().all()


def test_very_long_vectors_are_seen_by_a_sample(monkeypatch):
    """The same numbers but for sampling errors; no more than the sample is kept of gradients."""
    size, sample = 200_000, 40_000
    rng = torch.Generator().manual_seed(0)
    actuator = get_actuator("trust_region")
    x = torch.randn(1, size, generator=rng)
    bends = torch.linspace(-0.1, 1, size)[torch.randperm(size, generator=rng)]
    states = {}
    for room in (size, sample):
        monkeypatch.setattr(subspace, "SAMPLE", room)
        states[room] = actuator.init(x, learning_rate=torch.ones(1))
    assert states[sample]["grads"].shape[1] <= sample
    assert_close(states[sample]["unit"], states[size]["unit"], rtol=0.02, atol=0.0)
    looks, moves = [], []
    for _ in range(10):
        g = bends * x + 0.1 * torch.randn(1, size, generator=rng)
        action, drawn = decisions(1, rng, torch.float32), torch.randn(1, size, generator=rng)
        seen, steps = {}, {}
        for room in (size, sample):
            monkeypatch.setattr(subspace, "SAMPLE", room)
            seen[room], states[room] = actuator.observe(
                g, torch.full((1,), torch.nan), x, states[room]
            )
            steps[room] = actuator.act(action, g, x, states[room], lambda n, z=drawn: z[:, :n])
            states[room] = steps[room].state
        moved, wanted = steps[sample].updates, steps[size].updates
        looks.append((seen[sample] - seen[size]).abs())
        moves.append((moved - wanted).norm() / wanted.norm())
        # Both go on from the same point with the same steps behind them.
        x, memory = x + wanted, states[sample]["memory"]
        states[sample] = {
            **states[sample],
            "memory": {**memory, "steps": states[size]["memory"]["steps"]},
            **{name: states[size][name] for name in ("radius", "predicted", "turned", "is_inside")},
        }
    # Near-ties between curvatures turn sampling errors into more, in few places.
    assert torch.cat(looks).flatten().quantile(0.9) < 0.02
    assert torch.stack(moves).median() < 0.05


def test_a_radius_that_has_shrunk_to_nothing_keeps_its_slope_finite():
    """As on a plateau so flat that no step does what was predicted."""
    actuator = get_actuator("trust_region")
    x, g = torch.ones(1, 3), torch.tensor([[1.0, -2.0, 0.5]])
    state = actuator.init(x, learning_rate=torch.ones(1))
    decision = torch.zeros(1, 12, requires_grad=True)
    for uphill in torch.arange(150.0):
        _, state = actuator.observe(g, uphill[None], x, state)
        step = actuator.act(decision, g, x, state, lambda _: torch.zeros_like(x))
        state = step.state
    (slope,) = torch.autograd.grad(step.updates.sum(), decision)
    assert torch.isfinite(step.updates).all() and torch.isfinite(slope).all()


def test_the_clock_goes_on_where_a_rule_takes_over():
    """As far from the start, steps by the clock are as short as if the rule had taken them all."""
    actuator = get_actuator("trust_region")
    point = torch.full((1, 4), 2.0, dtype=torch.float64)
    action = torch.zeros(1, actuator.actions.size, dtype=torch.float64)
    action[:, actuator.actions.names.index("steadiness")] = 1.0
    noise = torch.zeros_like(point)

    def radius(state, num_steps):
        for _ in range(num_steps):
            _, inner = actuator.observe(point, torch.full((1,), torch.nan), point, state)
            state = actuator.act(action, point, point, inner, lambda _: noise).state
        return state["radius"]

    rate = torch.ones(1)
    fresh = radius(actuator.init(point, learning_rate=rate), 100)
    steps = torch.tensor([81])
    taken_over = radius(actuator.restart(point, learning_rate=rate, steps=steps), 20)
    assert_close(taken_over, fresh)
    # And so is the first step by itself, which is a tenth of the point's length, over the root.
    _, late = actuator.observe(
        point, rate, point, actuator.restart(point, learning_rate=rate, steps=steps)
    )
    assert_close(late["radius"], torch.full((1,), 0.1 * 4.0 / 9).double())


def losses_seen(losses, *, factor=1.0, shift=0.0, slope=1e-3):
    """By step: what was undone, and the clock's unit, along a straight way with these losses."""
    actuator = get_actuator("trust_region")
    # So flat that nothing is promised beside the losses.
    x, g = torch.ones(1, 4).double(), slope * factor * torch.ones(1, 4).double()
    state, undone, units = actuator.init(x, learning_rate=torch.ones(1)), [], []
    decision, last = torch.zeros(1, 12).double(), None
    decision[:, 7:9] = -1  # no noise, and it hardly goes back by itself
    for loss in losses:
        value = torch.tensor([factor * loss + shift], dtype=torch.float64)
        _, state = actuator.observe(g, value, x, state)
        step = actuator.act(decision, g, x, state, lambda n: torch.zeros(1, n).double())
        undone.append(last is not None and torch.allclose(step.updates, -_BACK * last, atol=0.0))
        state, last = step.state, step.updates
        units.append(state["unit"].item())
    return undone, units


NOISY = (2.3, 2.36, 2.29, 2.35, 2.31, 2.33, 2.27, 2.34)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (1e-4, 7.0), (1.0, -50.0)])
def test_a_step_to_a_spike_is_undone_and_slows_the_clock(factor, shift):
    """Far above what the loss was ever; noise is not, and as high a loss again is none."""
    losses = (*NOISY, 12.0, 2.32, 2.3, 2.34, 2.3, 18.0, 2.36, 17.9, 2.3)
    undone, units = losses_seen(losses, factor=factor, shift=shift)
    assert [t for t, u in enumerate(undone) if u] == [8, 13]
    assert units == [units[0]] * 8 + [units[0] / 2] * 5 + [units[0] / 4] * 4


@pytest.mark.parametrize("later", [(12.0,) * 50, (12.0, 11.0, 2.3, 2.4), (30.0, 29.0, 2.3)])
def test_what_undoing_does_not_cure_is_undone_once(later):
    """The way back is no spike, however high, and a loss that stays where it leapt is usual."""
    undone, units = losses_seen((*NOISY, 12.0, *later))
    assert [t for t, u in enumerate(undone) if u] == [len(NOISY)]
    assert units[-1] == units[0] / 2


@pytest.mark.parametrize(("excess", "is_spike"), [(0.9, False), (1.1, True)])
@pytest.mark.parametrize("unknown", [0, 30])
def test_a_spike_is_twice_the_mean_change_above_the_highest(excess, is_spike, unknown):
    """Solved for the loss, which is in its own mean change; unknown losses do not count."""
    changes = [abs(b - a) for a, b in pairwise(NOISY)]
    share = 0.1 / (1 - 0.9 ** (len(changes) + 1))
    before = share * sum(c * 0.9 ** (k + 1) for k, c in enumerate(reversed(changes)))
    last, highest = NOISY[-1], max(NOISY)
    # loss - highest = 2 (before + share (loss - last))
    loss = (highest + 2 * before - 2 * share * last) / (1 - 2 * share)
    told = (*NOISY, highest + excess * (loss - highest), 2.3)
    # Without a slope nothing is promised, whatever the radius came to meanwhile.
    _, units = losses_seen((*[math.nan] * unknown, *told), slope=0.0)
    assert units == [units[0]] * (len(units) - 2) + [units[0] * (0.5 if is_spike else 1.0)] * 2


def test_the_changes_to_a_spike_and_back_are_not_usual():
    """A higher one soon after is told as the first was: 18 is less above 12 than they were."""
    undone, _ = losses_seen((*NOISY, 12.0, 2.32, 2.3, 18.0, 2.3))
    assert [t for t, u in enumerate(undone) if u] == [8, 11]


def test_only_the_lane_with_a_spike_is_undone():
    actuator = get_actuator("trust_region")
    x, g = torch.ones(3, 4), 1e-3 * torch.ones(3, 4)
    decision = torch.zeros(3, 12)
    decision[:, 7:9] = -1

    def updates(losses):
        state = actuator.init(x, learning_rate=torch.ones(3))
        for loss in losses:
            _, state = actuator.observe(g, torch.tensor(loss), x, state)
            step = actuator.act(decision, g, x, state, lambda n: torch.zeros(3, n))
            state = step.state
        return step.updates, state["unit"]

    calm = [[loss] * 3 for loss in NOISY]
    (one, units), (none, same) = updates([*calm, [2.3, 12.0, 2.3]]), updates([*calm, [2.3] * 3])
    assert torch.equal(one[::2], none[::2]) and torch.equal(units / same, torch.tensor([1, 0.5, 1]))
    assert not torch.equal(one[1], none[1])


def test_white_noise_is_seldom_taken_for_a_spike():
    """In a fiftieth of all runs one early loss is, and no later one."""
    actuator, rng = get_actuator("trust_region"), torch.Generator().manual_seed(0)
    x, g = torch.ones(2000, 1), 1e-6 * torch.ones(2000, 1)
    state, decision = actuator.init(x, learning_rate=torch.ones(2000)), torch.zeros(2000, 12)
    decision[:, 7] = -1
    share = []
    for _ in range(60):
        _, state = actuator.observe(g, torch.randn(2000, generator=rng), x, state)
        state = actuator.act(decision, g, x, state, lambda n: torch.zeros(2000, n)).state
        share.append((state["unit"] < 1).double().mean().item())
    assert 0.01 < share[30] < share[-1] + 1e-9 < share[30] + 0.001 < 0.04


def test_a_loss_that_overflows_is_a_spike_and_later_ones_are_seen():
    undone, units = losses_seen((*NOISY, math.inf, math.inf, *NOISY, 12.0, 2.3))
    assert [t for t, u in enumerate(undone) if u] == [len(NOISY), 2 * len(NOISY) + 2]
    assert units[-1] == units[0] / 4
    # Neither is a first loss of that kind the highest.
    undone, units = losses_seen((math.inf, *NOISY, 12.0, 2.3))
    assert [t for t, u in enumerate(undone) if u] == [len(NOISY) + 1]


@pytest.mark.parametrize("rise", [16 * torch.finfo(torch.float64).eps, 1e-9, 1e-3])
def test_leaving_a_plateau_upwards_is_no_spike(rise):
    """Where nothing ever changed, a first change is not more than usual; rounding is none."""
    losses = (*[1.0] * 200, *(1 + k * rise for k in range(1, 9)))
    _, units = losses_seen(losses, slope=0.0)
    assert units == [units[0]] * len(losses)


def test_a_loss_that_was_as_high_before_is_no_spike():
    undone, units = losses_seen((12.0, 6.0, 3.0, 2.0, 2.1, 2.0, 11.9))
    assert not any(undone) and units == [units[0]] * 7


def test_without_losses_nothing_is_a_spike():
    undone, units = losses_seen((math.nan,) * 6)
    assert not any(undone) and units == [units[0]] * 6


def test_a_spike_leaves_no_promise_and_the_radius_alone():
    """What comes of an undone step is neither a good nor a bad prediction."""
    actuator = get_actuator("trust_region")
    x, g = torch.ones(1, 4).double(), 1e-3 * torch.ones(1, 4).double()
    state, decision = actuator.init(x, learning_rate=torch.ones(1)), torch.zeros(1, 12).double()
    decision[:, 7:9] = -1
    radii = []
    for loss in (*NOISY, 12.0, 2.3):
        seen, state = actuator.observe(g, torch.tensor([loss]).double(), x, state)
        radii.append(state["radius"].item())
        state = actuator.act(decision, g, x, state, lambda n: torch.zeros(1, n).double()).state
    ratio = [feature.name for feature in actuator.features].index("decrease ratio")
    assert seen[0, ratio] == 0 and radii[-1] == radii[-2]
