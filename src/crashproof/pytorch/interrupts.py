"""Graceful handling of stop signals.

Schedulers announce preemption with SIGTERM or SIGUSR1, users with Ctrl-C, and a terminal or connection that closes
with SIGHUP. The handler only sets a flag, because a save inside a signal handler can see inconsistent state. The
training loop checks the flag after each step.

Forked processes, such as data-loader workers, do not inherit it: SIGTERM ends them, as whoever started them expects,
and what else reaches the whole group is left to the main process.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

__all__ = ["EXIT_PREEMPTED", "Interrupts", "StopRequested"]

EXIT_PREEMPTED = 75
"""Exit code that requests a restart: EX_TEMPFAIL of sysexits.h."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopRequested(Exception):
    """A stop was requested while there was nothing to save yet."""


class Interrupts:
    """Context manager that catches stop signals; a second SIGINT aborts at once.

    Signals reach only the main thread; in other threads this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first stop signal, or None."""
        self._num_sigint = 0
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        own = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _leave_to_parent(own()))

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.signal(each, self._handle) for each in _STOP_SIGNALS if _is_wanted(each)}
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @property
    def is_requested(self) -> bool:
        """Whether the loop should save and stop."""
        return self.received is not None

    def raise_if_requested(self) -> None:
        """Abandon work that has nothing to save.

        Raises:
            StopRequested: A stop signal was received.
        """
        if self.received is not None:
            raise StopRequested(self.received.name)

    def leave_to_parent(self) -> None:
        """In a forked child, handle nothing any more."""
        for number, handler in self._previous.items():
            signal.signal(number, handler if number == signal.SIGTERM else signal.SIG_IGN)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._num_sigint += number == signal.SIGINT
        if self._num_sigint > 1:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)


def _leave_to_parent(interrupts: Interrupts | None) -> None:
    if interrupts is not None:
        interrupts.leave_to_parent()


def _is_wanted(number: signal.Signals) -> bool:
    """Whether to catch a signal: what `nohup` has made the process ignore is to be ignored."""
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
