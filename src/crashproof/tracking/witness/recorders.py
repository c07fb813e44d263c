"""The recorders of a run that a proof watches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crashproof.checkpoints.digest import Digest
from crashproof.disk.atomic import WholeFile
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.records.metrics import Update
from crashproof.scalars import as_int
from crashproof.tracking.checkpoint_recorder import CheckpointRecorder
from crashproof.tracking.metrics.recorder import MetricsRecorder
from crashproof.tracking.witness.under_proof import UnderProof

__all__ = ["WitnessedCheckpoints", "WitnessedMetrics"]


class WitnessedMetrics(MetricsRecorder):
    """Tells the random states after each update."""

    def __init__(self, proof: UnderProof, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._proof = proof

    def record_plain(self, *_: object) -> bool:
        """Leave every update to `record`."""
        return False

    def record(self, update: Update) -> None:
        """As of the base class."""
        super().record(update)
        self._proof.after_update(update.step)


class WitnessedCheckpoints(CheckpointRecorder):
    """Waits where the run is to be killed in a save."""

    def __init__(self, proof: UnderProof, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._proof = proof

    def describe(
        self,
        step: int,
        checkpoint_path: str | Path,
        dataset_position: int,
        recovery_tags: Iterable[str] | None,
        written: WholeFile | Digest | None,
    ) -> CheckpointMetadata:
        """As of the base class."""
        self._proof.before_save(as_int(step, "step"))
        return super().describe(step, checkpoint_path, dataset_position, recovery_tags, written)
