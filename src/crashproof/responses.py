"""Teacher answers by key; none is paid for twice.

`ResponseStore` is what a teacher client asks of any store: of the run's own, and of one that many processes share.
`AnswerJournal` is the run's own at its bottom: a journal, and an index of where each answer lies in it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import msgspec

from crashproof.disk.files import REAL_DISK, Disk, storage_errors
from crashproof.disk.journal import Line, keep_aside, line_continues, read_line, scan, scan_backwards
from crashproof.disk.line_index import LineIndex, Place
from crashproof.disk.patient import PatientJournal
from crashproof.disk.run_folder import RunFolder
from crashproof.encoding import decode, encode, nonfinite_names
from crashproof.records import AnswerRecord, JournalMark, Spending
from crashproof.rules.requests import TeacherRequest, nearest_difference

__all__ = [
    "AnswerJournal",
    "Answered",
    "Busy",
    "Granted",
    "Intent",
    "Lost",
    "Outcome",
    "OverBudget",
    "Refused",
    "ResponseStore",
    "Verdict",
    "price_left_in",
]

log = logging.getLogger("crashproof")

_decoder = msgspec.json.Decoder(AnswerRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A request that somebody would like to send now."""

    request: TeacherRequest
    most: Decimal
    """The most that it can cost, in US dollars."""
    replaces: bool = False
    """Whether the answer that is there is of no use, and another one is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Send it: that it is about to be sent is on disk."""

    request_id: str
    request: TeacherRequest
    most: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Somebody else is sending the same request; ask again when they may be done."""

    holder: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OverBudget:
    """It could cost more than is left."""

    spending: Spending

    @property
    def may_change(self) -> bool:
        """Whether requests under way hold money that they may not need in the end."""
        return self.spending.reserved > 0


Verdict = AnswerRecord | Granted | Busy | OverBudget
"""What a store says to an intent; an answer where it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer came: it is paid for, whatever it is worth."""

    granted: Granted
    cost: Decimal
    response: dict[str, Any]
    raw: str | None = None
    """The body to the letter, where it is no JSON object."""
    problem: str | None = None

    def as_record(self, *, timestamp: float, session_id: str, attempt: int) -> AnswerRecord:
        """What is kept of it."""
        return AnswerRecord(
            timestamp=timestamp,
            session_id=session_id,
            attempt=attempt,
            prompt_hash=self.granted.request.key,
            cost=self.cost,
            response=self.response,
            nonfinite=nonfinite_names({"response": self.response}) or msgspec.UNSET,
            request_id=self.granted.request_id,
            request=self.granted.request.as_record(),
            raw=msgspec.UNSET if self.raw is None else self.raw,
            problem=msgspec.UNSET if self.problem is None else self.problem,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The teacher said no, or was never reached: nothing was paid."""

    granted: Granted
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """No answer came, and one may have been computed."""

    granted: Granted
    reason: str


Outcome = Answered | Refused | Lost


class ResponseStore(Protocol):
    """Keeps answers for good; every method may be called from any thread, and blocks while the disk works."""

    def serve(self, key: str) -> AnswerRecord | None:
        """The answer under a key, counted as one that did not have to be paid again; None where there is none."""
        ...

    def read(self, key: str) -> AnswerRecord | None:
        """The same, not counted."""
        ...

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """Ask to send requests; those granted are on disk as intents, their price reserved, when this returns.

        An answer that is there already is counted as served. The budget holds for all that was ever spent here.

        Raises:
            DiskFull, StoreUnavailable: nothing may be sent.
        """
        ...

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Say how requests ended; an answer survives a power loss when this returns.

        Raises:
            DiskFull, StoreUnavailable: none of them is kept; call again with the same.
        """
        ...

    def mark(self, key: str, problem: str) -> None:
        """Note that a kept answer cannot be used, and why."""
        ...

    def why_miss(self, request: TeacherRequest) -> str:
        """Why a request has no answer here: the parameter in which the nearest stored one differs."""
        ...

    def spending(self) -> Spending:
        """What has been paid here."""
        ...

    def close(self) -> None:
        """Let go of it; what is under way elsewhere stays as it is."""
        ...


@dataclass(frozen=True, slots=True)
class _Pending:
    key: str
    place: Place
    before: JournalMark


class AnswerJournal:
    """The answers of one run: an index of places in memory, the answers themselves on disk.

    Answers outlive the session that paid for them: a changed config archives the session and keeps the answers.
    """

    def __init__(self, journal: PatientJournal, folder: RunFolder, *, disk: Disk = REAL_DISK) -> None:
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
        with storage_errors(self._folder.set_aside):
            keep_aside([content], self._folder.set_aside / path.name, self._disk)
        self._places().drop(key)
        log.error(
            "The answer for %s at byte %d of %s is damaged (%s had been paid for it). What is left of it is in %s; "
            "`crashproof repair` takes it out of the journal.",
            key,
            place[0],
            path,
            "an unknown sum" if cost is None else f"${cost}",
            self._folder.set_aside / path.name,
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
            places.make(_places_in(path, start=0))
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


_COST = re.compile(rb'"cost":(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)[,}]')


def price_left_in(damaged: bytes) -> Decimal | None:
    """The price that a broken answer's line still names, or None."""
    found = _COST.search(damaged)
    return None if found is None else Decimal(found.group(1).decode())


class _Key(msgspec.Struct):
    prompt_hash: str


class _Request(msgspec.Struct):
    request: dict[str, Any] | None = None


_key_decoder = msgspec.json.Decoder(_Key)
_request_decoder = msgspec.json.Decoder(_Request)
