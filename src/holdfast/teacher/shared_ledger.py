"""What one transaction does to the tables of a shared store.

All transactions lock in one order, so that no two wait for each other: the account, then requests and answers, each
sorted. On PostgreSQL they are READ COMMITTED: every statement sees what was committed before it began. All of them
come to the same when done twice, since a connection can be lost after the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    LargeBinary,
    Row,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    select,
    true,
    update,
)

from holdfast.errors import UnknownRecord
from holdfast.records import AnswerRecord, Spending, decode
from holdfast.responses import Answered, Busy, Granted, Outcome, OverBudget, price_left_in
from holdfast.sealed import is_whole
from holdfast.teacher.shared_database import Database
from holdfast.teacher.shared_tables import (
    ACCOUNTS,
    ANSWERS,
    DAMAGED,
    REQUESTS,
    AccountRow,
    RequestRow,
    as_dollars,
    as_pico,
)

__all__ = ["RECORD", "SECONDS_TO_LOOK_AGAIN", "DamagedAnswers", "Ledger", "Served", "SetAside", "problem_in"]

log = logging.getLogger("holdfast")

_MOST_IN_A_LIST = 500
SECONDS_TO_LOOK_AGAIN = 0.05
"""For what this process itself has under way, or what has ended just now."""
_MOST_SECONDS_TO_LOOK_AGAIN = 0.5

_NOT_COUNTED = ""
"""The checksum of an account whose requests have to be counted first."""


class _Request(msgspec.Struct):
    request: dict[str, Any] | None = None


class _Key(msgspec.Struct):
    prompt_hash: str


_decoder = msgspec.json.Decoder(AnswerRecord)
_key_decoder = msgspec.json.Decoder(_Key)
_request_decoder = msgspec.json.Decoder(_Request)

# Where a file has rotted, SQLite may take the bytes for something else.
RECORD = cast(ANSWERS.c.record, LargeBinary).label("record")


class DamagedAnswers(Exception):
    """Answers were looked for and found broken: by key, their bytes."""

    def __init__(self, found: Mapping[str, bytes]) -> None:
        super().__init__()
        self.found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Answers that were given from the store."""

    count: int = 0
    saved: int = 0
    """What they had cost, in pico-dollars."""

    def __add__(self, other: Served) -> Served:
        return Served(count=self.count + other.count, saved=self.saved + other.saved)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A broken answer that was moved away."""

    key: str
    cost: Decimal | None
    """What had been paid for it, in US dollars, where anything still tells."""


class Ledger:
    """The tables, as one account of one process sees them."""

    def __init__(self, database: Database, *, account: str, holder: str, lease_seconds: float) -> None:
        self._database = database
        self._account = account
        self._holder = holder
        self._lease_seconds = lease_seconds

    def row_of(self, granted: Granted) -> RequestRow:
        """A request as it is begun here."""
        return RequestRow(
            request_id=granted.request_id,
            key=granted.request.key,
            account=self._account,
            holder=self._holder,
            state="open",
            most=as_pico(granted.most),
        )

    def begin(
        self, connection: Connection, wanted: Mapping[str, RequestRow], *, budget: Decimal | None, served: Served
    ) -> dict[str, AnswerRecord | RequestRow | Busy | OverBudget]:
        """What is said to each of the requests, by key: of those granted, the row itself.

        Raises:
            DamagedAnswers: nothing was begun; they have to be set aside first.
        """
        account = self.locked_account(connection, self._account)
        claimed, standing = self._claim_all(connection, wanted)
        # Only now: an answer that came before the claim was possible is committed, and seen here.
        answers = self._answers(connection, wanted)
        said: dict[str, AnswerRecord | RequestRow | Busy | OverBudget] = dict(answers)
        over = []
        for key, row in wanted.items():
            if key in answers:
                continue
            if key not in claimed:
                said[key] = row if _is_same(standing.get(key), row) else self._busy(standing.get(key))
            elif budget is not None and self._committed(account) + as_dollars(row.most) > budget:
                over.append(key)
            else:
                account = account.with_request(row)
                said[key] = row
        self._unclaim(connection, [wanted[key] for key in sorted(claimed & (answers.keys() | set(over)))])
        self.write_account(connection, account.with_served(served.count, served.saved))
        if over:
            spending = self.spending(connection)
            said |= {key: OverBudget(spending=spending) for key in over}
        return said

    def finish(
        self,
        connection: Connection,
        outcomes: Mapping[str, Outcome],
        records: Mapping[str, bytes],
        *,
        served: Served,
    ) -> None:
        """Write down how requests ended, by their id; what has its end already stays as it is."""
        account = self.locked_account(connection, self._account)
        before, missing = self._rows_to_end(connection, outcomes)
        for row in missing:
            account = account.with_request(row)
        after = {key: row.ended(outcomes[key]) for key, row in before.items()}
        ended = {key: row for key, row in after.items() if row is not None}
        answered = {key: row for key, row in ended.items() if isinstance(outcomes[key], Answered)}
        kept = self._keep(connection, {key: (row, records[key]) for key, row in answered.items()})
        for key in answered.keys() - kept:
            row = answered[key]
            ended[key] = row.turned("surplus", cost=row.cost, reason="another answer was kept already")
        for key, row in ended.items():
            account = account.with_change(before[key], row)
        self._save(connection, ended.values())
        self.write_account(connection, account.with_served(served.count, served.saved))

    def find(self, connection: Connection, key: str) -> AnswerRecord | None:
        """The answer under a key.

        Raises:
            DamagedAnswers: it has to be set aside.
        """
        return self._answers(connection, [key]).get(key)

    def mark(self, connection: Connection, key: str, problem: str) -> None:
        """Note that a kept answer is of no use; whoever paid for it has wasted the money."""
        request_id = connection.scalar(select(ANSWERS.c.request_id).where(ANSWERS.c.key == key))
        payer = self._payer(connection, request_id)
        if payer is not None and payer[1].state == "answered":
            account, row = payer
            useless = row.turned("useless", cost=row.cost, reason=problem)
            self._save(connection, [useless])
            self.write_account(connection, account.with_change(row, useless))

    def set_aside(self, connection: Connection, key: str, damaged: bytes) -> SetAside | None:
        """Move a broken answer away; None where somebody else was faster."""
        request_id = connection.scalar(select(ANSWERS.c.request_id).where(ANSWERS.c.key == key))
        payer = self._payer(connection, request_id)
        is_still_there = and_(ANSWERS.c.key == key, cast(ANSWERS.c.record, LargeBinary) == damaged)
        if not connection.execute(delete(ANSWERS).where(is_still_there)).rowcount:
            return None
        connection.execute(
            insert(DAMAGED).values(
                key=key, request_id=request_id or "", record=damaged, found_at=self._database.now()
            )
        )
        if payer is None:
            return SetAside(key=key, cost=price_left_in(damaged))
        account, row = payer
        broken = row.turned("damaged", cost=row.cost, reason="its bytes are damaged")
        self._save(connection, [broken])
        self.write_account(connection, account.with_change(row, broken))
        return SetAside(key=key, cost=as_dollars(row.cost))

    def note_served(self, connection: Connection, served: Served) -> None:
        """Count answers that were given from the store."""
        account = self.locked_account(connection, self._account)
        self.write_account(connection, account.with_served(served.count, served.saved))

    def renew(self, connection: Connection, request_ids: Sequence[str]) -> None:
        """Say that requests are still being sent."""
        now = self._database.now()
        for ids in _chunks(request_ids):
            # Who is locked is being ended.
            ours = (
                select(REQUESTS.c.request_id)
                .where(REQUESTS.c.request_id.in_(ids), REQUESTS.c.state == "open")
                .with_for_update(skip_locked=True)
            )
            renewed = update(REQUESTS).where(REQUESTS.c.request_id.in_(ours))
            connection.execute(renewed.values(lease_until=now + self._lease_seconds))

    def spending(self, connection: Connection) -> Spending:
        """What the account has spent; a request whose holder is silent for too long is in doubt."""
        is_live = and_(REQUESTS.c.state == "open", REQUESTS.c.lease_until > self._database.now())
        # One statement, so that no request is seen both open and paid.
        sums = (
            select(
                func.sum(case((is_live, REQUESTS.c.most), else_=0)).label("reserved"),
                func.sum(case((is_live, 0), else_=REQUESTS.c.most)).label("in_doubt"),
                func.sum(case((is_live, 0), else_=1)).label("num_in_doubt"),
            )
            .where(REQUESTS.c.account == self._account, REQUESTS.c.state.in_(("open", "lost")))
            .subquery()
        )
        both = select(ACCOUNTS, sums).join_from(ACCOUNTS, sums, true())
        row = connection.execute(both.where(ACCOUNTS.c.account == self._account)).one()
        account = AccountRow.read(row)
        if not account.is_whole(row.crc):
            account = self.counted(connection, account)
        return Spending(
            answers=account.answers,
            answers_served=account.answers_served,
            answers_bad=account.answers_bad,
            requests_in_doubt=int(row.num_in_doubt or 0),
            spent=as_dollars(account.spent),
            saved=as_dollars(account.saved),
            in_doubt=as_dollars(int(row.in_doubt or 0)),
            wasted=as_dollars(account.wasted),
            reserved=as_dollars(int(row.reserved or 0)),
        )

    def requests_asked(self, connection: Connection) -> Generator[dict[str, Any]]:
        """What was asked, of each whole answer, the newest first."""
        newest_first = select(RECORD).order_by(ANSWERS.c.created_at.desc())
        with connection.execute(newest_first) as found:
            for (record,) in found:
                request = _request_decoder.decode(record).request if is_whole(record) else None
                if request is not None:
                    yield request

    def locked_account(self, connection: Connection, name: str) -> AccountRow:
        """The account, nobody else's until the transaction ends; counted anew where its row is broken or missing."""
        row = select(ACCOUNTS).where(ACCOUNTS.c.account == name).with_for_update()
        found = connection.execute(row).one_or_none()
        if found is None:
            new = AccountRow(account=name).values() | {"crc": _NOT_COUNTED}
            connection.execute(self._database.insert(ACCOUNTS).values(new).on_conflict_do_nothing())
            found = connection.execute(row).one()
        account = AccountRow.read(found)
        if account.is_whole(found.crc):
            return account
        if found.crc != _NOT_COUNTED:
            log.error("The sums of account %s were altered; they are counted anew from its requests.", name)
        return self.write_account(connection, self.counted(connection, account))

    def counted(self, connection: Connection, account: AccountRow) -> AccountRow:
        """The account with its sums as its requests have them."""
        counted = AccountRow(account=account.account, answers_served=account.answers_served, saved=account.saved)
        rows = connection.execute(select(REQUESTS).where(REQUESTS.c.account == account.account))
        for row in rows:
            counted = counted.with_request(RequestRow.read(row))
        return counted

    def write_account(self, connection: Connection, account: AccountRow) -> AccountRow:
        """Replace a locked account's sums."""
        connection.execute(update(ACCOUNTS).where(ACCOUNTS.c.account == account.account).values(**account.values()))
        return account

    def _committed(self, account: AccountRow) -> Decimal:
        return as_dollars(account.spent + account.unsettled)

    def _busy(self, standing: Row[Any] | None) -> Busy:
        if standing is None:
            return Busy(holder="one that has just ended", seconds=SECONDS_TO_LOOK_AGAIN)
        if standing.holder == self._holder:
            return Busy(holder=standing.holder, seconds=SECONDS_TO_LOOK_AGAIN)
        seconds = min(standing.seconds_left, _MOST_SECONDS_TO_LOOK_AGAIN)
        return Busy(holder=standing.holder, seconds=max(seconds, SECONDS_TO_LOOK_AGAIN))

    def _claim_all(
        self, connection: Connection, wanted: Mapping[str, RequestRow]
    ) -> tuple[set[str], dict[str, Row[Any]]]:
        """The keys that are ours now, and what stands in the way of the others."""
        claimed = self._claim(connection, wanted.values())
        standing = self._standing(connection, wanted.keys() - claimed)
        silent = [row for row in standing.values() if row.seconds_left <= 0]
        if silent:
            freed = self._give_up(connection, silent)
            again = self._claim(connection, [wanted[key] for key in sorted(freed)])
            claimed |= again
            standing = {key: row for key, row in standing.items() if key not in again}
        return claimed, standing

    def _claim(self, connection: Connection, rows: Iterable[RequestRow]) -> set[str]:
        values = [row.values() for row in rows]
        if not values:
            return set()
        now = self._database.now()
        # Waits for whoever is about to end a request to the same key.
        claim = (
            self._database.insert(REQUESTS)
            .on_conflict_do_nothing()
            .values(sent_at=now, lease_until=now + self._lease_seconds)
            .returning(REQUESTS.c.key)
        )
        return set(connection.execute(claim, values).scalars())

    def _unclaim(self, connection: Connection, rows: Sequence[RequestRow]) -> None:
        for ids in _chunks([row.request_id for row in rows]):
            connection.execute(delete(REQUESTS).where(REQUESTS.c.request_id.in_(ids)))

    def _standing(self, connection: Connection, keys: Iterable[str]) -> dict[str, Row[Any]]:
        seconds_left = (REQUESTS.c.lease_until - self._database.now()).label("seconds_left")
        found: dict[str, Row[Any]] = {}
        for some in _chunks(sorted(keys)):
            rows = select(REQUESTS, seconds_left).where(REQUESTS.c.key.in_(some), REQUESTS.c.state == "open")
            found |= {row.key: row for row in connection.execute(rows)}
        return found

    def _give_up(self, connection: Connection, silent: Sequence[Row[Any]]) -> set[str]:
        """Requests whose holder did not renew them are lost; their keys are free."""
        lost = []
        for ids in _chunks([row.request_id for row in silent]):
            is_silent = and_(REQUESTS.c.state == "open", REQUESTS.c.lease_until <= self._database.now())
            rows = select(REQUESTS).where(REQUESTS.c.request_id.in_(ids), is_silent)
            # Who is locked is being ended, or given up by somebody else.
            for found in connection.execute(rows.with_for_update(skip_locked=True)):
                row = RequestRow.read(found)
                lost.append(row.turned("lost", reason=f"{row.holder} did not renew it in time"))
        self._save(connection, lost)
        return {row.key for row in lost}

    def _answers(self, connection: Connection, keys: Iterable[str]) -> dict[str, AnswerRecord]:
        found = {}
        damaged = {}
        for some in _chunks(sorted(keys)):
            for key, record in connection.execute(select(ANSWERS.c.key, RECORD).where(ANSWERS.c.key.in_(some))):
                if problem_in(key, record) is None:
                    found[key] = self._decoded(record)
                else:
                    damaged[key] = record
        if damaged:
            raise DamagedAnswers(damaged)
        return found

    def _decoded(self, record: bytes) -> AnswerRecord:
        try:
            return decode(record, _decoder)
        except msgspec.ValidationError as error:
            raise UnknownRecord(self._database.name, reason=str(error)) from error

    def _rows_to_end(
        self, connection: Connection, outcomes: Mapping[str, Outcome]
    ) -> tuple[dict[str, RequestRow], list[RequestRow]]:
        """The requests as they stand, by id; and those among them that the store has lost, as they were begun."""
        found = {}
        for ids in _chunks(sorted(outcomes)):
            rows = select(REQUESTS).where(REQUESTS.c.request_id.in_(ids)).order_by(REQUESTS.c.request_id)
            for row in connection.execute(rows.with_for_update()):
                found[row.request_id] = row
        begun = {key: self.row_of(outcome.granted) for key, outcome in outcomes.items()}
        whole = {key: row for key, row in found.items() if RequestRow.read(row).is_whole(row.crc)}
        for key in found.keys() - whole.keys():
            log.error("The row of request %s was altered; it is written anew.", key)
        before = {key: RequestRow.read(whole[key]) if key in whole else row for key, row in begun.items()}
        return before, [begun[key] for key in begun.keys() - found.keys()]

    def _keep(self, connection: Connection, answers: Mapping[str, tuple[RequestRow, bytes]]) -> set[str]:
        """Keep the first answer to each key; returns the ids of the requests whose answers are kept now."""
        values = [
            {"key": row.key, "request_id": row.request_id, "record": record}
            for row, record in sorted(answers.values(), key=lambda each: each[0].key)
        ]
        if not values:
            return set()
        keep = (
            self._database.insert(ANSWERS)
            .on_conflict_do_nothing()
            .values(created_at=self._database.now())
            .returning(ANSWERS.c.request_id)
        )
        return set(connection.execute(keep, values).scalars())

    def _save(self, connection: Connection, rows: Iterable[RequestRow]) -> None:
        """Write requests over what stands there, and add those that are missing."""
        values = [row.values() for row in sorted(rows, key=lambda row: row.request_id)]
        if not values:
            return
        now = self._database.now()
        new = self._database.insert(REQUESTS).values(sent_at=now, lease_until=now)
        changed = {name: new.excluded[name] for name in values[0] if name != "request_id"}
        connection.execute(new.on_conflict_do_update(index_elements=["request_id"], set_=changed), values)

    def _payer(self, connection: Connection, request_id: str | None) -> tuple[AccountRow, RequestRow] | None:
        """The account that paid for an answer, and its request, both locked; None where nothing tells."""
        is_it = REQUESTS.c.request_id == request_id
        name = connection.scalar(select(REQUESTS.c.account).where(is_it))
        if name is None:
            return None
        account = self.locked_account(connection, name)
        row = connection.execute(select(REQUESTS).where(is_it).with_for_update()).one()
        return account, RequestRow.read(row)


def problem_in(key: str, record: bytes | None) -> str | None:
    """Why the bytes under a key are no answer to it; None where they are one."""
    if record is None or not is_whole(record):
        return "its bytes are not what was written"
    if _key_decoder.decode(record).prompt_hash != key:
        return "it answers another request"
    return None


def _is_same(standing: Row[Any] | None, row: RequestRow) -> bool:
    # A begin whose connection was lost after the commit, done again.
    return standing is not None and standing.request_id == row.request_id


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _MOST_IN_A_LIST):
        yield values[start : start + _MOST_IN_A_LIST]
