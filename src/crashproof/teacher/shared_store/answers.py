"""The answers in a shared store: found, kept, set aside."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, LargeBinary, and_, bindparam, cast, delete, insert, select

from crashproof.errors import UnknownRecord
from crashproof.records.checksummed_line import is_intact
from crashproof.records.codec import decode
from crashproof.records.requests import AnswerRecord
from crashproof.teacher.shared_store.database import Database, chunks
from crashproof.teacher.shared_store.tables import ANSWERS, REQUESTS, SET_ASIDE, RequestRow

__all__ = [
    "RECORD",
    "DamagedAnswers",
    "Paid",
    "find_answers",
    "find_useful",
    "keep_answers",
    "lay_by",
    "make_room",
    "move_damaged",
    "payer_of",
    "problem_in",
    "requests_asked",
]


class _Key(msgspec.Struct):
    prompt_hash: str = ""


class _Request(msgspec.Struct):
    request: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(AnswerRecord)
_key_decoder = msgspec.json.Decoder(_Key)
_request_decoder = msgspec.json.Decoder(_Request)

# Where a file has rotted, SQLite may take the bytes for something else.
RECORD = cast(ANSWERS.c.record, LargeBinary).label("record")

_FIND = select(ANSWERS.c.key, RECORD).where(ANSWERS.c.key.in_(bindparam("keys", expanding=True)))


class DamagedAnswers(Exception):
    """Answers were looked for and found broken: by key, their bytes. The store sets them aside, and looks again."""

    def __init__(self, found: Mapping[str, bytes]) -> None:
        super().__init__()
        self.found = found


@dataclass(frozen=True, slots=True)
class Paid:
    """An answer as it is kept, and the request that brought it."""

    row: RequestRow
    record: bytes


def problem_in(key: str, record: bytes | None) -> str | None:
    """Why the bytes under a key are no answer to it; None where they are one."""
    if record is None or not is_intact(record):
        return "its bytes are not what was written"
    if _key_decoder.decode(record).prompt_hash != key:
        return "it answers another request"
    return None


def find_answers(connection: Connection, database: Database, keys: Collection[str]) -> dict[str, AnswerRecord]:
    """The answers under these keys.

    Raises:
        DamagedAnswers: some are broken.
        UnknownRecord: one is whole, and says something that this version does not know.
    """
    found = {}
    damaged = {}
    for some in chunks(keys):
        for key, record in connection.execute(_FIND, {"keys": some}):
            if problem_in(key, record) is None:
                found[key] = _decoded(record, database)
            else:
                damaged[key] = record
    if damaged:
        raise DamagedAnswers(damaged)
    return found


def find_useful(connection: Connection, keys: Collection[str]) -> set[str]:
    """Those of the keys whose answer nobody has found to be of no use."""
    joined = ANSWERS.join(REQUESTS, ANSWERS.c.request_id == REQUESTS.c.request_id)
    found: set[str] = set()
    for some in chunks(keys):
        useful = select(ANSWERS.c.key).select_from(joined)
        useful = useful.where(ANSWERS.c.key.in_(some), REQUESTS.c.state == "answered")
        found.update(connection.execute(useful).scalars())
    return found


def payer_of(connection: Connection, key: str) -> str | None:
    """The id of the request that brought an answer."""
    return connection.scalar(select(ANSWERS.c.request_id).where(ANSWERS.c.key == key))


def keep_answers(connection: Connection, database: Database, answers: Collection[Paid]) -> set[str]:
    """Keep the first answer to each key; returns the ids of the requests whose answer is the one that is kept."""
    values = [
        {"key": each.row.key, "request_id": each.row.request_id, "record": each.record}
        for each in sorted(answers, key=lambda each: each.row.key)
    ]
    if not values:
        return set()
    keep = (
        database.insert(ANSWERS)
        .on_conflict_do_nothing()
        .values(created_at=database.now)
        .returning(ANSWERS.c.request_id)
    )
    return set(connection.execute(keep, values).scalars())


def lay_by(connection: Connection, database: Database, answers: Collection[Paid], *, why: str) -> None:
    """Put answers that are paid and will not be given where they can still be found."""
    values = [{"key": each.row.key, "request_id": each.row.request_id, "record": each.record} for each in answers]
    if values:
        connection.execute(insert(SET_ASIDE).values(why=why, set_aside_at=database.now), values)


def make_room(connection: Connection, database: Database, keys: Collection[str]) -> list[RequestRow]:
    """Take useless answers out of the way of others; returns the requests that brought them, not yet changed."""
    moved = []
    for some in chunks(keys):
        # The requests are locked before their answers, as everywhere.
        joined = ANSWERS.join(REQUESTS, ANSWERS.c.request_id == REQUESTS.c.request_id)
        useless = select(REQUESTS, RECORD).select_from(joined).with_for_update(of=REQUESTS)
        useless = useless.where(ANSWERS.c.key.in_(some), REQUESTS.c.state == "useless")
        found = [Paid(RequestRow.read(row), row.record) for row in connection.execute(useless)]
        lay_by(connection, database, found, why="replaced")
        request_ids = [each.row.request_id for each in found]
        connection.execute(delete(ANSWERS).where(ANSWERS.c.request_id.in_(request_ids), ANSWERS.c.key.in_(some)))
        moved += [each.row for each in found]
    return moved


def move_damaged(connection: Connection, database: Database, key: str, record: bytes, *, request_id: str) -> bool:
    """Move a broken answer out of the way; False where it is not there any more."""
    is_it = and_(ANSWERS.c.key == key, cast(ANSWERS.c.record, LargeBinary) == record)
    if not connection.execute(delete(ANSWERS).where(is_it)).rowcount:
        return False
    moved = insert(SET_ASIDE).values(key=key, request_id=request_id, record=record)
    connection.execute(moved.values(why="damaged", set_aside_at=database.now))
    return True


def requests_asked(connection: Connection) -> Generator[dict[str, Any]]:
    """What was asked, of each whole answer, the newest first."""
    with connection.execute(select(RECORD).order_by(ANSWERS.c.created_at.desc())) as found:
        for (record,) in found:
            request = _request_decoder.decode(record).request if is_intact(record) else None
            if request is not None:
                yield request


def _decoded(record: bytes, database: Database) -> AnswerRecord:
    try:
        return decode(record, _decoder)
    except msgspec.ValidationError as error:
        raise UnknownRecord(database.name, reason=str(error)) from error
