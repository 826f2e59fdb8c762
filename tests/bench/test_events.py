import itertools
import math

import pytest
import torch

from learned_opt.bench.events import EVENTS, EventTracker, event_thresholds
from learned_opt.errors import LearnedOptError
from learned_opt.tasks.base import Facts


def facts(num: int = 1, minimum: float = 0.0, reference: float = 1.0, next_level: float = 0.0):
    one = torch.ones(num, dtype=torch.float64)
    return Facts(
        minimum=minimum * one,
        reference=reference * one,
        next_level=next_level * one,
        levels=torch.zeros(num, 0),
    )


def reference_times(losses: list[float], thresholds: list[float], ceiling: float) -> list[float]:
    """Slow twin: the first of two consecutive evaluations at or below each threshold."""
    healthy: list[float] = []
    for loss in losses:
        if not math.isfinite(loss) or loss > ceiling:
            break
        healthy.append(loss)
    times = []
    for level in thresholds:
        pairs = itertools.pairwise(healthy)
        hits = [t for t, (a, b) in enumerate(pairs) if a <= level and b <= level]
        times.append(float(hits[0]) if hits else math.inf)
    return times


def test_thresholds_follow_their_definitions() -> None:
    got = event_thresholds(facts(minimum=-1.0, reference=3.0, next_level=1.0))[0].tolist()
    expected = [2.8, 2.0, -1 + 4e-3, -1 + 0.4, -1 + 0.04, -1 + 4e-3, -1 + 4e-4]
    assert got == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("chunk", [1, 2, 7, 60])
def test_chunks_of_any_length_give_the_times_of_the_slow_reference(chunk: int) -> None:
    rng = torch.Generator().manual_seed(3)
    decay = torch.logspace(0, -6, 60, dtype=torch.float64)
    losses = decay * (1 + 0.9 * torch.randn(40, 60, generator=rng, dtype=torch.float64))
    losses[5, 20:] = math.nan
    losses[6, 30] = 1e9
    tracker = EventTracker(facts(40))
    for start in range(0, 60, chunk):
        part = losses[:, start : start + chunk]
        tracker.feed(part, torch.arange(start, start + part.shape[1]))
    thresholds = event_thresholds(facts())[0].tolist()
    for row in range(40):
        first = losses[row, 0].item()
        expected = reference_times(losses[row].tolist(), thresholds, 1e6 * max(1.0, first))
        assert tracker.times[row].tolist() == expected
    assert tracker.diverged.nonzero().flatten().tolist() == [5, 6]
    assert tracker.diverged_at[5:7].tolist() == [20.0, 30.0]


def test_a_plateau_of_any_length_is_not_an_end() -> None:
    losses = torch.ones(1, 5000, dtype=torch.float64)
    losses[0, 4000:] = 0.0
    tracker = EventTracker(facts())
    for start in range(0, 5000, 100):
        tracker.feed(losses[:, start : start + 100], torch.arange(start, start + 100))
    assert tracker.times[0].tolist() == [4000.0] * len(EVENTS)
    assert tracker.best.item() == tracker.final.item() == 0.0


def test_a_single_dip_is_no_event_even_across_chunks() -> None:
    tracker = EventTracker(facts())
    tracker.feed(torch.tensor([[1.0, 1.0, 0.4]]), torch.arange(3))
    tracker.feed(torch.tensor([[1.0, 0.4, 0.4]]), torch.arange(3, 6))
    assert tracker.time("half").item() == 4.0


def test_a_condition_met_only_at_the_last_evaluation_is_unconfirmed() -> None:
    tracker = EventTracker(facts())
    tracker.feed(torch.tensor([[1.0, 1.0, 0.0]]), torch.arange(3))
    assert torch.isinf(tracker.times).all()


def test_nothing_happens_after_divergence_and_events_before_it_stay() -> None:
    tracker = EventTracker(facts(2))
    losses = torch.tensor([
        [1.0, 0.4, 0.4, math.nan, 0.0, 0.0],
        [1.0, math.inf, 0.0, 0.0, 0.0, 0.0],
    ])
    tracker.feed(losses, torch.arange(6))
    assert tracker.time("half").tolist() == [1.0, math.inf]
    assert torch.isinf(tracker.time("gap4")).all()
    assert tracker.diverged_at.tolist() == [3.0, 1.0]


def test_starting_high_above_the_reference_is_not_divergence() -> None:
    tracker = EventTracker(facts(reference=1e-9))
    tracker.feed(torch.tensor([[10.0, 9.0, 1e8]], dtype=torch.float64), torch.arange(3))
    assert tracker.diverged_at.item() == 2.0


def test_rows_are_fed_apart_and_clocks_may_be_coarse() -> None:
    tracker = EventTracker(facts(3))
    tracker.feed(torch.ones(3, 1), torch.tensor([0]))
    tracker.feed(torch.zeros(2, 2), torch.tensor([20, 40]), rows=torch.tensor([0, 2]))
    assert tracker.time("solve").tolist() == [20.0, math.inf, 20.0]


def test_mark_diverged_keeps_the_earlier_time_and_ends_the_run() -> None:
    tracker = EventTracker(facts(2))
    tracker.feed(torch.tensor([[math.nan, 1.0], [1.0, 0.0]]), torch.arange(2))
    tracker.mark_diverged(torch.tensor([0, 1]), 1)
    tracker.feed(torch.zeros(2, 3), torch.arange(2, 5))
    assert tracker.diverged_at.tolist() == [0.0, 1.0]
    assert torch.isinf(tracker.times).all()


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(LearnedOptError, match=r"losses must be \[1, 3\], got \[1, 2\]"):
        EventTracker(facts()).feed(torch.ones(1, 2), torch.arange(3))
