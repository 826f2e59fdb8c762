"""Who is in charge, judged from losses alone: the book that `Guarded` keeps, all ``[N]`` numbers.

A run is cut into windows. A window's progress is measured from the mean loss over the second half
of the window before it to that over its own second half, where noise averages out, and compared
with the fall that the fallback's steps promised over the same stretch, to first order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor

from learned_opt.features import safe_ratio

Book: TypeAlias = dict[str, Tensor]
"""``[N]`` numbers, one run each:

- ``steps``; ``age`` and ``length`` of the window; ``tenure``: steps of whoever is in charge;
- ``last``, ``before``: the last two losses; ``peak``, ``highest``: the highest of this window, and
  of those before;
- ``level``, ``spread``: mean loss that progress is measured from, one over the losses in it;
- ``late``: sum of the second half's losses; ``bends``: of squared second differences;
- ``promised``, ``carried``: fall promised up to the window's own mean, and beyond it;
- ``is_rule``, ``is_trial``: whether the rule is in charge, and whether only on trial;
- ``unit``: steps of the fallback's windows and of trials;
- ``away``: steps left to return to the anchor in; ``rest``: windows until the next trial;
- ``pace``: progress of the fallback's last window; ``honesty``: share of its promises it keeps.
"""

_MAX_RETURNS = 16
"""Steps that a return may take: one, but for rounding, which far away may swallow the target."""

_ALARM = 3.0
"""A loss that rises this many times as far over the level as in any window before ends this one."""

_NEGLIGIBLE = 1e-6
"""Share of the fall so far that is not worth a change of hands: at a minimum no rule can keep what
the fallback's steps promise to first order."""


@final
@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the guard demands.

    Attributes:
        window: steps of the shortest window.
        rest: windows of the fallback before a trial.
        demand: share of the fallback's promise to be kept.
        tolerance: standard errors of the progress that count as noise.
        rounding: relative error of a loss.
    """

    window: int
    rest: int
    demand: float
    tolerance: float
    rounding: float


@final
@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen at a point.

    Attributes:
        loss: ``[N]`` losses, finite.
        promise: ``[N]`` fall that the fallback promised for the step that led here.
        is_healthy: ``[N]`` whether loss and gradient are finite.
        is_away: ``[N]`` whether the run is still on its way back to the anchor.
        is_fresh: ``[N]`` whether losses before this one cannot be compared with it.
    """

    loss: Tensor
    promise: Tensor
    is_healthy: Tensor
    is_away: Tensor
    is_fresh: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Ruling:
    """What follows.

    Attributes:
        fails: ``[N]`` the rule fails: its window is undone.
        anchors: ``[N]`` a window of the rule may begin here.
        starts: ``[N]`` the rule starts a trial.
        wins: ``[N]`` the rule has passed its trial.
    """

    fails: Tensor
    anchors: Tensor
    starts: Tensor
    wins: Tensor


def open_book(num_problems: int, terms: Terms, *, device: torch.device) -> Book:
    """The rule in charge, nothing seen yet."""
    count = torch.zeros(num_problems, dtype=torch.int64, device=device)
    number, never = count.double(), count.bool()
    numbers = ("last", "before", "peak", "highest", "level", "spread", "late", "bends", "promised")
    return {
        **dict.fromkeys((*numbers, "carried", "pace"), number),
        **dict.fromkeys(("steps", "age", "tenure", "away", "rest"), count),
        **dict.fromkeys(("length", "unit"), count + terms.window),
        "honesty": number + 1,
        "is_rule": ~never,
        "is_trial": never,
    }


def supervise(book: Book, sight: Sight, terms: Terms) -> tuple[Book, Ruling]:
    """Enter one point, and rule on the windows that end there.

    Args:
        book: what `open_book` or the last `advance` returned.
        sight: what is seen.
        terms: what is demanded.

    Returns:
        The book, and what follows. Failures are for the caller to enter (`undo`), who may know of
        more.
    """
    book = _begin(book, sight, window=terms.window)
    rounding = terms.rounding * book["level"].abs()
    ceiling = book["level"] + _ALARM * (book["highest"] - book["level"]).clamp_min(0) + rounding
    # A short window is left to its end: a rule that leaves a saddle may overshoot for a few steps.
    is_alarming = (book["age"] >= terms.window) & (sight.loss > ceiling)
    book = _record(book, sight)
    is_full = (book["age"] == book["length"]) & ~sight.is_away
    fails = book["is_rule"] & (is_alarming | ~sight.is_healthy)
    if not bool((is_full | fails).any()):
        never = torch.zeros_like(is_full)
        return book, Ruling(fails=never, anchors=sight.is_fresh, starts=never, wins=never)
    half = _half(book)
    mean = book["late"] / half
    progress = book["level"] - mean
    # Second differences of a trend vanish; those of white noise have six times its variance.
    variance = book["bends"] / (6 * (book["length"] - 1))
    slack = terms.tolerance * (variance * (book["spread"] + 1 / half)).sqrt() + rounding
    slack = slack + _NEGLIGIBLE * (book["highest"] - book["level"]).clamp_min(0)
    promised = book["promised"].clamp_min(0)
    # Whoever is in charge has the benefit of the doubt.
    need = terms.demand * book["honesty"] * promised
    need = torch.where(book["is_trial"], torch.maximum(need, book["pace"]) + slack, need - slack)
    fails = fails | (book["is_rule"] & is_full & ~(progress >= need))
    is_idle = is_full & ~book["is_rule"]
    is_kept = is_full & book["is_rule"] & ~fails
    rest = book["rest"] - is_idle.long()
    ruling = Ruling(
        fails=fails,
        starts=is_idle & (rest <= 0),
        wins=is_kept & book["is_trial"],
        anchors=sight.is_fresh | is_kept | (is_idle & (rest <= 0)),
    )
    share = safe_ratio(progress, promised).clamp(0, 1)
    share = torch.where(promised > 0, share, book["honesty"])
    new = {
        "rest": rest,
        "pace": torch.where(is_idle, progress.clamp_min(0), book["pace"]),
        "honesty": torch.where(is_idle, (book["honesty"] + share) / 2, book["honesty"]),
        "tenure": book["tenure"].masked_fill(ruling.starts, 0),
        "is_rule": book["is_rule"] | ruling.starts,
        "is_trial": (book["is_trial"] & ~is_kept) | ruling.starts,
    }
    longer = (book["tenure"] // 10).clamp_min(terms.window)
    length = torch.where(is_kept, longer, book["unit"])
    opened = {"level": mean, "spread": 1 / half, "promised": book["carried"], **_blank(length)}
    opened["highest"] = torch.maximum(book["highest"], book["peak"])
    return _where(is_idle | is_kept, opened, {**book, **new}), ruling


def undo(book: Book, mask: Tensor, terms: Terms, *, loss: Tensor) -> Book:
    """Strike the window out and put the fallback in charge.

    Args:
        book: the book.
        mask: ``[N]`` where; a run that is already on its way back keeps on.
        terms: what is demanded.
        loss: ``[N]`` losses where the window began.

    Returns:
        The book.
    """
    none, never = torch.zeros_like(book["age"]), torch.zeros_like(mask)
    is_away = book["away"] > 0
    # After a failure trials are rarer and longer, in step: their price stays, noise matters less.
    unit = book["unit"] * (1 + book["is_trial"].long())
    new = {
        "promised": torch.zeros_like(loss),
        **dict.fromkeys(("last", "before", "peak", "highest"), loss),
        **_blank(unit),
        "unit": unit,
        "tenure": none,
        "rest": none + terms.rest,
        "away": torch.where(is_away, book["away"] - 1, none + _MAX_RETURNS),
        "is_rule": never,
        "is_trial": never,
    }
    return _where(mask, new, book)


def advance(book: Book) -> Book:
    """Count a step."""
    return book | {key: book[key] + 1 for key in ("steps", "age", "tenure")}


def _begin(book: Book, sight: Sight, *, window: int) -> Book:
    """Open a window at a single loss, where losses before it cannot be compared."""
    if not bool(sight.is_fresh.any()):
        return book
    loss = sight.loss
    new = dict.fromkeys(("level", "last", "before", "peak", "highest"), loss)
    new |= {"spread": torch.ones_like(loss), "promised": torch.zeros_like(loss)}
    new |= _blank(torch.full_like(book["length"], window))
    return _where(sight.is_fresh, new, book)


def _record(book: Book, sight: Sight) -> Book:
    """Enter a loss and a promise; a window's first point belongs to the window before."""
    age, half, loss = book["age"], _half(book), sight.loss
    is_late = age > book["length"] - half
    # What a step promises counts for the losses after it: for this share of the second half.
    share = ((book["length"] - age + 1) / half).clamp(max=1.0)
    promise = sight.promise.masked_fill(age < 1, 0)
    bend = loss - 2 * book["last"] + book["before"]
    return book | {
        "late": book["late"] + loss.masked_fill(~is_late, 0),
        "bends": book["bends"] + bend.square().masked_fill(age < 2, 0),
        "promised": book["promised"] + promise * share,
        "carried": book["carried"] + promise * (1 - share),
        "peak": torch.maximum(book["peak"], loss),
        "before": book["last"],
        "last": loss,
    }


def _blank(length: Tensor) -> Book:
    """The sums of a window before its first step."""
    zeros = torch.zeros_like(length, dtype=torch.float64)
    sums = dict.fromkeys(("late", "bends", "carried"), zeros)
    return {**sums, "age": torch.zeros_like(length), "length": length}


def _half(book: Book) -> Tensor:
    """Losses in the second half of the window."""
    return book["length"] - book["length"] // 2


def _where(mask: Tensor, new: Book, old: Book) -> Book:
    """`old`, with the entries of `new` where `mask` holds."""
    return {k: torch.where(mask, new[k], v) if k in new else v for k, v in old.items()}
