"""The tables of a shared store.

::

    holdfast_version    version                                              one row
    holdfast_answers    key, request_id, record, created_at                  record: the line of api_recovery.jsonl
    holdfast_damaged    key, record, found_at, …                             answers that turned out broken
    holdfast_requests   request_id, key, account, state, most, cost, …       one row for each that was ever begun
    holdfast_accounts   account, sums over its requests                      one row for each that spends

Money stands in whole pico-dollars (1e-12 US dollars), times in seconds since 1970. Rows that say who owes what end
in a checksum of themselves, as answers do.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any, Self
from zlib import crc32

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
)

from holdfast.errors import NewerFormat
from holdfast.responses import Answered, Lost, Outcome, Refused
from holdfast.teacher.shared_database import Database

__all__ = [
    "ACCOUNTS",
    "ANSWERS",
    "DAMAGED",
    "IS_TO_BE_FOUND",
    "REQUESTS",
    "STORE_VERSION",
    "AccountRow",
    "RequestRow",
    "as_dollars",
    "as_pico",
    "make_ready",
]

STORE_VERSION = 1

_TABLES = MetaData()
_VERSION = Table("holdfast_version", _TABLES, Column("version", Integer, primary_key=True, autoincrement=False))
ANSWERS = Table(
    "holdfast_answers",
    _TABLES,
    Column("key", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("created_at", Float(53), nullable=False, index=True),
)
DAMAGED = Table(
    "holdfast_damaged",
    _TABLES,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("key", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("found_at", Float(53), nullable=False),
)
REQUESTS = Table(
    "holdfast_requests",
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
# The single flight: of each key, one request is under way.
Index(
    "holdfast_one_under_way",
    REQUESTS.c.key,
    unique=True,
    sqlite_where=text("state = 'open'"),
    postgresql_where=text("state = 'open'"),
)
Index("holdfast_by_account", REQUESTS.c.account, REQUESTS.c.state)
ACCOUNTS = Table(
    "holdfast_accounts",
    _TABLES,
    Column("account", Text, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False)
        for name in ("answers", "answers_bad", "spent", "wasted", "unsettled", "answers_served", "saved")
    ),
    Column("crc", Text, nullable=False),
)

_PICO_DIGITS = 12
_LONGEST_REASON = 500

_WAS_PAID = frozenset({"answered", "useless", "damaged", "surplus"})
_IS_KEPT = frozenset({"answered", "useless", "damaged"})
_IS_WASTED = frozenset({"useless", "damaged", "surplus"})
IS_TO_BE_FOUND = frozenset({"answered", "useless"})
"""States of requests whose answer is in the store."""
_IS_UNSETTLED = frozenset({"open", "lost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One request that was begun, without its times."""

    request_id: str
    key: str
    account: str
    holder: str
    state: str
    """`open`, then one of: `answered`; `useless`, an answer that cannot be used; `damaged`, one that was set aside;
    `surplus`, one that came when another was kept already; `refused`; `lost`, which may turn into any of them."""
    most: int
    cost: int = 0
    reason: str = ""

    @classmethod
    def read(cls, row: Any) -> Self:
        """From a row that has at least these columns."""
        return cls(**{each.name: getattr(row, each.name) for each in fields(cls)})

    def values(self) -> dict[str, Any]:
        """The columns, checksum included."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"crc": _checksum(values)}

    def is_whole(self, crc: str) -> bool:
        """Whether it is what was written."""
        return bool(crc == self.values()["crc"])

    def turned(self, state: str, *, cost: int = 0, reason: str = "") -> Self:
        """The same in another state."""
        # Also a database that knows no more than ASCII takes it.
        plain = reason.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
        return replace(self, state=state, cost=cost, reason=plain[:_LONGEST_REASON])

    def ended(self, outcome: Outcome) -> Self | None:
        """The same with its end; None where it has one already, or learns nothing new.

        One whose holder was silent for too long is lost; an answer that arrives all the same counts.
        """
        if self.state not in _IS_UNSETTLED:
            return None
        match outcome:
            case Answered():
                state = "answered" if outcome.problem is None else "useless"
                return self.turned(state, cost=as_pico(outcome.cost), reason=outcome.problem or "")
            case Refused():
                return self.turned("refused", reason=outcome.reason)
            case Lost():
                return self.turned("lost", reason=outcome.reason) if self.state == "open" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRow:
    """What was spent under one name: sums over its requests, and what it was served."""

    account: str
    answers: int = 0
    answers_bad: int = 0
    spent: int = 0
    wasted: int = 0
    unsettled: int = 0
    """The most that requests open and lost can cost."""
    answers_served: int = 0
    saved: int = 0

    @classmethod
    def read(cls, row: Any) -> Self:
        """From a row that has at least these columns."""
        return cls(**{each.name: getattr(row, each.name) for each in fields(cls)})

    def values(self) -> dict[str, Any]:
        """The columns, checksum included."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"crc": _checksum(values)}

    def is_whole(self, crc: str) -> bool:
        """Whether it is what was written."""
        return bool(crc == self.values()["crc"])

    def with_request(self, row: RequestRow, *, sign: int = 1) -> Self:
        """The sums with one more request, or with `sign` -1 one less."""
        return replace(
            self,
            answers=self.answers + sign * (row.state in _IS_KEPT),
            answers_bad=self.answers_bad + sign * (row.state in _IS_KEPT & _IS_WASTED),
            spent=self.spent + sign * (row.cost if row.state in _WAS_PAID else 0),
            wasted=self.wasted + sign * (row.cost if row.state in _IS_WASTED else 0),
            unsettled=self.unsettled + sign * (row.most if row.state in _IS_UNSETTLED else 0),
        )

    def with_change(self, before: RequestRow, after: RequestRow) -> Self:
        """The sums after a request has changed."""
        return self.with_request(before, sign=-1).with_request(after)

    def with_served(self, count: int, saved: int) -> Self:
        """The sums after answers were given from the store."""
        return replace(self, answers_served=self.answers_served + count, saved=self.saved + saved)


def as_pico(dollars: Decimal) -> int:
    """Whole pico-dollars; what is finer than one counts as one."""
    return int(dollars.scaleb(_PICO_DIGITS).to_integral_value(ROUND_CEILING))


def as_dollars(pico: int) -> Decimal:
    """US dollars, exact."""
    whole, rest = divmod(pico, 10**_PICO_DIGITS)
    return Decimal(f"{whole}.{rest:0{_PICO_DIGITS}}".rstrip("0").rstrip("."))


def make_ready(connection: Connection, database: Database) -> None:
    """Make the tables where there are none; refuse those that this version does not know.

    Raises:
        NewerFormat: a newer holdfast made them; nothing was changed.
        StoreUnavailable: some are missing.
    """
    if not database.is_sqlite:
        # Of two that come first, one makes the tables.
        connection.execute(select(func.pg_advisory_xact_lock(0x686F6C6466617374)))
    found = {name for name in inspect(connection).get_table_names() if name.startswith("holdfast_")}
    if not found:
        _TABLES.create_all(connection, checkfirst=False)
        connection.execute(insert(_VERSION).values(version=STORE_VERSION))
        return
    version = _version(connection) if _VERSION.name in found else None
    if version is None:
        raise database.unavailable("it has tables of holdfast and does not say of which version; restore it")
    if version > STORE_VERSION:
        raise NewerFormat(database.name, found=version, known=STORE_VERSION)
    missing = sorted(_TABLES.tables.keys() - found)
    if missing:
        raise database.unavailable(f"it has no table {', '.join(missing)}; restore it from a copy")


def _version(connection: Connection) -> int | None:
    rows = connection.execute(select(_VERSION.c.version)).all()
    versions = [row.version for row in rows if isinstance(row.version, int) and row.version >= 1]
    return versions[0] if len(rows) == len(versions) == 1 else None


def _checksum(values: dict[str, Any]) -> str:
    return f"{crc32(msgspec.json.encode(list(values.values()))):08x}"
