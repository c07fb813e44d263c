"""Regular work in a background thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

__all__ = ["Heartbeat"]

log = logging.getLogger("crashproof")


class Heartbeat:
    """A daemon thread that calls `beat` until stopped; one that fails is logged, and does not stop it."""

    def __init__(self, beat: Callable[[], None], *, interval_seconds: float) -> None:
        self._beat = beat
        self._interval_seconds = interval_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crashproof-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop calling, and wait for a call in progress."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            try:
                self._beat()
            except Exception:
                # Training must not end because a snapshot could not be written.
                log.exception("Housekeeping failed; trying again in %g s.", self._interval_seconds)
