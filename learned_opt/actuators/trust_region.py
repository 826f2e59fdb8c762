"""How far to go, how curved the unknown is, how much of Adam: a trust region with six controls."""

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
from learned_opt.errors import require
from learned_opt.features import Feature, dot, safe_ratio
from learned_opt.subspace import (
    CurvatureModel,
    TrustedStep,
    curvature_model,
    init_memory,
    remember,
    trust_region_step,
)
from learned_opt.trees import Tree

_FAST, _SLOW = 0.9, 0.99
_SHRINK, _GROW = math.log(0.35), math.log(2.5)
_BACK = 0.75
_ROUNDING = 100.0
"""In units of the type's precision; less of a vector outside of a span is not a direction."""


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
    steps, mix the direction outside, add noise, and undo a bad step.

    Everything scales: $f \to a f + b$ changes nothing, nor does $x \to c x$ if the start does not
    lie at the origin. The first radius is a share of the length of the parameters, so there is no
    initial step size to give; that of `init` is not used.

    Args:
        memory: steps remembered, ``m``; the state holds ``2 m + 4`` numbers a parameter.

    Raises:
        LearnedOptError: if `memory` is not positive.

    References:
        Nocedal and Wright 2006, chapter 4 (trust regions); Dauphin et al. 2014 (arXiv:1406.2572),
        saddle-free steps in a subspace.
    """

    name: ClassVar[str] = "trust_region"
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
            Feature("time", "log of steps / 5", 0, 1.2),
            Feature("size", "log of the number of parameters with a gradient, over 10", 0, 0.7),
        )

    def config(self) -> dict[str, Any]:
        """Steps remembered."""
        return {"memory": self.memory}

    def init(self, params: Tensor, *, learning_rate: Tensor) -> Tree:
        """See `Actuator.init`; nothing known, nothing moved."""
        del learning_rate
        vector, scalar = torch.zeros_like(params), params.new_zeros(len(params))
        return {
            "memory": init_memory(params, self.memory),
            "grads": vector,
            "step": vector,
            "square": vector,
            "momentum": vector,
            "radius": scalar,
            "first_radius": scalar,
            "predicted": scalar,
            "loss": scalar,
            "best_loss": scalar,
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
        }

    def observe(
        self, grads: Tensor, loss: Tensor, params: Tensor, state: Tree
    ) -> tuple[Tensor, Tree]:
        """See `Actuator.observe`; NaN is a loss that is not known."""
        # What is seen has no graph, as in Andrychowicz et al. 2016; what is decided has one.
        g, x, loss = grads.detach(), params.detach(), loss.detach().to(grads)
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        is_first = s["steps"] == 0
        last, old_grads = s["step"], s["grads"]
        change = torch.where(is_first[:, None], torch.zeros_like(g), g - old_grads)
        memory = remember(state["memory"], last, change)  # type: ignore[arg-type]
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
        decrease = torch.where(is_known, fallen, -0.5 * dot(g + old_grads, last))
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
        radius, first_radius, is_bad = _nominal_radius(s, ratio, stride, size, is_first)
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
                _log_ratio(radius, first_radius) / 5,
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
            "loss": loss,
            "best_loss": best_loss,
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

    def act(self, action: Tensor, grads: Tensor, params: Tensor, state: Tree, noise: Noise) -> Step:
        """See `Actuator.act`."""
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        seen: dict[str, Tensor] = state["model"]  # type: ignore[assignment]
        last, largest = s["step"], s["curvature"]
        a = action.to(grads).unbind(1)
        radius = s["radius"] * (2 * a[0]).exp()
        gain = (1.5 * a[4]).exp()
        whole = a[6].clamp_min(0)
        shake = (7 * a[7] - 8).exp() * (a[7] > -1)
        goes_back = seen["is_bad"] * (5 * a[8] + 2).sigmoid()
        # As steep as what is known, or just so steep that a step outside fills the radius.
        filling = safe_ratio(seen["rest"].norm(dim=1), radius.detach())
        tiny = torch.finfo(filling.dtype).tiny
        steep, filling = (3 * a[1]).exp() * largest, filling.clamp_min(tiny)
        probe = a[2].clamp_min(0)
        elsewhere = ((1 - probe) * steep.clamp_min(tiny).log() + probe * filling.log()).exp()
        move, trusted = _trusted_move(
            CurvatureModel(seen["basis"], seen["curvatures"], seen["is_known"]),
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
        plain = -radius[:, None] * _unit(seen["adaptive"])
        move = torch.lerp(move, plain, whole[:, None])
        promise = -dot(grads, plain).detach().clamp_min(0)
        predicted = torch.lerp(trusted.decrease, promise, whole.detach())
        move = move + (shake * radius * grads.shape[1] ** -0.5)[:, None] * noise()
        move = torch.lerp(move, -_BACK * last, goes_back[:, None])
        move = torch.where(torch.isfinite(move), move, torch.zeros_like(move))
        known = move.detach()
        turned = safe_ratio(dot(known, last), known.norm(dim=1) * last.norm(dim=1))
        is_inside = trusted.is_inside.to(grads.dtype)
        new: Tree = {
            **{name: leaf for name, leaf in state.items() if name != "model"},
            "step": known,
            "radius": radius,
            "predicted": predicted,
            "turned": turned,
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
    s: dict[str, Tensor], ratio: Tensor, stride: Tensor, size: Tensor, is_first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The radius by the book, the first one, and whether the last step went uphill."""
    old = s["radius"]
    is_poor = ratio < 0.25
    is_cut = stride > 0.8 * old
    factor = torch.where(is_poor, _SHRINK, torch.where((ratio > 0.7) & is_cut, _GROW, 0.0))
    # A step of length zero, after a gradient of zero, says nothing about the next.
    held = torch.where(is_poor & (stride > 0), torch.minimum(old, stride), old)
    first = 0.1 * torch.where(size > 0, size, torch.full_like(size, 1e-2))
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
    momentum = torch.lerp(s["momentum"], g, 1 - _FAST)
    square = torch.lerp(s["square"], g.square(), 1 - _SLOW)
    root = (square / (1 - _SLOW**count)[:, None]).sqrt()
    # Relative to the coordinates that have a gradient: others must not count as small ones.
    floor = (
        1e-2 * root.norm(dim=1, keepdim=True) / (g != 0).sum(1, keepdim=True).clamp_min(1).sqrt()
    )
    mean = momentum / (1 - _FAST**count)[:, None]
    direction = safe_ratio(mean, root + floor)
    return direction, root, mean, {"momentum": momentum, "square": square}


def _trusted_move(
    model: CurvatureModel,
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
) -> tuple[Tensor, TrustedStep]:
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
    is_there = rest.norm(dim=1, keepdim=True) > _ROUNDING * torch.finfo(rest.dtype).eps * size
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
