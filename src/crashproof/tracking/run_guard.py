"""The guard of a run's writer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from crashproof.disk.lock import WriterLock
from crashproof.disk.sole_writer import Intrusion
from crashproof.errors import RunClosed, RunError, RunInUse

__all__ = ["GuardState", "RunGuard"]


class GuardState(StrEnum):
    """Whether a run's writer may still write; each value completes the sentence "the tracker …"."""

    OPEN = "is open"
    CLOSED = "is closed"
    REPLACED = "was replaced by a newer one in this process"
    FORKED = "belongs to the parent process"
    INTRUDED = "stopped, because it is not the only writer"


class RunGuard:
    """Lets one thread at a time write, and only while the run is open.

    `with guard:` is for calls that write: it holds the lock, and raises `RunClosed` if the run is not open any more.
    `with guard.lock:` holds the lock whatever the state.
    """

    def __init__(self, root: Path, writer_lock: WriterLock) -> None:
        """`root` is the run's folder, named in errors; `writer_lock` keeps other processes out."""
        self.lock = threading.RLock()
        """Guards the session and everything that is written."""
        self.removal_lock = threading.RLock()
        """Held while checkpoints are deleted; taken before `lock` where both are."""
        self.state = GuardState.OPEN
        self._root = root
        self._writer_lock = writer_lock
        self.has_raised = False
        """Whether a caller has learned that the run may not be written any more."""
        self._intrusion: Intrusion | None = None
        self._details = ""

    def __enter__(self) -> None:
        self.lock.acquire()
        if self.state is not GuardState.OPEN:
            self.lock.release()
            self.require_open()

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def is_open(self) -> bool:
        """Whether the run may still be written."""
        return self.state is GuardState.OPEN

    def require_open(self) -> None:
        """Raise unless the run may still be written.

        Raises:
            RunClosed: it was closed, replaced, or belongs to the parent process.
            RunInUse: another process writes it as well.
        """
        if self.state is not GuardState.OPEN:
            self.has_raised = True
            raise self.error()

    def error(self) -> RunError:
        """Why the run may not be written."""
        if self._intrusion is None:
            return RunClosed(self._root, why=self.state)
        why, other = f"stopped, because {self._intrusion.what}", self._intrusion.other
        if other is None:
            return RunClosed(self._root, why=f"{why}. {self._details}".rstrip(". "))
        return RunInUse(
            self._root, host=other.host, pid=other.pid, details=f"This process {why}. {self._details}".rstrip()
        )

    def stop(self, intrusion: Intrusion) -> None:
        """Let nobody write any more, as another process writes the run."""
        self.state, self._intrusion = GuardState.INTRUDED, intrusion

    def add_details(self, details: str) -> None:
        """Add a sentence to the error of a run that was stopped."""
        self._details = details

    def watch(self, *, on_takeover: Callable[[], None], on_fork: Callable[[], None]) -> None:
        """Call back when another tracker of this process takes over the run, and in a forked child.

        On a takeover, the run is still open during the call, so that it can be closed normally. In a child, the locks
        are new by then: a thread of the parent may have held the old ones at the fork.
        """

        def take_over() -> None:
            on_takeover()
            self.state = GuardState.REPLACED

        def leave_to_parent() -> None:
            self.state = GuardState.FORKED
            self.lock, self.removal_lock = threading.RLock(), threading.RLock()
            on_fork()

        self._writer_lock.on_takeover = take_over
        self._writer_lock.on_fork = leave_to_parent
