"""Teacher answers by key; none is paid for twice."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import msgspec

from holdfast.disk.journal import Line, read_line, scan
from holdfast.disk.patient import PatientJournal
from holdfast.records import AnswerRecord, decode, encode

__all__ = ["AnswerStore"]

log = logging.getLogger("holdfast")

_decoder = msgspec.json.Decoder(AnswerRecord)


class _Key(msgspec.Struct):
    prompt_hash: str


_key_decoder = msgspec.json.Decoder(_Key)


@dataclass(frozen=True, slots=True)
class _Place:
    key: str
    offset: int
    num_bytes: int


class AnswerStore:
    """The answers of one run: an index in memory, the answers themselves on disk.

    Answers outlive the session that paid for them: a changed config archives the session and keeps the answers.
    """

    def __init__(self, journal: PatientJournal) -> None:
        self._journal = journal
        self._places: dict[str, tuple[int, int]] | None = None
        """Where each answer lies: offset and length. Read at the first question, not when a run is opened."""

    def append(self, record: AnswerRecord) -> _Place:
        """Write an answer down; nobody is given it before `publish`.

        Raises:
            DiskFull: it is not kept, and the caller must not use it as paid for.
        """
        self._index()
        line = encode(record)
        offset = self._journal.append_now(line)
        return _Place(key=record.prompt_hash, offset=offset, num_bytes=len(line))

    def publish(self, place: _Place) -> None:
        """Make an answer survive a power loss, then let it be found. Threads that wait here share one sync."""
        self._journal.journal.sync()
        self._index()[place.key] = (place.offset, place.num_bytes)

    def get(self, prompt_hash: str) -> dict[str, Any] | None:
        """The newest answer under a key, or None. One that has rotted on disk is reported and not given."""
        place = self._index().get(prompt_hash)
        if place is None:
            return None
        line = read_line(self._journal.journal.path, offset=place[0], num_bytes=place[1])
        if line is None:
            log.error(
                "The answer for %s at byte %d of %s is damaged; `holdfast repair` sets it aside.",
                prompt_hash,
                place[0],
                self._journal.journal.path,
            )
            return None
        return decode(line, _decoder).response

    def _index(self) -> dict[str, tuple[int, int]]:
        if self._places is None:
            # What a killed predecessor wrote may still be on its way to the disk.
            self._journal.journal.sync()
            self._places = {
                _key_decoder.decode(line.content).prompt_hash: (line.offset, len(line.content))
                for line in scan(self._journal.journal.path)
                if isinstance(line, Line)
            }
        return self._places
