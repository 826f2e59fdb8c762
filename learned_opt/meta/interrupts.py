"""Ending a long job on request without losing its work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from learned_opt.errors import LearnedOptError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(LearnedOptError):
    """A job ended early because a signal asked for it; its checkpoint is written.

    Args:
        message: what was saved and how to go on.
        signal_number: the signal.

    Attributes:
        exit_code: what a command exits with, 128 + the signal's number.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Note SIGINT and SIGTERM instead of obeying at once, so that a step can be finished.

    The former handlers are back in place after the first signal (a second Ctrl-C ends the job the
    hard way) and after the block. Outside the main thread, where Python delivers no signals,
    nothing is changed.

    Yields:
        A function that returns the number of the signal that arrived, or None.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[int] = []
    former = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()
