"""Many thetas in one batch: what evolution strategies run instead of a loop over particles.

A lane is a group of problems under one theta. Lanes come in pairs, or with an unperturbed third,
and rows are ordered by pair, then lane, then problem, so ``[P, S, M]`` flattened. The lanes of a
pair share problems, minibatches and the rule's own noise: what differs between them is theta alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from learned_opt.errors import LearnedOptError, require
from learned_opt.rules.base import Rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.trees import Params, Tree, select, tree_map, unflatten

_CHUNK_COORDINATES = 1 << 14
"""Coordinates that move together; more leave the cache, and a step takes a third longer."""


class _Init(nn.Module):
    """`Rule.init` as a forward pass, for `functional_call` swaps parameters during one alone."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, params: Params) -> Tree:
        return self.rule.init(params)


@final
class Lanes(Rule):
    """A rule with a theta for each lane, ``M`` problems a lane.

    Sixteen pairs of 20-unit LSTMs on 4 problems of 10 coordinates take 1.2 ms a step this way and
    9.8 ms in a loop over the 32 thetas.

    Args:
        rule: whose theta is perturbed; its own values play no part.
        thetas: ``[P, S, D]`` trainable parameters, flattened in `trainable` order.

    Raises:
        LearnedOptError: if `rule` is a sweep, which has a theta for each problem already.
    """

    name: ClassVar[str] = "lanes"

    def __init__(self, rule: Rule, thetas: Tensor) -> None:
        super().__init__()
        require(
            rule.sweep_size is None,
            f"rule '{rule.name}' must have one theta to be perturbed, "
            f"got one for each of {rule.sweep_size} problems",
        )
        self.rule = rule
        num_pairs, num_lanes, _ = thetas.shape
        # Pairs draw their noise apart, the lanes of a pair together. Where nothing is drawn, one
        # level of vmap instead of two saves a fifth.
        self.axes = (num_pairs, num_lanes) if rule.needs_rng else (num_pairs * num_lanes,)
        like = {n: p.detach()[None] for n, p in rule.named_parameters() if p.requires_grad}
        self.thetas = {
            name: part.unflatten(0, self.axes)
            for name, part in unflatten(thetas.flatten(0, 1), like).items()
        }

    def init(self, params: Params) -> Tree:
        """See `Rule.init`; ``[P S M, ...]`` rows."""

        def one(theta: Params, params: Params) -> Tree:
            named = {f"rule.{name}": value for name, value in theta.items()}
            state: Tree = functional_call(_Init(self.rule), named, (params,))
            return state

        return self._merge(self._over_lanes(one, params)(self.thetas, self._split(params)))

    def forward(
        self,
        grads: Params,
        state: Tree,
        params: Params,
        *,
        loss: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> tuple[Params, Tree]:
        """One step of all lanes; see `Rule.forward`.

        Raises:
            LearnedOptError: if the rule cannot run as one batch of many thetas.
        """

        def one(theta: Params, grads: Params, state: Tree, params: Params, known: Tree) -> object:
            return functional_call(
                self.rule, theta, (grads, state, params), {"loss": known.get("loss"), "rng": rng}
            )

        known: Tree = {} if loss is None else {"loss": loss}
        trees = (self._split(tree) for tree in (grads, state, params, known))
        try:
            updates, state = self._over_lanes(one, grads)(self.thetas, *trees)
        except RuntimeError as error:
            if "data-dependent control flow" not in str(error):
                raise
            raise LearnedOptError(
                f"rule '{self.rule.name}' branches on what its tensors hold, so it cannot run "
                "under many thetas at once; train it by truncated back-propagation"
            ) from error
        return self._merge(updates), self._merge(state)  # type: ignore[return-value]

    def _over_lanes(self, one: Callable[..., Any], like: Params) -> Callable[..., Any]:
        """`one` for all lanes, in chunks of them."""
        coordinates = sum(p.numel() for p in like.values())
        return vmap(
            vmap(one, randomness="same") if len(self.axes) == 2 else one,
            randomness="different",
            chunk_size=max(1, _CHUNK_COORDINATES * self.axes[0] // coordinates),
        )

    def _split(self, tree: Tree | Params) -> Tree:
        """Rows to lanes and problems."""
        return tree_map(lambda leaf: leaf.unflatten(0, (*self.axes, -1)), tree)  # type: ignore[arg-type]

    def _merge(self, tree: Tree) -> Tree:
        """Undo `_split`."""
        return tree_map(lambda leaf: leaf.flatten(0, len(self.axes)), tree)


@final
class SharedDraws(Task):
    """A task whose lanes see the same minibatches.

    Args:
        inner: the task.
        groups: problems ``[P M]``, one group for each pair.
        rows: ``[P S M]`` for each row of the batch the position of its problem in `groups`.
    """

    name: ClassVar[str] = "shared_draws"

    def __init__(self, inner: Task, groups: Problems, rows: Tensor) -> None:
        self.inner, self.groups, self.rows = inner, groups, rows
        self.shapes = inner.shapes

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree | None:
        """What the inner task draws for the groups, handed to every lane."""
        del problems
        drawn = self.inner.batch(self.groups, rng)
        return None if drawn is None else select(drawn, self.rows)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The inner loss."""
        return self.inner.loss(params, problems, batch)

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        return self.inner._sample(num_problems, rng)


def perturbed(theta: Tensor, noise: Tensor, lanes: Sequence[int]) -> Tensor:
    """A theta for each lane, ``[P, S, D]``, from those of the pairs and their noise, ``[P, D]``."""
    signs = noise.new_tensor(lanes)
    return theta.unsqueeze(1) + signs[:, None] * noise.unsqueeze(1)
