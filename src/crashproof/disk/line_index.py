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
import struct
import sys
import threading
from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice, zip_longest
from pathlib import Path

import msgspec

from crashproof.disk.atomic import write_bytes_atomically
from crashproof.disk.files import REAL_DISK, Disk
from crashproof.disk.regular_file import read_small
from crashproof.errors import StorageError
from crashproof.records.checksummed_line import add_checksum, is_intact
from crashproof.records.snapshots import JournalMark
from crashproof.records.version import FORMAT_VERSION

__all__ = ["LineIndex", "Place"]

log = logging.getLogger("crashproof")

_PLACE = struct.Struct(">QI")
_DIGEST_BYTES = 16
_ENTRY_BYTES = _DIGEST_BYTES + _PLACE.size
_MIN_UNSAVED = 20_000
_MAX_FRAME_BYTES = 4 << 10
"""Of an index, beside its entries."""

Place = tuple[int, int]
"""Offset and length of a line."""


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
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._sorted = _Entries(b"")
        self._unsaved: dict[bytes, Place] = {}
        self._being_saved: dict[bytes, Place] = {}

    def __len__(self) -> int:
        """An upper bound of the keys: one that was put again since the last save counts twice."""
        return len(self._sorted) + len(self._unsaved) + len(self._being_saved)

    @property
    def is_save_due(self) -> bool:
        """Whether enough is unsaved to slow down the next start or take much memory."""
        return len(self._unsaved) >= max(_MIN_UNSAVED, len(self._sorted) // 16)

    @property
    def has_unsaved(self) -> bool:
        """Whether the file lacks some places."""
        return bool(self._unsaved)

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
        self._sorted = found
        return JournalMark(num_bytes=head.num_bytes, num_lines=head.num_lines, last_line_crc=head.last_line_crc)

    def forget(self) -> None:
        """Forget every place: the journal is not the one that was indexed."""
        with self._lock:
            self._sorted = _Entries(b"")
            self._unsaved, self._being_saved = {}, {}

    def put(self, key: str, place: Place) -> None:
        """Remember the place of a key's newest line."""
        with self._lock:
            self._unsaved[_digest(key)] = place

    def rebuild(self, places: Iterable[tuple[str, Place]]) -> None:
        """Replace all places by these, in the order of their lines; takes less memory than one `put` for each."""
        entries = [_digest(key) + _PLACE.pack(*place) for key, place in places]
        # By key, and then by offset: of one key's entries the last one is the newest.
        entries.sort()
        newest = (
            each
            for each, after in zip_longest(entries, islice(entries, 1, None), fillvalue=b"")
            if each[:_DIGEST_BYTES] != after[:_DIGEST_BYTES]
        )
        content = b"".join(newest)
        with self._lock:
            self._sorted = _Entries(content)
            self._unsaved, self._being_saved = {}, {}

    def drop(self, key: str) -> None:
        """Forget a key."""
        self.put(key, (0, 0))

    def find(self, key: str) -> Place | None:
        """The place of a key's newest line, or None."""
        digest = _digest(key)
        with self._lock:
            place = self._unsaved.get(digest) or self._being_saved.get(digest) or self._sorted.find(digest)
        return place if place is not None and place[1] else None

    def save(self, mark: JournalMark) -> None:
        """Replace the file; `mark` is where the journal ended when every line before it had been put.

        An error of the disk leaves the old file: the index can be rebuilt.
        """
        with self._saving:
            with self._lock:
                self._being_saved, self._unsaved = self._unsaved, {}
            entries = self._sorted.merged_with(self._being_saved)
            with self._lock:
                self._sorted, self._being_saved = entries, {}
            head = _Head(
                num_bytes=mark.num_bytes,
                num_lines=mark.num_lines,
                last_line_crc=mark.last_line_crc,
                num_entries=len(entries),
            )
            content = b"".join([add_checksum(msgspec.json.encode(head)), entries.content])
            try:
                write_bytes_atomically(
                    self._path, b"".join([content, hashlib.sha256(content).digest()]), disk=self._disk
                )
            except (StorageError, OSError) as error:
                log.warning("Could not save %s, which stays as it was: %s", self._path, error)


class _Entries:
    """Sorted entries from `start` to `end` of a buffer; indexing yields their digests."""

    def __init__(self, buffer: bytes, *, start: int = 0, end: int | None = None) -> None:
        self._buffer = buffer
        self._start = start
        self._end = len(buffer) if end is None else end

    @property
    def content(self) -> memoryview:
        """All entries, not copied."""
        return memoryview(self._buffer)[self._start : self._end]

    def __len__(self) -> int:
        return (self._end - self._start) // _ENTRY_BYTES

    def __getitem__(self, index: int) -> bytes:
        start = self._start + index * _ENTRY_BYTES
        return self._buffer[start : start + _DIGEST_BYTES]

    def find(self, digest: bytes) -> Place | None:
        index = bisect_left(self, digest)
        if index == len(self) or self[index] != digest:
            return None
        offset, num_bytes = _PLACE.unpack_from(self._buffer, self._start + index * _ENTRY_BYTES + _DIGEST_BYTES)
        return offset, num_bytes

    def merged_with(self, newer: dict[bytes, Place]) -> _Entries:
        """These entries with newer places in place of the old; places of length 0 are left out."""
        older = self.content
        pieces: list[bytes | memoryview] = []
        num_taken = 0
        for digest in sorted(newer):
            index = bisect_left(self, digest, lo=num_taken)
            pieces.append(older[num_taken * _ENTRY_BYTES : index * _ENTRY_BYTES])
            num_taken = index + (index < len(self) and self[index] == digest)
            if newer[digest][1]:
                pieces.append(digest + _PLACE.pack(*newer[digest]))
        pieces.append(older[num_taken * _ENTRY_BYTES :])
        return _Entries(b"".join(pieces))


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def _parse(content: bytes) -> tuple[_Head | None, _Entries]:
    end = content.find(b"\n") + 1
    if not end or not is_intact(content[:end]):
        return None, _Entries(b"")
    try:
        head = msgspec.json.decode(content[:end], type=_Head)
    except (RecursionError, ValueError):
        return None, _Entries(b"")
    # A view, not a slice: the bytes of a large index are held once.
    body = memoryview(content)[:-32]
    if hashlib.sha256(body).digest() != content[-32:] or len(body) - end != head.num_entries * _ENTRY_BYTES:
        return None, _Entries(b"")
    return head, _Entries(content, start=end, end=len(body))
