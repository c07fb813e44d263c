"""Renew the leases of requests in flight."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from crashproof.errors import StorageError

__all__ = ["Leases"]

log = logging.getLogger("crashproof")


class Leases:
    """The requests that this process has in flight, and a thread that renews their leases."""

    def __init__(self, renew: Callable[[list[str]], None], *, interval_seconds: float) -> None:
        """`renew` is called from the thread, at intervals, with the ids of the requests in flight."""
        self._renew = renew
        self._interval_seconds = interval_seconds
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._has_to_stop = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, ids: Iterable[str]) -> None:
        """Renew these requests from now on."""
        with self._lock:
            self._ids.update(ids)
            if self._ids and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="crashproof-leases", daemon=True)
                self._thread.start()

    def release(self, ids: Iterable[str]) -> None:
        """Renew these requests no longer."""
        with self._lock:
            self._ids.difference_update(ids)

    def close(self) -> set[str]:
        """Stop the thread; returns the requests that are still in flight, which are held no longer."""
        self._has_to_stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            left, self._ids = self._ids, set()
        return left

    def _work(self) -> None:
        while not self._has_to_stop.wait(self._interval_seconds):
            with self._lock:
                ids = sorted(self._ids)
            try:
                if ids:
                    self._renew(ids)
            except StorageError as error:
                # Others may take them for lost; their answers are stored nevertheless.
                log.warning("Could not renew the leases of %d requests in flight: %s", len(ids), error)
