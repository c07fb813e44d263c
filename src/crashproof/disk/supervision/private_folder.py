"""A folder that only one supervisor and its child use."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import storage_errors
from crashproof.disk.regular_file import read_small
from crashproof.errors import StorageError, StorageUnwritable

__all__ = ["PrivateFolder", "read_if_there"]

_MOST_BYTES = 1 << 20
_SLOTS = 64
"""Supervisors of equal commands in one folder at a time, such as the tasks of a job on one machine."""


class PrivateFolder:
    """Readable and writable by this user alone, and held by a lock until released or until this process dies."""

    def __init__(self, path: Path, lock: int) -> None:
        """Use `claim`."""
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, parent: Path, name: str) -> PrivateFolder:
        """The first folder `name.0`, `name.1`, … under `parent` that no live process holds.

        One that a dead process has left is taken over with what is in it.

        Raises:
            StorageUnwritable: a folder belongs to another user, or others may use it; or all are held.
        """
        _make_private(parent)
        for slot in range(_SLOTS):
            path = parent / f"{name}.{slot}"
            _make_private(path)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            return cls(path, lock)
        raise StorageUnwritable(parent, reason=f"{_SLOTS} supervisors of this command are running")

    def read(self, name: str) -> bytes | None:
        """A small file of the folder; None if there is none."""
        return read_if_there(self.path / name)

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file of the folder.

        Raises:
            DiskFull, StorageUnwritable: it is as it was.
        """
        write_bytes_atomically(self.path / name, content)

    def clear(self, *, keep: frozenset[str] = frozenset()) -> None:
        """Remove the files of an earlier process, but for some."""
        for each in os.listdir(self.path):
            if each != "lock" and each not in keep:
                (self.path / each).unlink(missing_ok=True)

    def release(self) -> None:
        """Let another supervisor take the folder."""
        os.close(self._lock)


def read_if_there(path: Path) -> bytes | None:
    """A small file; None if it is missing or cannot be read."""
    try:
        return read_small(path, most_bytes=_MOST_BYTES)
    except (OSError, StorageError):
        return None


def _make_private(path: Path) -> None:
    with storage_errors(path):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                reason = "it is not a folder of this user alone"
                raise StorageUnwritable(path, reason=reason) from None
