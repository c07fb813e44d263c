"""Write files atomically.

The order is the promise: a temporary name in the same folder, the bytes, their sync, the rename, the sync of the
folder. Whoever opens the final name finds the old content or the new, never a mixture.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from crashproof.disk.files import REAL_DISK, Disk, storage_errors

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

    Raises:
        DiskFull: nothing was changed; the partial file was removed.
        StorageUnwritable: nothing was changed.
    """
    with _open_and_publish(path, disk=disk) as file:
        sink = DigestedFile(file, disk)
        write(cast(BinaryIO, sink))
    return WholeFile(path=path, num_bytes=sink.num_bytes, sha256=sink.sha256())


def write_bytes_atomically(path: Path, content: bytes, *, disk: Disk = REAL_DISK) -> None:
    """Publish a small file; the same promise as `write_atomically`."""
    with _open_and_publish(path, disk=disk, needed_bytes=len(content)) as file:
        write_all(file, content, disk)


@contextmanager
def write_folder_atomically(path: Path, *, disk: Disk = REAL_DISK) -> Iterator[Path]:
    """Yield an empty folder to fill; it gets its final name once everything in it is durable.

    Raises:
        StorageUnwritable: a folder that is not empty has that name already.
    """
    partial = partial_name(path)
    with storage_errors(path):
        if partial.exists():
            disk.remove_tree(partial)
        disk.make_folders(partial)
        try:
            yield partial
            publish_folder(partial, path, disk=disk)
        except BaseException:
            if partial.exists():
                disk.remove_tree(partial)
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
            yield DigestedFile(file, disk)
            disk.sync(file)
        finally:
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
    """Make a file, or a folder with everything in it, durable, but not its own name."""
    if path.is_dir():
        for child in sorted(path.iterdir()):
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


def remove_partials(folder: Path, *, disk: Disk = REAL_DISK) -> None:
    """Remove what interrupted writes have left in a folder."""
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if partial.is_dir():
            disk.remove_tree(partial)
        else:
            disk.remove_file(partial)


@contextmanager
def _open_and_publish(path: Path, *, disk: Disk, needed_bytes: int = 0) -> Iterator[int]:
    """Yield an open file to fill; sync it and give it its final name once it is filled."""
    partial = partial_name(path)
    with storage_errors(path, needed_bytes=needed_bytes):
        file = disk.open_anew(partial)
        try:
            try:
                yield file
                disk.sync(file)
            finally:
                disk.close(file)
            _publish(partial, path, disk)
        except BaseException:
            disk.remove_file(partial)
            raise


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
        view = memoryview(content).cast("B")
        if len(view) < _WORTH_A_THREAD_BYTES:
            self._digest.update(view)
            write_all(self._file, view, self._disk)
        else:
            # Both take about as long, and neither holds the interpreter's lock.
            digesting = threading.Thread(target=self._digest.update, args=(view,))
            digesting.start()
            try:
                write_all(self._file, view, self._disk)
            finally:
                digesting.join()
        self.num_bytes += len(view)
        return len(view)
