"""Append lines that survive a crash.

A line is in the file before `append` returns: nothing is buffered in this process, so its death loses
nothing. Damage by a torn write, a full or a failing disk is found by the checksum of each line on reading (see
`records/checksummed_line.py`).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from crashproof.disk.atomic import partial_name, write_all
from crashproof.disk.files import REAL_DISK, Disk, above_standard, storage_errors
from crashproof.records.checksummed_line import CHECKSUM_BYTES, is_intact, salvage
from crashproof.records.snapshots import JournalMark

__all__ = [
    "Damage",
    "Interference",
    "Journal",
    "JournalAbandoned",
    "Line",
    "append_durably",
    "line_continues",
    "line_crc",
    "quarantine_bytes",
    "read_line",
    "repair_journal",
    "scan",
    "scan_backwards",
]

log = logging.getLogger("crashproof")

_BLOCK_BYTES = 1 << 20
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}


@dataclass(frozen=True, slots=True)
class Line:
    """An intact line and where it begins."""

    offset: int
    content: bytes

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + len(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes of a journal that are not an intact line."""

    offset: int
    content: bytes
    is_torn_tail: bool
    """Whether the file ends in it without a newline: a write was interrupted, or is in progress."""

    @property
    def reason(self) -> str:
        """What is wrong, in words."""
        if self.is_torn_tail:
            return "the last write was cut off"
        return "its checksum does not match"


class Interference(StrEnum):
    """What something else has done to a journal under its writer; each value follows the file's name."""

    GREW = "has lines of another process"
    REMOVED = "was removed or renamed"
    REPLACED = "was replaced by another file"


class JournalAbandoned(Exception):
    """The line is not in the journal: its writer has stopped writing to it."""


def scan(path: Path, *, start: int = 0) -> Iterator[Line | Damage]:
    """Yield all lines from an offset on, in order; a missing file has none."""
    if not path.exists():
        return
    offset = start
    with path.open("rb", buffering=_BLOCK_BYTES) as file:
        file.seek(start)
        for content in file:
            if is_intact(content):
                yield Line(offset, content)
            else:
                yield Damage(offset=offset, content=content, is_torn_tail=not content.endswith(b"\n"))
            offset += len(content)


def scan_backwards(path: Path, *, end: int) -> Iterator[Line]:
    """Yield the intact lines before an offset, the last one first; skip what is damaged."""
    with path.open("rb") as file:
        rest = b""
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            block = file.read(end - start) + rest
            # The first piece may have begun in the block before.
            keep = 0 if start == 0 else (block.find(b"\n") + 1 or len(block))
            offset = start + len(block)
            for content in reversed(block[keep:].splitlines(keepends=True)):
                offset -= len(content)
                if is_intact(content):
                    yield Line(offset, content)
            rest, end = block[:keep], start


def read_line(path: Path, *, offset: int, num_bytes: int) -> bytes | None:
    """The line at an offset, or None if it is no longer intact."""
    # Not `path.open`: its buffer costs more than the reading.
    file = above_standard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        content = os.pread(file, num_bytes, offset)
    finally:
        os.close(file)
    return content if is_intact(content) else None


def line_crc(line: bytes) -> str:
    """The checksum at the end of an intact line."""
    return line[-CHECKSUM_BYTES + 8 : -3].decode()


def line_continues(path: Path, mark: JournalMark) -> bool:
    """Whether a journal still has the line that a snapshot ended with, at the same place."""
    if mark.num_bytes == 0:
        return True
    try:
        with path.open("rb") as file:
            file.seek(mark.num_bytes - CHECKSUM_BYTES)
            end = file.read(CHECKSUM_BYTES)
    except OSError:
        return False
    return len(end) == CHECKSUM_BYTES and line_crc(end) == mark.last_line_crc and end.endswith(b"\n")


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
        self._num_lines = mark.num_lines
        self._last_line_crc = mark.last_line_crc
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
        self.num_bytes = path.stat().st_size
        # What a killed predecessor wrote may not have reached the disk yet.
        self._synced_bytes = 0

    @property
    def mark(self) -> JournalMark:
        """Where the journal ends now."""
        return JournalMark(num_bytes=self.num_bytes, num_lines=self._num_lines, last_line_crc=self._last_line_crc)

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
        """
        offset = self.num_bytes
        try:
            if self._is_blocked:
                self._unblock()
                offset = self.num_bytes
            written = self._disk.write(self._file, line)
            if written != len(line):
                # The disk is nearly always full after a short write, and this raises.
                write_all(self._file, line[written:], self._disk)
        except OSError:
            self._cut_back(offset, line)
            with storage_errors(self.path, needed_bytes=len(line)):
                raise
        self.num_bytes = offset + len(line)
        self._num_lines += 1
        self._last_line_crc = line_crc(line)
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
        if own.st_size > self.num_bytes and not self._has_torn_end:
            return Interference.GREW
        return None

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

    def _cut_back(self, offset: int, line: bytes) -> None:
        """Remove what the failed write of a line may have left at an offset, or remember that it is there."""
        try:
            if line.startswith(os.pread(self._file, len(line) + 1, offset)):
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
        self.num_bytes = self.path.stat().st_size


def repair_journal(path: Path, *, quarantine: Path, start: int = 0, disk: Disk = REAL_DISK) -> list[Damage]:
    """Move all damage of a journal to the file `quarantine`, and keep all intact lines in order.

    Checks from the offset `start` on; if more than the last line is damaged there, the whole file is repaired. The
    damage is durable in quarantine before the journal changes: a crash in between duplicates it there and loses
    nothing. Intact lines that were merged with damage are kept.
    """
    damages = _find_damages(path, start)
    if not damages:
        return []
    with storage_errors(path):
        if damages[0].is_torn_tail and not any(salvage(damages[0].content)):
            quarantine_bytes([each.content for each in damages], quarantine, disk)
            _truncate_file(path, damages[0].offset, disk)
        else:
            damages = _find_damages(path, 0)
            quarantine_bytes([each.content for each in damages], quarantine, disk)
            _rewrite_intact_lines(path, disk)
    return damages


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


def _find_damages(path: Path, start: int) -> list[Damage]:
    return [piece for piece in scan(path, start=start) if isinstance(piece, Damage)]


def _truncate_file(path: Path, num_bytes: int, disk: Disk) -> None:
    file = disk.open_to_append(path)
    try:
        disk.truncate(file, num_bytes)
        disk.sync(file)
    finally:
        disk.close(file)


def _rewrite_intact_lines(path: Path, disk: Disk) -> None:
    partial = partial_name(path)
    file = disk.open_anew(partial)
    try:
        for piece in scan(path):
            lines = [piece.content] if isinstance(piece, Line) else list(salvage(piece.content))
            for line in lines:
                write_all(file, line, disk)
        disk.sync(file)
    finally:
        disk.close(file)
    disk.replace(partial, path)
    disk.sync_folder(path.parent)
