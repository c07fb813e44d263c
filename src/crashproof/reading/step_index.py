"""Find updates by their steps.

A journal of ten million updates takes minutes to read, and somebody who wants every 10,000th of them needs a thousand
lines. `curves.jsonl` says where each 256 updates lie and which steps they are of; what it says nothing about (the
journal's end, the time after a kill, all of it where the file is missing) is read once. The lines themselves are read
from the journal, where they are wanted, with all that the rule of the canonical history asks for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from crashproof.disk.journal import Line, line_continues, read_bytes_at, scan
from crashproof.disk.run_folder import RunFolder
from crashproof.records.lines.checksummed_line import is_intact
from crashproof.records.lines.codec import decode_line
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.snapshots import JournalMark
from crashproof.records.version import FORMAT_VERSION
from crashproof.rules.history import merged_updates

__all__ = ["IndexedUpdate", "StepIndex", "WantedSteps"]

_MOST_LINES = 256
"""Of a stretch that is read line by line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSteps:
    """Which updates of a run are wanted."""

    first: int | None = None
    last: int | None = None
    apart: int = 1
    """The least distance between two steps; the first one always comes."""
    has_superseded: bool = False
    """Whether updates that were computed again are wanted too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedUpdate:
    """An update with all its parts."""

    update: MetricsSnapshot
    is_superseded: bool


class _Stretch(msgspec.Struct, gc=False):
    """Consecutive lines of the journal whose steps rise; parts of one update have one step."""

    offset: int
    end: int
    first_step: int
    last_step: int
    attempt: int


class _Block(_Stretch, gc=False, tag_field="v", tag=FORMAT_VERSION):
    """The same as `curves.jsonl` has it."""

    last_line_crc: str


class _Place(msgspec.Struct, gc=False, tag_field="v", tag=FORMAT_VERSION):
    """What tells where in the history a line belongs."""

    step: int
    attempt: int


_block_decoder = msgspec.json.Decoder(_Block)
_place_decoder = msgspec.json.Decoder(_Place)
_update_decoder = msgspec.json.Decoder(MetricsSnapshot)


class StepIndex:
    """Where the steps of a run lie in its journal, as of one moment."""

    def __init__(self, folder: RunFolder) -> None:
        """Read the index.

        Raises:
            NewerFormat: the journal was written by a newer version.
        """
        self._folder = folder
        self._stretches: list[_Stretch] = []
        for block in self._read_blocks():
            if block.offset < self._end:
                continue
            if block.offset > self._end:
                self._read_lines(until=block.offset)
            self._add(self._as_it_is(block))
        self._read_lines(until=None)

    def updates(self, wanted: WantedSteps) -> Iterator[IndexedUpdate]:
        """Yield the updates that are wanted, in the order of writing."""
        shown = -math.inf
        for stretch, lowest in zip(self._stretches, self._lowest_steps_behind(), strict=True):
            last = stretch.last_step if wanted.has_superseded else min(stretch.last_step, lowest - 1)
            last = last if wanted.last is None else min(last, wanted.last)
            target = _next_target(max(stretch.first_step, wanted.first or 0), shown, wanted.apart)
            if target > last:
                continue
            lines = _Lines(self._folder, stretch)
            while target <= last and (found := lines.find(target)) is not None and found.step <= last:
                target = _next_target(found.step, shown, wanted.apart)
                if target == found.step:
                    yield IndexedUpdate(update=found, is_superseded=found.step >= lowest)
                    shown = found.step
                    target = shown + wanted.apart

    @property
    def _end(self) -> int:
        return self._stretches[-1].end if self._stretches else 0

    def _read_blocks(self) -> list[_Block]:
        """The blocks that agree with the journal."""
        blocks: list[_Block] = []
        for line in scan(self._folder.curves):
            if not isinstance(line, Line):
                break
            try:
                blocks.append(_block_decoder.decode(line.content))
            except msgspec.DecodeError:
                break
        # After a power loss the last ones may describe lines that are gone.
        while blocks and not line_continues(
            self._folder.metrics, JournalMark(num_bytes=blocks[-1].end, last_line_crc=blocks[-1].last_line_crc)
        ):
            blocks.pop()
        return blocks

    def _as_it_is(self, block: _Block) -> _Block:
        """A block that goes back to an earlier step, with its first intact line: what that supersedes hangs on it."""
        if self._stretches and block.first_step <= self._stretches[-1].last_step:
            found = _Lines(self._folder, block).find(0)
            block.first_step = block.last_step if found is None else found.step
        return block

    def _read_lines(self, *, until: int | None) -> None:
        """Cut the lines from the last stretch on into stretches, up to an offset or the journal's end."""
        newest: _Stretch | None = None
        num_lines = 0
        for line in scan(self._folder.metrics, start=self._end):
            if until is not None and line.offset >= until:
                return
            if not isinstance(line, Line):
                continue
            place = decode_line(self._folder.metrics, line.content, _place_decoder)
            if newest is not None and _belongs_to(place, newest, is_full=num_lines >= _MOST_LINES):
                newest.end, newest.last_step, newest.attempt = line.end, place.step, place.attempt
                num_lines += 1
            else:
                newest = self._add(_Stretch(line.offset, line.end, place.step, place.step, place.attempt))
                num_lines = 1

    def _add(self, stretch: _Stretch) -> _Stretch:
        """Add a stretch, to the one before it if it begins with a further part of its last update."""
        newest = self._stretches[-1] if self._stretches else None
        if newest is not None and (newest.last_step, newest.attempt) == (stretch.first_step, stretch.attempt):
            newest.end, newest.last_step = stretch.end, stretch.last_step
            return newest
        self._stretches.append(stretch)
        return stretch

    def _lowest_steps_behind(self) -> list[float]:
        """For each stretch the lowest step that comes behind it: from there on it is superseded."""
        lowest = [math.inf] * len(self._stretches)
        for number in range(len(lowest) - 2, -1, -1):
            lowest[number] = min(lowest[number + 1], self._stretches[number + 1].first_step)
        return lowest


class _Lines:
    """The lines of a stretch, in which rising steps are looked up."""

    def __init__(self, folder: RunFolder, stretch: _Stretch) -> None:
        self._folder = folder
        self._stretch = stretch
        num_bytes = stretch.end - stretch.offset
        content = read_bytes_at(folder.metrics, offset=stretch.offset, num_bytes=num_bytes)
        self._lines = content.splitlines(keepends=True) if len(content) == num_bytes else self._intact_lines()
        self._next = 0
        """All lines before this one have lower steps than are looked up now."""

    def find(self, step: float) -> MetricsSnapshot | None:
        """The first update from a step on, with all its parts; None if there is none."""
        try:
            return self._find(step)
        except _NotAsWritten:
            # What is a line among damaged bytes is decided in one place.
            self._lines, self._next = self._intact_lines(), 0
            return self._find(step)

    def _find(self, step: float) -> MetricsSnapshot | None:
        num_lines = len(self._lines)
        low = high = self._next
        width = 1
        # As a rule the next line is wanted, or one that is not far.
        while high < num_lines and self._place(high).step < step:
            low, high, width = high + 1, high + width, width * 2
        low = bisect_left(
            range(num_lines), step, low, min(high, num_lines), key=lambda number: self._place(number).step
        )
        if low >= num_lines:
            return None
        place, end = self._place(low), low + 1
        while end < num_lines and self._place(end) == place:
            end += 1
        parts = (decode_line(self._folder.metrics, line, _update_decoder) for line in self._lines[low:end])
        self._next = end
        return next(merged_updates(parts))

    def _place(self, number: int) -> _Place:
        line = self._lines[number]
        if not is_intact(line):
            raise _NotAsWritten
        return decode_line(self._folder.metrics, line, _place_decoder)

    def _intact_lines(self) -> list[bytes]:
        lines = []
        for line in scan(self._folder.metrics, start=self._stretch.offset):
            if line.offset >= self._stretch.end:
                break
            if isinstance(line, Line):
                lines.append(line.content)
        return lines


class _NotAsWritten(Exception):
    """A line of the journal is damaged, or other programs have reformatted it."""


def _belongs_to(place: _Place, stretch: _Stretch, *, is_full: bool) -> bool:
    is_part = (place.step, place.attempt) == (stretch.last_step, stretch.attempt)
    return is_part or (place.step > stretch.last_step and not is_full)


def _next_target(step: float, shown: float, apart: int) -> float:
    """The first step from one on that is far enough from the one shown last."""
    return step if abs(step - shown) >= apart else shown + apart
