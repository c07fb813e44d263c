"""Memory over many updates."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil

from benchmarks.figures import Section
from benchmarks.made_runs import new_tracker, past_line

__all__ = ["measure"]

_NUM_WARM_UP = 10_000
_MILESTONES = (100_000, 500_000, 1_000_000)
_LAST_MILESTONE = 10_000_000
_MIB = 1 << 20


def measure(work: Path, *, is_full: bool) -> Section:
    """Resident memory of a process that reports one step after the other."""
    milestones = (*_MILESTONES, _LAST_MILESTONE) if is_full else _MILESTONES
    process = psutil.Process()
    tracker = new_tracker(work / "run")
    resident: dict[int, int] = {}
    for step in range(1, milestones[-1] + 1):
        line = past_line(step)
        tracker.update_metrics(
            step,
            line.loss,
            line.loss_components,
            line.learning_rate,
            line.samples_processed,
            line.tokens_processed,
        )
        if step == _NUM_WARM_UP or step in milestones:
            gc.collect()
            resident[step] = process.memory_info().rss
    tracker.close()
    first = resident[_NUM_WARM_UP]
    return Section(
        title="Memory over many updates",
        columns=["updates", "resident", "since 10,000"],
        rows=[
            [f"{step:,}", f"{size / _MIB:.1f} MiB", f"{(size - first) / _MIB:+.1f} MiB"]
            for step, size in resident.items()
        ],
        notes=["Of the whole process, after a garbage collection. Goal: flat."],
    )
