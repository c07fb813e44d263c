"""Read the lines of a journal.

Damage by a torn write, a full or a failing disk is found by the checksum of each line (see
`records/lines/checksummed_line.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import structs

from crashproof.disk.journal.lines import Damage, Line
from crashproof.disk.regular_file import next_data, open_to_read, read_errors
from crashproof.patterns import LazyPattern
from crashproof.records.lines.checksummed_line import MAX_LINE_BYTES, is_intact, matches_checksum
from crashproof.records.lines.reformatted_line import find_records, is_blank, restore

__all__ = ["scan", "scan_backwards"]


_BLOCK_BYTES = 1 << 20
_MAX_EXCERPT_BYTES = 64 << 10
_CHECKSUM = LazyPattern(rb',"crc":"[0-9a-f]{8}"\}')
_MAX_INDENTED_BYTES = 1 << 20
"""The longest record that is recognised although a formatter has spread it over several lines."""
_MAX_PIECES = 1_000
"""Pieces of damage that one reading tells apart; beyond, neighbouring ones count as one."""


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
                last = structs.replace(last, num_bytes=piece.end - last.offset)
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
