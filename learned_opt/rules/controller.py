"""The controller: a recurrent net that steers a trust region in the span of the last steps."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn

from learned_opt.actuators.base import clip_to
from learned_opt.errors import require
from learned_opt.features import Feature, dot, safe_ratio, schema_hash
from learned_opt.rules.base import Rule, register_rule
from learned_opt.rules.lstm import LSTMStack
from learned_opt.subspace import (
    CurvatureModel,
    TrustedStep,
    curvature_model,
    init_memory,
    remember,
    trust_region_step,
)
from learned_opt.trees import Params, Tree, flatten, unflatten

_FAST, _SLOW = 0.9, 0.99
_SHRINK, _GROW = math.log(0.35), math.log(2.5)
_BACK = 0.75

FEATURES = (
    Feature("turn", "cosine of the last two gradients", -1, 1),
    Feature("along last step", "cosine of gradient and last step", -1, 1),
    Feature("straightness", "cosine of the last two steps", -1, 1),
    Feature("gradient growth", "log of gradient norm over the last one", -4, 4),
    Feature("gradient since start", "log of gradient norm over the first one, over 5", -4, 4),
    Feature("gradient over least", "log of gradient norm over the least so far, over 5", 0, 4),
    Feature("decrease ratio", "decrease along the last step over what was predicted", -2, 2),
    Feature("unpredictability", "mean distance of that ratio from 1 at decay 0.9", 0, 2),
    Feature("radius", "log of radius over the parameters' norm, over 5", -4, 4),
    Feature("stride", "log of the last step's length over the radius", -4, 1),
    Feature("known share", "norm of the gradient in the span of past steps over its norm", 0, 1),
    Feature("steepness", "log of largest curvature times radius over gradient norm, over 3", -4, 4),
    Feature("lowest curvature", "lowest over largest size", -1, 1),
    Feature("lowest slope", "gradient along the lowest curvature over its norm", 0, 1),
    Feature("inside", "1 if the last step was not cut at the radius", 0, 1),
    Feature("adaptive", "cosine of gradient and Adam's direction", 0, 1),
    Feature("spread", "log of root mean square gradient of the past over the gradient's", -4, 4),
    Feature("time", "log(1 + steps) / 5", 0, 4),
    Feature("size", "log of the number of parameters, over 10", 0, 4),
)
"""What the net sees. Nothing in it has a unit."""

_DECISIONS = ("radius", "curvature elsewhere", "adaptive share", "gain", "noise", "go back")


@final
@register_rule
class Controller(Rule):
    r"""A trust region in the span of the last steps, steered by a small recurrent net.

    In the span of the last `memory` steps the changes of the gradient give the Hessian (see
    `learned_opt.subspace`); outside of it stands one more direction, between the gradient and
    Adam's, with the largest curvature seen. The step minimises that model within a radius, so at a
    saddle it leaves along negative curvature as far as the radius allows. An untrained net is a
    plain trust region: the radius grows and shrinks by how well the model predicted the decrease of
    the loss, which is read off the two gradients as $-\tfrac12 (g + g') \cdot s$ where the loss is
    not given. The net sees
    `FEATURES`, numbers without units, and multiplies the radius, the curvature outside of the span
    and the length of unbounded steps, mixes the direction outside, adds noise, and decides whether
    to undo a bad step.

    Everything scales: $f \to a f + b$ changes nothing, nor does $x \to c x$ if the start does not
    lie at the origin.

    Args:
        memory: steps remembered, ``m``; the state holds ``2 m + 4`` numbers a parameter.
        hidden_size: units of the recurrent net.
        seed: seed of the initial theta.

    Raises:
        LearnedOptError: if a size is not positive.

    References:
        Nocedal and Wright 2006, chapter 4 (trust regions); Dauphin et al. 2014 (arXiv:1406.2572),
        saddle-free steps in a subspace; Wichrowska et al. 2017 (arXiv:1703.04813), recurrent nets
        on scale-free features.

    Examples:
        >>> rule = Controller(hidden_size=8)
        >>> params = {"x": torch.ones(3, 10)}
        >>> rng = torch.Generator().manual_seed(0)
        >>> updates, state = rule({"x": torch.ones(3, 10)}, rule.init(params), params, rng=rng)
        >>> updates["x"].shape
        torch.Size([3, 10])
    """

    name = "controller"
    needs_rng = True
    feature_schema = schema_hash("controller", FEATURES, _DECISIONS)

    def __init__(self, *, memory: int = 4, hidden_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        require(memory >= 1, f"memory must be positive, got {memory}")
        require(hidden_size >= 1, f"hidden_size must be positive, got {hidden_size}")
        self.memory, self.hidden_size = memory, hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(len(FEATURES), hidden_size)
            self.lstm = LSTMStack(input_size=hidden_size, hidden_size=hidden_size, num_layers=1)
            self.head = nn.Linear(hidden_size, len(_DECISIONS))
            nn.init.normal_(self.head.weight, std=1e-2)
            nn.init.zeros_(self.head.bias)
        self.log_first_radius = nn.Parameter(torch.tensor(math.log(0.1)))

    def config(self) -> dict[str, Any]:
        """Sizes."""
        return {"memory": self.memory, "hidden_size": self.hidden_size}

    def init(self, params: Params) -> Tree:
        """Nothing known, nothing moved."""
        x = flatten(params)
        vector, scalar = torch.zeros_like(x), x.new_zeros(len(x))
        return {
            "memory": init_memory(x, self.memory),
            "grads": vector,
            "step": vector,
            "square": vector,
            "momentum": vector,
            "lstm": self.lstm.init(x[:, :1].to(self.embed.weight.dtype)),
            "radius": scalar,
            "predicted": scalar,
            "loss": scalar,
            "curvature": scalar,
            "first_norm": scalar,
            "least_norm": scalar,
            "surprise": scalar,
            "turned": scalar,
            "is_inside": scalar,
            "steps": scalar,
        }

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step; see `Rule.forward`."""
        require(rng is not None, f"{self.name}: rng must be a torch.Generator, got None")
        g, x = flatten(grads).detach(), flatten(params).detach()
        s: dict[str, Tensor] = state  # type: ignore[assignment]
        is_first = s["steps"] == 0
        last, old_grads = s["step"], s["grads"]
        change = torch.where(is_first[:, None], torch.zeros_like(g), g - old_grads)
        memory = remember(state["memory"], last, change)  # type: ignore[arg-type]
        model = curvature_model(memory)

        count = s["steps"] + 1
        adaptive, root, moments = _adam_direction(g, s, count)
        norm, old_norm, stride, size = (v.norm(dim=1) for v in (g, old_grads, last, x))
        slopes = (model.basis @ g[..., None])[..., 0]
        largest = model.curvatures.abs().amax(1)
        largest = torch.where(largest > 0, largest, s["curvature"])
        decrease = -0.5 * dot(g + old_grads, last)
        if loss is not None:
            loss = loss.detach().to(g)
            decrease = torch.where(is_first, decrease, s["loss"] - loss)
        ratio = safe_ratio(decrease, s["predicted"]).clamp(-2, 2)
        surprise = torch.where(
            is_first, torch.zeros_like(norm), torch.lerp(s["surprise"], (ratio - 1).abs(), 0.1)
        )
        first_norm = torch.where(is_first, norm, s["first_norm"])
        least_norm = torch.where(is_first, norm, torch.minimum(norm, s["least_norm"]))

        radius, is_bad = self._nominal_radius(s, ratio, stride, size, is_first)
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
                _log_ratio(radius.detach(), size) / 5,
                _log_ratio(stride, radius.detach()),
                safe_ratio(slopes.norm(dim=1), norm),
                _log_ratio(largest * radius.detach(), norm) / 3,
                safe_ratio(model.curvatures.amin(1), largest),
                safe_ratio(slopes[:, 0].abs(), norm),
                s["is_inside"],
                safe_ratio(dot(g, adaptive), norm * adaptive.norm(dim=1)),
                _log_ratio(root.norm(dim=1), norm),
                count.log() / 5,
                torch.full_like(norm, math.log(g.shape[1]) / 10),
            ],
            dim=1,
        )
        seen = clip_to(features, FEATURES).to(self.embed.weight.dtype)
        hidden, lstm = self.lstm(self.embed(seen).tanh()[:, None], state["lstm"])  # type: ignore[arg-type]
        decision = self.head(hidden[:, 0]).to(g.dtype).unbind(1)
        radius = radius * decision[0].tanh().exp()
        elsewhere = largest * (2 * decision[1].tanh()).exp()
        share = (decision[2] - 2).sigmoid()
        gain = (0.7 * decision[3].tanh()).exp()
        noise = (3 * decision[4] - 10).clamp_max(0).exp()
        goes_back = is_bad * (decision[5] + 3).sigmoid()

        move, trusted = _trusted_move(
            model,
            g=g,
            slopes=slopes,
            adaptive=adaptive,
            share=share,
            largest=largest,
            elsewhere=elsewhere,
            radius=radius,
            gain=gain,
        )
        shake = torch.randn(x.shape, generator=rng, dtype=x.dtype).to(x.device)
        move = move + (noise * radius * x.shape[1] ** -0.5)[:, None] * shake
        move = torch.lerp(move, -_BACK * last, goes_back[:, None])
        move = torch.where(torch.isfinite(move), move, torch.zeros_like(move))
        turned = safe_ratio(dot(move.detach(), last), move.detach().norm(dim=1) * stride)
        new: Tree = {
            "memory": memory,
            "grads": g,
            "step": move.detach(),
            **moments,
            "lstm": lstm,
            "radius": radius,
            "predicted": trusted.decrease,
            "loss": s["loss"] if loss is None else loss,
            "curvature": largest,
            "first_norm": first_norm,
            "least_norm": least_norm,
            "surprise": surprise,
            "turned": turned,
            "is_inside": trusted.is_inside.to(g.dtype),
            "steps": count,
        }
        return unflatten(move, params), new

    def _nominal_radius(
        self, s: dict[str, Tensor], ratio: Tensor, stride: Tensor, size: Tensor, is_first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The radius by the book, and whether the last step went uphill."""
        old = s["radius"]
        is_poor = ratio < 0.25
        is_cut = stride > 0.8 * old.detach()
        factor = torch.where(is_poor, _SHRINK, torch.where((ratio > 0.7) & is_cut, _GROW, 0.0))
        held = torch.where(is_poor, torch.minimum(old, stride), old)
        first = (
            torch.where(size > 0, size, torch.full_like(size, 1e-2)) * self.log_first_radius.exp()
        )
        radius = torch.where(is_first, first.to(old), held * factor.to(old).exp())
        return radius, (~is_first & (ratio < 0)).to(old)


def _adam_direction(
    g: Tensor, s: dict[str, Tensor], count: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Adam's direction, the root mean square gradient behind it, and the new moments."""
    momentum = torch.lerp(s["momentum"], g, 1 - _FAST)
    square = torch.lerp(s["square"], g.square(), 1 - _SLOW)
    root = (square / (1 - _SLOW**count)[:, None]).sqrt()
    floor = 1e-2 * root.square().mean(1, keepdim=True).sqrt()
    direction = safe_ratio(momentum / (1 - _FAST**count)[:, None], root + floor)
    return direction, root, {"momentum": momentum, "square": square}


def _trusted_move(
    model: CurvatureModel,
    *,
    g: Tensor,
    slopes: Tensor,
    adaptive: Tensor,
    share: Tensor,
    largest: Tensor,
    elsewhere: Tensor,
    radius: Tensor,
    gain: Tensor,
) -> tuple[Tensor, TrustedStep]:
    """The step within the radius, ``[N, P]``; decisions keep their graph, the model has none."""
    # Outside of the span: gradient and Adam's direction, less what lies in the span.
    rest = g - (slopes[:, None] @ model.basis)[:, 0]
    spread = adaptive - ((model.basis @ adaptive[..., None]).mT @ model.basis)[:, 0]
    outside = _unit(_unit(rest) * (1 - share)[:, None] + _unit(spread) * share[:, None])
    slopes = torch.cat((slopes, dot(outside, g)[:, None]), dim=1)
    curvatures = torch.where(model.is_known, model.curvatures, elsewhere.detach()[:, None])
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


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length one; zero rows stay."""
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(length > 0, length, torch.ones_like(length))


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Logarithm of a ratio of sizes; 0 where either is zero."""
    is_known = (above > 0) & (below > 0)
    one = torch.ones_like(above)
    return torch.where(is_known, above, one).log() - torch.where(is_known, below, one).log()
