"""Aggregate metrics for plots while they are written.

A run of ten million steps has gigabytes of metrics; a plot of it needs thousands of numbers. So every 256 updates one
line is added to `curves.jsonl`: the range of the journal that it covers, and a bucket of each series. The file is
derived and never synced: readers check it against the journal, and read from the journal what it lacks.
"""

from __future__ import annotations

import logging

import msgspec

from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.journal import Journal, line_continues, scan_backwards
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import StorageError
from crashproof.records.codec import decode, encode
from crashproof.records.curves import CurveBlock
from crashproof.records.lazy_decoder import LazyDecoder
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.snapshots import JournalMark
from crashproof.rules.curves import folded
from crashproof.rules.history import with_part
from crashproof.tracking.metrics.journalled_update import JournalledUpdate

__all__ = ["UPDATES_A_BLOCK", "CurveWriter"]

log = logging.getLogger("crashproof")

UPDATES_A_BLOCK = 256

_decoder = LazyDecoder[CurveBlock](CurveBlock)


class CurveWriter:
    """Adds a block for every 256 updates, once the next one has come. Not thread-safe: its owner locks."""

    def __init__(self, folder: RunFolder, metrics: Journal, *, disk: Disk = REAL_DISK) -> None:
        self._folder = folder
        self._metrics = metrics
        self._disk = disk
        self._updates: list[MetricsSnapshot] = []
        self._num_lines = 0
        """Lines that these updates are in: one may have several parts."""
        self._start = metrics.mark
        self._end = self._start
        """Where the last line of a full block ends."""
        self._journal: Journal | None = None
        self._has_failed = False

    def add(self, journalled: JournalledUpdate, *, is_part: bool = False) -> None:
        """Add an update that is in the journal, or waits for space there.

        Args:
            journalled: The update, or a part of one.
            is_part: Whether it belongs to the update before it.
        """
        # A full block is added only now: another part of its last update may have followed.
        if len(self._updates) >= UPDATES_A_BLOCK and not is_part:
            self._add_block()
        updates, update = self._updates, journalled.update
        if not journalled.is_written:
            # Its offset is not known yet; readers find such lines in the journal.
            self._start_over(JournalMark())
            return
        if updates and is_part:
            updates[-1] = with_part(updates[-1], update)
        elif is_part or (updates and update.step <= updates[-1].step):
            # A block needs steps in order, and whole updates: readers find these in the journal.
            self._start_over(journalled.mark)
            return
        else:
            updates.append(update)
        self._num_lines += 1
        if len(updates) >= UPDATES_A_BLOCK:
            self._end = journalled.mark

    def begin_again(self) -> None:
        """Forget the file and what is not in it yet: the journal of metrics has been written again."""
        self.close()
        self._updates.clear()
        self._start = self._metrics.mark

    def close(self) -> None:
        """Close the file."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _start_over(self, start: JournalMark) -> None:
        self._updates, self._num_lines, self._start = [], 0, start

    def _add_block(self) -> None:
        updates, num_lines, start, end = self._updates, self._num_lines, self._start, self._end
        self._start_over(end)
        # Lines that had waited for space may lie in between.
        if self._has_failed or end.num_lines - start.num_lines != num_lines:
            return
        block = CurveBlock(
            offset=start.num_bytes,
            end=end.num_bytes,
            last_line_crc=end.last_line_crc,
            attempt=updates[-1].attempt,
            num_updates=len(updates),
            first_step=updates[0].step,
            last_step=updates[-1].step,
            timestamp=updates[-1].timestamp,
            wall_clock_hours=updates[-1].wall_clock_hours,
            series=folded(updates),
        )
        try:
            if self._journal is None:
                self._journal = self._open_journal()
            self._journal.append(encode(block))
        except (StorageError, OSError) as error:
            # Only plots depend on it: training and its records go on.
            log.warning("No more lines are written to %s in this attempt: %s", self._folder.curves, error)
            self._has_failed = True

    def _open_journal(self) -> Journal:
        """Open the file, truncated to the part that agrees with the metrics."""
        path = self._folder.curves
        num_bytes = 0
        if path.exists():
            num_bytes = self._agreed_bytes()
            if num_bytes < path.stat().st_size:
                file = self._disk.open_to_append(path)
                try:
                    self._disk.truncate(file, num_bytes)
                finally:
                    self._disk.close(file)
        return Journal(path, mark=JournalMark(num_bytes=num_bytes), disk=self._disk)

    def _agreed_bytes(self) -> int:
        """The end of the newest block whose last line is still where it was in the metrics."""
        path = self._folder.curves
        for line in scan_backwards(path, end=path.stat().st_size):
            try:
                block = decode(line.content, _decoder)
            except msgspec.ValidationError:
                return 0
            mark = JournalMark(num_bytes=block.end, last_line_crc=block.last_line_crc)
            if line_continues(self._folder.metrics, mark):
                return line.end
        return 0
