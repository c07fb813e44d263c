"""One piece of work behind the training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["BackgroundTask"]


class BackgroundTask:
    """A thread for work that the loop need not wait for; one piece at a time, and none is forgotten."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._running: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is under way."""
        return self._running is not None and not self._running.done()

    def start(self, work: Callable[[], None]) -> None:
        """Begin, and return at once; what was begun before has been waited for."""
        assert self._running is None, "its end was not asked for"
        self._running = self._pool.submit(work)

    def tell(self) -> None:
        """Raise what the last piece has raised, if it is done; returns at once."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the last piece, and raise what it has raised."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """End the thread; a piece under way comes to its end first."""
        self._pool.shutdown()
