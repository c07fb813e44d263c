"""Write the checkpoints of Lightning."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from crashproof.adapters.lightning_run import SharedRun
from crashproof.disk.run_folder import is_remote
from crashproof.errors import CheckpointMismatch, ConfigError, StorageError
from crashproof.notices import Notices
from crashproof.pytorch.checkpoint_file import load_checkpoint, save_checkpoint
from crashproof.reading.run_state import read_run
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["CrashproofCheckpointIO"]

log = logging.getLogger("crashproof")


class CrashproofCheckpointIO(CheckpointIO):
    """Write checkpoints atomically, and read them as data; created by `Crashproof`.

    One that training can resume from is recorded as soon as it is durable. `ModelCheckpoint` decides which to remove;
    each is removed once a newer one has been read back and found intact.
    """

    def __init__(self, shared: SharedRun) -> None:
        self._shared = shared
        self._unwanted: list[Path] = []
        self._notices = Notices()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write the checkpoint, and record it once it is durable.

        Raises:
            CheckpointMismatch: it contains more than data, so it could not be loaded again.
            DiskFull, StorageUnwritable: an older file of this name is unchanged.
        """
        if self._shared.trainer is None:
            self._notices.warn(
                "callback",
                "hold.checkpoint_io is used without hold.callback: checkpoints are written atomically, and not "
                "recorded. Pass Trainer(callbacks=[hold.callback], …).",
            )
        if storage_options is not None or is_remote(str(path)):
            raise ConfigError(
                f"{path} is not on a file system, so it cannot be written atomically.",
                hint="Save into the run's folder: leave ModelCheckpoint's dirpath out, or name a folder.",
            )
        path = Path(path)
        run = self._shared.run
        try:
            run.disk.make_folders(path.parent)
            with nullcontext() if self._shared.tracker is None else self._shared.tracker.phase("saving"):
                written = save_checkpoint(path, checkpoint, disk=run.disk)
        except (StorageError, OSError) as error:
            self._record_failure(checkpoint, error)
            raise
        self._require_data(path)
        if self._shared.tracker is None or "optimizer_states" not in checkpoint:
            why = "its run is not open" if self._shared.tracker is None else "training cannot resume from it"
            log.info("Wrote %s without recording it: %s.", path, why)
            return
        self._shared.tracker.record_checkpoint(checkpoint["global_step"], path, self._shared.samples, written=written)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify every byte and load it on the CPU; always as data, whatever `weights_only` is.

        Raises:
            CheckpointDamaged: it is missing, torn, altered, or contains more than data.
        """
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove it, and those kept by earlier calls; one that cannot be removed yet is left to a later call."""
        if self._shared.tracker is None:
            self._remove_unrecorded(Path(path))
            return
        self._unwanted.append(Path(path))
        self._unwanted = [each for each in self._unwanted if not self._remove(each, self._shared.tracker)]

    def _record_failure(self, checkpoint: dict[str, Any], error: StorageError | OSError) -> None:
        """Record that a save has failed, for programs that catch the error and go on."""
        if self._shared.tracker is not None:
            self._shared.tracker.record_checkpoint_failure(checkpoint["global_step"], error)

    def _remove_unrecorded(self, path: Path) -> None:
        """Remove what belongs to no run, such as the state that a learning rate finder saves for a while."""
        folder = self._shared.run.folder
        session = read_run(folder).session
        if session is not None and CheckpointCatalog(session).at_path(folder.recorded_path(path)) is not None:
            log.info("Keeping %s: checkpoints are removed only while their run is open.", path)
        elif path.is_file():
            self._shared.run.disk.remove_file(path)

    def _remove(self, path: Path, tracker: ProgressTracker) -> bool:
        """Remove a checkpoint unless the run still needs it; return whether it is gone."""
        folder = self._shared.run.folder
        if CheckpointCatalog(tracker.session).at_path(folder.recorded_path(path)) is not None:
            return tracker.remove_checkpoint(path)
        if path.is_file():
            self._shared.run.disk.remove_file(path)
        return True

    def _require_data(self, path: Path) -> None:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if found:
            raise CheckpointMismatch(path, reason=f"it contains {', '.join(sorted(found))}, which is more than data")
