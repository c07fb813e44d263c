"""Join a proof that is under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder
from crashproof.tracking.checkpoint_recorder import CheckpointRecorder
from crashproof.tracking.metrics.recorder import MetricsRecorder
from crashproof.tracking.witness.recorders import WitnessedCheckpoints, WitnessedMetrics
from crashproof.tracking.witness.under_proof import UnderProof

__all__ = ["JoinedProof", "join_proof"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedProof:
    """A tracker's part in a proof."""

    proof: UnderProof
    new_metrics: Callable[..., MetricsRecorder]
    """Makes the recorder that the tracker uses, from the arguments of the usual one."""
    new_checkpoints: Callable[..., CheckpointRecorder]
    """Likewise."""


def join_proof(place: str, folder: RunFolder, config_hash: str, *, disk: Disk) -> JoinedProof:
    """Join the proof whose folder the environment names, before the run is opened.

    Raises:
        ConfigError: the run lies outside of the proof's folder, so it is one that nobody wants killed.
    """
    proof = UnderProof(Path(place), disk=disk)
    proof.open(folder, config_hash)
    return JoinedProof(
        proof=proof,
        new_metrics=partial(WitnessedMetrics, proof),
        new_checkpoints=partial(WitnessedCheckpoints, proof),
    )
