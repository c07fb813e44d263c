"""The lock of a run's writer.

The lock is `flock`: it is released when the process dies, however that happens, and at no other time (a POSIX
record lock is also released when any other code of the process closes the file). A child made by `fork` closes its
copy at once, so that a surviving data-loader worker does not keep the run locked.

Some file systems keep such a lock on one machine or in one mount, and the file can be removed under its holder. So
the holder looks at the file from time to time (`find_other`): a newer one writes its own name into it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.regular_file import open_descriptor, read_small
from crashproof.errors import RunInUse, StorageError
from crashproof.hosts import host_name

__all__ = ["Holder", "WriterLock", "abandon_all", "holder_of"]

log = logging.getLogger("crashproof")

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
        self.path = path
        self._disk = disk
        self._now = now
        self.last_named: Holder | None = None
        """The process that the file named when it was found to be another one."""
        self.on_takeover: Callable[[], None] = _do_nothing
        """Called before another lock of this process takes over the run."""
        self.on_fork: Callable[[], None] = _do_nothing
        """Called in a forked child, which has closed its copy of the lock."""
        self._take_over_in_this_process()
        self._hold(self._open_and_take())

    def find_other(self) -> Holder | None:
        """Another process that has taken the run although this one has not released it.

        A lock file that was removed or replaced, and that nobody holds, is locked again.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return self._take_again()
        except OSError:
            # Nothing is known now; a failing disk is found by what writes to it.
            return None
        if (status.st_dev, status.st_ino) != self._key:
            return self._take_again()
        named = _named_in(self.path)
        if named is None or named == self._holder:
            return None
        self.last_named = named
        # An older name is a copy of the file that somebody put back.
        return named if named.since > self._holder.since else None

    def release(self) -> None:
        """Let others write the run."""
        with WriterLock._guard:
            WriterLock._held.pop(self._key, None)
        self._disk.close(self._file)

    def _open_and_take(self) -> int:
        while True:
            with storage_errors(self.path):
                file = self._disk.open_to_append(self.path)
            try:
                self._take(file)
            except BaseException:
                self._disk.close(file)
                raise
            if os.fstat(file).st_nlink:
                return file
            # Removed between opening and locking: whoever comes next would lock another file.
            self._disk.close(file)

    def _take(self, file: int) -> None:
        for _ in range(_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # `holder_of` has the lock for an instant, and `alerts/process.py` for a few while it records
                # the death of the last writer.
                time.sleep(_SECONDS_BETWEEN_TRIES)
            else:
                return
        holder = _read_holder(self.path)
        raise RunInUse(self.path.parent.parent, host=holder.host, pid=holder.pid)

    def _take_again(self) -> Holder | None:
        """Lock the file that has the name now; return who holds it if that is another process."""
        named = _named_in(self.path)
        try:
            file = self._open_and_take()
        except RunInUse:
            # On a file system that numbers its files anew, it may be this process that has the lock.
            holder = _named_in(self.path)
            return None if holder == self._holder else holder
        except (StorageError, OSError):
            # The folder is gone, or nothing can be written: the journals tell which.
            return None
        if named is not None and named != self._holder:
            self.last_named = named
        self.release()
        self._hold(file)
        log.warning(
            "%s was removed or replaced while this process held it; it is locked again. Leave it in place: it keeps "
            "two processes from writing one run.",
            self.path,
        )
        return None

    def _take_over_in_this_process(self) -> None:
        with WriterLock._guard:
            held = list(WriterLock._held.items())
        try:
            status = self.path.stat()
        except FileNotFoundError:
            status = None
        place = self.path.resolve()
        # By the inode, and by the name for a lock whose file was removed.
        earlier = next(
            (
                lock
                for key, lock in held
                if (status is not None and key == (status.st_dev, status.st_ino)) or lock.path.resolve() == place
            ),
            None,
        )
        if earlier is not None:
            earlier.on_takeover()

    def _hold(self, file: int) -> None:
        """Keep a locked file, and write into it who has the lock, for others; a full disk does not matter."""
        self._file = file
        self._holder = Holder(host=host_name(), pid=os.getpid(), since=self._now())
        try:
            self._disk.truncate(file, 0)
            self._disk.write(file, msgspec.json.encode(self._holder))
        except OSError as error:
            log.debug("%s names nobody: %s", self.path, error)
        except BaseException:
            self._disk.close(file)
            raise
        status = os.fstat(file)
        self._key = (status.st_dev, status.st_ino)
        with WriterLock._guard:
            WriterLock._held[self._key] = self
            if not WriterLock._fork_hooked:
                os.register_at_fork(after_in_child=abandon_all)
                WriterLock._fork_hooked = True

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
    # It has the lock, and may not have written its name yet, or could not.
    return _named_in(path) or Holder(host="this host", pid=0, since=0.0)


def _named_in(path: Path) -> Holder | None:
    """The process that a lock file names, whether or not it has the lock."""
    try:
        return msgspec.json.decode(read_small(path, most_bytes=_MAX_HOLDER_BYTES), type=Holder)
    except (OSError, StorageError, RecursionError, ValueError):
        return None


def abandon_all() -> None:
    """Close every lock of this process, as a forked child must: the parent still writes the runs."""
    # Another thread of the parent may have held it at the fork.
    WriterLock._guard = threading.Lock()
    while WriterLock._held:
        WriterLock._held.popitem()[1]._abandon()


def _do_nothing() -> None:
    """Stand for the callbacks until they are set."""
