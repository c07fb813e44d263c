"""Find a line of a journal by its key.

The index of a million lines is 28 MB of sorted bytes, read in one go; no line is held in memory. It is derived: its
file ends with a digest of all of it, and a missing, damaged or outdated one is rebuilt from the journal. It begins
with a checksummed line that says how far the journal is indexed; then comes an entry of 28 bytes for each key,
sorted: 16 of the key's BLAKE2b, 8 of the line's offset, 4 of its length, big-endian; last, 32 bytes of SHA-256 over
all before.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from crashproof.disk.atomic import write_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.regular_file import read_small
from crashproof.disk.spool.place_table import ENTRY_BYTES, Place, PlaceTable, SortedPlaces
from crashproof.errors import StorageError
from crashproof.records.lines.checksummed_line import add_checksum, is_intact
from crashproof.records.snapshots import JournalMark
from crashproof.records.version import FORMAT_VERSION

__all__ = ["LineIndex", "Place"]

log = logging.getLogger("crashproof")

_MAX_FRAME_BYTES = 4 << 10
"""Of an index, beside its entries."""


class _Head(msgspec.Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    num_bytes: int
    num_lines: int
    last_line_crc: str
    num_entries: int


class LineIndex:
    """The newest place of each key. Thread-safe."""

    def __init__(self, path: Path, *, disk: Disk = REAL_DISK) -> None:
        self._path = path
        self._disk = disk
        self._saving = threading.Lock()
        self._places = PlaceTable()

    def __len__(self) -> int:
        """An upper bound of the keys: one that was put again since the last save counts twice."""
        return len(self._places)

    @property
    def is_save_due(self) -> bool:
        """Whether enough is unsaved to slow down the next start or take much memory."""
        return self._places.is_sorting_due

    @property
    def has_unsaved(self) -> bool:
        """Whether the file lacks some places."""
        return self._places.num_unsorted > 0

    def load(self, *, journal_bytes: int = sys.maxsize) -> JournalMark:
        """Read the file, and return how far the journal is indexed: not at all if the file is unusable.

        An index larger than its journal is none: each entry is shorter than the line that it finds.
        """
        try:
            content = read_small(self._path, most_bytes=journal_bytes + _MAX_FRAME_BYTES)
        except FileNotFoundError:
            return JournalMark()
        except StorageError as error:
            log.warning("%s It is rebuilt from the journal.", error)
            return JournalMark()
        head, found = _parse(content)
        if head is None:
            log.warning("%s is damaged or of another version; it is rebuilt from the journal.", self._path)
            return JournalMark()
        self._places.replace(found)
        return JournalMark(num_bytes=head.num_bytes, num_lines=head.num_lines, last_line_crc=head.last_line_crc)

    def forget(self) -> None:
        """Forget every place: the journal is not the one that was indexed."""
        self._places.replace(SortedPlaces())

    def put(self, key: str, place: Place) -> None:
        """Remember the place of a key's newest line."""
        self._places.put(key, place)

    def rebuild(self, places: Iterable[tuple[str, Place]]) -> None:
        """Replace all places by these, in the order of their lines; takes less memory than one `put` for each."""
        self._places.replace(SortedPlaces.of(places))

    def drop(self, key: str) -> None:
        """Forget a key."""
        self._places.put(key, (0, 0))

    def find(self, key: str) -> Place | None:
        """The place of a key's newest line, or None."""
        return self._places.find(key)

    def save(self, mark: JournalMark) -> None:
        """Replace the file; `mark` is where the journal ended when every line before it had been put.

        An error of the disk leaves the old file: the index can be rebuilt.
        """
        with self._saving:
            entries = self._places.sort()
            head = _Head(
                num_bytes=mark.num_bytes,
                num_lines=mark.num_lines,
                last_line_crc=mark.last_line_crc,
                num_entries=len(entries),
            )
            # Never joined: a large index would be in memory several times.
            pieces = (add_checksum(msgspec.json.encode(head)), entries.content)
            try:
                write_atomically(self._path, lambda file: _write_with_digest(file, pieces), disk=self._disk)
            except (StorageError, OSError) as error:
                log.warning("Could not save %s, which stays as it was: %s", self._path, error)


def _write_with_digest(file: BinaryIO, pieces: Iterable[bytes | memoryview]) -> None:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    file.write(digest.digest())


def _parse(content: bytes) -> tuple[_Head | None, SortedPlaces]:
    end = content.find(b"\n") + 1
    if not end or not is_intact(content[:end]):
        return None, SortedPlaces()
    try:
        head = msgspec.json.decode(content[:end], type=_Head)
    except (RecursionError, ValueError):
        return None, SortedPlaces()
    # A view, not a slice: the bytes of a large index are held once.
    body = memoryview(content)[:-32]
    if hashlib.sha256(body).digest() != content[-32:] or len(body) - end != head.num_entries * ENTRY_BYTES:
        return None, SortedPlaces()
    return head, SortedPlaces(content, start=end, end=len(body))
