"""Append lines that survive a crash.

A line is in the file before `append` returns: nothing waits in this process, so its death loses nothing. What a
torn write, a full disk or a failing disk leaves is found by its checksum (`records/checksummed_line.py`) on reading.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crashproof.disk.atomic import partial_name, write_all
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.records.checksummed_line import CHECKSUM_BYTES, is_intact, salvage
from crashproof.records.snapshots import JournalMark

__all__ = [
    "Damage",
    "Journal",
    "Line",
    "keep_aside",
    "line_continues",
    "line_crc",
    "mend",
    "read_line",
    "scan",
    "scan_backwards",
]

log = logging.getLogger("crashproof")

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """A whole line and where it begins."""

    offset: int
    content: bytes

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + len(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes of a journal that are no whole line."""

    offset: int
    content: bytes
    is_torn_tail: bool
    """Whether the file ends in it without a newline: a write was cut off, or is still under way."""

    @property
    def reason(self) -> str:
        """What is wrong, in words."""
        if self.is_torn_tail:
            return "the last write was cut off"
        return "its checksum does not match"


def scan(path: Path, *, start: int = 0) -> Iterator[Line | Damage]:
    """All lines from an offset on, in order; a missing file has none."""
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
    """The whole lines before an offset, the last one first; what is damaged is passed over."""
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
    """The line at an offset, or None where it is not whole any more."""
    # Not `path.open`: its buffer costs more than the reading.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.pread(file, num_bytes, offset)
    finally:
        os.close(file)
    return content if is_intact(content) else None


def line_crc(line: bytes) -> str:
    """The checksum that a whole line ends with."""
    return line[-CHECKSUM_BYTES + 8 : -3].decode()


def line_continues(path: Path, mark: JournalMark) -> bool:
    """Whether a journal still has, where a snapshot ends, the line that the snapshot ended with."""
    if mark.num_bytes == 0:
        return True
    try:
        with path.open("rb") as file:
            file.seek(mark.num_bytes - CHECKSUM_BYTES)
            seal = file.read(CHECKSUM_BYTES)
    except OSError:
        return False
    return len(seal) == CHECKSUM_BYTES and line_crc(seal) == mark.last_line_crc and seal.endswith(b"\n")


class Journal:
    """One file that only grows, held open by its one writer."""

    def __init__(self, path: Path, *, mark: JournalMark, disk: Disk = REAL_DISK) -> None:
        """Open it for appending, and create it where it is missing.

        `mark` is where a reading of the whole file ended: an opened journal knows how many lines it has.

        Raises:
            DiskFull, StorageUnwritable: it could not be opened.
        """
        self.path = path
        self._disk = disk
        self._num_lines = mark.num_lines
        self._last_line_crc = mark.last_line_crc
        self._sync_lock = threading.Lock()
        self._ends_in_a_piece = False
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
        """Where it ends now."""
        return JournalMark(num_bytes=self.num_bytes, num_lines=self._num_lines, last_line_crc=self._last_line_crc)

    @property
    def has_unsynced(self) -> bool:
        """Whether lines wait for a sync."""
        return self._synced_bytes < self.num_bytes

    def append(self, line: bytes) -> int:
        """Add one sealed line; it survives the death of this process from here on.

        Returns its offset.

        Raises:
            DiskFull: the line is not in the journal; what was there is untouched.
        """
        offset = self.num_bytes
        written = 0
        try:
            if self._ends_in_a_piece:
                self._close_piece()
                offset = self.num_bytes
            written = self._disk.write(self._file, line)
            if written != len(line):
                written += self._write_rest(line, written)
        except OSError:
            self._cut_back(offset)
            with storage_errors(self.path, needed_bytes=len(line)):
                raise
        self.num_bytes = offset + written
        self._num_lines += 1
        self._last_line_crc = line_crc(line)
        return offset

    def sync(self) -> None:
        """Wait until every line appended before this call would survive a power loss.

        Threads that ask while the disk is busy share the next sync.

        Raises:
            OSError: the disk could not say so; lines since the last sync may be lost with the power.
        """
        wanted = self.num_bytes
        with self._sync_lock:
            if self._synced_bytes >= wanted:
                return
            # A line that arrives while the disk works is for the next sync.
            reached = self.num_bytes
            with storage_errors(self.path):
                self._disk.sync(self._file)
            self._synced_bytes = reached

    def close(self) -> None:
        """Let go of the file; `sync` first what must be durable."""
        self._disk.close(self._file)

    def _write_rest(self, line: bytes, written: int) -> int:
        """Go on after a short write; the disk is nearly always full then, and this raises."""
        write_all(self._file, line[written:], self._disk)
        return len(line) - written

    def _cut_back(self, num_bytes: int) -> None:
        """Remove the piece that a failed write may have left, or remember that it is there."""
        try:
            self._disk.truncate(self._file, num_bytes)
            self._ends_in_a_piece = False
        except OSError as error:
            # The next line starts on a line of its own; the piece is set aside when the run is opened next.
            log.warning("Could not cut a half-written line off %s: %s", self.path, error)
            self._ends_in_a_piece = True

    def _close_piece(self) -> None:
        write_all(self._file, b"\n", self._disk)
        self._ends_in_a_piece = False
        self.num_bytes = self.path.stat().st_size


def mend(path: Path, *, set_aside: Path, start: int = 0, disk: Disk = REAL_DISK) -> list[Damage]:
    """Move every broken piece of a journal to a side file and keep all whole lines in order.

    Looks from the offset `start` on; where more than the last line is broken there, the whole file is mended.
    The pieces are durable in the side file before the journal changes, so a crash in between duplicates them
    there and loses nothing. Lines that ran together with a broken piece are kept.
    """
    damages = _damages(path, start)
    if not damages:
        return []
    with storage_errors(path):
        if damages[0].is_torn_tail and not any(salvage(damages[0].content)):
            keep_aside([each.content for each in damages], set_aside, disk)
            _cut_file(path, damages[0].offset, disk)
        else:
            damages = _damages(path, 0)
            keep_aside([each.content for each in damages], set_aside, disk)
            _rewrite_whole_lines(path, disk)
    return damages


def _damages(path: Path, start: int) -> list[Damage]:
    return [piece for piece in scan(path, start=start) if isinstance(piece, Damage)]


def keep_aside(pieces: Iterable[bytes], set_aside: Path, disk: Disk) -> None:
    """Add broken pieces to a side file, durably."""
    disk.make_folders(set_aside.parent)
    file = disk.open_to_append(set_aside)
    try:
        for piece in pieces:
            write_all(file, piece.rstrip(b"\n") + b"\n", disk)
        disk.sync(file)
    finally:
        disk.close(file)
    disk.sync_folder(set_aside.parent)


def _cut_file(path: Path, num_bytes: int, disk: Disk) -> None:
    file = disk.open_to_append(path)
    try:
        disk.truncate(file, num_bytes)
        disk.sync(file)
    finally:
        disk.close(file)


def _rewrite_whole_lines(path: Path, disk: Disk) -> None:
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
