"""Move damaged checkpoints into quarantine."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.run_folder import RunFolder
from crashproof.records.events import CheckpointSetAside, Stamp

__all__ = ["quarantine"]

log = logging.getLogger("crashproof")


def quarantine(
    path: Path,
    folder: RunFolder,
    stamp: Stamp,
    *,
    step: int,
    reason: str,
    created_at: float | None = None,
    disk: Disk = REAL_DISK,
) -> CheckpointSetAside | None:
    """Move a checkpoint that cannot be used out of the way; None if the run may not move it.

    Returns:
        What happened: whoever may write the run journals it.

    Raises:
        StorageUnwritable: the quarantine is a link; nothing was moved.
    """
    if not folder.may_move(path):
        return None
    folder.require_no_link(folder.quarantine)
    target = folder.free_name(folder.quarantine / path.name)
    with storage_errors(target):
        disk.make_folders(folder.quarantine)
        try:
            disk.replace(path, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # A folder above it is a link to another file system: it stays there, under a name that nobody loads.
            target = folder.free_name(path.with_name(f"{path.name}.quarantined"))
            disk.replace(path, target)
        disk.sync_folder(target.parent)
        disk.sync_folder(path.parent)
    log.warning("%s cannot be used: %s. Moved it to %s.", path.name, reason, target)
    return CheckpointSetAside(
        **stamp,
        step=step,
        checkpoint_path=folder.recorded_path(path),
        created_at=created_at,
        reason=reason,
        moved_to=folder.recorded_path(target),
    )
