"""The answers table of a shared store."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, LargeBinary, and_, bindparam, cast, delete, insert, select

from crashproof.answers.store import request_in
from crashproof.errors import UnknownRecord
from crashproof.records.lines.checksummed_line import is_intact
from crashproof.records.lines.codec import decode
from crashproof.records.requests import AnswerRecord
from crashproof.rules.requests import JsonObject
from crashproof.teacher.shared_store.database import Database, chunks
from crashproof.teacher.shared_store.statements import Statements, one_or_many
from crashproof.teacher.shared_store.tables import ANSWERS, REQUESTS, SET_ASIDE, RequestRow, RequestState

__all__ = [
    "RECORD",
    "DamagedAnswers",
    "Paid",
    "decode_answer",
    "find_answers",
    "find_payer",
    "find_records",
    "find_usable",
    "keep_answers",
    "problem_with_record",
    "quarantine_answers",
    "quarantine_damaged",
    "read_records",
    "remove_unusable",
    "scan_requests",
]


class _Key(msgspec.Struct):
    prompt_hash: str = ""


_decoder = msgspec.json.Decoder(AnswerRecord)
_key_decoder = msgspec.json.Decoder(_Key)

# In a corrupt file SQLite may report another type for the bytes.
RECORD = cast(ANSWERS.c.record, LargeBinary).label("record")

_FIND_ONE = select(ANSWERS.c.key, RECORD).where(ANSWERS.c.key == bindparam("key"))
_FIND = select(ANSWERS.c.key, RECORD).where(ANSWERS.c.key.in_(bindparam("keys", expanding=True)))


class DamagedAnswers(Exception):
    """Damaged answers were found: their bytes, by key. The store quarantines them and tries again."""

    def __init__(self, found: Mapping[str, bytes]) -> None:
        super().__init__()
        self.found = found


@dataclass(frozen=True, slots=True)
class Paid:
    """A paid answer as it is stored, and its request."""

    row: RequestRow
    record: bytes


def problem_with_record(key: str, record: bytes | None) -> str | None:
    """Why the bytes under a key are not its answer, or None."""
    if record is None or not is_intact(record):
        return "its checksum does not match"
    if _key_decoder.decode(record).prompt_hash != key:
        return "it belongs to another request"
    return None


def read_records(database: Database, keys: Collection[str]) -> dict[str, bytes]:
    """Find the answers under these keys, as they are stored, outside of a transaction.

    Raises:
        DamagedAnswers: some are damaged.
    """
    if len(keys) != 1:
        return database.read(lambda connection: find_records(connection, keys))
    return _intact_records(database.look_up(_FIND_ONE, {"key": next(iter(keys))}))


def find_records(connection: Connection, keys: Collection[str]) -> dict[str, bytes]:
    """The same in a transaction.

    Raises:
        DamagedAnswers: some are damaged.
    """
    found: list[Sequence[Any]] = []
    for some in chunks(keys):
        if len(some) == 1:
            found += connection.execute(_FIND_ONE, {"key": some[0]})
        else:
            found += connection.execute(_FIND, {"keys": some})
    return _intact_records(found)


def _intact_records(rows: Iterable[Sequence[Any]]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    damaged: dict[str, bytes] = {}
    for key, record in rows:
        (found if problem_with_record(key, record) is None else damaged)[key] = record
    if damaged:
        raise DamagedAnswers(damaged)
    return found


def find_answers(connection: Connection, database: Database, keys: Collection[str]) -> dict[str, AnswerRecord]:
    """The same, decoded.

    Raises:
        DamagedAnswers: some are damaged.
        UnknownRecord: one is intact, but in a format that this version does not know.
    """
    return {key: decode_answer(record, database) for key, record in find_records(connection, keys).items()}


def find_usable(connection: Connection, statements: Statements, keys: Collection[str]) -> set[str]:
    """Find the keys whose answer is not marked as unusable."""
    found: set[str] = set()
    for some in chunks(keys):
        found.update(connection.execute(statements.find_usable, {"keys": some}).scalars())
    return found


def find_payer(connection: Connection, key: str) -> str | None:
    """Find the id of the request that paid for an answer."""
    return connection.scalar(select(ANSWERS.c.request_id).where(ANSWERS.c.key == key))


def keep_answers(connection: Connection, statements: Statements, answers: Collection[Paid]) -> set[str]:
    """Store the first answer to each key; returns the ids of the requests whose answer was stored."""
    values = [
        {"key": each.row.key, "request_id": each.row.request_id, "record": each.record}
        for each in sorted(answers, key=lambda each: each.row.key)
    ]
    if not values:
        return set()
    return set(connection.execute(statements.keep_answer, one_or_many(values)).scalars())


def quarantine_answers(connection: Connection, database: Database, answers: Collection[Paid], *, why: str) -> None:
    """Move paid answers that will not be served to the quarantine table."""
    values = [{"key": each.row.key, "request_id": each.row.request_id, "record": each.record} for each in answers]
    if values:
        connection.execute(insert(SET_ASIDE).values(why=why, set_aside_at=database.now), values)


def remove_unusable(connection: Connection, database: Database, keys: Collection[str]) -> list[RequestRow]:
    """Quarantine unusable answers; returns the requests that paid for them, unchanged."""
    moved = []
    for some in chunks(keys):
        # The requests are locked before their answers, as everywhere.
        joined = ANSWERS.join(REQUESTS, ANSWERS.c.request_id == REQUESTS.c.request_id)
        unusable = select(REQUESTS, RECORD).select_from(joined).with_for_update(of=REQUESTS)
        unusable = unusable.where(ANSWERS.c.key.in_(some), REQUESTS.c.state == RequestState.USELESS)
        found = [Paid(RequestRow.read(row), row.record) for row in connection.execute(unusable)]
        quarantine_answers(connection, database, found, why="replaced")
        request_ids = [each.row.request_id for each in found]
        connection.execute(delete(ANSWERS).where(ANSWERS.c.request_id.in_(request_ids), ANSWERS.c.key.in_(some)))
        moved += [each.row for each in found]
    return moved


def quarantine_damaged(
    connection: Connection, database: Database, key: str, record: bytes, *, request_id: str
) -> bool:
    """Quarantine a damaged answer; returns False if it is not there any more."""
    is_it = and_(ANSWERS.c.key == key, cast(ANSWERS.c.record, LargeBinary) == record)
    if not connection.execute(delete(ANSWERS).where(is_it)).rowcount:
        return False
    moved = insert(SET_ASIDE).values(key=key, request_id=request_id, record=record)
    connection.execute(moved.values(why="damaged", set_aside_at=database.now))
    return True


def scan_requests(connection: Connection) -> Generator[JsonObject]:
    """Yield the request of each intact answer, newest first."""
    with connection.execute(select(RECORD).order_by(ANSWERS.c.created_at.desc())) as found:
        for (record,) in found:
            request = request_in(record) if is_intact(record) else None
            if request is not None:
                yield request


def decode_answer(record: bytes, database: Database) -> AnswerRecord:
    """Decode an intact answer.

    Raises:
        UnknownRecord: it is in a format that this version does not know.
    """
    try:
        return decode(record, _decoder)
    except msgspec.ValidationError as error:
        raise UnknownRecord(database.name, reason=str(error)) from error
