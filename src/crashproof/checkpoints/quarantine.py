"""Move damaged checkpoints into quarantine."""

from __future__ import annotations

from pathlib import Path

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.run_folder import RunFolder

__all__ = ["quarantine"]


def quarantine(path: Path, folder: RunFolder, *, disk: Disk = REAL_DISK) -> Path | None:
    """Move a damaged checkpoint into quarantine; return its new path, or None if the run may not move it.

    Raises:
        StorageUnwritable: the quarantine is a link; nothing was moved.
    """
    if not folder.may_move(path):
        return None
    folder.require_no_link(folder.quarantine)
    target = folder.free_name(folder.quarantine / path.name)
    with storage_errors(target):
        disk.make_folders(folder.quarantine)
        disk.replace(path, target)
        disk.sync_folder(folder.quarantine)
        disk.sync_folder(path.parent)
    return target
