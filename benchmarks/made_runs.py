"""Runs made to be measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crashproof import MetricsSnapshot, ProgressTracker
from crashproof.records.lines.codec import encode

__all__ = ["CONFIG", "new_tracker", "past_line", "write_past"]

CONFIG: dict[str, Any] = {
    "model": {"name": "student", "hidden_size": 768, "num_layers": 12},
    "train": {"batch_size": 32, "learning_rate": 3e-4, "seed": 7},
}

_TOTAL_STEPS = 20_000_000
_START = 1_780_000_000.0
_STEP_SECONDS = 0.25
_LINES_A_WRITE = 4096


def new_tracker(folder: Path) -> ProgressTracker:
    """A tracker as users have it: all settings as they come, the heartbeat on."""
    return ProgressTracker(folder / "progress", CONFIG, _TOTAL_STEPS)


def past_line(step: int) -> MetricsSnapshot:
    """What a run of one attempt has journalled for a step; losses have all their digits."""
    loss = 1.0 + 3.0 * math.exp(-step / 200_000) + 0.01 * math.sin(step)
    return MetricsSnapshot(
        attempt=1,
        step=step,
        timestamp=round(_START + step * _STEP_SECONDS, 3),
        wall_clock_hours=round(step * _STEP_SECONDS / 3600, 7),
        loss=loss,
        loss_components={"ce": loss * 0.4, "kd": loss * 0.6},
        learning_rate=3e-4 * (1 - step / _TOTAL_STEPS),
        samples_processed=step * 32,
        tokens_processed=step * 32_768,
        throughput_samples_per_sec=128.0 + step % 7,
        throughput_tokens_per_sec=131_072.0 + step % 7,
    )


def write_past(folder: Path, num_steps: int) -> None:
    """Begin a run and give it a past of so many steps; its snapshots know nothing of them yet."""
    tracker = new_tracker(folder)
    journal = tracker.metrics_file
    tracker.close()
    with journal.open("ab") as file:
        for lines in _blocks_of_lines(num_steps):
            file.write(lines)


def _blocks_of_lines(num_steps: int) -> Iterator[bytes]:
    for first in range(1, num_steps + 1, _LINES_A_WRITE):
        last = min(num_steps, first + _LINES_A_WRITE - 1)
        yield b"".join(encode(past_line(step)) for step in range(first, last + 1))
