"""crashproof's own tracker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.loggers.step_logger import RING
from benchmarks.made_runs import new_tracker, past_line
from crashproof import RunReader

__all__ = ["Ours"]


class Ours:
    """`ProgressTracker.update_metrics`: both throughputs and the hours are added by the tracker."""

    def __init__(self, folder: Path) -> None:
        lines = [past_line(step) for step in range(1, RING + 1)]
        self._ring = [(line.loss, line.loss_components, line.learning_rate) for line in lines]
        self._tracker = new_tracker(folder)
        self._update = self._tracker.update_metrics

    def prepare(self, step: int) -> Any:
        """See `StepLogger`."""
        return (step, *self._ring[step % RING], step * 32, step * 32_768)

    def log(self, step: int, prepared: Any) -> None:
        """See `StepLogger`."""
        self._update(*prepared)

    def close(self) -> None:
        """See `StepLogger`."""
        self._tracker.close()

    @staticmethod
    def steps_found(folder: Path) -> Iterator[int]:
        """See `StepLogger`."""
        return (line.step for line in RunReader.open(folder).history())
