"""All runs under one folder.

Requests name a run as it was found. Names are looked up, never joined to a path, so no name leads out of the folder.
No link does either, unless links are to be followed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from crashproof.dashboard.responses import Skipped, UnreadableRun, shown_text
from crashproof.dashboard.watched_run import WatchedRun
from crashproof.reading.discovery import RunSearch

__all__ = ["WatchedRuns"]

_SECONDS_BETWEEN_SEARCHES = 3.0
_SECONDS_BEFORE_A_NEW_NAME = 0.5
"""Limits the searches that requests for an unknown name cause."""


class WatchedRuns:
    """Finds runs, and caches what was read of each. Thread-safe."""

    def __init__(
        self, root: Path, *, follows_links: bool = False, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self.root = root
        self.skipped: list[Skipped] = []
        """The folders that the last search left out."""
        self.odd: list[UnreadableRun] = []
        """Rows for what the last search found in the place of runs, and that can be none."""
        self._follows_links = follows_links
        self._steady = steady
        self._lock = threading.Lock()
        self._runs: dict[str, WatchedRun] = {}
        self._searched_at: float | None = None

    def all(self) -> list[WatchedRun]:
        """Return every run, as of at most a few seconds ago."""
        with self._lock:
            if self._is_older_than(_SECONDS_BETWEEN_SEARCHES):
                self._search()
            return list(self._runs.values())

    def find(self, name: str) -> WatchedRun | None:
        """Return the run of this name, or None."""
        with self._lock:
            if name not in self._runs and self._is_older_than(_SECONDS_BEFORE_A_NEW_NAME):
                self._search()
            return self._runs.get(name)

    def _is_older_than(self, seconds: float) -> bool:
        return self._searched_at is None or self._steady() - self._searched_at >= seconds

    def _search(self) -> None:
        search = RunSearch(self.root, follows_links=self._follows_links)
        boundary = None if self._follows_links else search.boundary
        found = {shown_text(name): folder for name, folder in search.runs.items()}
        self._runs = {
            name: self._runs.get(name) or WatchedRun(name, folder, boundary=boundary)
            for name, folder in found.items()
        }
        self.odd = [UnreadableRun(name=shown_text(each.name), health_reason=each.reason) for each in search.odd]
        self.skipped = [Skipped(name=shown_text(each.name), reason=each.reason) for each in search.skipped]
        self._searched_at = self._steady()
