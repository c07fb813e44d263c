"""What one transaction does to the tables of a shared store.

All transactions lock in one order, so that no two wait for each other: the account, then requests and answers, each
sorted. On PostgreSQL they are READ COMMITTED: every statement sees what was committed before it began. All of them
come to the same when done twice, since a connection can be lost after the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Row, and_, case, delete, func, select, true, update

from crashproof.answers.store import Busy, Granted, Outcome, OverBudget
from crashproof.records.requests import AnswerRecord, Spending, price_left_in
from crashproof.teacher.shared_store.answers import (
    Paid,
    find_answers,
    find_useful,
    keep_answers,
    lay_by,
    make_room,
    move_damaged,
    payer_of,
)
from crashproof.teacher.shared_store.database import Database, chunks
from crashproof.teacher.shared_store.tables import (
    ACCOUNTS,
    PICO_DIGITS,
    REQUESTS,
    AccountRow,
    RequestRow,
    as_dollars,
    as_pico,
)

__all__ = ["SECONDS_TO_LOOK_AGAIN", "Ledger", "Said", "Served", "SetAside"]

log = logging.getLogger("crashproof")

SECONDS_TO_LOOK_AGAIN = 0.05
"""For what this process itself has under way, or what has ended just now."""
_MOST_SECONDS_TO_LOOK_AGAIN = 0.5

_NOT_COUNTED = ""
"""The checksum of an account whose requests have to be counted first."""


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


Said = AnswerRecord | RequestRow | Busy | OverBudget
"""What is said to a request: a row is one that is granted, as it was written."""


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
        self,
        connection: Connection,
        wanted: Mapping[str, RequestRow],
        *,
        replacing: Collection[str],
        budget: Decimal | None,
        served: Served,
    ) -> dict[str, Said]:
        """What is said to each of the requests, by key; money goes to the first first.

        For those that are `replacing`, an answer that somebody has found to be of no use is none.

        Raises:
            DamagedAnswers: nothing was begun; they have to be set aside first.
        """
        before = account = self._locked_account(connection, self._account)
        most = None if budget is None else budget.scaleb(PICO_DIGITS)
        claimed, standing = self._claim_all(connection, wanted)
        # Only now: who ended a request before it could be claimed has committed, and the answer is seen here.
        answers = self._answers(connection, wanted, replacing)
        said: dict[str, Said] = dict(answers)
        over = set()
        for key, row in wanted.items():
            if key in answers:
                continue
            if key not in claimed:
                said[key] = self._under_way(row, standing.get(key))
            elif most is not None and account.committed + row.most > most:
                over.add(key)
            else:
                account = account.with_request(row)
                said[key] = row
        self._unclaim(connection, [wanted[key].request_id for key in claimed & (answers.keys() | over)])
        self._write_account(connection, before, account.with_served(served.count, served.saved))
        if over:
            refused = OverBudget(spending=self.spending(connection))
            said |= dict.fromkeys(over, refused)
        return said

    def finish(
        self, connection: Connection, outcomes: Mapping[str, Outcome], records: Mapping[str, bytes], *, served: Served
    ) -> None:
        """Write down how requests ended, and the records of answers, by the requests' ids; an end is told once."""
        before = account = self._locked_account(connection, self._account)
        rows, missing = self._rows_to_end(connection, outcomes)
        for row in missing:
            account = account.with_request(row)
        ended = {key: end for key, row in rows.items() if (end := row.ended(outcomes[key])) is not None}
        answered = {key: row for key, row in ended.items() if key in records}
        paid = {key: Paid(row, records[key]) for key, row in answered.items()}
        for key in paid.keys() - self._keep(connection, paid):
            ended[key] = answered[key].turned("surplus", cost=answered[key].cost, reason="another one was kept")
        for key, row in ended.items():
            account = account.with_change(rows[key], row)
        self._save(connection, ended.values())
        self._write_account(connection, before, account.with_served(served.count, served.saved))

    def mark(self, connection: Connection, key: str, problem: str) -> None:
        """Note that a kept answer is of no use; whoever paid for it has wasted the money."""
        payer = self._payer(connection, payer_of(connection, key))
        if payer is not None and payer[1].state == "answered":
            account, row = payer
            useless = row.turned("useless", cost=row.cost, reason=problem)
            self._save(connection, [useless])
            self._write_account(connection, account, account.with_change(row, useless))

    def set_aside(self, connection: Connection, key: str, damaged: bytes) -> SetAside | None:
        """Move a broken answer away; None where somebody else was faster."""
        request_id = payer_of(connection, key)
        payer = self._payer(connection, request_id)
        if not move_damaged(connection, self._database, key, damaged, request_id=request_id or ""):
            return None
        if payer is None:
            return SetAside(key=key, cost=price_left_in(damaged))
        account, row = payer
        broken = row.turned("damaged", cost=row.cost, reason="its bytes are damaged")
        self._save(connection, [broken])
        self._write_account(connection, account, account.with_change(row, broken))
        return SetAside(key=key, cost=as_dollars(row.cost))

    def open_account(self, connection: Connection) -> None:
        """Make sure that the account is there."""
        self._locked_account(connection, self._account)

    def note_served(self, connection: Connection, served: Served) -> None:
        """Count answers that were given from the store."""
        account = self._locked_account(connection, self._account)
        self._write_account(connection, account, account.with_served(served.count, served.saved))

    def renew(self, connection: Connection, request_ids: Collection[str]) -> None:
        """Say that requests are still being sent."""
        now = self._database.now
        for ids in chunks(request_ids):
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
        is_live = and_(REQUESTS.c.state == "open", REQUESTS.c.lease_until > self._database.now)
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

    def counted(self, connection: Connection, account: AccountRow) -> AccountRow:
        """The account with its sums as its requests have them."""
        counted = AccountRow(account=account.account, answers_served=account.answers_served, saved=account.saved)
        sums = select(REQUESTS.c.state, func.count(), func.sum(REQUESTS.c.most), func.sum(REQUESTS.c.cost))
        of_account = sums.where(REQUESTS.c.account == account.account).group_by(REQUESTS.c.state)
        for state, count, most, cost in connection.execute(of_account):
            counted = counted.with_requests(state, count=count, most=int(most), cost=int(cost))
        return counted

    def _locked_account(self, connection: Connection, name: str) -> AccountRow:
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
        counted = self.counted(connection, account)
        self._write_account(connection, None, counted)
        return counted

    def _write_account(self, connection: Connection, before: AccountRow | None, after: AccountRow) -> None:
        if after != before:
            connection.execute(update(ACCOUNTS).where(ACCOUNTS.c.account == after.account).values(after.values()))

    def _under_way(self, row: RequestRow, standing: Row[Any] | None) -> RequestRow | Busy:
        if standing is None:
            return Busy(holder="one that has just ended", seconds=SECONDS_TO_LOOK_AGAIN)
        if standing.request_id == row.request_id:
            # The connection was lost after the commit, and this is the second time.
            return row
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
            claimed |= self._claim(connection, [wanted[key] for key in freed])
        return claimed, standing

    def _claim(self, connection: Connection, rows: Iterable[RequestRow]) -> set[str]:
        values = [row.values() for row in sorted(rows, key=lambda row: row.key)]
        if not values:
            return set()
        now = self._database.now
        # Waits for whoever is about to end a request to the same key.
        claim = (
            self._database.insert(REQUESTS)
            .on_conflict_do_nothing()
            .values(sent_at=now, lease_until=now + self._lease_seconds)
            .returning(REQUESTS.c.key)
        )
        return set(connection.execute(claim, values).scalars())

    def _unclaim(self, connection: Connection, request_ids: Collection[str]) -> None:
        for ids in chunks(request_ids):
            connection.execute(delete(REQUESTS).where(REQUESTS.c.request_id.in_(ids)))

    def _standing(self, connection: Connection, keys: Collection[str]) -> dict[str, Row[Any]]:
        seconds_left = (REQUESTS.c.lease_until - self._database.now).label("seconds_left")
        found: dict[str, Row[Any]] = {}
        for some in chunks(keys):
            rows = select(REQUESTS, seconds_left).where(REQUESTS.c.key.in_(some), REQUESTS.c.state == "open")
            found |= {row.key: row for row in connection.execute(rows)}
        return found

    def _give_up(self, connection: Connection, silent: Sequence[Row[Any]]) -> set[str]:
        """Requests whose holder did not renew them are lost; their keys are free."""
        lost = []
        for ids in chunks([row.request_id for row in silent]):
            is_silent = and_(REQUESTS.c.state == "open", REQUESTS.c.lease_until <= self._database.now)
            rows = select(REQUESTS).where(REQUESTS.c.request_id.in_(ids), is_silent)
            # Who is locked is being ended, or given up by somebody else.
            for found in connection.execute(rows.with_for_update(skip_locked=True)):
                row = RequestRow.read(found)
                if not row.is_whole(found.crc):
                    log.error("The row of request %s was altered; it counts as it is now.", row.request_id)
                lost.append(row.turned("lost", reason=f"{row.holder} did not renew it in time"))
        self._save(connection, lost)
        return {row.key for row in lost}

    def _answers(
        self, connection: Connection, keys: Collection[str], replacing: Collection[str]
    ) -> dict[str, AnswerRecord]:
        answers = find_answers(connection, self._database, keys)
        replaceable = answers.keys() & set(replacing)
        useless = replaceable - find_useful(connection, replaceable)
        return {key: answer for key, answer in answers.items() if key not in useless}

    def _keep(self, connection: Connection, paid: Mapping[str, Paid]) -> set[str]:
        """Keep answers, for which useless ones make room; returns the ids of the requests whose answers are kept."""
        kept = keep_answers(connection, self._database, paid.values())
        others = {key: paid[key] for key in paid.keys() - kept}
        if others:
            moved = make_room(connection, self._database, {each.row.key for each in others.values()})
            # The sums of whoever paid stay the same.
            self._save(connection, [row.turned("replaced", cost=row.cost, reason=row.reason) for row in moved])
            kept |= keep_answers(connection, self._database, others.values())
            surplus = [each for key, each in others.items() if key not in kept]
            lay_by(connection, self._database, surplus, why="surplus")
        return kept

    def _rows_to_end(
        self, connection: Connection, outcomes: Mapping[str, Outcome]
    ) -> tuple[dict[str, RequestRow], list[RequestRow]]:
        """The requests as they stand, by id; and those among them that the store has lost, as they were begun."""
        found: dict[str, Row[Any]] = {}
        for ids in chunks(outcomes.keys()):
            some = select(REQUESTS).where(REQUESTS.c.request_id.in_(ids)).order_by(REQUESTS.c.request_id)
            found |= {row.request_id: row for row in connection.execute(some.with_for_update())}
        rows = {}
        for key, outcome in outcomes.items():
            rows[key] = self.row_of(outcome.granted)
            if key in found and RequestRow.read(found[key]).is_whole(found[key].crc):
                rows[key] = RequestRow.read(found[key])
            elif key in found:
                log.error("The row of request %s was altered; it is written anew.", key)
        return rows, [rows[key] for key in rows.keys() - found.keys()]

    def _save(self, connection: Connection, rows: Iterable[RequestRow]) -> None:
        """Write requests over what stands there, and add those that are missing."""
        values = [row.values() for row in sorted(rows, key=lambda row: row.request_id)]
        if not values:
            return
        now = self._database.now
        new = self._database.insert(REQUESTS).values(sent_at=now, lease_until=now)
        changed = {name: new.excluded[name] for name in values[0] if name != "request_id"}
        connection.execute(new.on_conflict_do_update(index_elements=["request_id"], set_=changed), values)

    def _payer(self, connection: Connection, request_id: str | None) -> tuple[AccountRow, RequestRow] | None:
        """The account that paid for an answer, and its request, both locked; None where nothing tells."""
        is_it = REQUESTS.c.request_id == request_id
        name = connection.scalar(select(REQUESTS.c.account).where(is_it))
        if name is None:
            return None
        account = self._locked_account(connection, name)
        found = connection.execute(select(REQUESTS).where(is_it).with_for_update()).one()
        row = RequestRow.read(found)
        return (account, row) if row.is_whole(found.crc) else None
