"""The loop that keeps nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.loggers.step_logger import RING, ring_of_scalars

__all__ = ["Nothing"]


class Nothing:
    """What the loop itself costs."""

    def __init__(self, folder: Path) -> None:
        self._ring = ring_of_scalars()

    def prepare(self, step: int) -> Any:
        """See `StepLogger`."""
        return self._ring[step % RING]

    def log(self, step: int, prepared: Any) -> None:
        """See `StepLogger`."""

    def close(self) -> None:
        """See `StepLogger`."""

    @staticmethod
    def steps_found(folder: Path) -> list[int]:
        """See `StepLogger`."""
        return []
