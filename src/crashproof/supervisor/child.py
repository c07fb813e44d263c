"""The supervised process, with all that it starts."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from crashproof.supervisor.processes import command_line, descendants, status_of

__all__ = ["Child", "Ended", "adopt_orphans"]

_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.05
_ORPHAN_SECONDS = 3.0
"""Between SIGTERM and SIGKILL, for what the command has left behind."""
_ALERT_PROGRAM = "crashproof.alerts.process"
"""Sends the last alerts of a tracker, and ends by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended; both are None where nobody could see it."""

    exit_code: int | None
    signal: int | None


def adopt_orphans() -> None:
    """Become the parent of what the command leaves behind, so that it can be ended (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Child:
    """One process life of the command, in a session and a process group of its own."""

    def __init__(self, pid: int, *, is_own: bool) -> None:
        """Use `start` or `find`."""
        self.pid = pid
        self._is_own = is_own
        self._ended: Ended | None = None
        found = status_of(pid)
        self.start_ticks = None if found is None else found.start_ticks
        """Tells it from a later process of the same id."""
        self._others: dict[int, int] = {}
        """Processes below it that were seen, by id: when each started."""

    @classmethod
    def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start the command.

        Raises:
            OSError: it cannot be run.
        """
        process = subprocess.Popen(list(command), env=dict(environment), start_new_session=True)  # noqa: S603 - ours
        # `poll` below waits for it, with all others that have become children of this process.
        process.returncode = 0
        return cls(process.pid, is_own=True)

    @classmethod
    def find(cls, pid: int, start_ticks: int | None) -> Child | None:
        """The process that an earlier supervisor has started, if it still lives."""
        found = status_of(pid)
        if found is None or found.is_zombie or start_ticks is None or found.start_ticks != start_ticks:
            return None
        return cls(pid, is_own=False)

    def poll(self) -> Ended | None:
        """How it ended, or None while it lives; takes the exit codes of everything else that ended as well."""
        self._reap()
        if self._ended is None and not self._is_own and not self._is_alive():
            self._ended = Ended(exit_code=None, signal=None)
        return self._ended

    def note_family(self) -> list[int]:
        """The ids of the process and of all below it; those are remembered, and end with it."""
        family = descendants(self.pid)
        self._others |= {each.pid: each.start_ticks for each in family}
        return [self.pid, *(each.pid for each in family)]

    def send(self, number: int, *, to: int | None = None) -> None:
        """Send a signal to the process, or to one below it."""
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid if to is None else to, number)

    def kill_all(self) -> None:
        """SIGKILL for its process group and everything below it."""
        self.note_family()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        # One that was started by hand leads no group.
        self.send(signal.SIGKILL)
        for pid in self._left(with_alerts=False):
            self.send(signal.SIGKILL, to=pid)

    def end_orphans(self) -> list[int]:
        """End what the command has left behind: SIGTERM, then SIGKILL; return their ids."""
        left = self._left(with_alerts=False)
        for number, seconds in ((signal.SIGTERM, _ORPHAN_SECONDS), (signal.SIGKILL, _ORPHAN_SECONDS)):
            for pid in self._left(with_alerts=False):
                self.send(number, to=pid)
            deadline = time.monotonic() + seconds
            while self._left(with_alerts=False) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        return left

    def wait_for_alerts(self, seconds: float) -> None:
        """Wait for the process that sends the last alerts: where this one is process 1, it would end with it."""
        deadline = time.monotonic() + seconds
        while self._left(with_alerts=True) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _left(self, *, with_alerts: bool) -> list[int]:
        """What was started by the command and still lives, the process itself left out."""
        self._reap()
        found = {each.pid: each.start_ticks for each in descendants(os.getpid())}
        for pid, start_ticks in self._others.items():
            status = status_of(pid)
            if status is not None and status.start_ticks == start_ticks and not status.is_zombie:
                found[pid] = start_ticks
        found.pop(self.pid, None)
        return [pid for pid in found if with_alerts or _ALERT_PROGRAM not in command_line(pid)]

    def _is_alive(self) -> bool:
        found = status_of(self.pid)
        return found is not None and found.start_ticks == self.start_ticks and not found.is_zombie

    def _reap(self) -> None:
        """Wait for each child that has ended: as process 1 of a container, no other would."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid and self._is_own:
                code = os.waitstatus_to_exitcode(status)
                self._ended = Ended(exit_code=code if code >= 0 else None, signal=-code if code < 0 else None)
