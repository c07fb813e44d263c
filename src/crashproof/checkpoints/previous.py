"""Keep a checkpoint whose file is overwritten.

Many loops save to one name (`last.pt`) over and over. From the moment the next save begins until its record is
journalled, the file holds bytes that no record describes. So the bytes of the newest record stay in
`progress/previous/` until the next one is acknowledged and its own bytes are kept: as a hard link where the file is
only ever replaced by a rename, as a copy where other code may write into it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import BinaryIO

from crashproof.digests import BLAKE3, algorithm_of, is_known
from crashproof.disk.atomic import partial_name, write_atomically
from crashproof.disk.files import Disk
from crashproof.disk.run_folder import RunFolder, is_remote
from crashproof.records.checkpoints import CheckpointMetadata
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["drop_previous", "is_kept", "is_overwritten", "keep_previous", "previous_of"]

log = logging.getLogger("crashproof")

_BLOCK_BYTES = 1 << 20


def is_overwritten(checkpoint: CheckpointMetadata, folder: RunFolder) -> bool:
    """Whether the next save probably has the same name: one file, inside the run, without its step in its name."""
    if (
        is_remote(checkpoint.checkpoint_path)
        or str(checkpoint.checkpoint_step) in Path(checkpoint.checkpoint_path).name
    ):
        return False
    path = folder.find(checkpoint.checkpoint_path)
    return path.is_file() and not path.is_symlink() and folder.is_inside(path)


def previous_of(checkpoint: CheckpointMetadata, folder: RunFolder) -> Path:
    """Where the bytes of a record are kept; they need not be there."""
    name = Path(checkpoint.checkpoint_path)
    own = hashlib.sha256(f"{name}\0{checkpoint.created_at!r}".encode()).hexdigest()[:8]
    return folder.previous / f"{name.stem}-{checkpoint.checkpoint_step}-{own}{name.suffix}"


def is_kept(checkpoint: CheckpointMetadata, folder: RunFolder) -> bool:
    """Whether bytes of a record are kept already."""
    return previous_of(checkpoint, folder).is_file()


def keep_previous(checkpoint: CheckpointMetadata, folder: RunFolder, *, is_replaced: bool, disk: Disk) -> None:
    """Keep the bytes of a record that was just acknowledged.

    Args:
        checkpoint: Its record, with a digest.
        folder: The run.
        is_replaced: The file is only ever replaced by a rename, so that a hard link keeps its bytes.
        disk: Where bytes go.

    Raises:
        StorageError, OSError: They are not kept: a crash in the middle of the next save would cost this one.
    """
    path, target = folder.find(checkpoint.checkpoint_path), previous_of(checkpoint, folder)
    disk.make_folders(folder.previous)
    if not (is_replaced and _link(path, target, disk)):
        _copy(path, target, checkpoint, disk)


def drop_previous(catalog: CheckpointCatalog, folder: RunFolder, *, disk: Disk) -> None:
    """Remove what is kept of records that are no longer in the catalog.

    What is kept of a record that was overwritten stays until the bytes of a newer one of the same path are kept.
    """
    if not folder.previous.is_dir():
        return
    by_path: dict[str, CheckpointMetadata] = {}
    for each in sorted([*catalog.all(), *catalog.overwritten()], key=lambda each: each.created_at):
        if is_kept(each, folder):
            by_path[each.checkpoint_path] = each
    needed = {previous_of(each, folder).name for each in by_path.values()}
    for kept in sorted(folder.previous.iterdir()):
        if kept.name not in needed:
            disk.remove_file(kept)


def _link(path: Path, target: Path, disk: Disk) -> bool:
    """Give the bytes a second name; False where the file system has no hard links."""
    partial = partial_name(target)
    disk.remove_file(partial)
    try:
        disk.link(path, partial)
    except OSError:
        return False
    disk.replace(partial, target)
    disk.sync_folder(target.parent)
    return True


def _copy(path: Path, target: Path, checkpoint: CheckpointMetadata, disk: Disk) -> None:
    def fill(sink: BinaryIO) -> None:
        with path.open("rb") as source:
            while block := source.read(_BLOCK_BYTES):
                sink.write(block)

    recorded = algorithm_of(checkpoint.digest or "")
    written = write_atomically(target, fill, algorithm=recorded if is_known(recorded) else BLAKE3, disk=disk)
    # Bytes that a newer version has digested are kept: only that version can compare them.
    if is_known(recorded) and written.digest != checkpoint.digest:
        disk.remove_file(target)
        log.warning("%s changed while it was copied; no copy of it is kept.", checkpoint.checkpoint_path)
