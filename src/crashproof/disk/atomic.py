"""Write files atomically.

The order is the promise: a temporary name in the same folder, the bytes, their sync, the rename, the sync of the
folder. Whoever opens the final name finds the old content or the new, never a mixture.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from crashproof.digests import BLAKE3, RunningDigest
from crashproof.disk.files import REAL_DISK, Disk, errors_of_other_code, storage_errors

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
_PIECE_BYTES = 8 << 20
"""Digested, then written while it is still in the processor's cache; then the disk begins with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeFile:
    """A complete file, durable under its final name."""

    path: Path
    num_bytes: int
    digest: str
    """Begins with the name of its algorithm."""


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, algorithm: str = BLAKE3, disk: Disk = REAL_DISK
) -> WholeFile:
    """Let `write` fill a file, and publish it once it is durable.

    The digest is computed from the bytes on their way to the disk, so the file is not read again.

    Once a write to that file has failed, this raises its error, whatever `write` makes of it: other code wraps the
    error in one of its own, fails later because of it, or passes over it. What else `write` raises passes unchanged.

    Raises:
        DiskFull: nothing was changed; the partial file was removed.
        StorageUnwritable: nothing was changed.
    """
    with _open_and_publish(path, disk=disk) as file:
        sink = DigestedFile(file, disk, algorithm=algorithm)
        with sink.raising_its_failure(path):
            write(cast(BinaryIO, sink))
    return WholeFile(path=path, num_bytes=sink.num_bytes, digest=sink.digest())


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
    """Count and digest the bytes on their way to an open file.

    The disk begins with them while later ones are still to come, so that little is left for the sync to wait for.
    """

    def __init__(self, file: int, disk: Disk, *, algorithm: str = BLAKE3) -> None:
        self.num_bytes = 0
        self._num_begun_bytes = 0
        self._digest = RunningDigest(algorithm)
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

    def digest(self) -> str:
        """The digest of all bytes so far, with its algorithm."""
        return self._digest.result()

    def write(self, content: ReadableBuffer) -> int:
        """Write all of a bytes-like object, unlike a raw file, and return its length."""
        if self._failure is not None:
            # A later piece must not land where the lost one belongs.
            raise self._failure
        view = memoryview(content).cast("B")
        try:
            for start in range(0, len(view), _PIECE_BYTES):
                self._digest_and_write(view[start : start + _PIECE_BYTES])
        except OSError as error:
            self._failure = error
            raise
        return len(view)

    def _raise_failure(self, path: Path) -> None:
        if self._failure is not None:
            with storage_errors(path):
                raise self._failure

    def _digest_and_write(self, piece: memoryview) -> None:
        self._digest.update(piece)
        write_all(self._file, piece, self._disk)
        self.num_bytes += len(piece)
        if self.num_bytes - self._num_begun_bytes >= _PIECE_BYTES:
            self._disk.begin_writeback(self._file, self._num_begun_bytes, self.num_bytes - self._num_begun_bytes)
            self._num_begun_bytes = self.num_bytes
