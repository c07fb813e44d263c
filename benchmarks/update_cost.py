"""Cost of one update."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import msgspec
import orjson

from benchmarks.figures import Section, percentile, ratio, tail_cells
from benchmarks.made_runs import new_tracker, past_line
from crashproof import ProgressTracker

__all__ = ["measure"]

_NUM_CALLS = 200_000
_NUM_WARM_UP = 2_000
_PERCENTS = (50, 99, 99.9, 100)


def measure(work: Path, *, is_full: bool) -> Section:
    """`update_metrics` beside the least that could keep its record, call by call."""
    tracker = new_tracker(work / "run")
    updates, floors = _timed(tracker, work / "floor.jsonl")
    tracker.close()
    return Section(
        title="The caller's cost of `update_metrics`",
        columns=["", "p50", "p99", "p99.9", "longest", "median, ratio"],
        rows=[
            ["`update_metrics`", *tail_cells(updates, *_PERCENTS), ratio(updates, floors)],
            ["`orjson.dumps` + `os.write`", *tail_cells(floors, *_PERCENTS), "1.00x"],
        ],
        notes=[
            f"{_NUM_CALLS:,} calls of each, one after the other in turn, in one thread. The heartbeat syncs and "
            "writes snapshots meanwhile, as users have it. The record has 2 loss components; the floor writes the "
            "same fields from a dict that is there already, without a checksum.",
            f"Goal: a median of at most 5 µs, at most 2x the floor. Here {percentile(updates, 50) * 1e6:.1f} µs.",
        ],
    )


def _timed(tracker: ProgressTracker, floor_file: Path) -> tuple[list[float], list[float]]:
    """Seconds of each update, and of each write of the floor beside it."""
    file = os.open(floor_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    updates, floors = [], []
    for step in range(1, _NUM_WARM_UP + _NUM_CALLS + 1):
        record = _record(step)
        loss, components, rate = record["loss"], record["loss_components"], record["learning_rate"]
        samples, tokens = record["samples_processed"], record["tokens_processed"]
        begun = perf_counter_ns()
        tracker.update_metrics(step, loss, components, rate, samples, tokens)
        between = perf_counter_ns()
        os.write(file, orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        ended = perf_counter_ns()
        updates.append((between - begun) / 1e9)
        floors.append((ended - between) / 1e9)
    os.close(file)
    return updates[_NUM_WARM_UP:], floors[_NUM_WARM_UP:]


def _record(step: int) -> dict[str, Any]:
    record: dict[str, Any] = msgspec.to_builtins(past_line(step))
    return record
