"""Append lines that survive a crash.

A line is in the file before `append` returns: nothing is buffered in this process, so its death loses nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from crashproof.disk.atomic import write_all
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.journal.lines import MOST_BLANKS, Line, ends_with_line, line_crc
from crashproof.disk.journal.reading import scan
from crashproof.errors import RecordTooLarge
from crashproof.records.lines.checksummed_line import (
    CHECKSUM_BYTES,
    MAX_LINE_BYTES,
    MAX_NESTING,
    is_nested_too_deeply,
)
from crashproof.records.snapshots import JournalMark

__all__ = ["Interference", "Journal", "JournalAbandoned", "append_durably", "quarantine_bytes"]

log = logging.getLogger("crashproof")

_BLOCK_BYTES = 1 << 20
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}


class Interference(StrEnum):
    """What something else has done to a journal under its writer; each value follows the file's name."""

    GREW = "has lines of another process"
    REMOVED = "was removed or renamed"
    REPLACED = "was replaced by another file"
    SHORTENED = "was shortened"
    EDITED = "was edited"


class JournalAbandoned(Exception):
    """The line is not in the journal: its writer has stopped writing to it."""


class Journal:
    """An append-only file, held open by its one writer."""

    def __init__(self, path: Path, *, mark: JournalMark, disk: Disk = REAL_DISK) -> None:
        """Open it for appending, and create it if it is missing.

        `mark` is where a reading of the whole file ended.

        Raises:
            DiskFull, StorageUnwritable: it could not be opened.
        """
        self.path = path
        self._disk = disk
        self.num_lines = mark.num_lines
        """Lines in it, damaged ones not counted."""
        self._mark = mark
        self.last_checksum = b""
        """The end of the last line that was appended; empty if none was since the journal was opened."""
        self._sync_lock = threading.Lock()
        self._has_torn_end = False
        self._is_abandoned = False
        self._is_blocked = False
        """Whether something comes before the next line, so that the usual append checks one flag only."""
        self.has_foreign_lines = False
        """Whether another process has added lines that this one has not read."""
        with storage_errors(path):
            is_new = not path.exists()
            self._file = disk.open_to_append(path)
            if is_new:
                disk.sync_folder(path.parent)
            self.num_bytes = os.fstat(self._file).st_size
            if self.num_bytes and os.pread(self._file, 1, self.num_bytes - 1) != b"\n":
                # The next line must not become part of it.
                self._has_torn_end = self._is_blocked = True
        # What a killed predecessor wrote may not have reached the disk yet.
        self._synced_bytes = 0

    @property
    def mark(self) -> JournalMark:
        """Where the journal ends now."""
        return JournalMark(num_bytes=self.num_bytes, num_lines=self.num_lines, last_line_crc=self._last_line_crc)

    @property
    def has_unsynced(self) -> bool:
        """Whether some lines are not synced yet."""
        return self._synced_bytes < self.num_bytes

    def append(self, line: bytes) -> int:
        """Add one checksummed line; from here on it survives the death of this process.

        Returns its offset.

        Raises:
            DiskFull: the line is not in the journal; what was there is untouched.
            JournalAbandoned: likewise.
            RecordTooLarge: it is longer, or nested more deeply, than a reader takes.
        """
        if len(line) > MAX_NESTING:
            self._require_readable(line)
        if self._is_blocked:
            with storage_errors(self.path, needed_bytes=len(line)):
                self._unblock()
        offset = self.num_bytes
        try:
            written = self._disk.write(self._file, line)
            if written != len(line):
                # The disk is nearly always full after a short write, and this raises.
                write_all(self._file, line[written:], self._disk)
        except OSError:
            self._cut_back(offset, line)
            with storage_errors(self.path, needed_bytes=len(line)):
                raise
        self.num_bytes = offset + len(line)
        self.num_lines += 1
        self.last_checksum = line[-CHECKSUM_BYTES:]
        return offset

    def sync(self) -> None:
        """Wait until every line appended before this call would survive a power loss.

        Threads that call it while the disk is busy share the next sync.

        Raises:
            OSError: the sync failed; lines since the last one may be lost in a power loss.
        """
        wanted = self.num_bytes
        with self._sync_lock:
            if self._synced_bytes >= wanted:
                return
            # Lines appended during this sync are left to the next one.
            reached = self.num_bytes
            with storage_errors(self.path):
                self._disk.sync(self._file)
            self._synced_bytes = reached

    def find_interference(self) -> Interference | None:
        """What something else has done to the file; reads no line, and may be called while another thread appends.

        While a line is being appended, `GREW` may be that line.
        """
        try:
            own, named = os.fstat(self._file), self.path.stat()
        except OSError as error:
            return Interference.REMOVED if error.errno in _GONE else None
        if not os.path.samestat(own, named):
            return Interference.REPLACED
        if own.st_size < self.num_bytes:
            return Interference.SHORTENED
        if self._has_torn_end:
            return None
        if own.st_size > self.num_bytes:
            return Interference.GREW
        return None if self._ends_as_written() else Interference.EDITED

    def is_as_written(self) -> bool:
        """Whether the open file, which may have no name any more, has all that was written to it."""
        try:
            return os.fstat(self._file).st_size >= self.num_bytes and self._ends_as_written()
        except OSError:
            # The server of a network file system has forgotten it.
            return False

    def _ends_as_written(self) -> bool:
        """Whether the last line is where it was written; only what is left of the file can tell of the others."""
        if self.has_foreign_lines or not self._last_line_crc:
            return True
        start = max(0, self.num_bytes - CHECKSUM_BYTES - MOST_BLANKS)
        return ends_with_line(os.pread(self._file, self.num_bytes - start, start), self._last_line_crc)

    @property
    def open_path(self) -> Path:
        """A path to the open file, also where it has lost its name."""
        return Path(f"/dev/fd/{self._file}")

    def has_intact_lines_behind(self) -> bool:
        """Whether what something else has added to the file holds a record."""
        return any(isinstance(piece, Line) for piece in scan(self.open_path, start=self.num_bytes))

    def reopen(self, mark: JournalMark) -> None:
        """Go on in the file that has the journal's name now, and that ends at a mark."""
        file = self._disk.open_to_append(self.path)
        with self._sync_lock:
            self._disk.close(self._file)
            self._file = file
            self.num_bytes, self.num_lines = os.fstat(file).st_size, mark.num_lines
            self._mark, self.last_checksum, self._synced_bytes = mark, b"", self.num_bytes
            self._has_torn_end, self._is_blocked = False, self._is_abandoned

    def accept_foreign_lines(self) -> None:
        """Go on behind the lines that another process has added."""
        self.num_bytes = os.fstat(self._file).st_size
        self.has_foreign_lines = True

    def abandon(self) -> None:
        """Refuse further lines: the file is another process's."""
        self._is_abandoned = self._is_blocked = True

    def rescue(self, quarantine: Path) -> None:
        """Append the whole file, which may have no name any more, to one in quarantine, durably.

        Raises:
            DiskFull, StorageUnwritable: it is there in part.
        """
        with storage_errors(quarantine):
            quarantine_bytes(self._blocks(), quarantine, self._disk)

    def close(self) -> None:
        """Close the file; call `sync` first if its lines must be durable."""
        self._disk.close(self._file)

    def content(self) -> Iterator[bytes]:
        """What was written to the open file, block by block, without what is behind it."""
        offset = 0
        while block := os.pread(self._file, min(_BLOCK_BYTES, self.num_bytes - offset), offset):
            offset += len(block)
            yield block

    def _blocks(self) -> Iterator[bytes]:
        """The content of the open file, in blocks of complete lines."""
        offset, rest = 0, b""
        while block := os.pread(self._file, _BLOCK_BYTES, offset):
            offset += len(block)
            lines, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield lines
        if rest:
            yield rest

    @property
    def _last_line_crc(self) -> str:
        return line_crc(self.last_checksum) if self.last_checksum else self._mark.last_line_crc

    def _require_readable(self, line: bytes) -> None:
        if len(line) > MAX_LINE_BYTES:
            raise RecordTooLarge(self.path, reason=f"has {len(line):,} bytes, more than {MAX_LINE_BYTES:,}")
        if is_nested_too_deeply(line):
            raise RecordTooLarge(self.path, reason=f"is nested more than {MAX_NESTING} levels deep")

    def _cut_back(self, offset: int, line: bytes) -> None:
        """Remove what the failed write of a line may have left at an offset, or remember that it is there."""
        try:
            written = os.pread(self._file, len(line) + 1, offset)
            if line.startswith(written):
                if written:
                    self._disk.truncate(self._file, offset)
                self._has_torn_end = self._is_blocked = False
                return
            # Something else has been written there as well, and is not cut off.
        except OSError as error:
            # The next append ends the torn line first; opening the run quarantines it.
            log.warning("Could not remove a torn line at the end of %s: %s", self.path, error)
        self._has_torn_end = self._is_blocked = True

    def _unblock(self) -> None:
        if self._is_abandoned:
            raise JournalAbandoned(self.path)
        write_all(self._file, b"\n", self._disk)
        self._has_torn_end = self._is_blocked = False
        self.num_bytes = os.fstat(self._file).st_size


def quarantine_bytes(pieces: Iterable[bytes], quarantine: Path, disk: Disk) -> None:
    """Append damaged bytes to a file in quarantine, durably."""
    disk.make_folders(quarantine.parent)
    file = disk.open_to_append(quarantine)
    try:
        for piece in pieces:
            write_all(file, piece.rstrip(b"\n") + b"\n", disk)
        disk.sync(file)
    finally:
        disk.close(file)
    disk.sync_folder(quarantine.parent)


def append_durably(path: Path, lines: Iterable[bytes], *, mark: JournalMark, disk: Disk = REAL_DISK) -> None:
    """Append to a journal that nobody holds open, and sync it; see `Journal` for `mark`.

    Raises:
        DiskFull, StorageUnwritable: the lines may be there in part.
    """
    journal = Journal(path, mark=mark, disk=disk)
    try:
        for line in lines:
            journal.append(line)
        journal.sync()
    finally:
        journal.close()
