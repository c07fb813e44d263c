"""Delete checkpoints that are not kept."""

from __future__ import annotations

from pathlib import Path

from crashproof.disk.atomic import partial_name
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.run_folder import RunFolder, is_remote
from crashproof.errors import StorageUnwritable
from crashproof.records.checkpoints import RemovedCheckpoint
from crashproof.records.session import TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["delete_removed", "find_undeleted", "is_removable"]


def is_removable(checkpoint_path: str, session: TrainingSession, folder: RunFolder) -> bool:
    """Whether the run may delete a path: inside its folder, no link, and no other checkpoint inside it."""
    path = folder.root / checkpoint_path
    if is_remote(checkpoint_path) or path.is_symlink() or not folder.may_move(path):
        return False
    others = [
        folder.root / each.checkpoint_path
        for each in CheckpointCatalog(session).all()
        if each.checkpoint_path != checkpoint_path
    ]
    return not any(other.is_relative_to(path) or path.is_relative_to(other) for other in others)


def delete_removed(session: TrainingSession, folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
    """Delete what remains of the newest removal, unless a checkpoint has that path by now.

    Raises:
        StorageUnwritable: some could not be deleted; names the first, after all were tried.
    """
    refused: list[StorageUnwritable] = []
    for removed in find_undeleted(session, folder):
        path = folder.root / removed.checkpoint_path
        try:
            _delete(path, disk)
        except OSError as error:
            refused.append(StorageUnwritable(path, reason=error.strerror or str(error)))
    if refused:
        raise refused[0]


def find_undeleted(session: TrainingSession, folder: RunFolder) -> list[RemovedCheckpoint]:
    """Find what remains of the newest removal."""
    named = {each.checkpoint_path for each in CheckpointCatalog(session).all()}
    return [
        each
        for each in session.checkpoints_removing
        if each.checkpoint_path not in named
        and is_removable(each.checkpoint_path, session, folder)
        and any(path.exists() for path in _names_of_removed(folder.root / each.checkpoint_path))
    ]


def _delete(path: Path, disk: Disk) -> None:
    """Rename, then remove: a kill in between leaves what the next start takes for a partial file."""
    partial = _names_of_removed(path)[1]
    for leftover in (partial, path):
        if not leftover.exists():
            continue
        if leftover == path:
            disk.replace(path, partial)
        if partial.is_dir():
            disk.remove_tree(partial)
        else:
            disk.remove_file(partial)


def _names_of_removed(path: Path) -> tuple[Path, Path]:
    """A checkpoint's own path, and that of its removal: not the partial one of a save."""
    return path, partial_name(path.with_name(f"{path.name}.removed"))
