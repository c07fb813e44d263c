"""Follow a run's whole history.

Works while another process writes the run; takes no lock and changes nothing. Reads the blocks of
`curves_coarse.jsonl`, those of `curves.jsonl` where there is no coarse one or where more points are wanted, and the
journal itself where there is no block: at its end, after each kill, or from the beginning if the files are missing or
contradict the journal.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import structs

from crashproof.disk.journal import Line, line_continues, line_crc, scan
from crashproof.disk.run_folder import RunFolder
from crashproof.records.curves import CoarseBlock, CurveBlock, CurvePoint
from crashproof.records.lines.codec import decode, decode_line
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.snapshots import JournalMark
from crashproof.rules.curves import joined, point_of
from crashproof.rules.history import are_parts, merged_updates, with_part

__all__ = ["Curve", "CurveFollower", "Recomputed"]

_UPDATES_PER_BLOCK = 256
_MAX_UPDATES_READ = 65_536
"""Updates that are read one by one for a plot; beyond, blocks are fine enough."""

_update_decoder = LazyDecoder[MetricsSnapshot](MetricsSnapshot)
_block_decoder = LazyDecoder[CurveBlock](CurveBlock)
_coarse_decoder = LazyDecoder[CoarseBlock](CoarseBlock)

T = TypeVar("T")
B = TypeVar("B", bound=CurveBlock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """Steps that a newer line has superseded."""

    first_step: int
    last_step: int
    attempt: int
    """The attempt that computed them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The canonical history of a range of steps, decimated."""

    points: list[CurvePoint]
    num_updates: int
    """The number of updates that the points stand for."""
    is_decimated: bool
    """Whether a point stands for more than one update."""
    end: int
    """The offset in the journal up to which it was read."""
    num_bytes: int
    """The size of the journal."""

    @property
    def is_complete(self) -> bool:
        """Whether all of the journal has been read."""
        return self.end >= self.num_bytes


class _Piece(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Consecutive updates of the journal, and which of them are not superseded."""

    offset: int
    end: int
    point: CurvePoint
    coarse: CoarseBlock | None = None
    """Where to find it in finer pieces."""
    below: int | None = None
    """Steps from this one on are superseded; None: no step is."""


class CurveFollower:
    """The history of one run, which each `refresh` extends. Not thread-safe: its owner locks."""

    def __init__(self, folder: RunFolder, *, steady: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._steady = steady
        self._blocks: list[CurveBlock] | None = None
        """Blocks of the file that are not used yet, the last one first; None before they were read."""
        self._pieces: list[_Piece] = []
        self._tail: list[MetricsSnapshot] = []
        self._tail_offset = 0
        self._end = 0
        self._last_crc = ""
        self._recomputed: list[Recomputed] = []

    @property
    def recomputed(self) -> list[Recomputed]:
        """The steps that were computed more than once, in the order in which that happened."""
        return self._recomputed

    @property
    def end(self) -> int:
        """The offset in the journal up to which it was read."""
        return self._end

    def refresh(self, *, most_seconds: float | None = None) -> bool:
        """Read what is new since the last call, for at most about `most_seconds`; return whether that was all.

        Raises:
            NewerFormat: the journal was written by a newer version.
        """
        if not self._still_continues():
            self._forget()
        if self._blocks is None:
            self._blocks = self._read_blocks()
        stop_at = None if most_seconds is None else self._steady() + most_seconds
        while self._blocks:
            # The list is reversed: its last block is the next one.
            if self._blocks[-1].offset < self._end or self._begins_with_part(self._blocks[-1]):
                self._blocks.pop()
                continue
            if self._blocks[-1].offset > self._end and not self._read_lines(self._blocks[-1].offset, stop_at):
                return False
            self._take_block(self._blocks.pop())
        return self._read_lines(None, stop_at)

    def curve(self, *, most_points: int, first_step: int | None = None, last_step: int | None = None) -> Curve:
        """What has been read of a range of steps, in at most about `most_points` points.

        In a small range, each update is a point of its own.
        """
        pieces = self._pieces_of(first_step, last_step)
        if len(pieces) < most_points and any(piece.coarse for piece in pieces):
            self._refine(pieces)
            pieces = self._pieces_of(first_step, last_step)
        tail = [line for line in self._tail if _is_between(line.step, first_step, last_step)]
        num_updates = sum(piece.point.num_updates for piece in pieces) + len(tail)
        if num_updates <= _MAX_UPDATES_READ:
            lines = [*self._read_updates(pieces, first_step, last_step), *tail]
            points = [point_of(group) for group in _grouped(lines, most_points)]
            num_updates = len(lines)
        else:
            points = [piece.point for piece in pieces]
            if tail:
                points.append(point_of(tail))
            points = [joined(group) for group in _grouped(points, most_points)]
        return Curve(
            points=points,
            num_updates=num_updates,
            is_decimated=num_updates > len(points),
            end=self._end,
            num_bytes=self._num_bytes(),
        )

    def points(self) -> Iterator[CurvePoint]:
        """Everything that has been read, in the order of its steps; each point of as many updates as it comes."""
        yield from (piece.point for piece in self._pieces)
        if self._tail:
            yield point_of(self._tail)

    def lines_after(self, offset: int) -> Iterator[tuple[int, MetricsSnapshot]]:
        """Yield the updates behind the end of a curve, each with the offset of its own end."""
        for line in scan(self._folder.metrics, start=offset):
            if isinstance(line, Line):
                yield line.end, decode_line(self._folder.metrics, line.content, _update_decoder)

    def _forget(self) -> None:
        self._blocks = None
        self._pieces, self._tail, self._recomputed = [], [], []
        self._tail_offset = self._end = 0
        self._last_crc = ""

    def _still_continues(self) -> bool:
        """Whether the journal is still the one that was read: it may have been repaired or archived."""
        return line_continues(self._folder.metrics, JournalMark(num_bytes=self._end, last_line_crc=self._last_crc))

    def _num_bytes(self) -> int:
        try:
            return self._folder.metrics.stat().st_size
        except FileNotFoundError:
            return 0

    def _read_blocks(self) -> list[CurveBlock]:
        """The blocks that agree with the journal, the last one first: coarse ones where there are any."""
        blocks: list[CurveBlock] = []
        end = 0
        for coarse in self._agreed(_decoded(self._folder.coarse_curves, _coarse_decoder)):
            if coarse.blocks_offset > end:
                blocks += _decoded(self._folder.curves, _block_decoder, start=end, end=coarse.blocks_offset)
            blocks.append(coarse)
            end = coarse.blocks_end
        blocks += self._agreed(_decoded(self._folder.curves, _block_decoder, start=end))
        blocks.reverse()
        return blocks

    def _agreed(self, blocks: Iterator[B]) -> list[B]:
        """The blocks up to the last one that agrees with the journal."""
        found = list(blocks)
        # After a power loss the last ones may describe lines that are gone.
        while found and not self._agrees(found[-1]):
            found.pop()
        return found

    def _agrees(self, block: CurveBlock) -> bool:
        mark = JournalMark(num_bytes=block.end, last_line_crc=block.last_line_crc)
        return line_continues(self._folder.metrics, mark)

    def _begins_with_part(self, block: CurveBlock) -> bool:
        """Whether the lines up to a block end with the update that it begins with, as earlier versions wrote it."""
        newest = self._tail[-1] if self._tail and block.offset == self._end else None
        return newest is not None and (newest.step, newest.attempt) == (block.first_step, block.attempt)

    def _take_block(self, block: CurveBlock) -> None:
        self._close_tail()
        self._go_back_to(block.first_step, block.attempt)
        self._pieces.append(_piece_of(block))
        self._end, self._last_crc = block.end, block.last_line_crc
        self._tail_offset = self._end

    def _read_lines(self, until: int | None, stop_at: float | None) -> bool:
        """Read the journal up to an offset or its end; return whether that was reached in time."""
        num_read = 0
        for line in scan(self._folder.metrics, start=self._end):
            if until is not None and line.offset >= until:
                break
            if not isinstance(line, Line):
                # Still being written, or damaged, which `RunReader.problems` reports.
                continue
            self._take_line(line)
            num_read += 1
            if stop_at is not None and num_read % 256 == 0 and self._steady() > stop_at:
                return False
        return True

    def _take_line(self, line: Line) -> None:
        update = decode_line(self._folder.metrics, line.content, _update_decoder)
        self._reopen_newest_piece(update)
        newest = self._tail[-1].step if self._tail else self._newest_step()
        if self._tail and are_parts(self._tail[-1], update):
            self._tail[-1] = with_part(self._tail[-1], update)
        else:
            if update.step <= newest or len(self._tail) >= _UPDATES_PER_BLOCK:
                self._close_tail()
                self._tail_offset = line.offset
                self._go_back_to(update.step, update.attempt)
            self._tail.append(update)
        self._end, self._last_crc = line.end, line_crc(line.content)

    def _reopen_newest_piece(self, update: MetricsSnapshot) -> None:
        """Read the newest piece as lines again where an update is a further part of its last one."""
        if self._tail or not self._ends_with(update):
            return
        self._refine(self._pieces[-1:])
        piece = self._pieces.pop()
        self._tail = list(self._read_updates([piece], None, None))
        self._tail_offset = piece.offset

    def _ends_with(self, update: MetricsSnapshot) -> bool:
        newest = self._pieces[-1].point if self._pieces else None
        return newest is not None and (newest.last_step, newest.attempt) == (update.step, update.attempt)

    def _newest_step(self) -> int:
        return self._pieces[-1].point.last_step if self._pieces else -1

    def _close_tail(self) -> None:
        if self._tail:
            self._pieces.append(_Piece(offset=self._tail_offset, end=self._end, point=point_of(self._tail)))
            self._tail = []

    def _go_back_to(self, step: int, attempt: int) -> None:
        """Drop what a line for `step` supersedes."""
        highest = self._newest_step()
        if step > highest:
            return
        while self._pieces and self._pieces[-1].point.first_step >= step:
            self._pieces.pop()
        if self._pieces and self._pieces[-1].coarse and self._pieces[-1].point.last_step >= step:
            self._refine(self._pieces[-1:])
            while self._pieces and self._pieces[-1].point.first_step >= step:
                self._pieces.pop()
        if self._pieces and self._pieces[-1].point.last_step >= step:
            piece = structs.replace(self._pieces.pop(), below=step)
            lines = list(self._read_updates([piece], None, None))
            if lines:
                self._pieces.append(structs.replace(piece, point=point_of(lines)))
        self._recomputed.append(Recomputed(first_step=step, last_step=highest, attempt=attempt))

    def _refine(self, pieces: list[_Piece]) -> None:
        """Replace neighbouring pieces by the finer ones that the coarse among them are made of."""
        start = bisect_left(self._pieces, pieces[0].point.first_step, key=lambda each: each.point.first_step)
        self._pieces[start : start + len(pieces)] = [fine for piece in pieces for fine in self._parts_of(piece)]

    def _parts_of(self, piece: _Piece) -> list[_Piece]:
        if piece.coarse is None:
            return [piece]
        start, end = piece.coarse.blocks_offset, piece.coarse.blocks_end
        blocks = list(_decoded(self._folder.curves, _block_decoder, start=start, end=end))
        bounds = [piece.offset, *(each.end for each in blocks)]
        if bounds[-1] == piece.end and bounds[:-1] == [each.offset for each in blocks]:
            return [_piece_of(each) for each in blocks]
        # The file is gone or another one: the journal itself has these lines.
        return [structs.replace(piece, coarse=None)]

    def _pieces_of(self, first_step: int | None, last_step: int | None) -> list[_Piece]:
        start = (
            0 if first_step is None else bisect_left(self._pieces, first_step, key=lambda each: each.point.last_step)
        )
        end = (
            len(self._pieces)
            if last_step is None
            else bisect_right(self._pieces, last_step, key=lambda each: each.point.first_step)
        )
        return self._pieces[start:end]

    def _read_updates(
        self, pieces: list[_Piece], first_step: int | None, last_step: int | None
    ) -> Iterator[MetricsSnapshot]:
        for piece in pieces:
            for update in merged_updates(self._read_piece(piece)):
                stands = piece.below is None or update.step < piece.below
                if stands and _is_between(update.step, first_step, last_step):
                    yield update

    def _read_piece(self, piece: _Piece) -> Iterator[MetricsSnapshot]:
        for line in scan(self._folder.metrics, start=piece.offset):
            if line.offset >= piece.end:
                break
            if isinstance(line, Line):
                yield decode_line(self._folder.metrics, line.content, _update_decoder)


def _decoded(path: Path, decoder: LazyDecoder[B], *, start: int = 0, end: int | None = None) -> Iterator[B]:
    """The blocks in a part of a file, up to the first that cannot be read."""
    for line in scan(path, start=start):
        if not isinstance(line, Line) or (end is not None and line.offset >= end):
            return
        try:
            yield decode(line.content, decoder)
        except msgspec.ValidationError:
            return


def _piece_of(block: CurveBlock) -> _Piece:
    coarse = block if isinstance(block, CoarseBlock) else None
    return _Piece(offset=block.offset, end=block.end, point=block, coarse=coarse)


def _is_between(step: int, first_step: int | None, last_step: int | None) -> bool:
    return (first_step is None or step >= first_step) and (last_step is None or step <= last_step)


def _grouped(items: list[T], most: int) -> Iterator[list[T]]:
    """Yield all items in order, in at most `most` groups of equal size."""
    size = max(1, -(-len(items) // most))
    return (items[start : start + size] for start in range(0, len(items), size))
