"""Lightning's CSV logger."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from benchmarks.loggers.step_logger import RING, ring_of_scalars

__all__ = ["LightningCsv"]


class LightningCsv:
    """`CSVLogger.log_metrics`: lines wait in memory, 100 at most."""

    def __init__(self, folder: Path) -> None:
        self._ring = ring_of_scalars()
        self._logger = CSVLogger(folder)

    def prepare(self, step: int) -> Any:
        """See `StepLogger`."""
        return self._ring[step % RING]

    def log(self, step: int, prepared: Any) -> None:
        """See `StepLogger`."""
        self._logger.log_metrics(prepared, step)

    def close(self) -> None:
        """See `StepLogger`."""
        self._logger.finalize("success")

    @staticmethod
    def steps_found(folder: Path) -> Iterator[int]:
        """See `StepLogger`."""
        for path in folder.rglob("metrics.csv"):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    # A line that a kill has cut off lacks its last fields.
                    if None not in row.values() and row["step"]:
                        yield int(row["step"])
