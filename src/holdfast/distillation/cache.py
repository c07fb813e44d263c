"""Made once, kept, reused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from holdfast.checkpoints import digest_of
from holdfast.disk.atomic import publish_folder, remove_partials, write_whole_bytes
from holdfast.disk.files import REAL_DISK, Disk, storage_errors
from holdfast.disk.lock import WriterLock
from holdfast.disk.run_folder import RunFolder

__all__ = ["Cache"]

log = logging.getLogger("holdfast")

_DIGESTS = "digests.json"
_KEY_LENGTH = 16


class Cache:
    """Folders that are made from known inputs, each under the hash of them.

    A folder is published whole: whoever is killed while making one leaves nothing under its name. What comes
    out is always read from the disk, the first time too, so that every start sees the same bits.
    """

    def __init__(self, folder: Path, *, disk: Disk = REAL_DISK) -> None:
        self._folder = folder
        self._disk = disk

    def folder(self, kind: str, inputs: Mapping[str, object], make: Callable[[Path], None]) -> Path:
        """The folder made from `inputs`; `make` fills an empty one where there is none yet, or a damaged one.

        Raises:
            RunInUse: another process is making something here.
            DiskFull, StorageUnwritable: it cannot be kept.
        """
        path = self._folder / f"{kind}-{_key(kind, inputs)}"
        if _is_whole(path):
            return path
        with storage_errors(self._folder):
            self._disk.make_folders(self._folder)
        lock = WriterLock(self._folder / "writer.lock", disk=self._disk)
        try:
            self._set_damage_aside(path)
            self._make(path, make)
        finally:
            lock.release()
        return path

    def _make(self, path: Path, make: Callable[[Path], None]) -> None:
        remove_partials(self._folder, disk=self._disk)
        partial = path.with_name(f".{path.name}.holdfast-partial")
        with storage_errors(path):
            self._disk.make_folder(partial)
            make(partial)
            write_whole_bytes(partial / _DIGESTS, json.dumps(_digests(partial)).encode(), disk=self._disk)
            publish_folder(partial, path, disk=self._disk)

    def _set_damage_aside(self, path: Path) -> None:
        if not path.exists():
            return
        aside = RunFolder.free_name(path.with_name(f"damaged-{path.name}"))
        log.warning("%s was altered. It is kept as %s and made anew.", path, aside.name)
        with storage_errors(aside):
            self._disk.replace(path, aside)


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads((path / _DIGESTS).read_bytes()) == _digests(path))
    except (OSError, ValueError):
        return False


def _digests(path: Path) -> dict[str, str]:
    """SHA-256 by file."""
    files = digest_of(path).files or {}
    return {name: digest.sha256 for name, digest in files.items() if name != _DIGESTS}


def _key(kind: str, inputs: Mapping[str, object]) -> str:
    text = json.dumps({"kind": kind, **inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]
