"""The tables of a shared store.

::

    crashproof_version    version                                              one row
    crashproof_answers    key, request_id, record, created_at                  record: the line of api_recovery.jsonl
    crashproof_set_aside  key, record, why, …                                  quarantine: paid answers not served
    crashproof_requests   request_id, key, account, state, most, cost, …       one row per request ever begun
                          owner                                                the process that has it in flight
    crashproof_accounts   account, sums over its requests                      one row per account

Money is in whole pico-dollars (1e-12 US dollars), times are in seconds since 1970. Requests, accounts and answers end
in a checksum.
"""

from __future__ import annotations

import logging
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Any, Self
from zlib import crc32

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, astuple, replace
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from crashproof.answers.store import Answered, Lost, Outcome, Refused
from crashproof.errors import NewerFormat
from crashproof.rules.spending import PICO_DIGITS
from crashproof.teacher.shared_store.database import Database

__all__ = [
    "ACCOUNTS",
    "ANSWERS",
    "OWNED_REQUESTS",
    "REQUESTS",
    "SET_ASIDE",
    "STORED_STATES",
    "STORE_VERSION",
    "AccountRow",
    "RequestRow",
    "RequestState",
    "as_pico",
    "make_ready",
]

log = logging.getLogger("crashproof")

STORE_VERSION = 1

_TABLES = MetaData()
_VERSION = Table("crashproof_version", _TABLES, Column("version", Integer, primary_key=True, autoincrement=False))
ANSWERS = Table(
    "crashproof_answers",
    _TABLES,
    Column("key", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("created_at", Float(53), nullable=False, index=True),
)
SET_ASIDE = Table(
    "crashproof_set_aside",
    _TABLES,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("key", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("why", Text, nullable=False),
    Column("set_aside_at", Float(53), nullable=False),
)
REQUESTS = Table(
    "crashproof_requests",
    _TABLES,
    Column("request_id", Text, primary_key=True),
    Column("key", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("most", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("sent_at", Float(53), nullable=False),
    Column("lease_until", Float(53), nullable=False),
    Column("crc", Text, nullable=False),
)
# Single flight: one open request per key.
Index(
    "crashproof_one_under_way",
    REQUESTS.c.key,
    unique=True,
    sqlite_where=text("state = 'open'"),
    postgresql_where=text("state = 'open'"),
)
Index("crashproof_by_account", REQUESTS.c.account, REQUESTS.c.state)
OWNED_REQUESTS = REQUESTS.to_metadata(MetaData())
"""The same table with a column that the first release did not have, and that its programs leave empty."""
_OWNER: Column[str | None] = Column("owner", Text)
OWNED_REQUESTS.append_column(_OWNER)
ACCOUNTS = Table(
    "crashproof_accounts",
    _TABLES,
    Column("account", Text, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False)
        for name in ("answers", "answers_bad", "spent", "wasted", "unsettled", "answers_served", "saved")
    ),
    Column("crc", Text, nullable=False),
)

_LONGEST_REASON = 500
_NOT_ALLOWED = "42501"
"""PostgreSQL's SQLSTATE: only the owner of a table may alter it."""


class RequestState(StrEnum):
    """`open`, then one other; `lost` may change again; `surplus` is an answer after another one was stored."""

    OPEN = "open"
    ANSWERED = "answered"
    USELESS = "useless"
    REPLACED = "replaced"
    DAMAGED = "damaged"
    SURPLUS = "surplus"
    REFUSED = "refused"
    LOST = "lost"


_WASTED = frozenset({RequestState.USELESS, RequestState.REPLACED, RequestState.DAMAGED, RequestState.SURPLUS})
_PAID = _WASTED | {RequestState.ANSWERED}
_KEPT = _PAID - {RequestState.SURPLUS}
STORED_STATES = frozenset({RequestState.ANSWERED, RequestState.USELESS})
"""States of requests whose answer is in the store."""
_UNSETTLED = frozenset({RequestState.OPEN, RequestState.LOST})


class ChecksummedRow(Struct, frozen=True, kw_only=True):
    """A row with a checksum of these columns."""

    @classmethod
    def read(cls, row: Row[Any]) -> Self:
        """Convert a row that has at least these columns."""
        return cls(**{name: getattr(row, name) for name in cls.__struct_fields__})

    def values(self) -> dict[str, str | int]:
        """The columns, checksum included."""
        return asdict(self) | {"crc": self._checksum()}

    def is_intact(self, crc: str) -> bool:
        """Whether the row matches its checksum."""
        return crc == self._checksum()

    def _checksum(self) -> str:
        return f"{crc32(msgspec.json.encode(astuple(self))):08x}"


class RequestRow(ChecksummedRow, frozen=True, kw_only=True):
    """One request, without its times."""

    request_id: str
    key: str
    account: str
    holder: str
    state: str
    """A `RequestState`; a damaged row may hold anything."""
    most: int
    cost: int = 0
    reason: str = ""

    def with_state(self, state: RequestState, *, cost: int = 0, reason: str = "") -> Self:
        """The row in another state."""
        # The encoding of the database may be ASCII.
        plain = reason.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
        return replace(self, state=state, cost=cost, reason=plain[:_LONGEST_REASON])

    def with_end(self, outcome: Outcome) -> Self | None:
        """The row with its outcome; None if that changes nothing.

        A request whose lease expired is lost, but an answer that arrives later still counts.
        """
        if self.state not in _UNSETTLED:
            return None
        match outcome:
            case Answered():
                state = RequestState.ANSWERED if outcome.problem is None else RequestState.USELESS
                return self.with_state(state, cost=as_pico(outcome.cost), reason=outcome.problem or "")
            case Refused():
                return self.with_state(RequestState.REFUSED, reason=outcome.reason)
            case Lost():
                is_open = self.state == RequestState.OPEN
                return self.with_state(RequestState.LOST, reason=outcome.reason) if is_open else None


class AccountRow(ChecksummedRow, frozen=True, kw_only=True):
    """Sums over the requests of one account, and the answers served to it."""

    account: str
    answers: int = 0
    answers_bad: int = 0
    spent: int = 0
    wasted: int = 0
    unsettled: int = 0
    """Worst-case cost of open and lost requests."""
    answers_served: int = 0
    saved: int = 0

    @property
    def committed(self) -> int:
        """The amount that a budget limits."""
        return self.spent + self.unsettled

    def with_requests(self, state: str, *, count: int, most: int, cost: int) -> Self:
        """The sums with more requests in one state, or fewer for negative numbers."""
        return replace(
            self,
            answers=self.answers + (count if state in _KEPT else 0),
            answers_bad=self.answers_bad + (count if state in _KEPT & _WASTED else 0),
            spent=self.spent + (cost if state in _PAID else 0),
            wasted=self.wasted + (cost if state in _WASTED else 0),
            unsettled=self.unsettled + (most if state in _UNSETTLED else 0),
        )

    def with_request(self, row: RequestRow) -> Self:
        """The sums with one more request."""
        return self.with_requests(row.state, count=1, most=row.most, cost=row.cost)

    def with_change(self, before: RequestRow, after: RequestRow) -> Self:
        """The sums after a request has changed."""
        without = self.with_requests(before.state, count=-1, most=-before.most, cost=-before.cost)
        return without.with_request(after)

    def with_served(self, count: int, saved: int) -> Self:
        """The sums after answers were served from the store."""
        return replace(self, answers_served=self.answers_served + count, saved=self.saved + saved)


def as_pico(dollars: Decimal) -> int:
    """Whole pico-dollars, rounded up."""
    return int(dollars.scaleb(PICO_DIGITS).to_integral_value(ROUND_CEILING))


def make_ready(connection: Connection, database: Database) -> bool:
    """Create the tables if there are none; refuse those that this version does not know.

    Returns whether requests can have an owner: not where an older version has made the tables, and this user may not
    add to them.

    Raises:
        NewerFormat: a newer crashproof created them; nothing was changed.
        StoreUnavailable: some are missing.
    """
    if not database.is_sqlite:
        # Only one of several processes creates the tables.
        connection.execute(select(func.pg_advisory_xact_lock(0x6372617368707266)))
    found = {name for name in inspect(connection).get_table_names() if name.startswith("crashproof_")}
    if not found:
        _TABLES.create_all(connection, checkfirst=False)
        connection.execute(insert(_VERSION).values(version=STORE_VERSION))
        return _add_owners(connection, database)
    version = _version(connection) if _VERSION.name in found else None
    if version is None:
        raise database.unavailable("its tables name no version; restore it from a backup")
    if version > STORE_VERSION:
        raise NewerFormat(database.name, found=version, known=STORE_VERSION)
    missing = sorted(_TABLES.tables.keys() - found)
    if missing:
        raise database.unavailable(f"the table {', '.join(missing)} is missing; restore it from a backup")
    return _add_owners(connection, database)


def _add_owners(connection: Connection, database: Database) -> bool:
    """Add the column of owners unless it is there; return whether it is there now."""
    if any(column["name"] == _OWNER.name for column in inspect(connection).get_columns(REQUESTS.name)):
        return True
    try:
        with connection.begin_nested():
            connection.execute(text(f"ALTER TABLE {REQUESTS.name} ADD COLUMN {_OWNER.name} TEXT"))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED:
            raise
        log.warning(
            "The store %s was made by an older version, and this user may not add the column %s to %s: requests of a "
            "process that has died are taken over once their lease expires, and not at once. Open the store once as "
            "the owner of that table.",
            database.name,
            _OWNER.name,
            REQUESTS.name,
        )
        return False
    return True


def _version(connection: Connection) -> int | None:
    rows = connection.execute(select(_VERSION.c.version)).all()
    versions = [row.version for row in rows if isinstance(row.version, int) and row.version >= 1]
    return versions[0] if len(rows) == len(versions) == 1 else None
