"""Stop at the end of a step.

A scheduler's SIGTERM, Ctrl-C and SIGUSR1 only set a flag here; the loop sees it between two steps and saves then.
Nothing is saved inside a signal handler.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["PREEMPTED_EXIT_CODE", "StopRequests"]

log = logging.getLogger("holdfast")

PREEMPTED_EXIT_CODE = 75
"""`EX_TEMPFAIL`: start the same command again."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequests:
    """While entered, signals ask instead of killing; a second Ctrl-C aborts at once."""

    def __init__(self) -> None:
        self.requested_by: str | None = None
        """The name of the first signal that came, or None."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers; elsewhere signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested_by is not None:
            raise KeyboardInterrupt
        if self.requested_by is None:
            self.requested_by = signal.Signals(number).name
