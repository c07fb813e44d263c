"""Asked to stop: finish the step first.

Schedulers announce the end with SIGTERM or SIGUSR1, people with Ctrl-C. The handler sets a flag and does nothing
else, for a save inside a signal handler can meet any half-done state. The loop asks for the flag after each step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["EXIT_PREEMPTED", "Interrupts", "StopRequested"]

EXIT_PREEMPTED = 75
"""Exit code for "start me again": EX_TEMPFAIL of sysexits.h."""

_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequested(Exception):
    """Somebody asked the process to stop while there was nothing yet to save."""


class Interrupts:
    """Listens for requests to stop while it is entered; a second SIGINT aborts at once.

    Signals reach only the main thread, so anywhere else this listens to nothing and leaves the handlers alone.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal that asked, or None."""
        self._num_sigint = 0
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {each: signal.signal(each, self._hear) for each in _ASKING}
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    @property
    def is_requested(self) -> bool:
        """Whether the loop should save and stop."""
        return self.received is not None

    def raise_if_requested(self) -> None:
        """Leave work that has nothing to save.

        Raises:
            StopRequested: a signal has come.
        """
        if self.received is not None:
            raise StopRequested(self.received.name)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._num_sigint += number == signal.SIGINT
        if self._num_sigint > 1:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)
