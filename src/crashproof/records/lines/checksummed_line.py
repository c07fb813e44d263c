"""JSON lines with a checksum.

A checksummed line is one JSON object whose last field is the CRC-32 of all bytes before it::

    {"v":1,"step":7,"loss":2.5,"crc":"251c13ec"}

It stays plain JSON for every other reader. The checksum is older than any format version and never changes: a line
with a correct checksum and an unknown version was written by a newer crashproof; one with a wrong checksum is
damaged.
"""

from __future__ import annotations

import re
from zlib import crc32

import msgspec

__all__ = [
    "CHECKSUMMED",
    "CHECKSUM_BYTES",
    "MAX_LINE_BYTES",
    "MAX_NESTING",
    "add_checksum",
    "is_intact",
    "is_nested_too_deeply",
    "matches_checksum",
    "version_of",
]

MAX_LINE_BYTES = 64 << 20
"""The longest line of a journal, its newline included: so much memory is enough for every reader."""
MAX_NESTING = 400
"""The most objects and arrays inside each other in one line or snapshot."""

_CHECKSUM_START = b',"crc":"'
CHECKSUMMED = b'%b,"crc":"%08x"}\n'
"""Makes a line of one JSON object without its last brace, and of the CRC-32 of that."""
CHECKSUM_BYTES = len(_CHECKSUM_START) + 8 + len(b'"}\n')
"""What the checksum adds to a line, its newline included."""

_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')


class _Versioned(msgspec.Struct):
    v: int = 0


_version_decoder = msgspec.json.Decoder(_Versioned)


def add_checksum(payload: bytes) -> bytes:
    """Close one JSON object (not an empty one) with its checksum and a newline."""
    body = payload[:-1]
    return CHECKSUMMED % (body, crc32(body))


def is_intact(line: bytes) -> bool:
    """Whether a line, its newline included, matches its checksum and is not nested too deeply to be read."""
    return matches_checksum(line) and not is_nested_too_deeply(line)


def matches_checksum(line: bytes) -> bool:
    """Whether a line is as it was written, though it may be nested too deeply to be read."""
    body = line[:-CHECKSUM_BYTES]
    return line[-CHECKSUM_BYTES:] == b',"crc":"%08x"}\n' % crc32(body) and body.startswith(b"{")


def is_nested_too_deeply(line: bytes) -> bool:
    """Whether more than `MAX_NESTING` objects and arrays lie inside each other."""
    # Nearly every line has fewer of them altogether.
    if len(line) <= MAX_NESTING or line.count(b"[") + line.count(b"{") <= MAX_NESTING:
        return False
    # Brackets in texts seldom matter, and taking the texts out takes long.
    return _is_deep(line) and _is_deep(_STRING.sub(b"", line))


def _is_deep(line: bytes) -> bool:
    brackets = line.translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_NESTING):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def version_of(line: bytes) -> int:
    """The format version that an intact line names; 0 where it names none."""
    try:
        return _version_decoder.decode(line).v
    except (RecursionError, ValueError):
        return 0
