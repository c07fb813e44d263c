"""One asynchronous task at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from crashproof.threads import run_or_submit

__all__ = ["BackgroundTask"]


class BackgroundTask:
    """A thread that runs one task at a time in the background; every failure is raised to the caller."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start a task and return at once; `wait` for the previous one first.

        Where no thread can be started, it is done when this returns.
        """
        assert self._running is None, "the previous task was not waited for"
        self._running = run_or_submit(self._pool, work)

    def raise_failure(self) -> None:
        """Raise the exception of the last task if it has failed; returns at once."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the last task, and raise its exception if it has failed."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Finish a running task and end the thread."""
        self._pool.shutdown()
