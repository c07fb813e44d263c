"""Regular work in a background thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from crashproof.clock import SYSTEM_CLOCK
from crashproof.rules.stopwatch import StandstillDetector, Tick
from crashproof.threads import try_to_start

__all__ = ["Heartbeat", "current_tick", "give_way"]

log = logging.getLogger("crashproof")


class Heartbeat:
    """A daemon thread that calls `beat` until stopped; one that fails is logged once, and does not stop it.

    It tells `standstills` when it waits, which finds out whether the process stood still meanwhile.
    """

    def __init__(
        self, beat: Callable[[], None], *, interval_seconds: float, standstills: StandstillDetector | None = None
    ) -> None:
        self._beat = beat
        self._interval_seconds = interval_seconds
        self._standstills = standstills or StandstillDetector(interval_seconds=interval_seconds)
        self._stopped = threading.Event()
        self._has_warned = False
        self._num_failed = 0
        """Beats that have failed in a row."""
        self._thread: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        """Start the thread unless it runs."""
        if self._thread is not None or self._stopped.is_set():
            return
        thread = threading.Thread(target=self._run, name="crashproof-heartbeat", daemon=True)
        if try_to_start(thread):
            self._thread = thread
        elif not self._has_warned:
            self._has_warned = True
            log.warning(
                "Without a thread nothing is synced and progress.json is not renewed between two checkpoints; the "
                "next checkpoint tries again to start one."
            )

    def stop(self) -> None:
        """Stop calling, and wait for a call in progress."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._wait():
            try:
                self._beat()
            except Exception:
                # Training must not end because a snapshot could not be written.
                self._num_failed += 1
                if self._num_failed == 1:
                    log.exception("Housekeeping failed; trying again every %g s.", self._interval_seconds)
            else:
                self._tell_that_it_works()

    def _tell_that_it_works(self) -> None:
        if self._num_failed:
            log.warning("Housekeeping works again, after %d failures.", self._num_failed)
        self._num_failed = 0

    def _wait(self) -> bool:
        """Wait for an interval; return whether the heartbeat was stopped."""
        self._standstills.begin_wait(current_tick())
        is_stopped = self._stopped.wait(self._interval_seconds)
        self._standstills.end_wait(current_tick())
        return is_stopped


def give_way() -> None:
    """Let a thread go first that waits for a lock just released, or for the interpreter."""
    # A lock that is taken again at once is taken before the other thread has woken up.
    time.sleep(5e-5)


def current_tick() -> Tick:
    """This moment by the machine's own clocks, which no test sets."""
    return Tick(steady=time.monotonic(), since_boot=SYSTEM_CLOCK.since_boot(), cpu=time.process_time())
