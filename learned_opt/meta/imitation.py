"""Imitation: a rule learns to take the steps of a known one, before it learns to be better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.meta.episodes import Episode, EpisodeSampler
from learned_opt.meta.estimators import Estimate, MetaGradient, trainable
from learned_opt.rules.base import Rule
from learned_opt.trees import Params, Tree, num_problems, squared_norm
from learned_opt.unroll import Carry, start, unroll


@final
class Shadowed(Rule):
    """A teacher that moves, and a learner that is shown the same and says what it would do.

    The state keeps two sums over steps, ``[N]`` each: ``missed``, the squared distance of the
    learner's step from the teacher's, and ``length``, the squared length of the teacher's.

    Args:
        teacher: who moves; there is no graph through its steps.
        learner: whose steps are compared.
    """

    name: ClassVar[str] = "shadowed"

    def __init__(self, teacher: Rule, learner: Rule) -> None:
        super().__init__()
        self.teacher, self.learner = teacher, learner

    def init(self, params: Params) -> Tree:
        """The states of both, nothing missed."""
        return {
            "teacher": self.teacher.init(params),
            "learner": self.learner.init(params),
            **nothing_missed(params),
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
        """The teacher's step; see `Rule.forward`."""
        taught, learned = state["teacher"], state["learner"]
        missed, length = state["missed"], state["length"]
        assert not isinstance(taught, Tensor) and not isinstance(learned, Tensor)
        assert isinstance(missed, Tensor) and isinstance(length, Tensor)
        with torch.no_grad():
            updates, taught = self.teacher(grads, taught, params, loss=loss, rng=rng)
        tried, learned = self.learner(grads, learned, params, loss=loss, rng=rng)
        distance = {name: tried[name] - update for name, update in updates.items()}
        return updates, {
            "teacher": taught,
            "learner": learned,
            "missed": missed + squared_norm(distance),
            "length": length + squared_norm(updates),
        }


def nothing_missed(params: Params) -> Tree:
    """The sums of `Shadowed` before the first step."""
    zeros = next(iter(params.values())).new_zeros(num_problems(params))
    return {"missed": zeros, "length": zeros}


@final
@dataclass(frozen=True, kw_only=True)
class Imitation(MetaGradient[Episode]):
    r"""Back-propagate what the rule's steps $\Delta$ miss of a teacher's $\Delta^*$.

    $$ L = \frac{1}{N} \sum_n
           \frac{\sum_t |\Delta_{n,t} - \Delta^*_{n,t}|^2}{\sum_t |\Delta^*_{n,t}|^2} $$

    The teacher moves. The rule is shown its gradients, losses and points, and remembers what it
    likes; so inner loops stay as calm as the teacher's, and nothing is differentiated through them.

    Attributes:
        sampler: draws episodes.
        teacher: whom to imitate, with fixed hyperparameters.
        truncation: inner steps an outer step.

    References:
        Chen et al. 2020 (arXiv:2010.09089), "off-policy imitation". Their code takes half the
        squared difference, averaged over coordinates; relative to the teacher's own steps it is
        the same for steps of constant length, and no task counts more for its units. They draw
        episodes of imitation throughout training; here they come first, see `WarmStart`.
    """

    sampler: EpisodeSampler
    teacher: Rule
    truncation: int = 20

    def __post_init__(self) -> None:
        require(self.truncation >= 1, f"truncation must be positive, got {self.truncation}")

    def estimate(
        self, rule: Rule, state: Episode | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[Episode]:
        """One truncation along the teacher's trajectory; see `MetaGradient.estimate`."""
        episode = self.sampler.draw(progress, rng) if state is None else state
        shadowed = Shadowed(self.teacher, rule)
        carry = start(shadowed, episode.problems) if episode.carry is None else episode.carry
        unrolled = unroll(
            self.sampler.tasks[episode.task],
            shadowed,
            episode.problems,
            num_steps=min(self.truncation, episode.horizon - episode.step),
            rng=rng,
            carry=_counting_anew(carry),
            differentiable=True,
            final_loss=False,
        )
        missed, length = (unrolled.carry.state[name] for name in ("missed", "length"))
        assert isinstance(missed, Tensor) and isinstance(length, Tensor)
        require(
            missed.requires_grad,
            f"rule '{rule.name}' takes steps that have no derivative by theta, so it cannot "
            "imitate: imitation_steps must be 0",
        )
        # Where the teacher stands still there is no unit.
        meta_loss = (missed / torch.where(length > 0, length, 1.0)).mean()
        grads = torch.autograd.grad(meta_loss, trainable(rule), materialize_grads=True)
        episode = replace(episode, carry=unrolled.carry.detach())
        return Estimate(
            meta_loss=meta_loss.detach(),
            grads=grads,
            state=episode if episode.step < episode.horizon else None,
            diagnostics={
                "task": float(episode.task),
                "inner_step": float(episode.step),
                "horizon": float(episode.horizon),
            },
            metrics={"imitation_error": meta_loss.item()},
        )

    def pack(self, state: Episode) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        return state.pack()

    def unpack(self, packed: Mapping[str, Any]) -> Episode:
        """Undo `pack`."""
        return Episode.unpack(packed)


def _counting_anew(carry: Carry) -> Carry:
    return replace(carry, state={**carry.state, **nothing_missed(carry.params)})


@final
@dataclass(frozen=True, kw_only=True)
class WarmState:
    """Where a `WarmStart` stands.

    Attributes:
        is_imitating: whose the state is.
        state: of the estimator in charge.
    """

    is_imitating: bool
    state: Any


@final
@dataclass(frozen=True, kw_only=True)
class WarmStart(MetaGradient[WarmState]):
    """Imitation first, then another estimator, which begins afresh.

    Attributes:
        imitation: of the first outer steps.
        estimator: of all others.
        imitation_steps: how many come first.
        num_outer_steps: how many there are.
    """

    imitation: Imitation
    estimator: MetaGradient[Any]
    imitation_steps: int
    num_outer_steps: int

    def estimate(
        self, rule: Rule, state: WarmState | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[WarmState]:
        """What the estimator in charge says; see `MetaGradient.estimate`."""
        # Not counted in the state, which is lost where a step is skipped.
        is_imitating = round(progress * self.num_outer_steps) < self.imitation_steps
        own = state.state if state is not None and state.is_imitating == is_imitating else None
        estimate = self._in_charge(is_imitating).estimate(rule, own, progress=progress, rng=rng)
        new = None
        if estimate.state is not None:
            new = WarmState(is_imitating=is_imitating, state=estimate.state)
        return replace(estimate, state=new)

    def check(self, rule: Rule) -> None:
        """See `MetaGradient.check`."""
        self.estimator.check(rule)

    def pack(self, state: WarmState) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        inner = self._in_charge(state.is_imitating).pack(state.state)
        return {"is_imitating": state.is_imitating, "state": inner}

    def unpack(self, packed: Mapping[str, Any]) -> WarmState:
        """Undo `pack`."""
        is_imitating = packed["is_imitating"]
        return WarmState(
            is_imitating=is_imitating, state=self._in_charge(is_imitating).unpack(packed["state"])
        )

    def _in_charge(self, is_imitating: bool) -> MetaGradient[Any]:
        return self.imitation if is_imitating else self.estimator
