"""Digest checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from concurrent import futures
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePath

from msgspec import Struct

from crashproof.digests import BLAKE3, SHA256, RunningDigest, hexadecimal_of
from crashproof.disk.atomic import sync_tree
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.regular_file import kind_in_words, open_descriptor, read_errors
from crashproof.records.checkpoints import FileDigest, FileStat
from crashproof.threads import run_or_submit

__all__ = [
    "Digest",
    "digest_of",
    "digest_of_files",
    "digest_of_names",
    "files_in",
    "is_litter",
    "kind_of",
    "make_durable",
    "sha256_of",
    "size_of",
    "stats_of",
]

_BLOCK_BYTES = 1 << 20
_MAX_NAMED = 3
_LITTER = (
    # Of file managers and desktops.
    *(".DS_Store", "._*", ".localized", "Thumbs.db", "desktop.ini", ".directory", "@eaDir", ".Trash-*"),
    # Of editors, notebooks and Python.
    *(".ipynb_checkpoints", "__pycache__", ".~lock.*", ".*.sw[op]"),
    # Of file systems: a file that was deleted while it was open.
    *(".nfs*", ".fuse_hidden*"),
)
"""What other programs leave in any folder, and no loader reads."""

log = logging.getLogger("crashproof")


class Digest(Struct, frozen=True, kw_only=True):
    """What distinguishes an intact checkpoint from a damaged one."""

    num_bytes: int
    digest: str
    """Begins with the name of its algorithm."""
    files: dict[str, FileDigest] | None
    """The digest of each file in a folder; None for a single file."""


def digest_of(path: Path, names: Iterable[str] | None = None, *, algorithm: str = BLAKE3) -> Digest:
    """Read a file, or files of a folder, and compute its digest; pipes, sockets and devices in it are none.

    Args:
        path: A file or a folder.
        names: The files of a folder; all that are not litter if not given.
        algorithm: One that is known.

    Raises:
        FileNotFoundError: there is nothing.
        FileUnreadable: something cannot be read, or is neither a folder nor a regular file.
    """
    if not path.is_dir():
        single = _digest_of_file(path, algorithm)
        return Digest(num_bytes=single.num_bytes, digest=single.digest, files=None)
    names = files_in(path) if names is None else names
    return digest_of_files(digest_of_names(path, dict.fromkeys(names, algorithm)), algorithm=algorithm)


def digest_of_names(path: Path, algorithms: Mapping[str, str]) -> dict[str, FileDigest]:
    """Read some files of a folder, and digest each by its algorithm."""
    with futures.ThreadPoolExecutor(max_workers=4) as pool:
        digests = {
            name: run_or_submit(pool, partial(_digest_of_file, path / name, algorithm))
            for name, algorithm in algorithms.items()
        }
    return {name: digest.result() for name, digest in digests.items()}


def digest_of_files(files: Mapping[str, FileDigest], *, algorithm: str = BLAKE3) -> Digest:
    """The digest of a folder, from those of its files by relative name, which have its algorithm; reads nothing."""
    by_name = {name: files[name] for name in sorted(files)}
    lines = (f"{hexadecimal_of(each.digest)}  {each.num_bytes}  {name}\n" for name, each in by_name.items())
    listing = RunningDigest(algorithm)
    listing.update("".join(lines).encode())
    return Digest(
        num_bytes=sum(digest.num_bytes for digest in by_name.values()),
        digest=listing.result(),
        files=by_name,
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file or folder in hexadecimal, for records whose field says so; see `digest_of`."""
    return hexadecimal_of(digest_of(path, algorithm=SHA256).digest)


def is_litter(name: str) -> bool:
    """Whether a file, by its relative name, was left by a program that has nothing to do with the training."""
    return any(fnmatchcase(part, pattern) for part in PurePath(name).parts for pattern in _LITTER)


def files_in(path: Path) -> list[str]:
    """The relative names of all files in a folder but litter, links followed: what a loader would read."""
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(path, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            # A link that leads back up.
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = [each for each in below if not is_litter(each)]
        names += [os.path.relpath(os.path.join(folder, each), path) for each in files if not is_litter(each)]
    return [each for each in names if (path / each).is_file()]


def stats_of(path: Path, names: Iterable[str] | None = None) -> dict[str, FileStat]:
    """What the file system says of a file (under `.`), or of files in a folder: all, or those named that exist."""
    if not path.is_dir():
        return {".": _stat(path)}
    found = files_in(path) if names is None else [each for each in names if (path / each).is_file()]
    return {name: _stat(path / name) for name in sorted(found)}


def size_of(path: Path) -> int:
    """The size of a file, or of all files of a folder."""
    return sum(each.num_bytes for each in stats_of(path).values())


def make_durable(path: Path, *, disk: Disk = REAL_DISK) -> None:
    """Make a checkpoint written by other code survive a power loss, including its name.

    Raises:
        FileUnreadable: it is neither a folder nor a regular file.
    """
    if not path.is_dir():
        os.close(open_descriptor(path))
    left_out = _not_regular_in(path)
    if left_out:
        log.warning("%s: left out of the checkpoint, which is made of regular files: %s.", path, left_out)
    with storage_errors(path):
        sync_tree(path, disk)
        disk.sync_folder(path.parent)


def _not_regular_in(path: Path) -> str:
    """What a folder holds beside folders and regular files, in words; empty where there is nothing else."""
    kinds = [
        f"{each.relative_to(path)} is {kind}"
        for each in path.rglob("*")
        if (kind := kind_of(each)) is not None and not each.is_dir()
    ]
    more = f" and {len(kinds) - _MAX_NAMED} more" if len(kinds) > _MAX_NAMED else ""
    return ", ".join(sorted(kinds)[:_MAX_NAMED]) + more


def kind_of(path: Path) -> str | None:
    """What a path is if no regular file, in words; None for one, and where nothing is."""
    try:
        return kind_in_words(path.stat().st_mode)
    except OSError:
        return None


def _digest_of_file(path: Path, algorithm: str) -> FileDigest:
    digest = RunningDigest(algorithm)
    num_bytes = 0
    file = open_descriptor(path)
    try:
        with read_errors(path):
            while block := os.read(file, _BLOCK_BYTES):
                digest.update(block)
                num_bytes += len(block)
    finally:
        os.close(file)
    return FileDigest(num_bytes=num_bytes, digest=digest.result())


def _stat(path: Path) -> FileStat:
    status = path.stat()
    return FileStat(status.st_size, status.st_ino, status.st_mtime_ns)
