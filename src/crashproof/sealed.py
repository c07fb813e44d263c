"""JSON lines that prove themselves whole.

A sealed line is one JSON object whose last field is the CRC-32 of all bytes before it::

    {"v":1,"step":7,"loss":2.5,"crc":"251c13ec"}

It stays plain JSON for every other reader. The seal is older than any format version and never changes: a
line with a good seal and an unknown version was written by a newer crashproof, one with a bad seal is damaged.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from zlib import crc32

import msgspec

__all__ = ["SEAL_BYTES", "is_whole", "salvage", "seal", "version_of"]

_SEAL_START = b',"crc":"'
SEAL_BYTES = len(_SEAL_START) + 8 + len(b'"}\n')
"""What a seal adds to a line, its newline included."""

_RECORD_START = re.compile(rb'\{"(?:v|event)":')
_RECORD_END = re.compile(rb',"crc":"[0-9a-f]{8}"\}')


class _Versioned(msgspec.Struct):
    v: int = 0


_version_decoder = msgspec.json.Decoder(_Versioned)


def seal(payload: bytes) -> bytes:
    """Close one JSON object (not an empty one) with its checksum and a newline."""
    body = payload[:-1]
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body))


def is_whole(line: bytes) -> bool:
    """Say whether a line, its newline included, is exactly what was sealed."""
    body = line[:-SEAL_BYTES]
    return line[-SEAL_BYTES:] == b',"crc":"%08x"}\n' % crc32(body) and body.startswith(b"{")


def version_of(line: bytes) -> int:
    """The format version that a whole line names; 0 where it names none."""
    return _version_decoder.decode(line).v


def salvage(damaged: bytes) -> Iterator[bytes]:
    """Whole lines that ran together with broken bytes into one damaged line.

    A torn write leaves a piece without a newline, and the next record lands behind it; a rotten newline glues
    two good records together. Both keep their whole parts.
    """
    ends = [found.end() for found in _RECORD_END.finditer(damaged)]
    reached = 0
    for start in (found.start() for found in _RECORD_START.finditer(damaged)):
        # What begins inside a saved line is a part of it, such as the metrics of a checkpoint.
        if start < reached:
            continue
        for end in ends[bisect_right(ends, start) :]:
            line = damaged[start:end] + b"\n"
            if is_whole(line):
                yield line
                reached = end
                break
