"""Aggregate metrics for plots while they are written.

A run of ten million steps has gigabytes of metrics; a plot of it needs thousands of numbers. So every 256 updates one
line is added to `curves.jsonl`: the range of the journal that it covers, and a bucket of each series. Sixteen of them
that follow each other are joined to one line of `curves_coarse.jsonl`. Both files are derived and never synced:
readers check them against the journal, and read from the journal what they lack.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.journal import Journal, line_continues, scan_backwards
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import StorageError
from crashproof.records.curves import CoarseBlock, CurveBlock, CurvePoint
from crashproof.records.lines.codec import decode, encode
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.snapshots import JournalMark
from crashproof.rules.curves import folded, joined
from crashproof.rules.history import with_part
from crashproof.tracking.metrics.journalled_update import JournalledUpdate

__all__ = ["BLOCKS_JOINED", "UPDATES_A_BLOCK", "CurveWriter"]

log = logging.getLogger("crashproof")

UPDATES_A_BLOCK = 256

BLOCKS_JOINED = 16

_block_decoder = LazyDecoder[CurveBlock](CurveBlock)
_coarse_decoder = LazyDecoder[CoarseBlock](CoarseBlock)


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
        self._files: _CurveFiles | None = None
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
        """Forget the files and what is not in them yet: the journal of metrics has been written again."""
        self.close()
        self._updates.clear()
        self._start = self._metrics.mark

    def close(self) -> None:
        """Close the files."""
        if self._files is not None:
            self._files.close()
            self._files = None

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
            if self._files is None:
                self._files = _CurveFiles(self._folder, self._disk)
            self._files.append(block)
        except (StorageError, OSError) as error:
            # Only plots depend on it: training and its records go on.
            log.warning("No more lines are written to %s in this attempt: %s", self._folder.curves, error)
            self._has_failed = True


class _CurveFiles:
    """Both files, held open. Each is truncated to the part that agrees with the metrics when it is opened."""

    def __init__(self, folder: RunFolder, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk
        self._blocks = self._open(folder.curves, _block_decoder)
        self._coarse: Journal | None = None
        try:
            # Now, while it can be told whether its blocks are still there.
            if folder.coarse_curves.exists():
                self._coarse = self._open(folder.coarse_curves, _coarse_decoder)
        except (StorageError, OSError):
            self._blocks.close()
            raise
        self._joining: list[CurveBlock] = []
        """Blocks that follow each other, and are in no coarse one yet."""
        self._joining_offset = 0
        """Where the first of them begins."""

    def append(self, block: CurveBlock) -> None:
        """Add a block, and from time to time a coarse one."""
        offset = self._blocks.append(encode(block))
        newest = self._joining[-1] if self._joining else None
        if newest is None or newest.end != block.offset or newest.last_step >= block.first_step:
            self._joining, self._joining_offset = [], offset
        self._joining.append(block)
        if len(self._joining) >= BLOCKS_JOINED:
            if self._coarse is None:
                self._coarse = self._open(self._folder.coarse_curves, _coarse_decoder)
            self._coarse.append(encode(self._coarse_block()))
            self._joining = []

    def close(self) -> None:
        """Close both."""
        self._blocks.close()
        if self._coarse is not None:
            self._coarse.close()

    def _coarse_block(self) -> CoarseBlock:
        point, last = joined(self._joining), self._joining[-1]
        return CoarseBlock(
            **{name: getattr(point, name) for name in CurvePoint.__struct_fields__},
            offset=self._joining[0].offset,
            end=last.end,
            last_line_crc=last.last_line_crc,
            blocks_offset=self._joining_offset,
            blocks_end=self._blocks.num_bytes,
        )

    def _open(self, path: Path, decoder: LazyDecoder[Any]) -> Journal:
        num_bytes = 0
        if path.exists():
            num_bytes = self._agreed_bytes(path, decoder)
            if num_bytes < path.stat().st_size:
                file = self._disk.open_to_append(path)
                try:
                    self._disk.truncate(file, num_bytes)
                finally:
                    self._disk.close(file)
        return Journal(path, mark=JournalMark(num_bytes=num_bytes), disk=self._disk)

    def _agreed_bytes(self, path: Path, decoder: LazyDecoder[Any]) -> int:
        """The end of the newest line whose own last line is still where it was in the metrics."""
        for line in scan_backwards(path, end=path.stat().st_size):
            try:
                block = decode(line.content, decoder)
            except msgspec.ValidationError:
                return 0
            mark = JournalMark(num_bytes=block.end, last_line_crc=block.last_line_crc)
            has_blocks = not isinstance(block, CoarseBlock) or block.blocks_end <= self._blocks.num_bytes
            if has_blocks and line_continues(self._folder.metrics, mark):
                return line.end
        return 0
