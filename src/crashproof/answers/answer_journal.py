"""A journal of answers, indexed by key."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from crashproof.answers.store import request_in
from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.journal import (
    Line,
    line_continues,
    quarantine_bytes,
    read_bytes_at,
    read_line,
    scan,
    scan_backwards,
)
from crashproof.disk.line_index import LineIndex, Place
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.records.lines.codec import decode_line, encode
from crashproof.records.lines.lazy_decoder import LazyDecoder
from crashproof.records.requests import AnswerRecord, price_left_in
from crashproof.records.snapshots import JournalMark
from crashproof.rules.requests import JsonObject, TeacherRequest, nearest_difference

__all__ = ["AnswerJournal"]

log = logging.getLogger("crashproof")
_decoder = LazyDecoder[AnswerRecord](AnswerRecord)


class _Pending(msgspec.Struct, frozen=True):
    key: str
    place: Place
    before: JournalMark


class AnswerJournal:
    """The answers of one run: an index of offsets in memory, the answers themselves on disk.

    Answers outlive the session that paid for them: a changed config archives the session and keeps the answers.
    """

    def __init__(self, journal: QueueingJournal, folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
        self._journal = journal
        self._folder = folder
        self._disk = disk
        self._lock = threading.Lock()
        self._index: LineIndex | None = None
        """Loaded on first use, not when a run is opened."""
        self._pending: dict[int, _Pending] = {}
        """Written but not yet published, by offset."""

    def load_index(self) -> LineIndex:
        """Load the index once; slow if it has to be rebuilt from the journal."""
        with self._lock:
            if self._index is None:
                self._index = self._read_index()
            return self._index

    def forget_index(self) -> None:
        """Read the journal again at the next question: it has been written anew."""
        with self._lock:
            self._index = None

    def append(self, record: AnswerRecord) -> int:
        """Write an answer; it is not served before `publish`, which takes the offset that this returns.

        Raises:
            DiskFull: it is not kept.
        """
        line = encode(record)
        # In one step: an index that is saved meanwhile must not claim to cover this line.
        with self._lock:
            before = self._journal.journal.mark
            offset = self._journal.append_now(line)
            self._pending[offset] = _Pending(record.prompt_hash, (offset, len(line)), before)
        return offset

    def publish(self, offsets: Sequence[int]) -> None:
        """Sync answers to disk, then add them to the index. Threads that wait here share one sync."""
        self._journal.journal.sync()
        places = self.load_index()
        with self._lock:
            for offset in offsets:
                pending = self._pending.pop(offset, None)
                # Another thread may have published it, in a retry after a full disk.
                if pending is not None:
                    places.put(pending.key, pending.place)

    def get(self, key: str) -> AnswerRecord | None:
        """The newest answer under a key, or None. A corrupt one is quarantined and logged."""
        place = self.load_index().find(key)
        if place is None:
            return None
        line = read_line(self._journal.journal.path, offset=place[0], num_bytes=place[1])
        if line is None:
            self._quarantine(key, place)
            return None
        record = decode_line(self._journal.journal.path, line, _decoder)
        return record if record.prompt_hash == key else None

    def lacks(self, key: str) -> bool:
        """Whether the index has been loaded, and knows no answer under a key."""
        index = self._index
        return index is not None and index.find(key) is None

    def requests(self) -> Iterator[JsonObject]:
        """The request of each answer that has one, newest first."""
        journal = self._journal.journal
        for line in scan_backwards(journal.path, end=journal.num_bytes):
            request = request_in(line.content)
            if request is not None:
                yield request

    def why_miss(self, request: TeacherRequest) -> str:
        """See `ResponseStore.why_miss`; reads the answers, newest first, until none could be nearer."""
        if self.get(request.key) is not None:
            return nearest_difference(request, [request.as_record()])
        return nearest_difference(request, self.requests())

    def save_index(self, *, only_if_due: bool = False) -> None:
        """Save the index, so that the next start need not read all answers; safe while others append."""
        places = self._index
        if places is None or not places.has_unsaved or (only_if_due and not places.is_save_due):
            return
        with self._lock:
            # The next start reads the lines that are written but not yet in the index.
            first = min(self._pending, default=None)
            mark = self._journal.journal.mark if first is None else self._pending[first].before
        places.save(mark)

    def _quarantine(self, key: str, place: Place) -> None:
        path = self._journal.journal.path
        content = read_bytes_at(path, offset=place[0], num_bytes=place[1])
        cost = price_left_in(content)
        with storage_errors(self._folder.quarantine):
            quarantine_bytes([content], self._folder.quarantine / path.name, self._disk)
        self.load_index().drop(key)
        log.error(
            "The answer for %s at byte %d of %s is damaged (%s was paid for it). Its bytes were copied to %s; run "
            "`crashproof repair` to remove it from the journal.",
            key,
            place[0],
            path,
            "an unknown amount" if cost is None else f"${cost}",
            self._folder.quarantine / path.name,
        )

    def _read_index(self) -> LineIndex:
        # What a killed process wrote may not be on disk yet.
        self._journal.journal.sync()
        path = self._journal.journal.path
        places = LineIndex(self._folder.answer_index, disk=self._disk)
        known = places.load(journal_bytes=self._journal.journal.num_bytes)
        if not known.num_bytes or not line_continues(path, known):
            places.rebuild(_scan_places(path, start=0))
            if len(places):
                places.save(self._journal.journal.mark)
            return places
        for key, place in _scan_places(path, start=known.num_bytes):
            places.put(key, place)
        if places.is_save_due:
            places.save(self._journal.journal.mark)
        return places


def _scan_places(path: Path, *, start: int) -> Iterator[tuple[str, Place]]:
    for line in scan(path, start=start):
        if isinstance(line, Line):
            yield decode_line(path, line.content, _key_decoder).prompt_hash, (line.offset, line.num_bytes)


class _Key(msgspec.Struct):
    prompt_hash: str


_key_decoder = LazyDecoder[_Key](_Key)
