"""When things happen: the first time a run leaves its saddle, crosses a level, is solved.

Events are defined on the loss against levels that the task itself ships, never on the gradient norm
and never on a lack of progress, so a plateau is not mistaken for convergence and every optimizer
is measured against the same targets.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import Facts

EVENTS = ("exit", "half", "solve", "gap1", "gap2", "gap3", "gap4")
"""Event names, in the order of the columns of `event_thresholds` and `EventTracker.times`."""

HUGE = 1e6
"""A coordinate, or a loss in units of ``reference - minimum``, beyond which a run has diverged."""


def event_thresholds(facts: Facts) -> Tensor:
    """The loss at or below which each event holds.

    With ``f_s`` the reference level, ``f_1`` the next critical level and ``f*`` the minimum::

        exit   f <= f_s - 0.1 (f_s - f_1)
        half   f <= f_s - 0.5 (f_s - f_1)
        solve  f - f* <= 1e-3 (f_s - f*)
        gap k  f - f* <= 10^-k (f_s - f*),  k = 1, 2, 3, 4

    Args:
        facts: known levels of ``N`` problems.

    Returns:
        ``[N, 7]`` thresholds in float64, columns as in `EVENTS`.
    """
    reference, minimum = facts.reference.double(), facts.minimum.double()
    drop = reference - facts.next_level.double()
    span = reference - minimum
    columns = [reference - 0.1 * drop, reference - 0.5 * drop, minimum + 1e-3 * span]
    columns += [minimum + 10.0**-k * span for k in (1, 2, 3, 4)]
    return torch.stack(columns, dim=1)


@final
class EventTracker:
    """Event times of ``N`` runs, from losses that arrive in chunks.

    An event happens at the first of two consecutive evaluations that meet its condition: a single
    noisy dip does not count. A run diverges at its first loss that is not finite, or that lies
    `HUGE` times the problem's own scale above its minimum; nothing happens to it afterwards.

    Args:
        facts: known levels of the ``N`` problems.

    Attributes:
        times: ``[N, 7]`` event times in steps, inf where not reached; columns as in `EVENTS`.
        diverged_at: ``[N]`` step of divergence, inf for a healthy run.
        best: ``[N]`` lowest finite loss so far, inf before the first.
        final: ``[N]`` last loss seen.

    Examples:
        >>> one = torch.ones(1)
        >>> facts = Facts(minimum=0 * one, reference=one, next_level=0 * one, levels=one[:, None])
        >>> tracker = EventTracker(facts)
        >>> tracker.feed(torch.tensor([[1.0, 0.8, 0.95, 0.7]]), torch.arange(4))
        >>> tracker.feed(torch.tensor([[0.6, 0.4]]), torch.arange(4, 6))
        >>> tracker.times[0, :2].tolist()  # the dip at 1 is no exit; "half" still lacks its second
        [3.0, inf]
    """

    def __init__(self, facts: Facts) -> None:
        self._thresholds = event_thresholds(facts)
        self._minimum = facts.minimum.double()
        self._span = facts.reference.double() - self._minimum
        num_runs = self._thresholds.shape[0]
        self.times = torch.full_like(self._thresholds, torch.inf)
        self.diverged_at = torch.full_like(self._minimum, torch.inf)
        self.best = torch.full_like(self._minimum, torch.inf)
        self.final = torch.full_like(self._minimum, torch.nan)
        self._ceiling = torch.full_like(self._minimum, torch.nan)
        self._held = torch.zeros_like(self._thresholds, dtype=torch.bool)
        self._last_step = torch.full(
            (num_runs,), -1.0, dtype=torch.float64, device=self.best.device
        )

    def feed(self, losses: Tensor, steps: Tensor, rows: Tensor | None = None) -> None:
        """Take in the next evaluations.

        Args:
            losses: ``[n, C]`` losses of the runs `rows`.
            steps: ``[C]`` the step of each column, ascending and later than all fed before.
            rows: ``[n]`` positions of those runs; None for all ``N``.

        Raises:
            LearnedOptError: if the shapes disagree.
        """
        rows = torch.arange(len(self.best), device=self.best.device) if rows is None else rows
        require(
            losses.shape == (len(rows), len(steps)),
            f"losses must be [{len(rows)}, {len(steps)}], got {list(losses.shape)}",
        )
        losses, clock = losses.double(), steps.to(self.best)
        first = self._last_step[rows] < 0
        if bool(first.any()):
            # The scale of a problem is at least where it starts: starting high is not divergence.
            above = torch.nan_to_num(losses[:, 0] - self._minimum[rows], nan=0.0, posinf=0.0)
            ceiling = self._minimum[rows] + HUGE * torch.maximum(above, self._span[rows])
            self._ceiling[rows] = torch.where(first, ceiling, self._ceiling[rows])

        sick = ~torch.isfinite(losses) | (losses > self._ceiling[rows, None])
        dead = sick.cummax(dim=1).values | torch.isfinite(self.diverged_at[rows, None])
        newly = torch.isinf(self.diverged_at[rows]) & sick.any(dim=1)
        self.diverged_at[rows] = torch.where(
            newly, clock[sick.int().argmax(dim=1)], self.diverged_at[rows]
        )

        holds = (losses[:, :, None] <= self._thresholds[rows][:, None, :]) & ~dead[:, :, None]
        held = torch.cat([self._held[rows][:, None, :], holds[:, :-1]], dim=1)
        twice = held & holds
        before = torch.cat(
            [self._last_step[rows, None], clock[:-1].expand(len(rows), len(clock) - 1)], dim=1
        )
        when = before.gather(1, twice.int().argmax(dim=1))
        happened = twice.any(dim=1) & torch.isinf(self.times[rows])
        self.times[rows] = torch.where(happened, when, self.times[rows])

        self._held[rows] = holds[:, -1]
        self._last_step[rows] = clock[-1]
        self.final[rows] = losses[:, -1]
        lowest = torch.where(torch.isfinite(losses), losses, torch.inf).amin(dim=1)
        self.best[rows] = torch.minimum(self.best[rows], lowest)

    def mark_diverged(self, rows: Tensor, step: int) -> None:
        """Declare runs diverged for a reason the loss does not show, such as a huge coordinate.

        Args:
            rows: ``[n]`` positions of the runs; those that had diverged before keep their time.
            step: when.
        """
        self.diverged_at[rows] = self.diverged_at[rows].clamp(max=float(step))

    def time(self, event: str) -> Tensor:
        """``[N]`` times of one event of `EVENTS`, inf where not reached."""
        return self.times[:, EVENTS.index(event)]

    @property
    def diverged(self) -> Tensor:
        """``[N]`` whether each run has diverged."""
        return torch.isfinite(self.diverged_at)
