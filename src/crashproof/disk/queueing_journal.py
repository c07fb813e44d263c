"""Keep lines while the disk is full."""

from __future__ import annotations

import logging
from collections import deque

from crashproof.disk.journal import Journal
from crashproof.errors import DiskFull

__all__ = ["QueueingJournal"]

log = logging.getLogger("crashproof")

MOST_WAITING_BYTES = 64 << 20


class QueueingJournal:
    """A journal whose lines may wait in memory, in order, while no space is left.

    Training goes on with a full disk; its metrics are not acknowledged as written until there is space again.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0

    @property
    def num_waiting(self) -> int:
        """Lines that are not in the file yet."""
        return len(self._waiting)

    def append(self, line: bytes) -> None:
        """Add a line now, or as soon as there is space.

        Raises:
            DiskFull: more than 64 MiB would wait; this line is not kept.
        """
        if not self._waiting or self.write_waiting():
            try:
                self.journal.append(line)
            except DiskFull as error:
                log.warning("%s Training goes on; what it reports waits in memory until there is space.", error)
            else:
                return
        self._keep(line)

    def append_now(self, line: bytes) -> int:
        """Add a line behind all that wait, and return its offset.

        Raises:
            DiskFull: it is not in the journal and is not kept.
        """
        while self._waiting:
            self._write_first()
        return self.journal.append(line)

    def write_waiting(self) -> bool:
        """Try to write the lines that wait; say whether none is left."""
        num_before = len(self._waiting)
        try:
            while self._waiting:
                self._write_first()
        except DiskFull:
            return False
        if num_before:
            log.warning("There is space again: %d lines that waited are in %s.", num_before, self.journal.path)
        return True

    def _keep(self, line: bytes) -> None:
        if self._waiting_bytes + len(line) > MOST_WAITING_BYTES:
            raise DiskFull(self.journal.path, needed_bytes=self._waiting_bytes + len(line))
        self._waiting.append(line)
        self._waiting_bytes += len(line)

    def _write_first(self) -> None:
        self.journal.append(self._waiting[0])
        self._waiting_bytes -= len(self._waiting.popleft())
