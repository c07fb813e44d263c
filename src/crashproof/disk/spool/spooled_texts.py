"""Hold texts by key on disk, in a file that nobody else sees."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import msgspec

from crashproof.disk.atomic import partial_name, write_all
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.spool.place_table import PlaceTable

__all__ = ["SpooledTexts"]

_BLOCK_BYTES = 1 << 16


class SpooledTexts(MutableMapping[str, str]):
    """Texts by key, in the order of their keys' last setting; 28 bytes a key in memory. Not thread-safe for writers.

    The file has no name once it is open, and so ends with the process, however that ends.
    """

    def __init__(self, folder: Path, *, disk: Disk = REAL_DISK) -> None:
        """Nothing is written before the first text; `folder` exists by then."""
        self._path = partial_name(folder / "texts")
        self._disk = disk
        self._places = PlaceTable()
        self._num_keys = 0
        self._num_bytes = 0
        self._file: int | None = None

    def __getitem__(self, key: str) -> str:
        """The text of a key."""
        place = self._places.find(key)
        if place is None or self._file is None:
            raise KeyError(key)
        return _decode(os.pread(self._file, place[1], place[0]))[1]

    def __setitem__(self, key: str, text: str) -> None:
        """Keep a text in place of an earlier one of its key.

        Raises:
            DiskFull, StorageUnwritable: it is not kept.
        """
        # What cannot be encoded is spelled out.
        line = msgspec.json.encode([key, text.encode("utf-8", "backslashreplace").decode()]) + b"\n"
        with storage_errors(self._path, needed_bytes=len(line)):
            file = self._file = self._open() if self._file is None else self._file
            try:
                write_all(file, line, self._disk)
            except OSError:
                # The next line begins where this one did.
                self._disk.truncate(file, self._num_bytes)
                raise
        self._num_keys += key not in self
        self._places.put(key, (self._num_bytes, len(line)))
        self._num_bytes += len(line)
        if self._places.is_sorting_due:
            self._places.sort()

    def __delitem__(self, key: str) -> None:
        """Forget the text of a key."""
        if key not in self:
            raise KeyError(key)
        self._places.put(key, (0, 0))
        self._num_keys -= 1

    def __contains__(self, key: object) -> bool:
        """Whether there is a text of a key; reads nothing."""
        return isinstance(key, str) and self._places.find(key) is not None

    def __len__(self) -> int:
        return self._num_keys

    def __iter__(self) -> Iterator[str]:
        offset = 0
        for line in self._lines():
            key, _ = _decode(line)
            # A later text of the key may have taken its place.
            if self._places.find(key) == (offset, len(line)):
                yield key
            offset += len(line)

    def _lines(self) -> Iterator[bytes]:
        if self._file is None:
            return
        rest, offset = b"", 0
        while offset < self._num_bytes:
            block = os.pread(self._file, min(_BLOCK_BYTES, self._num_bytes - offset), offset)
            offset += len(block)
            *lines, rest = (rest + block).split(b"\n")
            yield from (line + b"\n" for line in lines)

    def _open(self) -> int:
        # What a process left that was killed between these lines is in the way, or a link to somewhere else.
        self._disk.remove_file(self._path)
        file = self._disk.open_to_append(self._path)
        weakref.finalize(self, os.close, file)
        self._disk.remove_file(self._path)
        return file


def _decode(line: bytes) -> list[str]:
    return msgspec.json.decode(line, type=list[str])
