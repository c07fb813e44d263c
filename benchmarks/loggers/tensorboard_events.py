"""TensorBoard's event file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from benchmarks.loggers.step_logger import RING, ring_of_scalars

__all__ = ["TensorBoardEvents"]


class TensorBoardEvents:
    """`SummaryWriter.add_scalar`, nine times a step: a thread writes them, and flushes every 2 minutes."""

    def __init__(self, folder: Path) -> None:
        self._ring = ring_of_scalars()
        self._writer = SummaryWriter(str(folder))

    def prepare(self, step: int) -> Any:
        """See `StepLogger`."""
        return self._ring[step % RING]

    def log(self, step: int, prepared: Any) -> None:
        """See `StepLogger`."""
        for name, value in prepared.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `StepLogger`."""
        self._writer.close()

    @staticmethod
    def steps_found(folder: Path) -> list[int]:
        """See `StepLogger`."""
        counts: Counter[int] = Counter()
        for path in folder.glob("events.out.tfevents.*"):
            for event in EventFileLoader(str(path)).Load():
                if event.HasField("summary"):
                    counts[event.step] += 1
        return [step for step, count in counts.items() if count == len(ring_of_scalars()[0])]
