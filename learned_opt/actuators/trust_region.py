"""How far to go, how curved the unknown is, how much of Adam: a trust region with 12 controls."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from learned_opt.actuators.base import (
    ActionSpace,
    Actuator,
    Noise,
    Step,
    clip_to,
    register_actuator,
)
from learned_opt.actuators.moves import combined, drawn_run
from learned_opt.actuators.spikes import look_for_spike, rounding
from learned_opt.actuators.survey import (
    FAST,
    SLOW,
    averages,
    count_active,
    outside,
    survey,
)
from learned_opt.errors import require
from learned_opt.features import Feature, dot, safe_ratio, safe_sqrt
from learned_opt.subspace import (
    TrustedStep,
    add_step,
    curvature_model,
    init_memory,
    remember,
    rows,
    sampled,
    trust_region_step,
)
from learned_opt.trees import Tree
from learned_opt.workspace import is_long, workspace

_SHRINK, _GROW = math.log(0.35), math.log(2.5)
_BACK = 0.75
_FIRST = 0.1
"""First radius over the length of the parameters."""
_TIMED = 0.17
"""First length by the clock, of three matrices, over that of the parameters if all had their mean
magnitude. A tuned learning rate of AdamW is 0.2 to 0.7 times the mean magnitude on networks of all
kinds; over the length of the parameters it differs more, since an embedding may be most of that.
By the fourth root 0.17 is at step 30 what 0.4 would be by the square root."""
_FEWEST, _USUAL, _MOST = 2, 3, 7
"""Matrices, as in networks that are trained on; the middle one is for what has none. A share of
each of L factors changes their product by about L times as much (Bernstein et al. 2020,
arXiv:2002.03432), so by the clock lengths go by 1 / L."""
_PATIENCE = math.log(0.1)


@final
@register_actuator
class TrustRegion(Actuator):
    r"""A trust region in the span of the last steps.

    In the span of the last `memory` steps the changes of the gradient give the Hessian (see
    `learned_opt.subspace`); outside of it stands one more direction, between the gradient and
    Adam's, with the largest curvature seen. The step minimises that model within a radius, so at a
    saddle it leaves along negative curvature as far as the radius allows. Left alone, the radius
    grows and shrinks by how well the model predicted the decrease of the loss, which is read off
    the two gradients as $-\tfrac12 (g + g') \cdot s$ where the loss is not given.

    Decisions multiply the radius, the curvature outside of the span and the length of unbounded
    steps, mix the direction outside, add noise, and undo a bad step. Where minibatches drown the
    decrease of the loss in noise, three more matter: the radius may go by the clock instead of by
    what the last prediction was worth, as a share of the parameters' mean magnitude over the number
    of matrices; Adam's step may take the place of the trusted one, shorter where gradients
    disagree; and the momentum may average ten times as many gradients, from 10 to 100. The clock's
    share goes down with the fourth root of the number of steps, and of the gradient's norm (a mean
    with decay 0.9) under its highest so far, so it shrinks little where much is left to do, more
    where a network nearly fits its data, and grows again with the gradient.

    One thing is not for decisions to say. Where losses are given, a step to a spike is undone for
    the most part, and from then on the clock goes by half the magnitude. A spike is a loss above
    all before it by more than twice its usual change (a mean with decay 0.9 over all that are not
    rounding, this one included) and by more than twice what the step had promised; the loss after
    an undone step is none. Of runs of white noise a fiftieth has one, early.

    The clock asks for the number of matrices among the parameters that are steered together; where
    it is not known, as in a mixture of problems, it takes them for three.

    Everything scales: $f \to a f + b$ changes nothing, nor does $x \to c x$ if the start does not
    lie at the origin. The first radius is a share of the length of the parameters, so there is no
    initial step size to give; that of `init` is not used.

    Of more than `learned_opt.subspace.SAMPLE` parameters a sample is looked at: steps and means are
    exact, what is seen and the model are estimates, off by some tenths of a percent. Of very many
    on a CPU noise falls on a thirty-second part at a step, by chance, the more strongly.

    Args:
        memory: steps remembered, ``m``; the state holds ``2 m + 3`` numbers a parameter, of very
            many parameters ``m + 2``.

    Raises:
        LearnedOptError: if `memory` is not positive.

    References:
        Nocedal and Wright 2006, chapter 4 (trust regions); Dauphin et al. 2014 (arXiv:1406.2572),
        saddle-free steps in a subspace; Bernstein et al. 2020 (arXiv:2002.03432), how far a
        product of matrices moves with its factors.
    """

    name: ClassVar[str] = "trust_region"
    revision = 2
    needs_loss: ClassVar[bool] = False

    def __init__(self, *, memory: int = 4) -> None:
        require(memory >= 1, f"memory must be positive, got {memory}")
        self.memory = memory
        self.actions = ActionSpace(
            (
                "radius",
                "curvature elsewhere",
                "probe",
                "adaptive share",
                "gain",
                "flatness",
                "adaptive step",
                "noise",
                "go back",
                "steadiness",
                "agreement",
                "patience",
            ),
            is_discrete=False,
        )
        self.features = (
            Feature("turn", "cosine of the last two gradients", -1, 1),
            Feature("along last step", "cosine of gradient and last step", -1, 1),
            Feature("straightness", "cosine of the last two steps", -1, 1),
            Feature("gradient growth", "log of gradient norm over the last one", -4, 4),
            Feature("gradient since start", "log of gradient norm over the first, over 5", -4, 4),
            Feature(
                "gradient over least", "log of gradient norm over the least so far, over 5", 0, 4
            ),
            Feature(
                "decrease ratio", "decrease along the last step over what was predicted", -2, 2
            ),
            Feature("unpredictability", "mean distance of that ratio from 1 at decay 0.8", 0, 2),
            Feature("radius", "log of radius over the parameters' norm, over 5", -4, 4),
            # That of the last step, before it is adapted.
            Feature("radius since start", "log of radius over the first one, over 5", -4, 4),
            Feature("stride", "log of the last step's length over the radius", -4, 1),
            Feature("known share", "share of the gradient's norm in the span of past steps", 0, 1),
            Feature(
                "unknown", "log of the gradient's norm outside of that span over all, over 5", -4, 0
            ),
            Feature(
                "steepness",
                "log of largest curvature times radius over gradient norm, over 3",
                -4,
                4,
            ),
            Feature("lowest curvature", "lowest over largest size", -1, 1),
            Feature("lowest slope", "gradient along the lowest curvature over its norm", 0, 1),
            Feature("inside", "1 if the last step was not cut at the radius", 0, 1),
            Feature("inside lately", "mean of that at decay 0.8", 0, 1),
            Feature("adaptive", "cosine of gradient and Adam's direction", 0, 1),
            Feature(
                "spread", "log of root mean square gradient of the past over the gradient's", -4, 4
            ),
            Feature(
                "above best",
                "loss above the best, over that plus the last change, 0 if unknown",
                0,
                1,
            ),
            Feature("persistence", "log of momentum's norm over the gradient's", -4, 2),
            Feature("trend", "mean decrease over its mean size at decay 0.9", -1, 1),
            # What lies beyond training's runs and sizes counts as their end.
            Feature("time", "log of steps / 5", 0, 1.34),
            Feature("size", "log of the number of parameters with a gradient, over 10", 0, 0.78),
        )

    def config(self) -> dict[str, Any]:
        """Steps remembered."""
        return {"memory": self.memory}

    def init(self, params: Tensor, *, learning_rate: Tensor, num_matrices: int = 0) -> Tree:
        """See `Actuator.init`; nothing known, nothing moved."""
        del learning_rate
        vector, scalar = torch.zeros_like(params), params.new_zeros(len(params))
        x = sampled(params.detach())
        # Zeros say nothing of a unit; they pad problems of a mixture, or wait to be learned.
        unit = safe_ratio(torch.linalg.vector_norm(x, ord=1, dim=1), (x != 0).sum(1).to(x).sqrt())
        unit = unit * (_USUAL / min(max(num_matrices or _USUAL, _FEWEST), _MOST))
        return {
            "memory": init_memory(params, self.memory),
            "grads": torch.zeros_like(sampled(params)),
            "square": vector,
            "momentum": vector,
            "mean_square": scalar,
            "norm": scalar,
            "radius": scalar,
            "first_radius": scalar,
            "unit": unit,
            "predicted": scalar,
            "loss": scalar,
            "best_loss": scalar,
            "highest_loss": torch.full_like(scalar, -torch.inf),
            "jitter": scalar,
            "jitters": scalar,
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
            "earlier": scalar,
            "level": scalar,
            "highest_level": scalar,
            "forgets": torch.full_like(scalar, 1 - FAST),
            "remembers": scalar,
        }

    def restart(
        self, params: Tensor, *, learning_rate: Tensor, steps: Tensor, num_matrices: int = 0
    ) -> Tree:
        """See `Actuator.restart`; the clock goes on by the number of steps, all else starts anew.

        The first radius is a short one, by the square root of that number: whoever restarts is on
        trial, and too long a step would lose it.
        """
        size = torch.linalg.vector_norm(sampled(params), dim=1)
        return {
            **self.init(params, learning_rate=learning_rate, num_matrices=num_matrices),
            "first_radius": _FIRST * size * steps.to(size).rsqrt(),
            "earlier": steps.to(size) - 1,
        }

    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """See `Actuator.observe`; NaN is a loss that is not known."""
        # What is seen has no graph, as in Andrychowicz et al. 2016; what is decided has one.
        slope, g = grads.detach(), sampled(grads.detach())
        x, loss = sampled(params.detach()), loss.detach().to(grads)
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        is_first = s["steps"] == 0
        count = s["steps"] + 1
        norm, old_norm = torch.linalg.vector_norm(g, dim=1), s["norm"]
        mean_square = torch.lerp(s["mean_square"], norm.square() / slope.shape[1], 1 - SLOW)
        active = count_active(g, slope.shape[1])
        momentum, square, adaptive = averages(slope, state, mean_square, active)
        direction = sampled(adaptive)
        seen, change = survey(g, x, sampled(momentum), direction, state, active)
        remembers = torch.lerp(s["remembers"], torch.ones_like(norm), s["forgets"])
        memory = remember(state["memory"], change, seen.entries)  # type: ignore[arg-type]
        model = curvature_model(memory)
        rest = outside(g, direction, memory, model, seen)
        stride, size = seen.entries.steps_step[:, -1].sqrt(), seen.size
        largest = model.curvatures.abs().amax(1)
        largest = torch.where(largest > 0, largest, s["curvature"])
        fallen = s["loss"] - loss
        is_known = ~is_first & ~fallen.isnan()
        # A decrease that drowns in the rounding of the loss is taken from gradients, too.
        is_resolved = s["predicted"] > rounding(loss)
        by_slopes = -0.5 * (seen.along_last + seen.old_along_last)
        decrease = torch.where(is_known & is_resolved, fallen, by_slopes)
        best_loss = torch.where(is_first, loss, torch.fmin(s["best_loss"], loss))
        above = loss - best_loss
        height = safe_ratio(above, above + decrease.abs())
        height = torch.where(is_known, height, 0.0)
        ratio = safe_ratio(decrease, s["predicted"]).clamp(-2, 2)
        surprise = torch.lerp(s["surprise"], (ratio - 1).abs(), 0.2).masked_fill(is_first, 0)
        fall = torch.lerp(s["fall"], decrease, 1 - FAST)
        swing = torch.lerp(s["swing"], decrease.abs(), 1 - FAST)
        first_norm = torch.where(is_first, norm, s["first_norm"])
        least_norm = torch.where(is_first, norm, torch.minimum(norm, s["least_norm"]))
        spike = look_for_spike(s, loss, fallen.where(is_known, torch.nan))
        # At the origin nothing tells a unit; parameters of networks have some hundredths.
        scale = torch.where(size > 0, _FIRST * size, 0.02 * active.sqrt())
        unit = torch.where(s["unit"] > 0, s["unit"], 0.15 * active.sqrt())
        unit = torch.where(spike["is_spike"] > 0, 0.5 * unit, unit)
        scale = torch.where(s["first_radius"] > 0, s["first_radius"], scale)
        radius, first_radius, is_bad = _nominal_radius(s, ratio, stride, scale, is_first)
        held = torch.where(is_first, first_radius, s["radius"])
        fading = 1 - SLOW**count
        level = torch.lerp(s["level"], norm, (1 - FAST) / (1 - FAST**count))
        # Like quantities are stacked: at small sizes it is calls that cost, not numbers.
        growth, since_start, over_least, wide, widened, strode, steep, spread, kept = _log_ratio(
            torch.stack((
                *(norm, norm, norm, radius, held, stride, largest * radius),
                (mean_square / fading * slope.shape[1]).sqrt(),
                seen.momentum / remembers,
            )),
            torch.stack((
                *(old_norm, first_norm, least_norm, size, first_radius, radius),
                *(norm, norm, norm),
            )),
        )
        turn, along, known, unknown, lowest_slope, agreement, lowest, trend = safe_ratio(
            torch.stack((
                seen.turn,
                seen.along_last,
                rest.slopes.norm(dim=1),
                rest.norm,
                rest.slopes[:, 0].abs(),
                seen.along_adaptive,
                model.curvatures.amin(1),
                fall,
            )),
            torch.stack((
                *(norm * old_norm, norm * stride, norm, norm, norm, norm * seen.adaptive),
                *(largest, swing),
            )),
        )
        features = torch.stack(
            [
                turn,
                along,
                s["turned"],
                growth,
                since_start / 5,
                over_least / 5,
                ratio,
                surprise,
                wide / 5,
                widened / 5,
                strode,
                known,
                (unknown + torch.finfo(g.dtype).tiny).log() / 5,
                steep / 3,
                lowest,
                lowest_slope,
                s["is_inside"],
                s["inside_lately"],
                agreement,
                spread,
                height,
                kept,
                trend,
                count.log() / 5,
                seen.active.log() / 10,
            ],
            dim=1,
        )
        new: Tree = {
            **state,
            "memory": memory,
            "grads": g,
            "square": square,
            "momentum": momentum,
            "mean_square": mean_square,
            "norm": norm,
            "radius": radius,
            "first_radius": first_radius,
            "unit": unit,
            "loss": loss,
            "best_loss": best_loss,
            **spike,
            "curvature": largest,
            "first_norm": first_norm,
            "least_norm": least_norm,
            "level": level,
            "highest_level": torch.maximum(s["highest_level"], level),
            "surprise": surprise,
            "fall": fall,
            "swing": swing,
            "steps": count,
            "remembers": remembers,
            # Only for `act`.
            "model": {
                **model._asdict(),
                **rest._asdict(),
                "adaptive": adaptive,
                "adaptive_norm": seen.adaptive,
                "along_adaptive": seen.along_adaptive,
                "is_bad": is_bad,
                "agreement": seen.adaptive * fading.sqrt() / (remembers * seen.active.sqrt()),
            },
        }
        return clip_to(features, self.features), new

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        seen: dict[str, Tensor] = state["model"]  # type: ignore[assignment]
        memory, largest = state["memory"], s["curvature"]
        assert isinstance(memory, dict)
        steps, lengths = rows(memory, "steps"), memory["lengths"]
        assert isinstance(lengths, Tensor)
        a = action.to(grads).unbind(1)
        # Where noise decides how a step turned out, the radius had better go by the clock.
        tiny = torch.finfo(s["radius"].dtype).tiny
        level = safe_ratio(s["level"], s["highest_level"])
        timed = _TIMED * s["unit"] * (level / (s["earlier"] + s["steps"])) ** 0.25
        # Logarithms have a slope however short the radius is; it is divided by, so it is not zero.
        nominal, timed = (r.clamp_min(tiny).log() for r in (s["radius"], timed))
        radius = torch.lerp(nominal, timed, a[9].clamp_min(0))
        radius = (radius + 2 * a[0]).exp().clamp_min(tiny)
        gain = (1.5 * a[4]).exp()
        whole = a[6].clamp_min(0)
        shake = (7 * a[7] - 8).exp() * (a[7] > -1)
        goes_back = seen["is_bad"] * (5 * a[8] + 2).sigmoid()
        goes_back = torch.maximum(goes_back, s["is_spike"])
        # As steep as what is known, or just so steep that a step outside fills the radius.
        filling = safe_ratio(seen["norm"], radius.detach())
        steep, filling = (3 * a[1]).exp() * largest, filling.clamp_min(tiny)
        probe = a[2].clamp_min(0)
        elsewhere = ((1 - probe) * steep.clamp_min(tiny).log() + probe * filling.log()).exp()
        weights, trusted = _trusted_weights(
            seen,
            share=(4 * a[3] - 2).sigmoid(),
            largest=largest,
            elsewhere=elsewhere,
            radius=radius,
            gain=gain,
            flatness=0.5 * a[5],
        )
        # Where noise drowns what the steps say about curvature, Adam's step: of the radius' length,
        # or of the shorter one that it has where gradients disagree.
        shorter = (a[10].clamp_min(0) * seen["agreement"].clamp_min(1e-4).log()).exp()
        plain = -radius * shorter * safe_ratio(torch.ones_like(radius), seen["adaptive_norm"])
        promise = (-plain.detach() * seen["along_adaptive"]).clamp_min(0)
        predicted = torch.lerp(trusted.decrease, promise, whole.detach())
        weights = weights * (1 - whole)[:, None]
        on_steps, on_grads, on_adaptive = weights[:, 2:], weights[:, 0], weights[:, 1]
        stays = 1 - goes_back
        on_adaptive = on_adaptive + plain * whole
        on_last = on_steps[:, -1] * stays - _BACK * goes_back
        by = [on_grads * stays, on_adaptive * stays]
        by += [*(on_steps[:, :-1] * stays[:, None]).unbind(1), on_last]
        vectors = [grads.detach(), seen["adaptive"], *steps]
        # In a workspace there are no transforms, so values may be looked at.
        shaken, run = shake * radius * stays, None
        if is_long(grads) and bool(shake.any()):
            run = drawn_run(shaken, grads.shape[1], noise)
        elif workspace() is None or bool(shake.any()):
            by.append(shaken * grads.shape[1] ** -0.5)
            vectors.append(noise(grads.shape[1]))
        move, length, along = combined(vectors, by, last=len(steps) + 1, run=run)
        is_inside = trusted.is_inside.to(grads.dtype)
        new: Tree = {
            **{name: leaf for name, leaf in state.items() if name != "model"},
            "memory": add_step(memory, move),
            "radius": radius,
            # Of an undone step nothing is to be learned.
            "predicted": torch.where(s["is_spike"] > 0, 0.0, predicted),
            "forgets": (1 - FAST) * (_PATIENCE * a[11].detach().clamp_min(0)).exp(),
            "turned": safe_ratio(along, length * lengths[:, -1]),
            "is_inside": is_inside,
            "inside_lately": torch.lerp(s["inside_lately"], is_inside, 0.2),
        }
        return Step(updates=move, state=new)

    def controls(self, state: Tree) -> dict[str, Tensor]:
        """The radius."""
        radius = state["radius"]
        assert isinstance(radius, Tensor)
        return {"radius": radius}


def _nominal_radius(
    s: dict[str, Tensor], ratio: Tensor, stride: Tensor, first: Tensor, is_first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The radius by the book, the first one, and whether the last step went uphill."""
    old = s["radius"]
    # Nothing is predicted after a gradient of zero, and nothing is learned from that.
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


def _trusted_weights(
    seen: dict[str, Tensor],
    *,
    share: Tensor,
    largest: Tensor,
    elsewhere: Tensor,
    radius: Tensor,
    gain: Tensor,
    flatness: Tensor,
) -> tuple[Tensor, TrustedStep]:
    """The step within the radius; decisions keep their graph, the model has none.

    Returns:
        Weights ``[N, 2 + m]`` of gradient, Adam's direction and steps, and the step's prospects.
    """
    # Outside of the span: gradient and Adam's direction, less what lies in the span.
    products = seen["products"]
    lengths = torch.stack((seen["norm"], products[:, 1, 1].sqrt()), dim=1)
    mix = safe_ratio(torch.stack((1 - share, share), dim=1), lengths)
    square = ((mix[:, None] @ products[:, :, :2])[:, 0] * mix).sum(1).clamp_min(0)
    mix = safe_ratio(mix, safe_sqrt(square)[:, None])
    slope = dot(mix.detach(), products[:, :, 2])
    slopes = torch.cat((seen["slopes"], slope[:, None]), dim=1)
    # Directions much flatter than the steepest one count as flatter still, or as less flat.
    relative = safe_ratio(seen["curvatures"].abs(), largest[:, None]).clamp_min(1e-6)
    bent = seen["curvatures"] * relative ** flatness.detach()[:, None]
    curvatures = torch.where(seen["is_known"], bent, elsewhere.detach()[:, None])
    curvatures = torch.cat((curvatures, elsewhere[:, None]), dim=1)
    # Nothing is known of curvature yet: the radius alone decides.
    is_flat = largest == 0
    curvatures = curvatures.masked_fill(is_flat[:, None], 0)
    trusted = trust_region_step(slopes, curvatures, radius)
    length = torch.where(trusted.is_inside, gain, radius / radius.detach())
    # An unbounded step outside of the span is inverse to the curvature that the net chose there.
    tiny = torch.finfo(slopes.dtype).tiny
    bend = elsewhere.detach() / elsewhere.clamp_min(tiny)
    bend = bend.where(trusted.is_inside & ~is_flat, torch.ones_like(bend))
    outer = (trusted.coefficients[:, -1] * bend)[:, None] * mix
    on_steps = trusted.coefficients[:, None, :-1] @ seen["frame"] - outer[:, None] @ seen["inside"]
    return torch.cat((outer, on_steps[:, 0]), dim=1) * length[:, None], trusted


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Logarithm of a ratio of sizes; 0 where either is zero."""
    is_known = (above > 0) & (below > 0)
    one = torch.ones_like(above)
    return torch.where(is_known, above, one).log() - torch.where(is_known, below, one).log()
