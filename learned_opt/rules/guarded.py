"""A guard: a rule acts as long as it keeps what a trusted one promises."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.features import dot, safe_ratio
from learned_opt.rules.base import Rule, build_rule, describe_rule, register_rule
from learned_opt.rules.supervision import Book, Sight, Terms, advance, open_book, supervise, undo
from learned_opt.trees import Params, Tree, choose, flatten, num_problems, per_row, unflatten
from learned_opt.workspace import in_pieces, is_long

_LOG = logging.getLogger(__name__)


@final
@register_rule
class Guarded(Rule):
    r"""A rule under guard: where it fails, problem by problem, a trusted rule takes over.

    The rule acts. Beside it the fallback is run on the same gradients, and promises, to first
    order, a fall of the loss: ``p = -<gradient, fallback's update>``. The run is cut into windows,
    of `window` steps and later of a tenth of the rule's tenure. A window is *kept* if the loss fell
    by `demand` of the promises made in it, less `tolerance` standard errors of its own noise and a
    millionth of the fall since the highest loss, for at a minimum promises cannot be kept.
    Otherwise it is *undone*: parameters and fallback return to where it began, and the fallback
    acts. It is undone at once where a loss, gradient or update is not finite, or where the loss,
    more than `window` steps into it, rises thrice as far as in any window before. (Highest and
    before: since the last return, if there was one.)

    After `rest` windows of the fallback the rule gets a trial window, from a fresh state that may
    know how many steps were taken (`Rule.restart`). It is handed back the charge if the loss falls
    faster than in the fallback's last window, beyond noise; else the trial is undone, and the
    fallback's windows and the next trial are twice as long. Each hand-over and hand-back, not each
    trial, is one message of the logger ``learned_opt.rules.guarded``.

    What holds, for any rule:

    1. *Finite.* No parameter becomes infinite or NaN if it was finite at the start, and the
       fallback's own steps are left out where they would do it.
    2. *Untouched.* Up to the first window that is undone the updates are the rule's, bit for bit.
    3. *Late by little.* Where no window is kept, the points after undone windows are struck out are
       the fallback's own, bit for bit as long as gradients are deterministic, because its state is
       undone too. (Parameters in float64 under rules that compute in float32 go back to their
       values rounded to float32.) An undone window of ``w`` steps costs ``w + 1`` gradients, and
       one more where rounding keeps a return from being exact (from more than twice as far from
       zero; a few from astronomically far). There is one of `window` steps before the fallback
       acts, and one of ``w`` for every ``rest * w`` steps of it. With the defaults the guard needs
       at most ``18 (1 + T / 384)`` gradients more than the ``T`` of the fallback alone (18 below
       384): less than 10 % from T = 181 on. No guard whose first steps are the rule's can promise
       as much for short runs.
    4. *Progress.* As long as all windows are kept, with ``tolerance=0`` and but for that millionth,
       the means that progress is measured between telescope, so the loss fell by at least `demand`
       times all promises. Gradient descent of step ``h`` as fallback promises ``h |gradient|^2``,
       hence ``sum |gradient|^2 <= (f(x_0) - inf f) / (demand h)``: the inequality from which the
       rate of gradient descent itself on smooth nonconvex functions follows (Nesterov 2004, section
       1.2.3, where the factor is 2 / h). Once the fallback has acted, its promises count only in so
       far as it kept them itself.

    What does not hold: an excursion is undone, not prevented; a rule that keeps windows leads to
    other places than the fallback, which in nonconvex problems may be worse ones; and with noise
    all judgements are statistical. Noise also makes promises too high, by the part of the
    fallback's step that follows the noise of the very gradient it is judged by, so where noise
    dominates the guard leans towards the fallback, unless `demand` is low and windows are long:
    `LearnedOptimizer` takes 0.1 and 32, for with minibatches Adam itself keeps a tenth to a third
    of its promises in the end.

    Without a loss it adds up the trapezoid rule along its steps, which is exact for quadratics.

    Memory beyond that of both rules: two copies of the parameters (where to go back to, the last
    point) and one of the fallback's state. The gradient at an undone point is not used.

    The idea, a test on the rule's step with a provably convergent one in reserve, is that of
    safeguarded learning to optimize; both published guards look at other points than the one they
    are at (the candidate's residual, or both candidates' losses), which one gradient a step does
    not allow, hence windows, promises and undoing.

    Args:
        rule: the rule to guard: a `Rule`, a registered name (fresh theta), or a description as in
            `config`.
        fallback: the trusted one, in the same forms; it must not need random numbers.
        window: steps of the shortest window, at least 4.
        rest: windows of the fallback before a trial.
        demand: share of the fallback's promise that the rule must keep, in [0, 1].
        tolerance: standard errors of a window's progress that pass for noise.

    Raises:
        LearnedOptError: if a rule is unknown or does not fit, or a setting is out of range.

    References:
        Heaton, Chen, Wang and Yin 2020, "Safeguarded learned convex optimization"
        (arXiv:2003.01880); Prémont-Schwarz, Vítků and Feyereisl 2022, "A simple guard for learned
        optimizers" (arXiv:2201.12426).

    Examples:
        >>> rule = Guarded("lstm", "adam")
        >>> params = {"x": torch.zeros(3, 10)}
        >>> updates, state = rule({"x": torch.ones(3, 10)}, rule.init(params), params)
        >>> updates["x"].shape
        torch.Size([3, 10])
    """

    name = "guarded"

    def __init__(
        self,
        rule: Rule | str | Mapping[str, Any] = "lstm",
        fallback: Rule | str | Mapping[str, Any] = "adam",
        *,
        window: int = 16,
        rest: int = 24,
        demand: float = 0.9,
        tolerance: float = 2.0,
    ) -> None:
        super().__init__()
        require(window >= 4, f"window must be at least 4, got {window}")
        require(rest >= 1, f"rest must be positive, got {rest}")
        require(0 <= demand <= 1, f"demand must be between 0 and 1, got {demand}")
        require(tolerance >= 0, f"tolerance must not be negative, got {tolerance}")
        self.window, self.rest = window, rest
        self.demand, self.tolerance = demand, tolerance
        self.rule, self.fallback = build_rule(rule), build_rule(fallback)
        require(
            not self.fallback.needs_rng,
            f"fallback must not need random numbers, got '{self.fallback.name}'",
        )
        sizes = {self.rule.sweep_size, self.fallback.sweep_size} - {None}
        require(
            len(sizes) <= 1,
            "rule and fallback must be sweeps over equally many problems, got "
            f"{self.rule.sweep_size} and {self.fallback.sweep_size}",
        )

    @property
    def needs_loss(self) -> bool:  # type: ignore[override]
        """Whether either rule does; the guard itself sees more with it, but can do without."""
        return self.rule.needs_loss or self.fallback.needs_loss

    @property
    def needs_rng(self) -> bool:  # type: ignore[override]
        """Whether the rule does."""
        return self.rule.needs_rng

    @property
    def feature_schema(self) -> str:  # type: ignore[override]
        """That of the rule."""
        return self.rule.feature_schema

    @property
    def sweep_size(self) -> int | None:
        """That of whichever is a sweep."""
        return self.rule.sweep_size or self.fallback.sweep_size

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """That of the rule, or of the fallback if the rule takes any."""
        return self.rule.compute_dtype or self.fallback.compute_dtype

    def config(self) -> dict[str, Any]:
        """Both rules and the settings of the guard."""
        return {
            "rule": describe_rule(self.rule),
            "fallback": describe_rule(self.fallback),
            "window": self.window,
            "rest": self.rest,
            "demand": self.demand,
            "tolerance": self.tolerance,
        }

    def returns(self, state: Tree) -> Tensor:
        """Whether the last updates undo a window."""
        book: Book = state["book"]  # type: ignore[assignment]
        return book["away"].gt(0)

    def reach(self, state: Tree) -> Tensor:
        """See `Rule.reach`."""
        step: dict[str, Tensor] = state["step"]  # type: ignore[assignment]
        return step["reach"].masked_fill(self.returns(state), torch.inf)

    def init(self, params: Params) -> Tree:
        """Both states, where to go back to, the last step, and the book."""
        size, point = num_problems(params), flatten(params).detach()
        number = torch.zeros(size, dtype=torch.float64, device=point.device)
        fallback = self.fallback.init(params)
        book = open_book(size, self._terms(point), device=point.device)
        return {
            "rule": self.rule.init(params),
            "fallback": fallback,
            "anchor": {"point": point, "fallback": fallback, "loss": number},
            "step": {
                "from": point,
                **dict.fromkeys(("length", "slope", "promise", "reach"), number),
            },
            "book": {**book, "knew_loss": torch.zeros_like(book["is_rule"])},
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
        old: dict[str, Any] = state
        slopes, point = flatten(grads).detach(), flatten(params).detach()
        terms = self._terms(point)
        with torch.no_grad():
            sight, size, book = self._see(slopes, point, loss, old)
            book, ruling = supervise(book, sight, terms)
        anchor, memory = old["anchor"], old["rule"]
        if bool(ruling.anchors.any()):
            here: Tree = {"point": point, "fallback": old["fallback"], "loss": sight.loss}
            anchor = here if bool(ruling.anchors.all()) else choose(ruling.anchors, here, anchor)
        if bool(ruling.starts.any()):
            memory = choose(ruling.starts, self.rule.restart(params, book["steps"]), memory)
        steps, fallback = self.fallback(grads, old["fallback"], params, loss=loss)
        length, slope = _length_and_slope(flatten(steps).detach(), slopes)
        is_usable = sight.is_healthy & _is_safe(size, length, point.dtype)
        if not bool(is_usable.all()):
            # The fallback neither moves nor changes where its step would not be finite.
            steps = {k: u.masked_fill(~per_row(is_usable, u), 0.0) for k, u in steps.items()}
            fallback = choose(is_usable, fallback, old["fallback"])
            length, slope = (n.masked_fill(~is_usable, 0) for n in (length, slope))
        promise = -slope
        updates, fails, is_rule = steps, ruling.fails, book["is_rule"]
        if bool((is_rule & ~fails).any()):
            moves, new = self.rule(grads, memory, params, loss=loss, rng=rng)
            far, along = _length_and_slope(flatten(moves).detach(), slopes)
            fails = fails | (is_rule & ~_is_safe(size, far, point.dtype))
            acts = is_rule & ~fails
            length, slope = torch.where(acts, far, length), torch.where(acts, along, slope)
            if bool(acts.all()):
                updates, memory = moves, new
            else:
                updates = choose(acts, moves, steps)  # type: ignore[assignment,arg-type]
                memory = choose(acts, new, memory)
        if bool(ruling.wins.any()):
            self._report(ruling.wins, book, "back to", self.rule)
        step = {"from": point, "length": length, "slope": slope, "promise": promise}
        step["reach"] = size + length
        goes_back = fails | sight.is_away
        book = advance(book)
        if bool(goes_back.any()):
            self._report(fails & ~book["is_trial"], book, "over to", self.fallback)
            back = unflatten(anchor["point"] - point, params)
            updates = choose(goes_back, back, updates)  # type: ignore[assignment,arg-type]
            fallback = choose(goes_back, anchor["fallback"], fallback)
            still = {k: torch.zeros_like(v) for k, v in step.items()} | {"from": anchor["point"]}
            step = choose(goes_back, still, step)  # type: ignore[assignment,arg-type]
            book = undo(book, goes_back, terms, loss=anchor["loss"])
        return updates, {
            "rule": memory,
            "fallback": fallback,
            "anchor": anchor,
            "step": step,  # type: ignore[dict-item]
            "book": book,  # type: ignore[dict-item]
        }

    def _report(self, mask: Tensor, book: Book, way: str, rule: Rule) -> None:
        """One message for all problems that change hands at a step."""
        if bool(mask.any()):
            level = logging.WARNING if rule is self.fallback else logging.INFO
            _LOG.log(
                level,
                "guard: %d of %d problems handed %s '%s' after %d steps",
                int(mask.sum()),
                len(mask),
                way,
                rule.name,
                int(book["steps"][mask].max()),
            )

    def _terms(self, point: Tensor) -> Terms:
        return Terms(
            window=self.window,
            rest=self.rest,
            demand=self.demand,
            tolerance=self.tolerance,
            rounding=8 * torch.finfo(point.dtype).eps,
        )

    def _see(
        self, slopes: Tensor, point: Tensor, loss: Tensor | None, old: dict[str, Any]
    ) -> tuple[Sight, Tensor, Book]:
        """What is seen at this point, its length, and the book, with runs that are back."""
        step, book = old["step"], old["book"]
        size, length, along, is_finite = _survey(slopes, point, step["from"])
        # What the caller makes of an update (a learning rate) is read off the distance moved.
        stood = step["length"] == 0
        scale = safe_ratio(length, step["length"]).masked_fill(stood, 1)
        if loss is None:
            # The trapezoid rule along the step, which is exact where the loss is quadratic.
            value = book["last"] + (scale * step["slope"] + along) / 2
        else:
            value = loss.detach().double()
        is_healthy = value.isfinite() & is_finite
        is_away = book["away"] > 0
        if bool(is_away.any()):
            is_there = (point == old["anchor"]["point"]).all(dim=1)
            is_away = is_away & ~is_there & (book["away"] > 1)
            book = {**book, "away": book["away"] * is_away}
        is_fresh = (book["steps"] == 0) | (book["knew_loss"] != (loss is not None))
        sight = Sight(
            loss=torch.where(is_healthy & ~is_away, value, book["last"]),
            promise=scale * step["promise"],
            is_healthy=is_healthy,
            is_away=is_away,
            is_fresh=is_fresh & is_healthy & ~is_away,
        )
        knew = torch.where(is_away | ~is_healthy, book["knew_loss"], loss is not None)
        return sight, size, {**book, "knew_loss": knew}


def _survey(slopes: Tensor, point: Tensor, origin: Tensor) -> tuple[Tensor, ...]:
    """What there is to know of a point and of the way there from the last one.

    Returns:
        ``[N]`` each: lengths of the point and of the way, the gradient along the way, and whether
        all of the gradient is finite.
    """
    square, product = _sums(point)

    def work(
        g: Tensor, x: Tensor, origin: Tensor, *, out: tuple[Tensor | None, ...]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        moved = torch.sub(x, origin, out=None if out[0] is None else out[0][:, 0])
        return [square(x), square(moved), product(g, moved), square(g)], ()

    (size, length, along, steepness), _ = in_pieces(work, slopes, point, origin, out=0, stacks=(1,))
    is_finite = steepness.isfinite()
    if not bool(is_finite.all()):
        # Squares may be infinite where nothing else is.
        is_finite = slopes.isfinite().all(dim=1)
    return size.double().sqrt(), length.double().sqrt(), along.double(), is_finite


def _length_and_slope(step: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """``[N]`` each: the length of a step, and the gradient along it."""
    square, product = _sums(step)

    def work(
        step: Tensor, g: Tensor, *, out: tuple[Tensor | None, ...]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        del out
        return [square(step), product(step, g)], ()

    (length, slope), _ = in_pieces(work, step, slopes, out=0)
    return length.double().sqrt(), slope.double()


def _sums(like: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Squared lengths and inner products: in float64, of pieces without a copy in that type."""
    if is_long(like):
        return lambda a: torch.dot(a[0], a[0])[None], lambda a, b: torch.dot(a[0], b[0])[None]

    def square(a: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(a, dim=1, dtype=torch.float64)
        return length.square()

    return square, dot


def _is_safe(size: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    """``[N]`` whether the point that a step leads to is finite, and its square."""
    # NaN compares as false.
    return size + length < math.sqrt(torch.finfo(dtype).max)
