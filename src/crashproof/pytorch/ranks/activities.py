"""What the threads of this rank are doing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from crashproof.rules.ranks.overdue import Activity

__all__ = ["Activities"]

_OWN_WORK = "working on its own"


class Activities:
    """The activities under way, nested in each thread; the thread that made this is never without one."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._main = threading.get_ident()
        self._own_work_since = now()
        self._by_thread: dict[int, list[Activity]] = {}

    @contextmanager
    def doing(self, what: str, *, is_wait: bool) -> Iterator[None]:
        """Name what this thread does meanwhile; with `is_wait`, it does nothing but wait for other ranks."""
        thread = threading.get_ident()
        with self._lock:
            activity = Activity(what=what, since=self._now(), is_wait=is_wait)
            self._by_thread.setdefault(thread, []).append(activity)
        try:
            yield
        finally:
            self._leave(thread)

    @property
    def is_main_thread(self) -> bool:
        """Whether the thread that asks is the one that made this."""
        return threading.get_ident() == self._main

    def all(self) -> list[Activity]:
        """All that is under way, in all threads."""
        with self._lock:
            main = self._of_main_thread()
            return [*main, *(each for key, stack in self._by_thread.items() if key != self._main for each in stack)]

    def newest(self) -> Activity:
        """What the main thread is doing."""
        with self._lock:
            return self._of_main_thread()[-1]

    def restart(self) -> None:
        """Count from now on: the process stood still, and nothing of that time was spent waiting."""
        now = self._now()
        with self._lock:
            self._own_work_since = now
            for stack in self._by_thread.values():
                stack[:] = [replace(each, since=now) for each in stack]

    def _of_main_thread(self) -> list[Activity]:
        own_work = Activity(what=_OWN_WORK, since=self._own_work_since, is_wait=False)
        return self._by_thread.get(self._main, [own_work])

    def _leave(self, thread: int) -> None:
        with self._lock:
            self._by_thread[thread].pop()
            if not self._by_thread[thread]:
                del self._by_thread[thread]
                if thread == self._main:
                    # Between two exchanges the work is its own, from now on.
                    self._own_work_since = self._now()
