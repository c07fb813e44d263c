"""What keeps a step's scalars."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.made_runs import past_line

__all__ = ["RING", "StepLogger", "ring_of_scalars"]

RING = 512
"""So many steps are made ahead and used again in turn: what makes a step is in nobody's time."""


class StepLogger(Protocol):
    """One way to keep nine scalars a step, with its settings as they come."""

    def prepare(self, step: int) -> Any:
        """What a loop has at hand at this step; never timed."""

    def log(self, step: int, prepared: Any) -> None:
        """Keep it: once this returns, the step counts as acknowledged."""

    def close(self) -> None:
        """End the run in good order."""

    @staticmethod
    def steps_found(folder: Path) -> Iterable[int]:
        """The steps of which all scalars are found in a folder, after the writer was killed."""


def ring_of_scalars() -> list[dict[str, float]]:
    """Nine scalars for each step of the ring, as one flat dict: what a tracker is given."""
    return [_scalars(step) for step in range(1, RING + 1)]


def _scalars(step: int) -> dict[str, float]:
    line = past_line(step)
    return {
        "loss": line.loss,
        "ce": line.loss_components["ce"],
        "kd": line.loss_components["kd"],
        "learning_rate": line.learning_rate,
        "samples": float(line.samples_processed),
        "tokens": float(line.tokens_processed),
        "samples_per_second": line.throughput_samples_per_sec,
        "tokens_per_second": line.throughput_tokens_per_sec,
        "hours": line.wall_clock_hours,
    }
