"""The answers of one run, by key."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.journal import Line, line_continues, quarantine_bytes, read_line, scan, scan_backwards
from crashproof.disk.line_index import LineIndex, Place
from crashproof.disk.queueing_journal import QueueingJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.records.codec import decode, encode
from crashproof.records.requests import AnswerRecord, price_left_in
from crashproof.records.snapshots import JournalMark
from crashproof.rules.requests import TeacherRequest, nearest_difference

__all__ = [
    "AnswerJournal",
]

log = logging.getLogger("crashproof")
_decoder = msgspec.json.Decoder(AnswerRecord)


@dataclass(frozen=True, slots=True)
class _Pending:
    key: str
    place: Place
    before: JournalMark


class AnswerJournal:
    """The answers of one run: an index of places in memory, the answers themselves on disk.

    Answers outlive the session that paid for them: a changed config archives the session and keeps the answers.
    """

    def __init__(self, journal: QueueingJournal, folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
        self._journal = journal
        self._folder = folder
        self._disk = disk
        self._lock = threading.Lock()
        self._index: LineIndex | None = None
        """Read at the first question, not when a run is opened."""
        self._pending: dict[int, _Pending] = {}
        """Written and not yet published, by offset."""

    def read_index(self) -> None:
        """Make the index ready, which takes a while where it has to be made again."""
        self._places()

    def append(self, record: AnswerRecord) -> int:
        """Write an answer down; nobody is given it before `publish`, which takes what this returns.

        Raises:
            DiskFull: it is not kept, and the caller must not use it as paid for.
        """
        line = encode(record)
        # In one step, for whoever saves the index meanwhile: it must not claim to know this line.
        with self._lock:
            before = self._journal.journal.mark
            offset = self._journal.append_now(line)
            self._pending[offset] = _Pending(record.prompt_hash, (offset, len(line)), before)
        return offset

    def publish(self, offsets: Sequence[int]) -> None:
        """Make answers survive a power loss, then let them be found. Threads that wait here share one sync."""
        self._journal.journal.sync()
        places = self._places()
        with self._lock:
            for offset in offsets:
                pending = self._pending.pop(offset, None)
                # Another thread may have published it, after a disk that refused at first.
                if pending is not None:
                    places.put(pending.key, pending.place)

    def get(self, key: str) -> AnswerRecord | None:
        """The newest answer under a key, or None. One that has rotted on disk is set aside and reported."""
        place = self._places().find(key)
        if place is None:
            return None
        line = read_line(self._journal.journal.path, offset=place[0], num_bytes=place[1])
        if line is None:
            self._set_aside(key, place)
            return None
        record = decode(line, _decoder)
        return record if record.prompt_hash == key else None

    def requests(self) -> Iterator[dict[str, Any]]:
        """What was asked, of each answer whose request is known, the newest first."""
        journal = self._journal.journal
        for line in scan_backwards(journal.path, end=journal.num_bytes):
            request = _request_decoder.decode(line.content).request
            if request is not None:
                yield request

    def why_miss(self, request: TeacherRequest) -> str:
        """See `ResponseStore.why_miss`; reads the answers backwards until one could not be nearer."""
        if self.get(request.key) is not None:
            return nearest_difference(request, [request.as_record()])
        return nearest_difference(request, self.requests())

    def save_index(self, *, only_if_due: bool = False) -> None:
        """Write the index down, so that the next start need not read the answers; also while others append."""
        places = self._index
        if places is None or not places.has_unsaved or (only_if_due and not places.is_save_due):
            return
        with self._lock:
            # A line that is written and not yet in the index is for the next start to read.
            first = min(self._pending, default=None)
            mark = self._journal.journal.mark if first is None else self._pending[first].before
        places.save(mark)

    def _set_aside(self, key: str, place: Place) -> None:
        path = self._journal.journal.path
        with path.open("rb") as file:
            file.seek(place[0])
            content = file.read(place[1])
        cost = price_left_in(content)
        with storage_errors(self._folder.quarantine):
            quarantine_bytes([content], self._folder.quarantine / path.name, self._disk)
        self._places().drop(key)
        log.error(
            "The answer for %s at byte %d of %s is damaged (%s had been paid for it). What is left of it is in %s; "
            "`crashproof repair` takes it out of the journal.",
            key,
            place[0],
            path,
            "an unknown sum" if cost is None else f"${cost}",
            self._folder.quarantine / path.name,
        )

    def _places(self) -> LineIndex:
        with self._lock:
            if self._index is None:
                self._index = self._read_places()
            return self._index

    def _read_places(self) -> LineIndex:
        # What a killed predecessor wrote may still be on its way to the disk.
        self._journal.journal.sync()
        path = self._journal.journal.path
        places = LineIndex(self._folder.answer_index, disk=self._disk)
        known = places.load()
        if not known.num_bytes or not line_continues(path, known):
            places.rebuild(_places_in(path, start=0))
            if len(places):
                places.save(self._journal.journal.mark)
            return places
        for key, place in _places_in(path, start=known.num_bytes):
            places.put(key, place)
        if places.is_save_due:
            places.save(self._journal.journal.mark)
        return places


def _places_in(path: Path, *, start: int) -> Iterator[tuple[str, Place]]:
    for line in scan(path, start=start):
        if isinstance(line, Line):
            yield _key_decoder.decode(line.content).prompt_hash, (line.offset, len(line.content))


class _Key(msgspec.Struct):
    prompt_hash: str


class _Request(msgspec.Struct):
    request: dict[str, Any] | None = None


_key_decoder = msgspec.json.Decoder(_Key)
_request_decoder = msgspec.json.Decoder(_Request)
