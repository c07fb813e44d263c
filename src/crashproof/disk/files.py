"""The operations that change a disk.

Nothing else in the project writes, syncs, renames or removes a file, so the promises about power loss can be
tested by replacing this one object (`crashproof.testing.FaultyDisk` does).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crashproof.errors import DiskFull, StorageUnwritable

__all__ = ["REAL_DISK", "Disk", "above_standard", "storage_errors"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST),
    errno.ENOTEMPTY,
}
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.ENOTSUP}
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)
_FIRST_FREE = 3
"""Below it are standard input, output and error."""


def above_standard(file: int) -> int:
    """The same open file under a descriptor above standard error's.

    Where a process was started with standard output closed, the next file it opens gets that number, and whatever
    any code or child process prints lands in it.
    """
    if file >= _FIRST_FREE:
        return file
    try:
        return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    finally:
        os.close(file)


class Disk:
    """The machine's own disk."""

    def make_folders(self, path: Path) -> None:
        """Create a folder and its missing parents, each durable in its parent.

        Raises:
            DiskFull, StorageUnwritable: one of them could not be made.
        """
        missing: list[Path] = []
        folder = path
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        with storage_errors(path):
            for folder in reversed(missing):
                self.make_folder(folder)
                self.sync_folder(folder.parent)

    def make_folder(self, path: Path) -> None:
        """Create one folder whose parent exists; an existing one is fine."""
        path.mkdir(exist_ok=True)

    def open_to_append(self, path: Path) -> int:
        """Open a file so that every write lands at its end; create it if it is missing."""
        return above_standard(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))

    def open_anew(self, path: Path) -> int:
        """Open an empty file, truncating an existing one."""
        return above_standard(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644))

    def open_to_sync(self, path: Path) -> int:
        """Open a file written by other code, to make it durable."""
        return above_standard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    write = staticmethod(os.write)
    """Write bytes to an open file; may write fewer than requested, and returns how many."""

    close = staticmethod(os.close)

    def truncate(self, file: int, num_bytes: int) -> None:
        """Truncate an open file to a length."""
        os.ftruncate(file, num_bytes)

    def allocate(self, file: int, num_bytes: int) -> None:
        """Allocate this much disk space for an open file."""
        if sys.platform == "darwin":  # pragma: no cover - macOS has no such call.
            os.pwrite(file, bytes(num_bytes), 0)
            return
        os.posix_fallocate(file, 0, num_bytes)

    def sync(self, file: int) -> None:
        """Wait until an open file's bytes would survive a power loss."""
        if _FULL_SYNC is not None:  # pragma: no cover - macOS: fsync alone stops at the drive's cache.
            fcntl.fcntl(file, _FULL_SYNC)
            return
        os.fsync(file)

    def sync_folder(self, path: Path) -> None:
        """Wait until the names in a folder would survive a power loss."""
        folder = above_standard(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            os.fsync(folder)
        except OSError as error:
            # Some file systems (SMB, some FUSE) keep names durable themselves and reject the call.
            if error.errno not in _CANNOT_SYNC_FOLDERS:
                raise
        finally:
            os.close(folder)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file or folder in one step; a file that had the new name is replaced."""
        os.replace(source, target)

    def remove_file(self, path: Path) -> None:
        """Remove a file; a missing one is fine."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with everything in it."""
        shutil.rmtree(path)

    def free_bytes(self, path: Path) -> int:
        """Bytes that could still be written where `path` lies."""
        return shutil.disk_usage(path).free


REAL_DISK = Disk()


@contextmanager
def storage_errors(path: Path, *, needed_bytes: int = 0) -> Iterator[None]:
    """Translate errors of the system into ones that say what to do.

    Raises:
        DiskFull: no space or quota is left, or the largest file size is reached.
        StorageUnwritable: read-only, no permission, or something else has that name.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(path, needed_bytes=needed_bytes, free_bytes=_free_bytes(path)) from error
        if error.errno in _UNWRITABLE:
            raise StorageUnwritable(path, reason=os.strerror(error.errno)) from error
        raise


def _free_bytes(path: Path) -> int | None:
    for folder in path.absolute().parents:
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return None  # pragma: no cover - the root folder always exists.
