"""Disk space reserved for paid answers.

An answer is paid for before it can be written. So the space for it is reserved first: a file of that size beside the
journal, which is deleted when the disk turns out to be full.
"""

from __future__ import annotations

import logging
from pathlib import Path

from crashproof.disk.files import Disk, storage_errors

__all__ = ["ReservedSpace"]

log = logging.getLogger("crashproof")


class ReservedSpace:
    """One file that occupies space until it is released; after a kill, by the next owner."""

    def __init__(self, path: Path, *, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._num_bytes = 0

    def reserve(self, num_bytes: int) -> None:
        """Reserve at least this much space in total.

        Raises:
            DiskFull: there is not enough; what was reserved before still is.
        """
        if num_bytes <= self._num_bytes:
            return
        with storage_errors(self._path.parent, needed_bytes=num_bytes):
            file = self._disk.open_to_append(self._path)
            try:
                self._disk.allocate(file, num_bytes)
            finally:
                self._disk.close(file)
        self._num_bytes = num_bytes

    def release(self) -> bool:
        """Free the space; return whether there was any."""
        self._num_bytes = 0
        if not self._path.exists():
            return False
        try:
            self._disk.remove_file(self._path)
        except OSError as error:
            # It costs space, not answers, and closing a run must not fail.
            log.warning("Could not delete %s: %s", self._path, error)
            return False
        return True
