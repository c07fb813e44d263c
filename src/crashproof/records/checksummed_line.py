"""JSON lines with a checksum.

A checksummed line is one JSON object whose last field is the CRC-32 of all bytes before it::

    {"v":1,"step":7,"loss":2.5,"crc":"251c13ec"}

It stays plain JSON for every other reader. The checksum is older than any format version and never changes: a line
with a correct checksum and an unknown version was written by a newer crashproof; one with a wrong checksum is
damaged.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from zlib import crc32

import msgspec

__all__ = ["CHECKSUM_BYTES", "add_checksum", "is_intact", "salvage", "version_of"]

_CHECKSUM_START = b',"crc":"'
CHECKSUM_BYTES = len(_CHECKSUM_START) + 8 + len(b'"}\n')
"""What the checksum adds to a line, its newline included."""

_RECORD_START = re.compile(rb'\{"(?:v|event)":')
_RECORD_END = re.compile(rb',"crc":"[0-9a-f]{8}"\}')


class _Versioned(msgspec.Struct):
    v: int = 0


_version_decoder = msgspec.json.Decoder(_Versioned)


def add_checksum(payload: bytes) -> bytes:
    """Close one JSON object (not an empty one) with its checksum and a newline."""
    body = payload[:-1]
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body))


def is_intact(line: bytes) -> bool:
    """Whether a line, its newline included, matches its checksum."""
    body = line[:-CHECKSUM_BYTES]
    return line[-CHECKSUM_BYTES:] == b',"crc":"%08x"}\n' % crc32(body) and body.startswith(b"{")


def version_of(line: bytes) -> int:
    """The format version that an intact line names; 0 where it names none."""
    return _version_decoder.decode(line).v


def salvage(damaged: bytes) -> Iterator[bytes]:
    """Intact records inside one damaged line.

    A torn write leaves a fragment without a newline, and the next record is appended to it; a corrupt newline joins
    two good records. The intact records are recovered from both.
    """
    ends = [found.end() for found in _RECORD_END.finditer(damaged)]
    reached = 0
    for start in (found.start() for found in _RECORD_START.finditer(damaged)):
        # A start inside a recovered line is a part of it, such as the metrics of a checkpoint.
        if start < reached:
            continue
        for end in ends[bisect_right(ends, start) :]:
            line = damaged[start:end] + b"\n"
            if is_intact(line):
                yield line
                reached = end
                break
