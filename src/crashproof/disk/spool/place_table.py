"""Remember where the line of each key lies.

28 bytes a key, sorted: 16 of the key's BLAKE2b, 8 of the line's offset, 4 of its length, big-endian. Keys that were
put since the last sorting take more, so they are sorted in once they are many.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice

__all__ = ["DIGEST_BYTES", "ENTRY_BYTES", "Place", "PlaceTable", "SortedPlaces"]

_PLACE = struct.Struct(">QI")
DIGEST_BYTES = 16
ENTRY_BYTES = DIGEST_BYTES + _PLACE.size
_MIN_UNSORTED = 20_000
_RUN_LENGTH = 50_000

Place = tuple[int, int]
"""Offset and length of a line."""


class SortedPlaces:
    """Sorted entries from `start` to `end` of a buffer; indexing yields their digests."""

    def __init__(self, buffer: bytes = b"", *, start: int = 0, end: int | None = None) -> None:
        self._buffer = buffer
        self._start = start
        self._end = len(buffer) if end is None else end

    @classmethod
    def of(cls, places: Iterable[tuple[str, Place]]) -> SortedPlaces:
        """Sort places, of which the one with the highest offset of each key counts."""
        runs = _sorted_runs(_digest(key) + _PLACE.pack(*place) for key, place in places)
        # By key, and then by offset: of one key's entries the last one is the newest.
        entries = heapq.merge(*map(_entries_in, runs))
        content = bytearray()
        last = b""
        for entry in entries:
            if last[:DIGEST_BYTES] != entry[:DIGEST_BYTES]:
                content += last
            last = entry
        return cls(bytes(content + last))

    @property
    def content(self) -> memoryview:
        """All entries, not copied."""
        return memoryview(self._buffer)[self._start : self._end]

    def __len__(self) -> int:
        return (self._end - self._start) // ENTRY_BYTES

    def __getitem__(self, index: int) -> bytes:
        start = self._start + index * ENTRY_BYTES
        return self._buffer[start : start + DIGEST_BYTES]

    def find(self, digest: bytes) -> Place | None:
        """The place under a digest, or None."""
        index = bisect_left(self, digest)
        if index == len(self) or self[index] != digest:
            return None
        offset, num_bytes = _PLACE.unpack_from(self._buffer, self._start + index * ENTRY_BYTES + DIGEST_BYTES)
        return offset, num_bytes

    def merged_with(self, newer: dict[bytes, Place]) -> SortedPlaces:
        """These entries with newer places in place of the old; places of length 0 are left out."""
        older = self.content
        pieces: list[bytes | memoryview] = []
        num_taken = 0
        for digest in sorted(newer):
            index = bisect_left(self, digest, lo=num_taken)
            pieces.append(older[num_taken * ENTRY_BYTES : index * ENTRY_BYTES])
            num_taken = index + (index < len(self) and self[index] == digest)
            if newer[digest][1]:
                pieces.append(digest + _PLACE.pack(*newer[digest]))
        pieces.append(older[num_taken * ENTRY_BYTES :])
        return SortedPlaces(b"".join(pieces))


class PlaceTable:
    """The newest place of each key. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sorting = threading.Lock()
        self._sorted = SortedPlaces()
        self._unsorted: dict[bytes, Place] = {}
        self._being_sorted: dict[bytes, Place] = {}

    def __len__(self) -> int:
        """An upper bound of the keys: one that was put again since the last sorting counts twice."""
        return len(self._sorted) + len(self._unsorted) + len(self._being_sorted)

    @property
    def num_unsorted(self) -> int:
        """The number of keys that were put since the last sorting."""
        return len(self._unsorted)

    @property
    def is_sorting_due(self) -> bool:
        """Whether enough is unsorted to take much memory."""
        return len(self._unsorted) >= max(_MIN_UNSORTED, len(self._sorted) // 16)

    def put(self, key: str, place: Place) -> None:
        """Remember the place of a key's newest line; one of length 0 stands for none."""
        with self._lock:
            self._unsorted[_digest(key)] = place

    def find(self, key: str) -> Place | None:
        """The place of a key's newest line, or None."""
        digest = _digest(key)
        with self._lock:
            place = self._unsorted.get(digest) or self._being_sorted.get(digest) or self._sorted.find(digest)
        return place if place is not None and place[1] else None

    def replace(self, places: SortedPlaces) -> None:
        """Forget every place but these."""
        with self._lock:
            self._sorted = places
            self._unsorted, self._being_sorted = {}, {}

    def sort(self) -> SortedPlaces:
        """Sort in what was put since the last time; returns all places. Others may put and find meanwhile."""
        with self._sorting:
            with self._lock:
                self._being_sorted, self._unsorted = self._unsorted, {}
            places = self._sorted.merged_with(self._being_sorted)
            with self._lock:
                self._sorted, self._being_sorted = places, {}
            return places


def _sorted_runs(entries: Iterator[bytes]) -> list[bytes]:
    """Sort entries, some at a time: an object for each of them would take several times its bytes."""
    runs = []
    while some := sorted(islice(entries, _RUN_LENGTH)):
        runs.append(b"".join(some))
    return runs


def _entries_in(run: bytes) -> Iterator[bytes]:
    return (run[start : start + ENTRY_BYTES] for start in range(0, len(run), ENTRY_BYTES))


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
