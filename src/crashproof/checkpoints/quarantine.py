"""Move damaged checkpoints into quarantine."""

from __future__ import annotations

import errno
from pathlib import Path

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.run_folder import RunFolder

__all__ = ["quarantine"]


def quarantine(path: Path, folder: RunFolder, *, disk: Disk = REAL_DISK) -> Path | None:
    """Move a damaged checkpoint into quarantine; return its new path, or None if it lies outside the run."""
    if not folder.is_inside(path):
        return None
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
    return target
