"""Curves made of characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crashproof.cli.tables import compact
from crashproof.records.curves import Bucket, CurvePoint

__all__ = ["LETTERS", "plot", "plot_together"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""The first run of several is drawn with the first of them, and so on."""
_LABEL_WIDTH = 9
_LOG_FROM = 50.0
"""Where the highest is so many times the lowest, the axis is logarithmic."""
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""By row and column within a character."""

Step = tuple[int, Bucket]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """Where a step and a value lie among so many columns and rows."""

    first: int
    last: int
    low: float
    high: float
    is_log: bool
    num_columns: int
    num_rows: int

    def column(self, step: int) -> int:
        share = (step - self.first) / max(1, self.last - self.first)
        return min(self.num_columns - 1, max(0, round(share * (self.num_columns - 1))))

    def row(self, value: float) -> int:
        """Counted from the top."""
        low, high, at = (self._scaled(each) for each in (self.low, self.high, value))
        # Each is halved first: the difference of two losses may be infinite.
        share = (at / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
        return min(self.num_rows - 1, max(0, round((1.0 - share) * (self.num_rows - 1))))

    def value_at(self, row: int) -> float:
        share = 1.0 - row / max(1, self.num_rows - 1)
        low, high = self._scaled(self.low), self._scaled(self.high)
        value = low * (1.0 - share) + high * share
        return math.exp(value) if self.is_log else value

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def plot(
    points: Sequence[CurvePoint], *, width: int, height: int, is_unicode: bool, series: str = "loss"
) -> list[str]:
    """At most `height` lines: a band from lowest to highest around the mean, and `!` above what is not finite.

    Ask the curve for about `2 * width` points: a spike of one step then is a stroke, however long the run.
    """
    steps = _steps(points, series)
    num_columns = width - _LABEL_WIDTH - 1
    marks = _marks([steps], num_columns)
    num_rows = height - 1 - bool(marks)
    across, down = (2, 4) if is_unicode else (1, 1)
    plane = _plane([steps], num_columns * across, num_rows * down)
    if plane is None or num_columns < 1 or num_rows < 1:
        return ["(nothing finite to draw)"] if steps else []
    cells = _braille_cells(steps, plane) if is_unicode else _ascii_cells(steps, plane)
    return _framed(cells, plane, down, marks)


def plot_together(
    curves: Sequence[Sequence[CurvePoint]], *, width: int, height: int, series: str = "loss"
) -> list[str]:
    """The same for several runs on common axes: each is drawn with its letter, its extremes too."""
    all_steps = [_steps(points, series) for points in curves]
    num_columns = width - _LABEL_WIDTH - 1
    marks = _marks(all_steps, num_columns)
    num_rows = height - 1 - bool(marks)
    plane = _plane(all_steps, num_columns, num_rows)
    if plane is None:
        return []
    cells = [[" "] * num_columns for _ in range(num_rows)]
    for number, steps in enumerate(all_steps):
        letter = LETTERS[number % len(LETTERS)]
        for step, bucket in steps:
            for value in (bucket.low, bucket.high, bucket.mean):
                if value is not None:
                    row, column = plane.row(value), plane.column(step)
                    cells[row][column] = "*" if cells[row][column] not in (" ", letter) else letter
    return _framed(["".join(row) for row in cells], plane, 1, marks)


def _steps(points: Sequence[CurvePoint], series: str) -> list[Step]:
    return [(point.last_step, bucket) for point in points if (bucket := point.series.get(series)) is not None]


def _plane(all_steps: Sequence[Sequence[Step]], num_columns: int, num_rows: int) -> _Plane | None:
    flat = [each for steps in all_steps for each in steps]
    lows = [bucket.low for _, bucket in flat if bucket.low is not None]
    highs = [bucket.high for _, bucket in flat if bucket.high is not None]
    if not lows or not highs:
        return None
    low, high = min(lows), max(highs)
    return _Plane(
        first=min(step for step, _ in flat),
        last=max(step for step, _ in flat),
        low=low,
        high=high,
        is_log=low > 0 and high / low >= _LOG_FROM,
        num_columns=num_columns,
        num_rows=num_rows,
    )


def _marks(all_steps: Sequence[Sequence[Step]], num_columns: int) -> str:
    flat = [each for steps in all_steps for each in steps]
    broken = [step for step, bucket in flat if bucket.num_non_finite]
    if not broken or num_columns < 1:
        return ""
    first, last = min(step for step, _ in flat), max(step for step, _ in flat)
    cells = [" "] * num_columns
    for step in broken:
        cells[round((step - first) / max(1, last - first) * (num_columns - 1))] = "!"
    return "".join(cells)


def _braille_cells(steps: Sequence[Step], plane: _Plane) -> list[str]:
    cells = [[0] * (plane.num_columns // 2) for _ in range(plane.num_rows // 4)]

    def dot(column: int, row: int) -> None:
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]

    for column, top, bottom in _strokes(steps, plane):
        for row in range(top, bottom + 1):
            dot(column, row)
    return ["".join(chr(_BRAILLE + bits) if bits else " " for bits in row) for row in cells]


def _ascii_cells(steps: Sequence[Step], plane: _Plane) -> list[str]:
    cells = [[" "] * plane.num_columns for _ in range(plane.num_rows)]
    for column, top, bottom in _strokes(steps, plane):
        for row in range(top, bottom + 1):
            cells[row][column] = ":"
    for step, bucket in steps:
        if bucket.mean is not None:
            cells[plane.row(bucket.mean)][plane.column(step)] = "*"
    return ["".join(row) for row in cells]


def _strokes(steps: Sequence[Step], plane: _Plane) -> list[tuple[int, int, int]]:
    """Column, top and bottom row: from lowest to highest of each point, and the line between two means."""
    strokes = []
    before: tuple[int, int] | None = None
    for step, bucket in steps:
        if bucket.low is None or bucket.high is None or bucket.mean is None:
            before = None
            continue
        column, middle = plane.column(step), plane.row(bucket.mean)
        strokes.append((column, plane.row(bucket.high), plane.row(bucket.low)))
        if before is not None:
            strokes += _line(before, (column, middle))
        before = (column, middle)
    return strokes


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int, int]]:
    (first, above), (last, below) = start, end
    if last <= first:
        return []
    rows = [round(above + (below - above) * number / (last - first)) for number in range(last - first + 1)]
    return [
        (first + number, min(rows[max(0, number - 1)], row), max(rows[max(0, number - 1)], row))
        for number, row in enumerate(rows)
    ]


def _framed(cells: Sequence[str], plane: _Plane, rows_a_cell: int, marks: str) -> list[str]:
    labelled = {0, len(cells) // 2, len(cells) - 1}
    lines = [f"{'NaN, inf':>{_LABEL_WIDTH}} {marks}".rstrip()] if marks else []
    for number, row in enumerate(cells):
        last_row = plane.num_rows - 1
        at = last_row if number == len(cells) - 1 else min(last_row, number * rows_a_cell)
        label = f"{plane.value_at(at):.4g}" if number in labelled else ""
        lines.append(f"{label:>{_LABEL_WIDTH}} {row}".rstrip())
    left = f"step {compact(plane.first)}" + (", log" if plane.is_log else "")
    right = compact(plane.last)
    room = plane.num_columns // (2 if rows_a_cell == 4 else 1) - len(left)
    lines.append(" " * (_LABEL_WIDTH + 1) + left + f"{right:>{max(1, room)}}")
    return lines
