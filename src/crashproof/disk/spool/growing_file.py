"""Let a file grow in sight, and give it its final name once it is complete.

Until then anybody may look at it under its working name; who opens the final name finds the old file or the complete
new one. What is left of it by a kill is of no value, and overwritten.
"""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

from crashproof.disk.atomic import write_all, write_atomically
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.regular_file import open_to_read

__all__ = ["GrowingFile"]

_MOST_BUFFERED_BYTES = 1 << 16


class GrowingFile:
    """A file under its working name."""

    def __init__(self, path: Path, *, disk: Disk = REAL_DISK) -> None:
        """Nothing is written before the first line; then a file that has the working name is emptied."""
        self.path = path
        self._disk = disk
        self._buffer = bytearray()
        self._file: int | None = None

    def append(self, line: bytes) -> None:
        """Add a line, which others see at the next `flush` or sooner.

        Raises:
            DiskFull, StorageUnwritable: the file is incomplete, and can only be discarded.
        """
        self._buffer += line
        if len(self._buffer) > _MOST_BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Let others see all lines.

        Raises:
            DiskFull, StorageUnwritable: see `append`.
        """
        if self._buffer:
            file = self._open()
            with storage_errors(self.path, needed_bytes=len(self._buffer)):
                write_all(file, bytes(self._buffer), self._disk)
            self._buffer.clear()

    def publish(self, target: Path) -> None:
        """Make it durable and give it its final name, also on another file system.

        Raises:
            DiskFull, StorageUnwritable: what had that name is unchanged.
        """
        self.flush()
        file = self._open()
        with storage_errors(target):
            self._disk.sync(file)
            self.close()
            try:
                self._disk.replace(self.path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy_to(target)
            else:
                # The file's own sync does not make its new name durable.
                self._disk.sync_folder(target.parent)

    def discard(self) -> None:
        """Close and remove it."""
        self.close()
        # It is in nobody's way: the next one overwrites it.
        with suppress(OSError):
            self._disk.remove_file(self.path)

    def close(self) -> None:
        """Close it and leave it as it is, with all lines that were flushed."""
        if self._file is not None:
            self._disk.close(self._file)
            self._file = None

    def _open(self) -> int:
        if self._file is None:
            with storage_errors(self.path):
                self._file = self._disk.open_anew(self.path)
        return self._file

    def _copy_to(self, target: Path) -> None:
        with open_to_read(self.path) as file:
            write_atomically(target, lambda copy: shutil.copyfileobj(file, copy), disk=self._disk)
        self._disk.remove_file(self.path)
