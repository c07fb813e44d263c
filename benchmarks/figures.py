"""Percentiles and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Section", "in_unit", "percentile", "ratio", "tail_cells"]

_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One benchmark's answer: a table and what to know about it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The section as it stands in `RESULTS.md`."""
        lines = [f"## {self.title}", ""]
        lines += [_table_line(self.columns), "|---" + "|---:" * (len(self.columns) - 1) + "|"]
        lines += [_table_line(row) for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def in_unit(seconds: float) -> str:
    """A time in words, three digits long."""
    for name, size in _UNITS:
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {name}"
    return f"{seconds * 1e9:.1f} ns"


def ratio(values: Sequence[float], floor: Sequence[float]) -> str:
    """How many times the floor's median a median is."""
    return f"{median(values) / median(floor):.2f}x"


def tail_cells(values: Sequence[float], *percents: float) -> list[str]:
    """Percentiles, each as a cell of a table."""
    return [in_unit(percentile(values, percent)) for percent in percents]


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
