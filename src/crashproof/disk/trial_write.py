"""Try whether a folder can be written.

A small file goes the way of a checkpoint: written under a temporary name, synced, renamed, its name synced, and
removed. Whatever a kill leaves of it counts as a partial file, which the next start of the run removes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crashproof.disk.atomic import PARTIAL_SUFFIX, partial_name, write_all
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.errors import StorageUnwritable

__all__ = ["errors_of_folder", "remove_trial", "trial_path", "try_to_write", "write_trial"]


def try_to_write(folder: Path, name: str, *, disk: Disk = REAL_DISK) -> None:
    """Write and remove a small file in a folder that exists.

    Raises:
        DiskFull, StorageUnwritable: the folder cannot be written, or what is in it cannot be removed.
    """
    write_trial(folder, name, name, disk=disk)
    remove_trial(folder, name, disk=disk)


def trial_path(folder: Path, name: str) -> Path:
    """Where the small file lies between the two; the name should be one that nobody else takes."""
    return folder / f".trial-{name}{PARTIAL_SUFFIX}"


def write_trial(folder: Path, name: str, content: str, *, disk: Disk = REAL_DISK) -> None:
    """Write the small file, for others to see.

    Raises:
        DiskFull, StorageUnwritable: the folder cannot be written.
    """
    path = trial_path(folder, name)
    partial = partial_name(path)
    try:
        with errors_of_folder(folder):
            _write_and_sync(partial, content.encode(), disk)
            disk.replace(partial, path)
            disk.sync_folder(folder)
    except BaseException:
        # The first error counts; the next start of the run removes what is left.
        for left in (partial, path):
            with suppress(OSError):
                disk.remove_file(left)
        raise


def remove_trial(folder: Path, name: str, *, disk: Disk = REAL_DISK) -> None:
    """Remove the small file.

    Raises:
        StorageUnwritable: it cannot be removed.
    """
    with errors_of_folder(folder):
        disk.remove_file(trial_path(folder, name))


@contextmanager
def errors_of_folder(folder: Path) -> Iterator[None]:
    """Name the folder in every error, whatever the system calls it.

    Raises:
        DiskFull, StorageUnwritable: see `storage_errors`; any other error of the system is the latter too.
    """
    try:
        with storage_errors(folder):
            yield
    except OSError as error:
        raise StorageUnwritable(folder, reason=error.strerror or str(error)) from error


def _write_and_sync(path: Path, content: bytes, disk: Disk) -> None:
    file = disk.open_anew(path)
    try:
        write_all(file, content, disk)
        disk.sync(file)
    finally:
        disk.close(file)
