"""Queue lines while the disk takes none."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.journal import Journal, JournalAbandoned, quarantine_bytes
from crashproof.errors import DiskFull, StorageError

__all__ = ["QueueingJournal"]

log = logging.getLogger("crashproof")

MAX_QUEUED_BYTES = 64 << 20


class QueueingJournal:
    """A journal whose lines are queued in memory, in order, while its disk is full, read-only or failing.

    Training continues; its metrics count as written only once the disk takes them again.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self.refusal: StorageError | OSError | None = None
        """Why the queued lines could not be written at the last try."""

    @property
    def num_queued(self) -> int:
        """The number of lines that are not in the file yet."""
        return len(self._queue)

    def append(self, line: bytes) -> bool:
        """Add a line now, or as soon as the disk takes it; return whether it is in the journal.

        Raises:
            StorageError, OSError: the queue is full (64 MiB); this line is lost. It is what refused the first one.
        """
        if not self._queue or self.write_queued():
            try:
                self.journal.append(line)
            except (StorageError, OSError) as error:
                self.refusal = error
                log.warning(
                    "%s Training continues; its metrics are queued in memory until %s.",
                    error if isinstance(error, StorageError) else f"{self.journal.path} cannot be written ({error}).",
                    "there is space" if isinstance(error, DiskFull) else "it can be written",
                )
            except JournalAbandoned:
                # `rescue` has it.
                pass
            else:
                return True
        self._enqueue(line)
        return False

    def append_now(self, line: bytes) -> int:
        """Add a line behind all that are queued, and return its offset.

        Raises:
            StorageError, OSError: the line is neither in the journal nor queued.
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
        except (StorageError, OSError) as error:
            self.refusal = error
            return False
        except JournalAbandoned:
            return False
        if num_before:
            again = "There is space" if isinstance(self.refusal, DiskFull) else "It can be written"
            log.warning("%s again: %d queued lines were written to %s.", again, num_before, self.journal.path)
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
            raise self.refusal or DiskFull(self.journal.path, needed_bytes=self._queued_bytes + len(line))
        self._queue.append(line)
        self._queued_bytes += len(line)

    def _write_first(self) -> None:
        self.journal.append(self._queue[0])
        self._queued_bytes -= len(self._queue.popleft())
