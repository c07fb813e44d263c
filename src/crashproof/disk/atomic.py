"""Write a file whole or not at all.

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
from typing import Any, BinaryIO, cast

from crashproof.disk.files import REAL_DISK, Disk, storage_errors

__all__ = [
    "PARTIAL_SUFFIX",
    "DigestedFile",
    "WholeFile",
    "digested_file",
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
    """A file that is durable under its final name."""

    path: Path
    num_bytes: int
    sha256: str


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, disk: Disk = REAL_DISK) -> WholeFile:
    """Let `write` fill a file, and publish it once it is durable.

    The digest is taken of the bytes on their way to the disk: no second reading, and damage by the memory of the
    machine that later reads them back is noticed.

    Raises:
        DiskFull: nothing was changed; what had been written was removed.
        StorageUnwritable: nothing was changed.
    """
    with _published(path, disk=disk) as file:
        sink = DigestedFile(file, disk)
        write(cast(BinaryIO, sink))
    return WholeFile(path=path, num_bytes=sink.num_bytes, sha256=sink.sha256())


def write_bytes_atomically(path: Path, content: bytes, *, disk: Disk = REAL_DISK) -> None:
    """Publish a small file; the same promise as `write_atomically`."""
    with _published(path, disk=disk, needed_bytes=len(content)) as file:
        write_all(file, content, disk)


@contextmanager
def write_folder_atomically(path: Path, *, disk: Disk = REAL_DISK) -> Iterator[Path]:
    """An empty folder to fill, by any code; it gets its final name once all in it is durable.

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
def digested_file(path: Path, *, disk: Disk = REAL_DISK) -> Iterator[DigestedFile]:
    """A new file in a folder that has its temporary name still; synced once it is filled.

    Raises:
        DiskFull, StorageUnwritable: it is not whole.
    """
    with storage_errors(path):
        file = disk.open_anew(path)
        try:
            yield DigestedFile(file, disk)
            disk.sync(file)
        finally:
            disk.close(file)


def publish_folder(partial: Path, path: Path, *, disk: Disk = REAL_DISK) -> None:
    """Give a folder, filled under a temporary name by anyone, its final name once all in it is durable.

    Raises:
        StorageUnwritable: a folder that is not empty has that name already.
    """
    with storage_errors(path):
        sync_tree(partial, disk)
        _publish(partial, path, disk)


def sync_tree(path: Path, disk: Disk) -> None:
    """Make a file, or a folder with all that is in it, durable; not yet its own name."""
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
    """Remove what writes that were cut off have left in a folder."""
    for partial in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if partial.is_dir():
            disk.remove_tree(partial)
        else:
            disk.remove_file(partial)


@contextmanager
def _published(path: Path, *, disk: Disk, needed_bytes: int = 0) -> Iterator[int]:
    """An open file to fill; synced, and given its final name, once it is filled."""
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
    """Counts and digests the bytes on their way to an open file."""

    def __init__(self, file: int, disk: Disk) -> None:
        self.num_bytes = 0
        self._digest = hashlib.sha256()
        self._file = file
        self._disk = disk

    def writable(self) -> bool:
        """It is for nothing else."""
        return True

    def tell(self) -> int:
        """Where the next byte goes."""
        return self.num_bytes

    def sha256(self) -> str:
        """Of all bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, content: Any) -> int:
        """Write all of a bytes-like object, unlike a raw file, and say how long it is."""
        whole = memoryview(content).cast("B")
        if len(whole) < _WORTH_A_THREAD_BYTES:
            self._digest.update(whole)
            write_all(self._file, whole, self._disk)
        else:
            # Digesting and writing take about as long; neither holds the interpreter's lock.
            digesting = threading.Thread(target=self._digest.update, args=(whole,))
            digesting.start()
            try:
                write_all(self._file, whole, self._disk)
            finally:
                digesting.join()
        self.num_bytes += len(whole)
        return len(whole)
