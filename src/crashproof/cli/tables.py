"""Columns of text."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size

from crashproof.cli.output import clean

__all__ = ["aligned", "compact", "cut", "local_clock", "short_duration", "terminal_width"]

_LEAST_FLEXIBLE = 12
_SPACE = "  "


def aligned(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset(), width: int = 0) -> list[str]:
    """Rows as lines, each column as wide as its widest cell; those in `right` are right-aligned.

    Where they are wider than `width`, the first column is shortened: its cells keep their ends.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip_longest(*cells, fillvalue="")]
    if width and widths and (excess := sum(widths) + len(_SPACE) * (len(widths) - 1) - width) > 0:
        widths[0] = min(widths[0], max(_LEAST_FLEXIBLE, widths[0] - excess))
    lines = []
    for row in cells:
        parts = [
            _padded(cut(cell, size) if number == 0 else cell, size, is_right=number in right)
            for number, (cell, size) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append(_SPACE.join(parts).rstrip())
    return lines


def terminal_width() -> int:
    """The columns of the terminal; 80 where the output is none."""
    return shutil.get_terminal_size((80, 24)).columns


def local_clock(moment: float, form: str = "%H:%M:%S") -> str:
    """A moment (seconds since 1970) in local time; `?` beyond the calendar."""
    try:
        return time.strftime(form, time.localtime(moment))
    except (OverflowError, ValueError, OSError):
        return "?"


def cut(text: str, width: int) -> str:
    """Text of at most so many columns; a longer one keeps its end, which tells names apart."""
    if cell_len(text) <= width:
        return text
    kept = text
    while kept and cell_len(kept) > width - 1:
        kept = kept[1:]
    return f"…{kept}"


def compact(count: int) -> str:
    """`126`, `99,999`, `1.25M`."""
    if abs(count) < 100_000:
        return f"{count:,}"
    size = float(count)
    for unit in ("k", "M", "G"):
        size /= 1000
        if abs(size) < 999.5:
            return f"{size:.3g}{unit}"
    return f"{size / 1000:.3g}T"


def short_duration(seconds: float | None) -> str:
    """`35s`, `12m`, `2h10m`, `3d2h`; `-` for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days >= 100:
        return f"{days}d"
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m" if minutes else f"{rest}s"


def _padded(text: str, width: int, *, is_right: bool) -> str:
    missing = width - cell_len(text)
    if missing <= 0:
        return text if missing == 0 else set_cell_size(text, width)
    return " " * missing + text if is_right else text + " " * missing
