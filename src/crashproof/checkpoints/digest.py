"""Digest checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crashproof.disk.atomic import sync_tree
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.records.checkpoints import FileDigest, FileStat

__all__ = [
    "Digest",
    "digest_of",
    "digest_of_files",
    "digest_of_names",
    "files_in",
    "make_durable",
    "size_of",
    "stats_of",
]

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What distinguishes an intact checkpoint from a damaged one."""

    num_bytes: int
    sha256: str
    files: dict[str, FileDigest] | None
    """The digest of each file in a folder; None for a single file."""


def digest_of(path: Path) -> Digest:
    """Read a file, or every file of a folder, and compute its SHA-256."""
    if path.is_file():
        single = _digest_of_file(path)
        return Digest(num_bytes=single.num_bytes, sha256=single.sha256, files=None)
    return digest_of_files(digest_of_names(path, files_in(path)))


def digest_of_names(path: Path, names: Iterable[str]) -> dict[str, FileDigest]:
    """Read some files of a folder, and digest each."""
    wanted = list(names)
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(lambda name: _digest_of_file(path / name), wanted))
    return dict(zip(wanted, digests, strict=True))


def digest_of_files(files: Mapping[str, FileDigest]) -> Digest:
    """The digest of a folder, from those of its files by relative name; reads nothing."""
    by_name = {name: files[name] for name in sorted(files)}
    listing = "".join(f"{digest.sha256}  {digest.num_bytes}  {name}\n" for name, digest in by_name.items())
    return Digest(
        num_bytes=sum(digest.num_bytes for digest in by_name.values()),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
        files=by_name,
    )


def files_in(path: Path) -> list[str]:
    """The relative names of all files in a folder, links followed: what a loader would read."""
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(path, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            # A link that leads back up.
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names += [os.path.relpath(os.path.join(folder, each), path) for each in files]
    return [each for each in names if (path / each).is_file()]


def stats_of(path: Path) -> dict[str, FileStat]:
    """What the file system says of a file (under `.`), or of each file in a folder."""
    names = ["."] if path.is_file() else files_in(path)
    return {name: _stat(path / name) for name in sorted(names)}


def size_of(path: Path) -> int:
    """The size of a file, or of all files of a folder."""
    return sum(each.num_bytes for each in stats_of(path).values())


def make_durable(path: Path, *, disk: Disk = REAL_DISK) -> None:
    """Make a checkpoint written by other code survive a power loss, including its name."""
    with storage_errors(path):
        sync_tree(path, disk)
        disk.sync_folder(path.parent)


def _digest_of_file(path: Path) -> FileDigest:
    digest = hashlib.sha256()
    num_bytes = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            num_bytes += len(block)
    return FileDigest(num_bytes=num_bytes, sha256=digest.hexdigest())


def _stat(path: Path) -> FileStat:
    status = path.stat()
    return FileStat(status.st_size, status.st_ino, status.st_mtime_ns)
