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
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.snapshots import JournalMark
from crashproof.rules.curves import folded

__all__ = ["UPDATES_A_BLOCK", "CurveWriter"]

log = logging.getLogger("crashproof")

UPDATES_A_BLOCK = 256

_decoder = msgspec.json.Decoder(CurveBlock)


class CurveWriter:
    """Adds a block for every 256 updates. Not thread-safe: its owner locks."""

    def __init__(self, folder: RunFolder, metrics: Journal, *, disk: Disk = REAL_DISK) -> None:
        self._folder = folder
        self._metrics = metrics
        self._disk = disk
        self._updates: list[MetricsSnapshot] = []
        self._start = metrics.mark
        self._journal: Journal | None = None
        self._has_failed = False

    def add(self, update: MetricsSnapshot, *, is_waiting: bool) -> None:
        """Add an update that has just been journalled, or that waits for space on the disk."""
        updates = self._updates
        if is_waiting:
            # Its offset is not known yet; readers find such lines in the journal.
            updates.clear()
            self._start = JournalMark()
            return
        if updates and update.step <= updates[-1].step:
            # The loop went back, and a block needs steps in order: readers find these updates in the journal.
            updates.clear()
            self._start = self._metrics.mark
            return
        updates.append(update)
        if len(updates) >= UPDATES_A_BLOCK:
            self._add_block()

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

    def _add_block(self) -> None:
        updates, self._updates = self._updates, []
        start, self._start = self._start, self._metrics.mark
        # Lines that had waited for space may lie in between.
        if self._has_failed or self._start.num_lines - start.num_lines != len(updates):
            return
        block = CurveBlock(
            offset=start.num_bytes,
            end=self._start.num_bytes,
            last_line_crc=self._start.last_line_crc,
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
