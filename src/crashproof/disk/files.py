"""The operations that change a disk.

Nothing else in the project writes, syncs, renames or removes a file, so the promises about power loss can be
tested by replacing this one object (`crashproof.testing.FaultyDisk` does).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crashproof.disk.descriptors import above_standard
from crashproof.disk.regular_file import open_regular, too_many_open_files
from crashproof.errors import CrashproofError, DiskFull, FileSizeLimit, QuotaExceeded, StorageError, StorageUnwritable

__all__ = ["REAL_DISK", "Disk", "errors_of_other_code", "storage_errors"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIMITS = (*_FULL, errno.EMFILE, errno.ENFILE)
_UNWRITABLE = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENOTEMPTY, errno.ELOOP, errno.ENXIO, errno.EXDEV),
}
_NO_SPACE_BYTES = 1 << 20
"""With less than this free, other code's failure to write is put down to the disk."""
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.ENOTSUP}
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)


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
        """Open a file so that every write lands at its end; create it if it is missing.

        Raises:
            StorageUnwritable: something else than a regular file has that name.
        """
        return _open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def open_anew(self, path: Path) -> int:
        """Open an empty file, truncating an existing one; a link of that name is an error.

        Raises:
            StorageUnwritable: something else than a regular file has that name.
        """
        return _open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)

    def open_to_sync(self, path: Path) -> int:
        """Open a file written by other code, to make it durable.

        Raises:
            StorageUnwritable: it is something else than a regular file.
        """
        return _open_regular(path, os.O_RDONLY)

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

    def begin_writeback(self, file: int, offset: int, num_bytes: int) -> None:
        """Let the system begin to write these bytes to the disk; waits for nothing, and promises nothing."""
        if sys.platform == "darwin":  # pragma: no cover - macOS has no such call.
            return
        # It takes the advice that the bytes are not needed in memory; those it has not written yet stay there. Where
        # a file system takes no advice, the sync does all.
        with suppress(OSError):
            os.posix_fadvise(file, offset, num_bytes, os.POSIX_FADV_DONTNEED)

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

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        os.link(source, target)

    def remove_file(self, path: Path) -> None:
        """Remove a file; a missing one is fine."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with everything in it."""
        # It brings all compressions along, and a training hardly ever removes a folder.
        from shutil import rmtree

        rmtree(path)

    def free_bytes(self, path: Path) -> int:
        """Bytes that could still be written where `path` lies."""
        volume = os.statvfs(path)
        return volume.f_bavail * volume.f_frsize


REAL_DISK = Disk()


@contextmanager
def storage_errors(path: Path, *, needed_bytes: int = 0) -> Iterator[None]:
    """Translate errors of the system into ones that say what to do.

    Raises:
        DiskFull: no space is left; of its kind are QuotaExceeded and FileSizeLimit.
        StorageUnwritable: read-only, no permission, or something else has that name.
        TooManyOpenFiles: of this process or machine.
    """
    try:
        yield
    except OSError as error:
        translated = _in_words(error, path, needed_bytes)
        if translated is None:
            raise
        raise translated from error


@contextmanager
def errors_of_other_code(path: Path, *, writes_in: Path) -> Iterator[None]:
    """Recognise trouble with the disk in what other code raises while it fills the folder `writes_in`, for `path`.

    Such code wraps the system's error (a library in Rust gives its text alone), or fails later because a file is
    shorter than it should be. It is a full disk if an error in the chain has the system's number or text for it, or
    if next to nothing is free at that moment. Every other error passes unchanged, such as one that names a file
    elsewhere.

    Raises:
        DiskFull: of its kind are QuotaExceeded and FileSizeLimit.
        StorageUnwritable: read-only, no permission, or something else has the name of a file in the folder.
        TooManyOpenFiles: of this process or machine.
    """
    handled_before = sys.exception()
    try:
        yield
    except CrashproofError:
        raise
    except Exception as error:
        translated = _cause_of(error, path, writes_in, handled_before)
        if translated is None:
            raise
        raise translated from error


def _cause_of(
    error: Exception, path: Path, writes_in: Path, handled_before: BaseException | None
) -> StorageError | None:
    for each in _chain(error, handled_before):
        if isinstance(each, StorageError):
            return each
        if isinstance(each, OSError) and (each.errno in _LIMITS or _is_under(each.filename, writes_in)):
            translated = _in_words(each, path, 0)
            if translated is not None:
                return translated
        number = next((number for number in _FULL if os.strerror(number) in str(each)), None)
        if number is not None:
            return _in_words(OSError(number, os.strerror(number)), path, 0)
    free_bytes = _free_bytes(path)
    if free_bytes is not None and free_bytes < _NO_SPACE_BYTES:
        symptom = f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('.')}"
        return DiskFull(path, free_bytes=free_bytes, symptom=symptom)
    return None


def _chain(error: BaseException, handled_before: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, the newest first; not one that was over when this write began."""
    seen: set[int] = {id(handled_before)}
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _is_under(filename: object, path: Path) -> bool:
    return isinstance(filename, (str, os.PathLike)) and Path(filename).is_relative_to(path)


def _in_words(error: OSError, path: Path, needed_bytes: int) -> StorageError | None:
    if error.errno == errno.ENOSPC:
        return DiskFull(path, needed_bytes=needed_bytes, free_bytes=_free_bytes(path))
    if error.errno == errno.EDQUOT:
        return QuotaExceeded(path, needed_bytes=needed_bytes)
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        limit_bytes = None if limit == resource.RLIM_INFINITY else limit
        return FileSizeLimit(path, limit_bytes=limit_bytes, needed_bytes=needed_bytes)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return too_many_open_files(path, error)
    if error.errno in _UNWRITABLE:
        return StorageUnwritable(path, reason=os.strerror(error.errno))
    return None


def _open_regular(path: Path, flags: int) -> int:
    file, kind = open_regular(path, flags)
    if kind is not None:
        raise StorageUnwritable(path, reason=f"it is {kind}, not a regular file")
    return file


def _free_bytes(path: Path) -> int | None:
    for folder in path.absolute().parents:
        if folder.is_dir():
            return REAL_DISK.free_bytes(folder)
    return None  # pragma: no cover - the root folder always exists.
