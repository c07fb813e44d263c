"""Recognise records that another program reformatted.

Git, editors, formatters and sync clients change line ends, add a byte order mark, indent JSON, or join files. None of
that touches a record: its checksum still matches once the white space around its tokens is gone.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from msgspec import Struct

from crashproof.patterns import LazyPattern
from crashproof.records.lines.checksummed_line import is_intact, is_nested_too_deeply, matches_checksum

__all__ = ["RecordInside", "find_records", "is_blank", "restore", "what_it_looks_like"]

_BOM = b"\xef\xbb\xbf"
_CHECKSUM = b',"crc":"'
_BLANKS = b" \t\r\n\v\f"
_CHECKS_PER_BYTE = 64
"""The most that each byte of a damaged line is read, on average, in search of records inside it."""
_RECORD_START = LazyPattern(rb'\{"(?:v|event)":')
_RECORD_END = LazyPattern(rb',"crc":"[0-9a-f]{8}"\}')
_REFORMATTED_END = LazyPattern(rb'"crc"\s*:\s*"[0-9a-f]{8}"\s*\}\Z')
_MAX_END_BYTES = 1 << 10
_ONLY_BLANKS = LazyPattern(rb"(?:\xef\xbb\xbf)?[ \t\r\n\v\f]*")
_STRING_OR_BLANKS = LazyPattern(rb'("[^"\\]*(?:\\.[^"\\]*)*")|[ \t\r\n\v\f]+')
_CONFLICT_MARKER = LazyPattern(rb"(?:<{7}|={7}|>{7}|\|{7})(?: |\r?\n|\Z)")
_MAX_LOOK_BYTES = 4 << 10


class RecordInside(Struct, frozen=True):
    """An intact record, and where its bytes are in those that were searched."""

    start: int
    end: int
    line: bytes
    """As it was written, its newline included."""


def is_blank(content: bytes) -> bool:
    """Whether there is nothing but white space and a byte order mark."""
    return _ONLY_BLANKS.fullmatch(content) is not None


def restore(content: bytes) -> bytes | None:
    """The line as it was written, if only the white space around its tokens has changed since; None if it is damaged.

    A missing newline, carriage returns, a byte order mark and indentation are white space here.
    """
    if matches_checksum(content):
        return None if is_nested_too_deeply(content) else content
    # Before anything is copied: a damaged line may be long.
    if not _REFORMATTED_END.search(content[-_MAX_END_BYTES:].rstrip(_BLANKS)):
        return None
    trimmed = content.removeprefix(_BOM).strip(_BLANKS)
    line = trimmed + b"\n"
    if not matches_checksum(line):
        line = _STRING_OR_BLANKS.sub(_keep_string, trimmed) + b"\n"
    return line if is_intact(line) else None


def find_records(damaged: bytes) -> Iterator[RecordInside]:
    """The intact records inside one damaged line.

    A torn write leaves a fragment without a newline, and the next record is appended to it; a corrupt newline joins
    two good records. The intact records are recovered from both. The search is given up where it takes too long, as
    in a line made of beginnings and ends: all of it is kept in quarantine.
    """
    if _CHECKSUM not in damaged:
        return
    num_left = _CHECKS_PER_BYTE * len(damaged)
    ends = [found.end() for found in _RECORD_END.finditer(damaged)]
    reached = 0
    for start in (found.start() for found in _RECORD_START.finditer(damaged)):
        # A start inside a recovered line is a part of it, such as the metrics of a checkpoint.
        if start < reached:
            continue
        for end in ends[bisect_right(ends, start) :]:
            num_left -= end - start
            if num_left < 0:
                return
            line = damaged[start:end] + b"\n"
            if is_intact(line):
                yield RecordInside(start, end, line)
                reached = end
                break


def what_it_looks_like(content: bytes) -> str | None:
    """What damaged bytes probably are, as the end of a sentence that begins with "it"; None if nothing is known."""
    look = content[:_MAX_LOOK_BYTES]
    if look and not look.strip(b"\0"):
        return "holds only zeros, as some file systems leave them after a power loss"
    if look.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_utf_16(look):
        return "is UTF-16 text"
    if look.startswith(b"\x1f\x8b"):
        return "is compressed (gzip)"
    if look.startswith(b"\x28\xb5\x2f\xfd"):
        return "is compressed (zstd)"
    if _CONFLICT_MARKER.match(look):
        return "is a marker of a merge conflict"
    return None


def _is_utf_16(look: bytes) -> bool:
    return len(look) >= 8 and (not look[::2].strip(b"\0") or not look[1::2].strip(b"\0"))


def _keep_string(found: re.Match[bytes]) -> bytes:
    return found[1] or b""
