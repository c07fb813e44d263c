"""Space held ready for what must be kept.

An answer is paid for before it can be written. So the space for it is taken first: a file of that size beside the
journal, which is given up when the disk turns out to be full.
"""

from __future__ import annotations

import logging
from pathlib import Path

from crashproof.disk.files import Disk, storage_errors

__all__ = ["ReservedSpace"]

log = logging.getLogger("crashproof")


class ReservedSpace:
    """One file that holds space; gone when given up, and after a kill removed by the next owner."""

    def __init__(self, path: Path, *, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._num_bytes = 0

    def hold(self, num_bytes: int) -> None:
        """Make sure that at least so much space is held.

        Raises:
            DiskFull: it is not there; what was held before is still held.
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

    def give_up(self) -> bool:
        """Let others have the space; says whether there was any."""
        self._num_bytes = 0
        if not self._path.exists():
            return False
        try:
            self._disk.remove_file(self._path)
        except OSError as error:
            # It costs space, not answers; and whoever lets go of a run must come to the end.
            log.warning("Could not delete %s: %s", self._path, error)
            return False
        return True
