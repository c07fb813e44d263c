"""End this process when it waits for longer than it may.

Most waits end by themselves, with an error that names who was lost. This is for all others, whatever call they are
in: a read of a socket that nothing interrupts, a lock, a library that hangs, a process that cannot be left.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

from crashproof.pytorch.interrupts import EXIT_PREEMPTED
from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.exit_timer import ExitTimer
from crashproof.pytorch.ranks.regular_thread import RegularThread
from crashproof.rules.ranks.overdue import overdue_activity
from crashproof.rules.stopwatch import StandstillDetector
from crashproof.tracking.heartbeat import current_tick

__all__ = ["GRACE_SECONDS", "Watchdog", "end_process"]

GRACE_SECONDS = 5.0
"""How much longer than the limit a wait may take to end by itself."""
_INTERVAL_SECONDS = 1.0
_HINT = "Start the same command again; acknowledged data is kept."


class Contact(Protocol):
    """What a watchdog asks of the link to the other ranks."""

    @property
    def is_run_lost(self) -> bool:
        """Whether the others have given up, or cannot be reached."""
        ...


class Watchdog:
    """Looks every second how long this process has been doing what it does, and ends it where that is too long."""

    def __init__(
        self, activities: Activities, *, name: str, limit_seconds: float, end: Callable[[str], None] | None = None
    ) -> None:
        """`name` stands at the beginning of what it says; `end` ends the process."""
        self.contact: Contact | None = None
        self._activities = activities
        self._name = name
        self._limit_seconds = limit_seconds
        self._longest_seconds = limit_seconds + GRACE_SECONDS
        self._end = end or end_process
        self._leaves_by: float | None = None
        self._why_it_leaves = ""
        self._standstills = StandstillDetector(interval_seconds=_INTERVAL_SECONDS)
        self._timer = ExitTimer(EXIT_PREEMPTED)
        self._look()
        self._thread = RegularThread(self._look, name="crashproof-watchdog", interval_seconds=_INTERVAL_SECONDS)

    def leave_within(self, seconds: float, why: str) -> None:
        """End the process that many seconds from now, if it has not ended by itself."""
        self._why_it_leaves = why
        self._leaves_by = time.monotonic() + seconds
        self._postpone_timer()

    def stop(self) -> None:
        """Watch no more; not after `leave_within`."""
        if self._leaves_by is None:
            self._thread.stop(seconds=_INTERVAL_SECONDS)
            self._timer.cancel()

    def _look(self) -> None:
        if self._standstills.end_wait(current_tick()):
            # It was stopped or frozen, and so was every limit.
            self._activities.restart()
        if problem := self._problem():
            self._end(f"{self._name} {problem}. The process ends with exit code {EXIT_PREEMPTED}. {_HINT}")
        self._postpone_timer()
        self._standstills.begin_wait(current_tick())

    def _problem(self) -> str:
        now = time.monotonic()
        if self._leaves_by is not None:
            return f"could not end by itself {self._why_it_leaves}" if now > self._leaves_by else ""
        is_run_lost = self.contact is not None and self.contact.is_run_lost
        activities = self._activities.all()
        found = overdue_activity(activities, now=now, longest_seconds=self._longest_seconds, is_run_lost=is_run_lost)
        if found is None:
            return ""
        lasted = f"{now - found.since:.0f} s of {found.what} (limit {self._limit_seconds:g} s)"
        return f"gives up after {lasted}" + ("" if found.is_wait else "; the other ranks have given up or are away")

    def _postpone_timer(self) -> None:
        """Should no thread of Python run any more, the process still ends."""
        seconds = self._longest_seconds
        if self._leaves_by is not None:
            seconds = max(0.0, self._leaves_by - time.monotonic()) + GRACE_SECONDS
        what = self._activities.newest().what
        self._timer.postpone(
            seconds,
            f"{self._name} gives up: Python's lock was not released for {seconds:.0f} s while {what}. "
            f"The process ends with exit code {EXIT_PREEMPTED}. {_HINT}",
        )


def end_process(words: str) -> None:
    """End this process at once, with the exit code of a rank that lost another, saying why and where it stood."""
    try:
        sys.stderr.write(f"{words}\n")
        sys.stderr.flush()
        faulthandler.dump_traceback()
    finally:
        os._exit(EXIT_PREEMPTED)
