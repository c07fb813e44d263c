"""The lock of a run's writer.

The lock is `flock`: it is released when the process dies, however that happens, and at no other time (a POSIX
record lock is also released when any other code of the process closes the file). A child made by `fork` closes its
copy at once, so that a surviving data-loader worker does not keep the run locked.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.regular_file import open_descriptor, read_small
from crashproof.errors import RunInUse, StorageError

__all__ = ["Holder", "WriterLock", "abandon_all", "holder_of"]

_TRIES = 50
_SECONDS_BETWEEN_TRIES = 0.02
_MAX_HOLDER_BYTES = 64 << 10


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that writes a run."""

    host: str
    pid: int
    since: float
    """Seconds since 1970."""


class WriterLock:
    """The right to write one run, until released or until this process dies."""

    _held: dict[tuple[int, int], WriterLock] = {}  # noqa: RUF012 - the locks of this process, by inode
    _guard = threading.Lock()
    _fork_hooked = False

    def __init__(
        self,
        path: Path,
        *,
        disk: Disk = REAL_DISK,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the lock, also from another tracker of this process.

        Raises:
            RunInUse: another live process has it.
        """
        self._path = path
        self._disk = disk
        self.on_takeover: Callable[[], None] = _do_nothing
        """Called before another lock of this process takes over the run."""
        self.on_fork: Callable[[], None] = _do_nothing
        """Called in a forked child, which has closed its copy of the lock."""
        self._take_over_in_this_process()
        with storage_errors(path):
            self._file = disk.open_to_append(path)
        try:
            self._take(path)
            self._write_holder(now())
        except BaseException:
            disk.close(self._file)
            raise
        self._register()

    def release(self) -> None:
        """Let others write the run."""
        with WriterLock._guard:
            WriterLock._held.pop(self._key, None)
        self._disk.close(self._file)

    def _take(self, path: Path) -> None:
        for _ in range(_TRIES):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # `holder_of` has the lock for an instant, and `alerts/process.py` for a few while it records
                # the death of the last writer.
                time.sleep(_SECONDS_BETWEEN_TRIES)
            else:
                return
        holder = _read_holder(path)
        raise RunInUse(path.parent.parent, host=holder.host, pid=holder.pid)

    def _take_over_in_this_process(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return
        with WriterLock._guard:
            earlier = WriterLock._held.get((status.st_dev, status.st_ino))
        if earlier is not None:
            earlier.on_takeover()

    def _register(self) -> None:
        status = os.fstat(self._file)
        self._key = (status.st_dev, status.st_ino)
        with WriterLock._guard:
            WriterLock._held[self._key] = self
            if not WriterLock._fork_hooked:
                os.register_at_fork(after_in_child=abandon_all)
                WriterLock._fork_hooked = True

    def _write_holder(self, now: float) -> None:
        """Write down who has the lock, for error messages only: a full disk does not matter."""
        content = msgspec.json.encode(Holder(host=socket.gethostname(), pid=os.getpid(), since=now))
        try:
            self._disk.truncate(self._file, 0)
            self._disk.write(self._file, content)
        except OSError:
            return

    def _abandon(self) -> None:
        os.close(self._file)
        self.on_fork()


def holder_of(path: Path) -> Holder | None:
    """The live writer of a run, or None; changes nothing."""
    try:
        file = open_descriptor(path)
    except (OSError, StorageError):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(path)
    else:
        return None
    finally:
        os.close(file)


def _read_holder(path: Path) -> Holder:
    try:
        return msgspec.json.decode(read_small(path, most_bytes=_MAX_HOLDER_BYTES), type=Holder)
    except (OSError, StorageError, RecursionError, ValueError):
        # It has the lock, and has not written its name yet or could not.
        return Holder(host="this host", pid=0, since=0.0)


def abandon_all() -> None:
    """Close every lock of this process, as a forked child must: the parent still writes the runs."""
    # Another thread of the parent may have held it at the fork.
    WriterLock._guard = threading.Lock()
    while WriterLock._held:
        WriterLock._held.popitem()[1]._abandon()


def _do_nothing() -> None:
    """Stand for the callbacks until they are set."""
