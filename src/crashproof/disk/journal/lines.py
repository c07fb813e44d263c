"""The lines of a journal."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from crashproof.disk.regular_file import open_descriptor, read_errors
from crashproof.errors import FileUnreadable
from crashproof.records.lines.checksummed_line import CHECKSUM_BYTES, MAX_LINE_BYTES, MAX_NESTING
from crashproof.records.lines.reformatted_line import restore, what_it_looks_like
from crashproof.records.snapshots import JournalMark

__all__ = [
    "MOST_BLANKS",
    "Damage",
    "Line",
    "ends_with_line",
    "line_continues",
    "line_crc",
    "read_bytes_at",
    "read_line",
]


MOST_BLANKS = 64
"""White space behind a line, beyond which a mark at its end counts as lost."""


class Line(Struct, frozen=True):
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


class Damage(Struct, frozen=True, kw_only=True):
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
    start = max(0, mark.num_bytes - CHECKSUM_BYTES - MOST_BLANKS)
    try:
        # One byte more tells whether the file ends there.
        end = read_bytes_at(path, offset=start, num_bytes=mark.num_bytes - start + 1)
    except (FileNotFoundError, FileUnreadable):
        return False
    is_last, end = len(end) == mark.num_bytes - start, end[: mark.num_bytes - start]
    if len(end) < mark.num_bytes - start or not (is_last or end.endswith(b"\n")):
        return False
    return ends_with_line(end, mark.last_line_crc)


def ends_with_line(content: bytes, crc: str) -> bool:
    """Whether bytes end with the line of a checksum, whatever white space is behind it."""
    return content.rstrip().endswith(b',"crc":"%b"}' % crc.encode())
