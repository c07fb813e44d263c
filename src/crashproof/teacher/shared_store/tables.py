"""The tables of a shared store.

::

    crashproof_version    version                                              one row
    crashproof_answers    key, request_id, record, created_at                  record: the line of api_recovery.jsonl
    crashproof_set_aside  key, record, why, …                                  paid answers that are not given
    crashproof_requests   request_id, key, account, state, most, cost, …       one row for each ever begun
    crashproof_accounts   account, sums over its requests                      one row for each that spends

Money stands in whole pico-dollars (1e-12 US dollars), times in seconds since 1970. Rows that say who owes what end
in a checksum of themselves, as answers do.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
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
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
)

from crashproof.answers.store import Answered, Lost, Outcome, Refused
from crashproof.errors import NewerFormat
from crashproof.teacher.shared_store.database import Database

__all__ = [
    "ACCOUNTS",
    "ANSWERS",
    "IS_TO_BE_FOUND",
    "PICO_DIGITS",
    "REQUESTS",
    "SET_ASIDE",
    "STORE_VERSION",
    "AccountRow",
    "RequestRow",
    "as_dollars",
    "as_pico",
    "make_ready",
]

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
# The single flight: of each key, one request is under way.
Index(
    "crashproof_one_under_way",
    REQUESTS.c.key,
    unique=True,
    sqlite_where=text("state = 'open'"),
    postgresql_where=text("state = 'open'"),
)
Index("crashproof_by_account", REQUESTS.c.account, REQUESTS.c.state)
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

PICO_DIGITS = 12
_LONGEST_REASON = 500

_IS_WASTED = frozenset({"useless", "replaced", "damaged", "surplus"})
_WAS_PAID = _IS_WASTED | {"answered"}
_WAS_KEPT = _WAS_PAID - {"surplus"}
IS_TO_BE_FOUND = frozenset({"answered", "useless"})
"""States of requests whose answer is in the store."""
_IS_UNSETTLED = frozenset({"open", "lost"})


class SealedRow(Struct, frozen=True, kw_only=True):
    """A row that ends in a checksum of these columns."""

    @classmethod
    def read(cls, row: Any) -> Self:
        """From a row that has at least these columns."""
        return cls(**{name: getattr(row, name) for name in cls.__struct_fields__})

    def values(self) -> dict[str, Any]:
        """The columns, checksum included."""
        return asdict(self) | {"crc": self._checksum()}

    def is_whole(self, crc: str) -> bool:
        """Whether it is what was written."""
        return crc == self._checksum()

    def _checksum(self) -> str:
        return f"{crc32(msgspec.json.encode(astuple(self))):08x}"


class RequestRow(SealedRow, frozen=True, kw_only=True):
    """One request that was begun, without its times."""

    request_id: str
    key: str
    account: str
    holder: str
    state: str
    """`open`, then one of: `answered`; `useless`, whose answer cannot be used, and then `replaced` by another one;
    `damaged`; `surplus`, whose answer came when another was kept already; `refused`; `lost`, which may still turn
    into any of these."""
    most: int
    cost: int = 0
    reason: str = ""

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


class AccountRow(SealedRow, frozen=True, kw_only=True):
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

    @property
    def committed(self) -> int:
        """What a budget is held against."""
        return self.spent + self.unsettled

    def with_requests(self, state: str, *, count: int, most: int, cost: int) -> Self:
        """The sums with so many more requests in one state, or less where all three are negative."""
        return replace(
            self,
            answers=self.answers + (count if state in _WAS_KEPT else 0),
            answers_bad=self.answers_bad + (count if state in _WAS_KEPT & _IS_WASTED else 0),
            spent=self.spent + (cost if state in _WAS_PAID else 0),
            wasted=self.wasted + (cost if state in _IS_WASTED else 0),
            unsettled=self.unsettled + (most if state in _IS_UNSETTLED else 0),
        )

    def with_request(self, row: RequestRow) -> Self:
        """The sums with one more request."""
        return self.with_requests(row.state, count=1, most=row.most, cost=row.cost)

    def with_change(self, before: RequestRow, after: RequestRow) -> Self:
        """The sums after a request has changed."""
        without = self.with_requests(before.state, count=-1, most=-before.most, cost=-before.cost)
        return without.with_request(after)

    def with_served(self, count: int, saved: int) -> Self:
        """The sums after answers were given from the store."""
        return replace(self, answers_served=self.answers_served + count, saved=self.saved + saved)


def as_pico(dollars: Decimal) -> int:
    """Whole pico-dollars; what is finer than one counts as one."""
    return int(dollars.scaleb(PICO_DIGITS).to_integral_value(ROUND_CEILING))


def as_dollars(pico: int) -> Decimal:
    """US dollars, exact."""
    whole, rest = divmod(pico, 10**PICO_DIGITS)
    return Decimal(f"{whole}.{rest:0{PICO_DIGITS}}".rstrip("0").rstrip("."))


def make_ready(connection: Connection, database: Database) -> None:
    """Make the tables where there are none; refuse those that this version does not know.

    Raises:
        NewerFormat: a newer crashproof made them; nothing was changed.
        StoreUnavailable: some are missing.
    """
    if not database.is_sqlite:
        # Of two that come first, one makes the tables.
        connection.execute(select(func.pg_advisory_xact_lock(0x686F6C6466617374)))
    found = {name for name in inspect(connection).get_table_names() if name.startswith("crashproof_")}
    if not found:
        _TABLES.create_all(connection, checkfirst=False)
        connection.execute(insert(_VERSION).values(version=STORE_VERSION))
        return
    version = _version(connection) if _VERSION.name in found else None
    if version is None:
        raise database.unavailable("it has tables of crashproof and does not say of which version; restore it")
    if version > STORE_VERSION:
        raise NewerFormat(database.name, found=version, known=STORE_VERSION)
    missing = sorted(_TABLES.tables.keys() - found)
    if missing:
        raise database.unavailable(f"it has no table {', '.join(missing)}; restore it from a copy")


def _version(connection: Connection) -> int | None:
    rows = connection.execute(select(_VERSION.c.version)).all()
    versions = [row.version for row in rows if isinstance(row.version, int) and row.version >= 1]
    return versions[0] if len(rows) == len(versions) == 1 else None
