"""Bytes a line."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import Section, percentile
from benchmarks.made_runs import past_line
from crashproof.records.lines.codec import encode

__all__ = ["measure"]

_MILESTONES = (1_000, 100_000, 1_000_000, 10_000_000)
_NUM_LINES = 1_000


def measure(work: Path, *, is_full: bool) -> Section:
    """The lines around some steps: counts grow, so lines do."""
    return Section(
        title="Bytes a line of `metrics.jsonl`",
        columns=["around step", "median", "longest"],
        rows=[_row(step) for step in _MILESTONES],
        notes=[
            "With 2 loss components, every float with all its digits, both throughputs, checksum and newline.",
            "Goal: at most 250.",
        ],
    )


def _row(around: int) -> list[str]:
    first = around - _NUM_LINES // 2
    sizes = [len(encode(past_line(step))) for step in range(first, first + _NUM_LINES)]
    return [f"{around:,}", f"{percentile(sizes, 50):.0f}", f"{max(sizes):.0f}"]
