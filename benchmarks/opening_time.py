"""Time to open a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.figures import Section, in_unit
from benchmarks.made_runs import new_tracker, write_past

__all__ = ["measure"]

_PASTS = (10_000, 1_000_000)
_LONGEST_PAST = 10_000_000
_NUM_OPENINGS = 9
_NUM_REBUILDS = 3


def measure(work: Path, *, is_full: bool) -> Section:
    """Open runs of growing pasts, with their snapshot and without."""
    pasts = (*_PASTS, _LONGEST_PAST) if is_full else _PASTS
    return Section(
        title="Opening a run",
        columns=["past steps", "journal", "median", "longest", "rebuild without snapshot"],
        rows=[_row(work / str(num_steps), num_steps) for num_steps in pasts],
        notes=[
            f"`ProgressTracker(…)` until it returns, its files in the page cache; {_NUM_OPENINGS} openings. A "
            f"rebuild has no `session.json` and reads the whole journal: the median of {_NUM_REBUILDS}, a single one "
            "from a million steps on. Closing is not in these times.",
            "Goal: at most 50 ms for a million steps.",
        ],
    )


def _row(folder: Path, num_steps: int) -> list[str]:
    write_past(folder, num_steps)
    snapshot = folder / "progress" / "session.json"
    rebuilds = []
    for _ in range(_NUM_REBUILDS if num_steps <= _PASTS[0] else 1):
        snapshot.unlink()
        rebuilds.append(_seconds_to_open(folder, num_steps))
    openings = [_seconds_to_open(folder, num_steps) for _ in range(_NUM_OPENINGS)]
    num_bytes = (folder / "progress" / "metrics.jsonl").stat().st_size
    shutil.rmtree(folder)
    return [
        f"{num_steps:,}",
        f"{num_bytes / 1e6:,.1f} MB",
        in_unit(median(openings)),
        in_unit(max(openings)),
        in_unit(median(rebuilds)),
    ]


def _seconds_to_open(folder: Path, num_steps: int) -> float:
    begun = perf_counter()
    tracker = new_tracker(folder)
    seconds = perf_counter() - begun
    found = tracker.session.steps_completed
    tracker.close()
    if found != num_steps:
        raise AssertionError(f"The run has {num_steps:,} steps; {found:,} were found.")
    return seconds
