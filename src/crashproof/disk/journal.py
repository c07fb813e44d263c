"""Append lines that survive a crash.

A line is in the file before `append` returns: nothing is buffered in this process, so its death loses
nothing. Damage by a torn write, a full or a failing disk is found by the checksum of each line on reading (see
`records/checksummed_line.py`).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from crashproof.disk.atomic import write_all
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.regular_file import next_data, open_descriptor, open_to_read, read_errors
from crashproof.errors import FileUnreadable, RecordTooLarge
from crashproof.records.checksummed_line import (
    CHECKSUM_BYTES,
    MAX_LINE_BYTES,
    MAX_NESTING,
    is_intact,
    is_nested_too_deeply,
    matches_checksum,
)
from crashproof.records.reformatted_line import find_records, is_blank, restore, what_it_looks_like
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
    "read_bytes_at",
    "read_line",
    "scan",
    "scan_backwards",
]

log = logging.getLogger("crashproof")

_BLOCK_BYTES = 1 << 20
_MAX_EXCERPT_BYTES = 64 << 10
_CHECKSUM = re.compile(rb',"crc":"[0-9a-f]{8}"\}')
_MAX_INDENTED_BYTES = 1 << 20
"""The longest record that is recognised although a formatter has spread it over several lines."""
_MOST_BLANKS = 64
"""White space behind a line, beyond which a mark at its end counts as lost."""
_MAX_PIECES = 1_000
"""Pieces of damage that one reading tells apart; beyond, neighbouring ones count as one."""
_GONE = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}


@dataclass(frozen=True, slots=True)
class Line:
    """An intact line and where it begins."""

    offset: int
    content: bytes
    """As it was written."""
    reformatted_bytes: int | None = None
    """Its length in the file, if another program has changed what is around its record; None: as it was written."""

    @property
    def num_bytes(self) -> int:
        """Its length in the file."""
        return len(self.content) if self.reformatted_bytes is None else self.reformatted_bytes

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.num_bytes

    @property
    def is_reformatted(self) -> bool:
        """Whether another program has changed what is around its record."""
        return self.reformatted_bytes is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Bytes of a journal that are not an intact line."""

    offset: int
    num_bytes: int
    content: bytes
    """The first of them, at most 64 KiB."""
    is_torn_tail: bool
    """Whether the file ends in it without a newline: a write was interrupted, or is in progress."""
    is_too_long: bool = False
    """Whether no line may be that long."""
    is_too_deep: bool = False
    """Whether its checksum is right and it is nested too deeply to be read."""
    moved_to: Path | None = None
    """Where a repair has kept it, if not in the journal's own file in quarantine."""

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.num_bytes

    @property
    def reason(self) -> str:
        """What is wrong, in words."""
        if self.is_too_long:
            return f"it is longer than a line may be ({MAX_LINE_BYTES:,} bytes)"
        if looks_like := what_it_looks_like(self.content):
            return f"it {looks_like}"
        if self.is_torn_tail:
            return "the last write was cut off"
        if self.is_too_deep:
            return f"it is nested more than {MAX_NESTING} levels deep"
        return "its checksum does not match"


class Interference(StrEnum):
    """What something else has done to a journal under its writer; each value follows the file's name."""

    GREW = "has lines of another process"
    REMOVED = "was removed or renamed"
    REPLACED = "was replaced by another file"
    SHORTENED = "was shortened"
    EDITED = "was edited"


class JournalAbandoned(Exception):
    """The line is not in the journal: its writer has stopped writing to it."""


def scan(path: Path, *, start: int = 0) -> Iterator[Line | Damage]:
    """Yield all lines from an offset on, in order; a missing file has none.

    Takes no more memory than the longest line may have, and next to no time for the holes of a sparse file.

    Raises:
        FileUnreadable: it is no regular file, or may not be read.
    """
    num_pieces = 0
    last: Damage | None = None
    for piece in _read_pieces(path, start):
        if last is not None:
            if isinstance(piece, Damage) and not piece.is_torn_tail:
                last = replace(last, num_bytes=piece.end - last.offset)
                continue
            yield last
            last = None
        if isinstance(piece, Damage) and not piece.is_torn_tail:
            num_pieces += 1
            if num_pieces > _MAX_PIECES:
                last = piece
                continue
        yield piece
    if last is not None:
        yield last


def _read_pieces(path: Path, start: int) -> Iterator[Line | Damage]:
    """Yield each line by itself, whatever is wrong with it; of very many damaged lines, some together."""
    try:
        file = open_to_read(path)
    except FileNotFoundError:
        return
    num_damaged = 0
    with file, read_errors(path):
        file.seek(start)
        offset = start
        while content := file.readline(MAX_LINE_BYTES):
            if is_intact(content):
                yield Line(offset, content)
                offset += len(content)
                continue
            pieces, offset = _take_apart(offset, content, file)
            yield from pieces
            num_damaged += sum(isinstance(each, Damage) for each in pieces)
            if num_damaged > _MAX_PIECES:
                end = _find_possible_line(file.fileno(), offset)
                if end > offset:
                    yield Damage(offset=offset, num_bytes=end - offset, content=b"", is_torn_tail=False)
                    offset = end
            # Also where a line that is too long was not read to its end.
            if file.tell() != offset:
                file.seek(offset)


def _take_apart(offset: int, content: bytes, file: BinaryIO) -> tuple[list[Line | Damage], int]:
    """What is in a line that is not as it was written, and the offset behind it.

    The one decision of what still counts as a record: whatever reads a journal goes by it, and so does its repair.
    """
    if len(content) == MAX_LINE_BYTES and not content.endswith(b"\n"):
        # With carriage returns for line ends, a whole file is one line.
        content = content[: content.rfind(b"\r") + 1] or content
    end = offset + len(content)
    if is_blank(content):
        return [], _skip_blanks(file.fileno(), end)
    if matches_checksum(content):
        # Nested too deeply, which takes long to find out.
        return [_damage_at(offset, content, file.fileno())], end
    line = restore(content)
    if line is not None:
        return [Line(offset, line, len(content))], end
    if (indented := _read_indented(offset, content, file)) is not None:
        return [indented], indented.end
    damage = _damage_at(offset, content, file.fileno())
    lines, is_complete = _lines_inside(damage, content, file.fileno())
    return [*lines] if is_complete else [*lines, damage], damage.end


def _skip_blanks(file: int, offset: int) -> int:
    """The offset of the next byte that is not white space, or the file's end."""
    while block := os.pread(file, _BLOCK_BYTES, offset):
        num_blanks = len(block) - len(block.lstrip())
        offset += num_blanks
        if num_blanks < len(block):
            break
    return offset


def _read_indented(offset: int, first: bytes, file: BinaryIO) -> Line | None:
    """The record that begins with a lone brace and ends with the next one that is not indented, if it is intact."""
    if first.strip() != b"{":
        return None
    block = [first]
    num_bytes = len(first)
    while num_bytes < _MAX_INDENTED_BYTES and (more := file.readline(_MAX_INDENTED_BYTES)):
        block.append(more)
        num_bytes += len(more)
        if more.startswith(b"}"):
            line = restore(b"".join(block))
            return None if line is None else Line(offset, line, num_bytes)
    return None


def _lines_inside(damage: Damage, content: bytes, file: int) -> tuple[list[Line], bool]:
    """The records in a damaged line, and whether nothing but white space is beside them.

    Of a line that is too long, those near its end.
    """
    start = max(damage.offset, damage.end - MAX_LINE_BYTES)
    searched = os.pread(file, damage.end - start, start) if damage.is_too_long else content
    found = list(find_records(searched))
    edges = [0, *(edge for each in found for edge in (each.start, each.end)), len(searched)]
    beside = (searched[left:right] for left, right in zip(edges[::2], edges[1::2], strict=True))
    is_complete = bool(found) and not damage.is_too_long and all(map(is_blank, beside))
    return [Line(start + each.start, each.line, each.end - each.start) for each in found], is_complete


def _damage_at(offset: int, content: bytes, file: int) -> Damage:
    end, is_torn = offset + len(content), not content.endswith(b"\n")
    if is_torn and len(content) == MAX_LINE_BYTES:
        end, is_torn = _find_line_end(file, end)
    return Damage(
        offset=offset,
        num_bytes=end - offset,
        content=content[:_MAX_EXCERPT_BYTES],
        is_torn_tail=is_torn,
        is_too_long=end - offset > MAX_LINE_BYTES,
        is_too_deep=matches_checksum(content),
    )


def _find_possible_line(file: int, offset: int) -> int:
    """The next line that has a checksum anywhere in it, or whose end is not within a block."""
    while block := os.pread(file, _BLOCK_BYTES, offset):
        found = _CHECKSUM.search(block)
        if found is not None:
            return offset + block.rfind(b"\n", 0, found.start()) + 1
        num_bytes = block.rfind(b"\n") + 1
        if num_bytes == 0:
            break
        offset += num_bytes
    return offset


def _find_line_end(file: int, offset: int) -> tuple[int, bool]:
    """The end of a line whose beginning was read up to an offset, and whether it is the file's end."""
    while block := os.pread(file, _BLOCK_BYTES, offset := next_data(file, offset)):
        found = block.find(b"\n")
        if found >= 0:
            return offset + found + 1, False
        offset += len(block)
    return offset, True


def scan_backwards(path: Path, *, end: int) -> Iterator[Line]:
    """Yield the intact lines before an offset, the last one first; skip what is damaged.

    Raises:
        FileNotFoundError: there is no such file.
        FileUnreadable: it is no regular file, or may not be read.
    """
    with open_to_read(path) as file, read_errors(path):
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
                yield from _lines_backwards(offset, content)
            rest, end = block[:keep], start
            if len(rest) > MAX_LINE_BYTES:
                rest, end = b"", _find_line_start(file, start)


def _lines_backwards(offset: int, content: bytes) -> Iterator[Line]:
    if is_intact(content):
        yield Line(offset, content)
    elif (line := restore(content)) is not None:
        yield Line(offset, line, len(content))
    else:
        for each in reversed(list(find_records(content))):
            yield Line(offset + each.start, each.line, each.end - each.start)


def _find_line_start(file: BinaryIO, end: int) -> int:
    """The offset behind the last newline before an offset, or 0."""
    descriptor = file.fileno()
    span = _BLOCK_BYTES
    while end > 0:
        start = max(0, end - span)
        if next_data(descriptor, start) >= end:
            # A hole may be a terabyte long.
            end, span = start, span * 2
        elif span > _BLOCK_BYTES:
            span = _BLOCK_BYTES
        else:
            found = os.pread(descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def read_line(path: Path, *, offset: int, num_bytes: int) -> bytes | None:
    """The line at an offset as it was written, or None if it is no longer intact."""
    return restore(read_bytes_at(path, offset=offset, num_bytes=num_bytes))


def read_bytes_at(path: Path, *, offset: int, num_bytes: int) -> bytes:
    """At most as many bytes at an offset as a line can have."""
    # Not `open_to_read`: its buffer costs more than the reading.
    file = open_descriptor(path)
    try:
        with read_errors(path):
            return os.pread(file, min(num_bytes, MAX_LINE_BYTES), offset)
    finally:
        os.close(file)


def line_crc(line: bytes) -> str:
    """The checksum at the end of an intact line."""
    return line[-CHECKSUM_BYTES + 8 : -3].decode()


def line_continues(path: Path, mark: JournalMark) -> bool:
    """Whether a journal still has the line that a snapshot ended with, at the same place."""
    if mark.num_bytes == 0:
        return True
    start = max(0, mark.num_bytes - CHECKSUM_BYTES - _MOST_BLANKS)
    try:
        # One byte more tells whether the file ends there.
        end = read_bytes_at(path, offset=start, num_bytes=mark.num_bytes - start + 1)
    except (FileNotFoundError, FileUnreadable):
        return False
    is_last, end = len(end) == mark.num_bytes - start, end[: mark.num_bytes - start]
    if len(end) < mark.num_bytes - start or not (is_last or end.endswith(b"\n")):
        return False
    return _ends_with_line(end, mark.last_line_crc)


def _ends_with_line(content: bytes, crc: str) -> bool:
    """Whether bytes end with the line of a checksum, whatever white space is behind it."""
    return content.rstrip().endswith(b',"crc":"%b"}' % crc.encode())


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
            self.num_bytes = os.fstat(self._file).st_size
            if self.num_bytes and os.pread(self._file, 1, self.num_bytes - 1) != b"\n":
                # The next line must not become part of it.
                self._has_torn_end = self._is_blocked = True
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
            RecordTooLarge: it is longer, or nested more deeply, than a reader takes.
        """
        if len(line) > MAX_LINE_BYTES:
            raise RecordTooLarge(self.path, reason=f"has {len(line):,} bytes, more than {MAX_LINE_BYTES:,}")
        if is_nested_too_deeply(line):
            raise RecordTooLarge(self.path, reason=f"is nested more than {MAX_NESTING} levels deep")
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
        start = max(0, self.num_bytes - CHECKSUM_BYTES - _MOST_BLANKS)
        return _ends_with_line(os.pread(self._file, self.num_bytes - start, start), self._last_line_crc)

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
            self.num_bytes, self._num_lines = os.fstat(file).st_size, mark.num_lines
            self._last_line_crc, self._synced_bytes = mark.last_line_crc, self.num_bytes
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
