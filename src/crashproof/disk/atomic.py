"""Write files atomically.

The order is the promise: a temporary name in the same folder, the bytes, their sync, the rename, the sync of the
folder. Whoever opens the final name finds the old content or the new, never a mixture.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from crashproof.disk.files import REAL_DISK, Disk, errors_of_other_code, storage_errors
from crashproof.threads import try_to_start

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "PARTIAL_SUFFIX",
    "DigestedFile",
    "WholeFile",
    "open_digested_file",
    "publish_folder",
    "remove_partials",
    "write_atomically",
    "write_bytes_atomically",
    "write_folder_atomically",
]

PARTIAL_SUFFIX = ".crashproof-partial"
_WORTH_A_THREAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFile:
    """A complete file, durable under its final name."""

    path: Path
    num_bytes: int
    sha256: str


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, disk: Disk = REAL_DISK) -> WholeFile:
    """Let `write` fill a file, and publish it once it is durable.

    The digest is computed from the bytes on their way to the disk, so the file is not read again.

    Once a write to that file has failed, this raises its error, whatever `write` makes of it: other code wraps the
    error in one of its own, fails later because of it, or passes over it. What else `write` raises passes unchanged.

    Raises:
        DiskFull: nothing was changed; the partial file was removed.
        StorageUnwritable: nothing was changed.
    """
    with _open_and_publish(path, disk=disk) as file:
        sink = DigestedFile(file, disk)
        with sink.raising_its_failure(path):
            write(cast(BinaryIO, sink))
    return WholeFile(path=path, num_bytes=sink.num_bytes, sha256=sink.sha256())


def write_bytes_atomically(path: Path, content: bytes, *, disk: Disk = REAL_DISK) -> None:
    """Publish a small file; the same promise as `write_atomically`."""
    num_bytes = len(content)
    with (
        _open_and_publish(path, disk=disk, needed_bytes=num_bytes) as file,
        storage_errors(path, needed_bytes=num_bytes),
    ):
        write_all(file, content, disk)


@contextmanager
def write_folder_atomically(path: Path, *, disk: Disk = REAL_DISK) -> Iterator[Path]:
    """Yield an empty folder to fill; it gets its final name once everything in it is durable.

    Raises:
        DiskFull: nothing was changed. Also where the code that filled it raised another error because of it.
        StorageUnwritable: likewise; or a folder that is not empty has that name already.
    """
    partial = partial_name(path)
    with storage_errors(path):
        _remove(partial, disk)
        disk.make_folders(partial)
    try:
        with errors_of_other_code(path, writes_in=partial):
            yield partial
        publish_folder(partial, path, disk=disk)
    except BaseException:
        # The error of the write is what counts; the next start removes what is left.
        with suppress(OSError):
            _remove(partial, disk)
        raise


@contextmanager
def open_digested_file(path: Path, *, disk: Disk = REAL_DISK) -> Iterator[DigestedFile]:
    """Yield a new file in a folder that still has its temporary name; sync the file once it is filled.

    Raises:
        DiskFull, StorageUnwritable: the file is incomplete.
    """
    with storage_errors(path):
        file = disk.open_anew(path)
    try:
        sink = DigestedFile(file, disk)
        with sink.raising_its_failure(path):
            yield sink
        with storage_errors(path):
            disk.sync(file)
    finally:
        with storage_errors(path):
            disk.close(file)


def publish_folder(partial: Path, path: Path, *, disk: Disk = REAL_DISK) -> None:
    """Make everything in a folder durable, then replace its temporary name by its final one.

    Raises:
        StorageUnwritable: a folder that is not empty has that name already.
    """
    with storage_errors(path):
        sync_tree(partial, disk)
        _publish(partial, path, disk)


def sync_tree(path: Path, disk: Disk) -> None:
    """Make a file, or a folder with everything in it, durable, but not its own name.

    Of what lies in a folder, pipes, sockets and devices have no bytes to sync, and no link to a folder is followed.
    """
    if path.is_dir():
        for child in sorted(path.iterdir()):
            if child.is_file() or (child.is_dir() and not child.is_symlink()):
                sync_tree(child, disk)
        disk.sync_folder(path)
        return
    file = disk.open_to_sync(path)
    try:
        disk.sync(file)
    finally:
        disk.close(file)


def write_all(file: int, content: bytes | memoryview, disk: Disk) -> None:
    """Write every byte, however many calls it takes."""
    rest = memoryview(content)
    while rest:
        rest = rest[disk.write(file, rest) :]


def partial_name(path: Path) -> Path:
    """The temporary name beside `path`; one writer per run, so one name is enough."""
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


def remove_partials(folder: Path, *, of: re.Pattern[str] | None = None, disk: Disk = REAL_DISK) -> None:
    """Remove what interrupted writes have left in a folder, but nothing that a link leads to.

    `of` matches the final names of what may be removed; None matches all.
    """
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        final_name = partial.name[1 : -len(PARTIAL_SUFFIX)]
        if of is None or of.fullmatch(final_name):
            _remove(partial, disk)


@contextmanager
def _open_and_publish(path: Path, *, disk: Disk, needed_bytes: int = 0) -> Iterator[int]:
    """Yield an open file to fill; sync it and give it its final name once it is filled."""
    partial = partial_name(path)
    with storage_errors(path, needed_bytes=needed_bytes):
        file = disk.open_anew(partial)
    try:
        try:
            yield file
            with storage_errors(path, needed_bytes=needed_bytes):
                disk.sync(file)
        finally:
            with storage_errors(path, needed_bytes=needed_bytes):
                disk.close(file)
        with storage_errors(path):
            _publish(partial, path, disk)
    except BaseException:
        # The error of the write is what counts; the next start removes what is left.
        with suppress(OSError):
            disk.remove_file(partial)
        raise


def _remove(path: Path, disk: Disk) -> None:
    """Remove a file, a folder or a link itself; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        disk.remove_tree(path)
    elif os.path.lexists(path):
        disk.remove_file(path)


def _publish(partial: Path, path: Path, disk: Disk) -> None:
    disk.replace(partial, path)
    # The file's own sync does not make its new name durable.
    disk.sync_folder(path.parent)


class DigestedFile(io.RawIOBase):
    """Count and digest the bytes on their way to an open file."""

    def __init__(self, file: int, disk: Disk) -> None:
        self.num_bytes = 0
        self._digest = hashlib.sha256()
        self._file = file
        self._disk = disk
        self._failure: OSError | None = None

    @contextmanager
    def raising_its_failure(self, path: Path) -> Iterator[None]:
        """Raise the error of a write that failed, instead of whatever the code that writes makes of it.

        Raises:
            DiskFull, StorageUnwritable: `path` could not be written.
        """
        try:
            yield
        except Exception:
            self._raise_failure(path)
            raise
        self._raise_failure(path)

    def writable(self) -> bool:
        """Whether it accepts bytes: it does nothing else."""
        return True

    def tell(self) -> int:
        """The offset of the next byte."""
        return self.num_bytes

    def sha256(self) -> str:
        """The digest of all bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, content: ReadableBuffer) -> int:
        """Write all of a bytes-like object, unlike a raw file, and return its length."""
        if self._failure is not None:
            # A later piece must not land where the lost one belongs.
            raise self._failure
        view = memoryview(content).cast("B")
        try:
            self._write_and_digest(view)
        except OSError as error:
            self._failure = error
            raise
        self.num_bytes += len(view)
        return len(view)

    def _raise_failure(self, path: Path) -> None:
        if self._failure is not None:
            with storage_errors(path):
                raise self._failure

    def _write_and_digest(self, view: memoryview) -> None:
        digesting = threading.Thread(target=self._digest.update, args=(view,))
        # Both take about as long, and neither holds the interpreter's lock.
        if len(view) < _WORTH_A_THREAD_BYTES or not try_to_start(digesting):
            self._digest.update(view)
            write_all(self._file, view, self._disk)
            return
        try:
            write_all(self._file, view, self._disk)
        finally:
            digesting.join()
