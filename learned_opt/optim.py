"""LearnedOptimizer: any rule, hand-made or learned, as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, cast, final

import torch
from torch import Tensor

from learned_opt.errors import LearnedOptError, require
from learned_opt.rules.base import HandMade, Rule
from learned_opt.rules.guarded import Guarded
from learned_opt.rules.weights import resolve_rule
from learned_opt.trees import Params, Tree, leaves, tree_map, unflatten
from learned_opt.workspace import Workspace, empty_like

Group: TypeAlias = dict[str, Any]

_LOG = logging.getLogger(__name__)

_RULE_STATE = "rule_state"
_GENERATOR_STATE = "generator_state"

GUARD_TERMS: Any = {"demand": 0.1, "window": 32}
"""Milder than the guard's defaults, which are for gradients without noise. On networks with
minibatches Adam, at its own defaults, keeps 7 to 35 % of its promises in the last fifth of training
(`experiments/promises.py`): the part of a step that follows the noise of the gradient it is judged
by is promised and never comes. Losses wander for tens of steps, so windows are longer."""


@final
class LearnedOptimizer(torch.optim.Optimizer):
    """Drop-in optimizer that moves parameters by a `Rule`.

    Each parameter group is one problem to the rule: a norm, or a rule's global features, span the
    whole group. Groups added later start with fresh rule state.

    Learned rules compute in the type of their theta (float32), hand-made rules in float32, or in
    float64 if a parameter of the group is float64. Rule state stays in that type, whatever the
    parameters are; parameters are rounded once a step, after the update was added.

    A parameter whose gradient is None does not move, and what the rule keeps of it alone (a
    momentum) is left as it was. To rules that do not keep tensors apart (the recurrent ones) it
    looks like a zero gradient, unless it does not require one: such parameters they do not see,
    and where others begin or cease to require gradients their state starts anew. A group without
    any gradient is skipped altogether. What ``state_dict()`` hands out is never written into;
    tensors taken from ``state`` may be.

    Learned rules act under guard (`Guarded`): where one makes less than a tenth of the progress
    that Adam's steps promise, diverges or returns NaN, its last steps are undone and Adam takes
    over, with a message of the logger ``learned_opt.rules.guarded``; and no parameter becomes
    infinite or NaN. A rule that does well is left alone, to the last bit. The guard judges by the
    loss, so give it: ``step(closure)`` or ``step(loss=loss)``; without one it estimates changes
    from gradients. It costs a step of Adam and a few passes over the parameters, and six copies of
    them (Adam's moments twice, and two points). Without guard, and for hand-made rules, gradients
    that are NaN are not looked for, as in ``torch.optim``; rules that leave out steps that are not
    finite (the controller) then stand still.

    Args:
        params: parameters, named parameters, or groups of either, as for any torch optimizer.
            Groups may set ``lr`` and ``weight_decay``.
        rule: name of bundled weights or of a hand-made rule, path of a weight file, or a `Rule`,
            which is copied: its theta is never trained, nor listed in ``param_groups``.
        lr: factor on the rule's own steps, for schedulers and by hand. It is not a learning rate in
            the usual sense: 1 means the steps that the rule was trained to take. The controller
            judges its steps by what came of them, so it takes a fifth or less for a bad prediction
            and slows down far more than that.
        weight_decay: each step also subtracts ``lr * weight_decay * parameter``, decoupled from the
            gradient as in AdamW. Because ``lr`` is around 1 here, not around 1e-3, values are
            correspondingly smaller: AdamW's ``lr=1e-3, weight_decay=1e-2`` is 1e-5 here.
        seed: of the random numbers of rules that use them; each group has a stream of its own.
        guard: True guards learned rules, with Adam at its default settings to fall back to; a rule
            (or its name) guards any rule and is fallen back to; False trusts the rule.

    Attributes:
        rule: the rule that was asked for, without its guard.

    Raises:
        LearnedOptError: if the rule cannot be found or loaded, is a sweep, or a setting or a
            parameter's type is not supported.

    Examples:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = LearnedOptimizer(model.parameters(), "adam", lr=0.5)
        >>> model(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: str | Path | Rule = "controller",
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        guard: bool | str | Rule = True,
    ) -> None:
        rule = copy.deepcopy(rule) if isinstance(rule, Rule) else resolve_rule(rule)
        mover = rule
        if guard is True and not isinstance(rule, HandMade | Guarded):
            mover = Guarded(rule, "adam", **GUARD_TERMS)
        elif not isinstance(guard, bool):
            fallback = copy.deepcopy(guard) if isinstance(guard, Rule) else resolve_rule(guard)
            mover = Guarded(rule, fallback, **GUARD_TERMS)
        self._mover = mover.requires_grad_(requires_grad=False).eval()
        self.rule = rule
        self.seed = seed
        self._workspaces: dict[int, Workspace] = {}
        self._names: dict[int, set[str]] = {}
        for part in mover.modules():
            for key, value in part.named_parameters() if isinstance(part, HandMade) else ():
                require(
                    value.numel() == 1,
                    f"rule '{part.name}': {key} must be one number here, got a sweep of "
                    f"{value.numel()}",
                )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; they are a problem of their own to the rule.

        Args:
            param_group: ``params``, and optionally ``lr`` and ``weight_decay``.

        Raises:
            LearnedOptError: if a setting is negative or a parameter is not real floating-point.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _require_supported(group)
        except LearnedOptError:
            self.param_groups.pop()
            raise

    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float | Tensor] | None = None,
        *,
        loss: float | Tensor | None = None,
    ) -> float | Tensor | None:
        """Move the parameters once.

        Args:
            closure: clears gradients, computes the loss, calls ``backward`` and returns the loss.
            loss: the loss at the current parameters, if known and no closure is given. Rules that
                look at it do better with it.

        Returns:
            What the closure returned, or None.

        Raises:
            LearnedOptError: if a gradient is sparse or complex, the loss is not one number, both
                `closure` and `loss` are given, or the rule needs a loss and has none. Nothing has
                moved then.
        """
        require(
            closure is None or loss is None, "step takes a closure or a loss, got both: drop one"
        )
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = loss = closure()
        value = None if loss is None else torch.as_tensor(loss).detach()
        require(
            value is None or value.numel() == 1,
            f"loss must be one number, got shape {tuple(value.shape) if value is not None else ()}",
        )
        require(
            value is not None or not self._mover.needs_loss,
            f"rule '{self.rule.name}' needs the loss: call step(closure) or step(loss=loss)",
        )
        for group in self.param_groups:
            _require_dense(group)
        with torch.no_grad():
            for index, group in enumerate(self.param_groups):
                self._step_group(index, group, value)
        return result

    def _step_group(self, index: int, group: Group, loss: Tensor | None) -> None:
        """Move one group."""
        tensors = self._moving(group)
        if self._names.setdefault(index, set(tensors)) != set(tensors):
            _LOG.info("group %d: other parameters require gradients, its state starts anew", index)
            self.state.pop(group["params"][0], None)
            self._workspaces.pop(index, None)
            self._names[index] = set(tensors)
        skipped = [name for name, p in tensors.items() if p.grad is None]
        if len(skipped) == len(tensors):
            return
        # State, copies and updates belong to this object alone until `state_dict` is called.
        space = self._workspaces.setdefault(index, Workspace())
        with space.use():
            self._move(index, group, loss, tensors, skipped)
        space.settle(leaves(self.state[group["params"][0]][_RULE_STATE]).values())

    def _move(
        self,
        index: int,
        group: Group,
        loss: Tensor | None,
        tensors: dict[str, Tensor],
        skipped: list[str],
    ) -> None:
        """Move the parameters of a group that have a gradient."""
        params = self._as_problem(tensors)
        like = next(iter(params.values()))
        self._mover.to(like.device)
        first = group["params"][0]
        stored = self.state[first]
        old = stored.get(_RULE_STATE)
        old = self._mover.init(params) if old is None else old
        grads = self._as_problem({
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in tensors.items()
        })
        rng = None
        if self._mover.needs_rng:
            rng = torch.Generator().manual_seed(self.seed + index)
            if _GENERATOR_STATE in stored:
                rng.set_state(stored[_GENERATOR_STATE])
        updates, new = self._mover(
            grads,
            old,
            params,
            loss=None if loss is None else loss.reshape(1).to(like),
            rng=rng,
        )
        # Replaced, not written into: dictionaries that state_dict handed out stay as they were.
        kept = _keep(skipped, old, new, names=set(tensors)) if skipped else new
        self.state[first] = {_RULE_STATE: kept}
        if rng is not None:
            self.state[first][_GENERATOR_STATE] = rng.get_state()
        lr, weight_decay = group["lr"], group["weight_decay"]
        back = self._mover.returns(new)
        if back is not None and bool(back):
            lr, weight_decay = 1.0, 0.0
        reach = self._mover.reach(new)
        limit = math.inf if reach is None else float(reach)
        for name, p in tensors.items():
            if p.grad is not None:
                update = updates[name][0]
                _add(p, update, lr, weight_decay, is_guarded=back is not None, reach=limit)

    def _moving(self, group: Group) -> dict[str, Tensor]:
        """The group's parameters by position, without those that cannot move.

        Frozen ones would blind a rule that looks at all of a group at once.
        """
        tensors = {f"param_{i}": p for i, p in enumerate(group["params"]) if p.numel()}
        if self._mover.coordinatewise or isinstance(self._mover, HandMade):
            return tensors
        return {name: p for name, p in tensors.items() if p.requires_grad} or tensors

    def _as_problem(self, tensors: dict[str, Tensor]) -> Params:
        """Copies of the tensors with a problem axis of one, in the type the rule computes in.

        Copies, because a rule may keep what it is given (the last point, the last gradient), while
        parameters and gradients are changed in place here and by the training loop.
        """
        dtype = self._mover.compute_dtype
        if dtype is None:
            is_double = any(t.dtype == torch.float64 for t in tensors.values())
            dtype = torch.float64 if is_double else torch.float32
        # One long copy: rules that see all parameters as one vector need not make another one.
        like = next(iter(tensors.values()))
        size = sum(t.numel() for t in tensors.values())
        flat = empty_like(like.detach().new_empty((), dtype=dtype).expand(1, size))
        copies = unflatten(flat, {name: t.unsqueeze(0) for name, t in tensors.items()})
        for name, t in tensors.items():
            copies[name].copy_(t.detach())
        return copies

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from; its tensors are not written over later."""
        for space in self._workspaces.values():
            space.forget()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, exactly.

        Args:
            state_dict: of a `LearnedOptimizer` with the same rule and parameters of equal shapes.

        Raises:
            LearnedOptError: if the state is another rule's or fits other parameters. Nothing has
                been loaded then.
        """
        # Torch casts floating-point state to the type of its parameter; a rule's state must keep
        # its own, so it is taken from the dictionary (as the user's hooks leave it) once more.
        seen: dict[str, Any] = {}

        def check(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            del optimizer
            seen.update(self._checked(state_dict))

        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self.state.clear()
        self.state.update(seen["state"])
        self._names.clear()

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state by parameter, moved to its device, or an error if it does not fit."""
        state: dict[Tensor, dict[str, Any]] = {}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            if len(saved["params"]) != len(group["params"]):
                break  # torch raises its own error
            entry = {}
            for index in saved["params"]:
                entry.update(state_dict["state"].get(index, {}))
            tensors = self._moving(group)
            if not entry or not tensors:
                continue
            expected = leaves(self._mover.init(self._as_problem(tensors)))
            found = leaves(entry[_RULE_STATE]) if _RULE_STATE in entry else None
            require(
                found is not None
                and {k: v.shape for k, v in found.items()}
                == {k: v.shape for k, v in expected.items()},
                f"the loaded optimizer state does not fit the rule '{self.rule.name}' on these "
                "parameters: it must come from a LearnedOptimizer with the same rule, guard and "
                "shapes, of the same version of learned_opt",
            )
            device = group["params"][0].device
            loaded = {
                _RULE_STATE: tree_map(lambda leaf: leaf.to(device).clone(), entry[_RULE_STATE])  # noqa: B023
            }
            if _GENERATOR_STATE in entry:
                loaded[_GENERATOR_STATE] = entry[_GENERATOR_STATE].cpu().clone()
            state[group["params"][0]] = loaded
        return {"state": state}

    def __getstate__(self) -> dict[str, Any]:
        # Torch's own list of what to copy and pickle has no place for the rule.
        return {
            **super().__getstate__(),
            "rule": self.rule,
            "_mover": self._mover,
            "seed": self.seed,
            "_workspaces": {},
            "_names": dict(self._names),
        }


def _add(
    p: Tensor,
    update: Tensor,
    lr: float | Tensor,
    weight_decay: float,
    *,
    is_guarded: bool,
    reach: float,
) -> None:
    """Add ``lr`` times the update in place, and shrink; no coordinate of either exceeds `reach`."""
    if (
        p.dtype == update.dtype
        and not isinstance(lr, Tensor)
        and (not is_guarded or _is_harmless(p, update, lr, weight_decay, reach))
    ):
        if lr * weight_decay:
            p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=lr)
        return
    precise = p.to(torch.promote_types(p.dtype, update.dtype))
    moved = (precise * (1 - lr * weight_decay) + lr * update).to(p.dtype)
    # A guard sees neither the learning rate nor what the parameter's type can hold.
    p.copy_(torch.where(moved.isfinite(), moved, p) if is_guarded else moved)


def _is_harmless(p: Tensor, update: Tensor, lr: float, weight_decay: float, reach: float) -> bool:
    """Whether nothing becomes infinite, by what is known or a look at the largest numbers."""
    if max(abs(lr), abs(1 - lr * weight_decay)) * reach < torch.finfo(p.dtype).max:
        return True
    if p.device.type != "cpu":
        return False  # Looking would wait for the device.
    moved, stayed = (max(t.amax().item(), -t.amin().item()) for t in (update, p))
    # NaN compares as false.
    return abs(lr) * moved + abs(1 - lr * weight_decay) * stayed < torch.finfo(p.dtype).max


def _keep(skipped: list[str], old: Tree, new: Tree, *, names: set[str]) -> Tree:
    """`new`, with the entries of `skipped` as in `old` wherever a dictionary is per parameter."""
    if set(new) == names:
        return {k: old[k] if k in skipped else v for k, v in new.items()}
    return {
        k: _keep(skipped, cast(Tree, old[k]), v, names=names)
        # What a guard goes back to holds states of one step, as they were.
        if isinstance(v, dict) and k != "anchor"
        else v
        for k, v in new.items()
    }


def _label(group: Group, position: int) -> str:
    """How to call a parameter in an error."""
    names = group.get("param_names")
    return f"parameter '{names[position]}'" if names else f"parameter {position} of its group"


def _require_supported(group: Group) -> None:
    for key in ("lr", "weight_decay"):
        require(group[key] >= 0, f"{key} must not be negative, got {group[key]}")
    for position, p in enumerate(group["params"]):
        require(
            p.is_floating_point(),
            f"{_label(group, position)} must be real floating-point, got {p.dtype}",
        )
    devices = sorted({str(p.device) for p in group["params"]})
    require(
        len(devices) <= 1,
        f"a parameter group must be on one device, got {', '.join(devices)}: split the group",
    )


def _require_dense(group: Group) -> None:
    for position, p in enumerate(group["params"]):
        if p.grad is not None:
            require(
                p.grad.layout == torch.strided,
                f"{_label(group, position)} has a sparse gradient, which no rule supports",
            )
