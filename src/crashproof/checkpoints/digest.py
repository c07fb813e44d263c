"""Digest checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crashproof.disk.atomic import sync_tree
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.records.checkpoints import FileDigest

__all__ = ["Digest", "digest_of", "digest_of_files", "make_durable", "size_of"]

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
    names = [str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()]
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(lambda name: _digest_of_file(path / name), names))
    return digest_of_files(dict(zip(names, digests, strict=True)))


def digest_of_files(files: Mapping[str, FileDigest]) -> Digest:
    """The digest of a folder, from those of its files by relative name; reads nothing."""
    by_name = {name: files[name] for name in sorted(files)}
    listing = "".join(f"{digest.sha256}  {digest.num_bytes}  {name}\n" for name, digest in by_name.items())
    return Digest(
        num_bytes=sum(digest.num_bytes for digest in by_name.values()),
        sha256=hashlib.sha256(listing.encode()).hexdigest(),
        files=by_name,
    )


def size_of(path: Path) -> int:
    """The size of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


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
