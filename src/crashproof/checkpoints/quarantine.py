"""Move a damaged checkpoint away."""

from __future__ import annotations

from pathlib import Path

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.records.checkpoints import CheckpointMetadata

__all__ = [
    "move_aside",
]


def move_aside(checkpoint: CheckpointMetadata, folder: RunFolder, *, disk: Disk = REAL_DISK) -> Path | None:
    """Move a damaged checkpoint out of the way; None where it lies outside the run and is not ours to move."""
    path = folder.find(checkpoint.checkpoint_path)
    if not folder.is_inside(path):
        return None
    target = folder.quarantine_path(path)
    with storage_errors(target):
        disk.make_folders(folder.quarantine)
        disk.replace(path, target)
        disk.sync_folder(folder.quarantine)
        disk.sync_folder(path.parent)
    return target
