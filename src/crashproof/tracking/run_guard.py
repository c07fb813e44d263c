"""The guard of a run's writer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from crashproof.disk.lock import WriterLock
from crashproof.errors import RunClosed

__all__ = ["GuardState", "RunGuard"]


class GuardState(StrEnum):
    """Whether a run's writer may still write; each value completes the sentence "the tracker …"."""

    OPEN = "is open"
    CLOSED = "is closed"
    REPLACED = "was replaced by a newer one in this process"
    FORKED = "belongs to the parent process"


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
        """
        if self.state is not GuardState.OPEN:
            raise RunClosed(self._root, why=self.state)

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
