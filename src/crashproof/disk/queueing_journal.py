"""Queue lines while the disk is full."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.journal import Journal, JournalAbandoned, quarantine_bytes
from crashproof.errors import DiskFull

__all__ = ["QueueingJournal"]

log = logging.getLogger("crashproof")

MAX_QUEUED_BYTES = 64 << 20


class QueueingJournal:
    """A journal whose lines are queued in memory, in order, while no space is left.

    Training continues with a full disk; its metrics count as written only once there is space again.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self.refusal: DiskFull | None = None
        """Why the queued lines could not be written at the last try."""

    @property
    def num_queued(self) -> int:
        """The number of lines that are not in the file yet."""
        return len(self._queue)

    def append(self, line: bytes) -> None:
        """Add a line now, or as soon as there is space.

        Raises:
            DiskFull: the queue is full (64 MiB); this line is lost.
        """
        if not self._queue or self.write_queued():
            try:
                self.journal.append(line)
            except DiskFull as error:
                log.warning("%s Training continues; its metrics are queued in memory until there is space.", error)
            except JournalAbandoned:
                # `rescue` has it.
                pass
            else:
                return
        self._enqueue(line)

    def append_now(self, line: bytes) -> int:
        """Add a line behind all that are queued, and return its offset.

        Raises:
            DiskFull: the line is neither in the journal nor queued.
        """
        while self._queue:
            self._write_first()
        return self.journal.append(line)

    def write_queued(self) -> bool:
        """Try to write the queued lines; return whether none is left."""
        num_before = len(self._queue)
        try:
            while self._queue:
                self._write_first()
        except DiskFull as error:
            self.refusal = error
            return False
        except JournalAbandoned:
            return False
        if num_before:
            log.warning("There is space again: %d queued lines were written to %s.", num_before, self.journal.path)
        return True

    def rescue(self, quarantine: Path, *, disk: Disk = REAL_DISK) -> None:
        """Write the queued lines to a file in quarantine, durably, as the journal is another process's now.

        Raises:
            DiskFull, StorageUnwritable: they are still queued.
        """
        if not self._queue:
            return
        with storage_errors(quarantine):
            quarantine_bytes(self._queue, quarantine, disk)
        self._queue.clear()
        self._queued_bytes = 0

    def _enqueue(self, line: bytes) -> None:
        if self._queued_bytes + len(line) > MAX_QUEUED_BYTES:
            raise DiskFull(self.journal.path, needed_bytes=self._queued_bytes + len(line))
        self._queue.append(line)
        self._queued_bytes += len(line)

    def _write_first(self) -> None:
        self.journal.append(self._queue[0])
        self._queued_bytes -= len(self._queue.popleft())
