"""End this process when it waits for longer than it may.

Most waits end by themselves, with an error that names who was lost. This is for all others, whatever call they are
in: a read of a socket that nothing interrupts, a lock, a library that hangs, a process that cannot be left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from crashproof.pytorch.interrupts import EXIT_PREEMPTED
from crashproof.pytorch.ranks.activities import Activities
from crashproof.pytorch.ranks.regular_thread import RegularThread
from crashproof.rules.ranks.overdue import overdue_activity
from crashproof.rules.stopwatch import StandstillDetector
from crashproof.tracking.heartbeat import current_tick

__all__ = ["GRACE_SECONDS", "Exit", "Watchdog"]

GRACE_SECONDS = 5.0
"""How much longer than the limit a wait may take to end by itself."""
_INTERVAL_SECONDS = 1.0
_CONSEQUENCE = (
    f"The process ends with exit code {EXIT_PREEMPTED}. Start the same command again; acknowledged data is kept."
)


class Contact(Protocol):
    """What a watchdog asks of the link to the other ranks."""

    @property
    def lost_seconds(self) -> float:
        """For how long it has been known that the others have given up, or cannot be reached; else 0."""
        ...


class Exit(Protocol):
    """How a process is ended."""

    def now(self, text: str) -> None:
        """End it at once, saying why."""
        ...

    def postpone(self, seconds: float, text: str) -> None:
        """End it in so many seconds, unless this is called again before."""
        ...

    def cancel(self) -> None:
        """Do not end it."""
        ...


class Watchdog:
    """Looks every second how long this process has been doing what it does, and ends it where that is too long."""

    def __init__(
        self,
        activities: Activities,
        exit_: Exit,
        *,
        name: str,
        limit_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` stands at the beginning of what it says."""
        self.contact: Contact | None = None
        self._activities = activities
        self._exit = exit_
        self._name = name
        self._limit_seconds = limit_seconds
        self._longest_seconds = limit_seconds + GRACE_SECONDS
        self._now = now
        self._leaves_by: float | None = None
        self._why_it_leaves = ""
        self._standstills = StandstillDetector(interval_seconds=_INTERVAL_SECONDS)
        self._thread = RegularThread(self._tick, name="crashproof-watchdog", interval_seconds=_INTERVAL_SECONDS)

    def leave_within(self, seconds: float, why: str) -> None:
        """End the process that many seconds from now, if it has not ended by itself."""
        self._why_it_leaves = why
        self._leaves_by = self._now() + seconds
        self._postpone()

    def stop(self) -> None:
        """Watch no more; not after `leave_within`."""
        if self._leaves_by is None:
            self._thread.stop(seconds=_INTERVAL_SECONDS)
            self._exit.cancel()

    def look(self) -> None:
        """End the process if it is time, and put off its end by the C library if it is not."""
        if problem := self._problem():
            self._exit.now(f"{self._name} {problem}. {_CONSEQUENCE}")
        self._postpone()

    def _tick(self) -> None:
        if self._standstills.end_wait(current_tick()):
            # It was stopped or frozen, and so was every limit.
            self._activities.restart()
        self.look()
        self._standstills.begin_wait(current_tick())

    def _problem(self) -> str:
        now = self._now()
        if self._leaves_by is not None:
            return f"could not end by itself {self._why_it_leaves}" if now > self._leaves_by else ""
        lost_seconds = 0.0 if self.contact is None else self.contact.lost_seconds
        activities = self._activities.all()
        found = overdue_activity(
            activities, now=now, longest_seconds=self._longest_seconds, lost_seconds=lost_seconds
        )
        if found is None:
            return ""
        lasted = f"{now - found.since:.0f} s of {found.what} (limit {self._limit_seconds:g} s)"
        return f"gives up after {lasted}" + ("" if found.is_wait else "; the other ranks have given up or are away")

    def _postpone(self) -> None:
        """Should no thread of Python run any more, the process still ends."""
        seconds = self._longest_seconds
        if self._leaves_by is not None:
            seconds = max(0.0, self._leaves_by - self._now()) + GRACE_SECONDS
        what = self._activities.newest().what
        self._exit.postpone(
            seconds,
            f"{self._name} gives up: Python's lock was not released for {seconds:.0f} s; it was last seen {what}. "
            f"{_CONSEQUENCE}",
        )
