"""A thread that does one thing at intervals."""

from __future__ import annotations

import threading
from collections.abc import Callable

from crashproof.threads import try_to_start

__all__ = ["RegularThread"]


class RegularThread:
    """A daemon thread that calls something at intervals, the first time at once, until it is stopped."""

    def __init__(self, act: Callable[[], None], *, name: str, interval_seconds: float) -> None:
        self._act = act
        self._interval_seconds = interval_seconds
        self._stopped = threading.Event()
        self._is_started = try_to_start(thread := threading.Thread(target=self._run, name=name, daemon=True))
        self._thread = thread

    def stop(self, *, seconds: float) -> None:
        """Call it no more; wait no longer than this for a call under way."""
        self._stopped.set()
        if self._is_started:
            self._thread.join(timeout=seconds)

    def _run(self) -> None:
        while True:
            self._act()
            if self._stopped.wait(self._interval_seconds):
                return
