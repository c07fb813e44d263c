"""Transactions of a shared store.

All transactions lock in one order, so that none deadlock: the account, then requests and answers, each sorted. On
PostgreSQL they are READ COMMITTED: every statement sees what was committed before it began. All are idempotent, since
a connection can be lost after the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, select, true, update

from crashproof.answers.store import Busy, Granted, Outcome, OverBudget
from crashproof.records.requests import AnswerRecord, Spending, price_left_in
from crashproof.rules.spending import PICO_DIGITS, as_dollars
from crashproof.teacher.shared_store.answers import (
    Paid,
    find_answers,
    find_payer,
    find_usable,
    keep_answers,
    quarantine_answers,
    quarantine_damaged,
    remove_unusable,
)
from crashproof.teacher.shared_store.database import Database, chunks
from crashproof.teacher.shared_store.owners import UNKNOWN_OWNER, Ownership
from crashproof.teacher.shared_store.statements import Statements, one_or_many
from crashproof.teacher.shared_store.tables import (
    ACCOUNTS,
    OWNED_REQUESTS,
    REQUESTS,
    AccountRow,
    RequestRow,
    RequestState,
    as_pico,
)

__all__ = ["POLL_SECONDS", "Decision", "Ledger", "Quarantined", "Served"]

log = logging.getLogger("crashproof")

POLL_SECONDS = 0.05
"""For requests that this process has in flight, or that have just ended."""
_MAX_POLL_SECONDS = 0.5

_OWNER = "owner"
_ALWAYS = true()
_NOT_COUNTED = ""
"""The checksum of an account whose requests must be counted first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Answers that were served from the store."""

    count: int = 0
    saved: int = 0
    """Their cost in pico-dollars."""

    def __add__(self, other: Served) -> Served:
        return Served(count=self.count + other.count, saved=self.saved + other.saved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A damaged answer that was quarantined."""

    key: str
    cost: Decimal | None
    """What was paid for it in US dollars, if known."""


Decision = AnswerRecord | RequestRow | Busy | OverBudget
"""The decision on a request; a row is a granted request as it was written."""


class Ledger:
    """The tables, as one account of one process sees them."""

    def __init__(
        self,
        database: Database,
        *,
        account: str,
        holder: str,
        lease_seconds: float,
        ownership: Ownership = UNKNOWN_OWNER,
    ) -> None:
        self._database = database
        self._account = account
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._ownership = ownership
        # A store of the first release has no column for owners.
        self._requests = REQUESTS if ownership.text is None else OWNED_REQUESTS
        owner = {} if ownership.text is None else {_OWNER: ownership.text}
        self._statements = Statements(database, self._requests, owner=owner, lease_seconds=lease_seconds)

    def row_of(self, granted: Granted) -> RequestRow:
        """The row of a request that is begun here."""
        return RequestRow(
            request_id=granted.request_id,
            key=granted.request.key,
            account=self._account,
            holder=self._holder,
            state=RequestState.OPEN,
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
    ) -> dict[str, Decision]:
        """Decide on each request, by key; the budget is granted in order.

        For keys in `replacing`, an answer marked as unusable counts as missing.

        Raises:
            DamagedAnswers: nothing was begun; they must be quarantined first.
        """
        before = account = self._lock_account(connection, self._account)
        most = None if budget is None else budget.scaleb(PICO_DIGITS)
        claimed, standing = self._claim_all(connection, wanted)
        # Only now: whoever ended a request before it could be claimed has committed, so the answer is visible here.
        answers = self._find_answers(connection, wanted, replacing)
        decisions: dict[str, Decision] = dict(answers)
        over = set()
        for key, row in wanted.items():
            if key in answers:
                continue
            if key not in claimed:
                decisions[key] = self._open_elsewhere(row, standing.get(key))
            elif most is not None and account.committed + row.most > most:
                over.add(key)
            else:
                account = account.with_request(row)
                decisions[key] = row
        for ids in chunks([wanted[key].request_id for key in claimed & (answers.keys() | over)]):
            connection.execute(self._statements.drop_requests, {"ids": ids})
        self._write_account(connection, before, account.with_served(served.count, served.saved))
        if over:
            refused = OverBudget(spending=self.spending(connection))
            decisions |= dict.fromkeys(over, refused)
        return decisions

    def finish(
        self, connection: Connection, outcomes: Mapping[str, Outcome], records: Mapping[str, bytes], *, served: Served
    ) -> None:
        """Record how requests ended, and the records of answers, by request id; only the first outcome counts."""
        before = account = self._lock_account(connection, self._account)
        rows, missing = self._rows_to_end(connection, outcomes)
        for row in missing:
            account = account.with_request(row)
        ended = {key: end for key, row in rows.items() if (end := row.with_end(outcomes[key])) is not None}
        answered = {key: row for key, row in ended.items() if key in records}
        paid = {key: Paid(row, records[key]) for key, row in answered.items()}
        for key in paid.keys() - self._keep(connection, paid):
            ended[key] = answered[key].with_state(
                RequestState.SURPLUS, cost=answered[key].cost, reason="another one was kept"
            )
        for key, row in ended.items():
            account = account.with_change(rows[key], row)
        self._save(connection, ended.values())
        self._write_account(connection, before, account.with_served(served.count, served.saved))

    def mark(self, connection: Connection, key: str, problem: str) -> None:
        """Mark a stored answer as unusable; its cost counts as wasted by the account that paid."""
        payer = self._lock_payer(connection, find_payer(connection, key))
        if payer is not None and payer[1].state == RequestState.ANSWERED:
            account, row = payer
            unusable = row.with_state(RequestState.USELESS, cost=row.cost, reason=problem)
            self._save(connection, [unusable])
            self._write_account(connection, account, account.with_change(row, unusable))

    def quarantine(self, connection: Connection, key: str, damaged: bytes) -> Quarantined | None:
        """Quarantine a damaged answer; None if another process was faster."""
        request_id = find_payer(connection, key)
        payer = self._lock_payer(connection, request_id)
        if not quarantine_damaged(connection, self._database, key, damaged, request_id=request_id or ""):
            return None
        if payer is None:
            return Quarantined(key=key, cost=price_left_in(damaged))
        account, row = payer
        broken = row.with_state(RequestState.DAMAGED, cost=row.cost, reason="its bytes are damaged")
        self._save(connection, [broken])
        self._write_account(connection, account, account.with_change(row, broken))
        return Quarantined(key=key, cost=as_dollars(row.cost))

    def open_account(self, connection: Connection) -> None:
        """Create the account if it is missing; what its processes that have ended had in flight is in doubt."""
        self._lock_account(connection, self._account)
        of = self._requests.c
        its_own = select(self._requests).where(of.account == self._account, of.state == RequestState.OPEN)
        self._take_over(connection, connection.execute(its_own))

    def note_served(self, connection: Connection, served: Served) -> None:
        """Count answers that were served from the store."""
        account = self._lock_account(connection, self._account)
        self._write_account(connection, account, account.with_served(served.count, served.saved))

    def renew(self, connection: Connection, request_ids: Collection[str]) -> None:
        """Renew the leases of requests."""
        now = self._database.now
        for ids in chunks(request_ids):
            # A locked row is being ended.
            ours = (
                select(REQUESTS.c.request_id)
                .where(REQUESTS.c.request_id.in_(ids), REQUESTS.c.state == RequestState.OPEN)
                .with_for_update(skip_locked=True)
            )
            renewed = update(REQUESTS).where(REQUESTS.c.request_id.in_(ours))
            connection.execute(renewed.values(lease_until=now + self._lease_seconds))

    def give_up(self, connection: Connection, request_ids: Collection[str]) -> None:
        """Mark requests of this process that are still in flight as in doubt, so that nobody waits for them."""
        self._lose(connection, request_ids, "was closed while it was in flight")

    def spending(self, connection: Connection) -> Spending:
        """Read the account's spending; a request whose lease has expired is in doubt."""
        is_live = and_(REQUESTS.c.state == RequestState.OPEN, REQUESTS.c.lease_until > self._database.now)
        # One statement, so that no request is seen both open and paid.
        sums = (
            select(
                func.sum(case((is_live, REQUESTS.c.most), else_=0)).label("reserved"),
                func.sum(case((is_live, 0), else_=REQUESTS.c.most)).label("in_doubt"),
                func.sum(case((is_live, 0), else_=1)).label("num_in_doubt"),
            )
            .where(REQUESTS.c.account == self._account, REQUESTS.c.state.in_((RequestState.OPEN, RequestState.LOST)))
            .subquery()
        )
        both = select(ACCOUNTS, sums).join_from(ACCOUNTS, sums, true())
        row = connection.execute(both.where(ACCOUNTS.c.account == self._account)).one()
        account = AccountRow.read(row)
        if not account.is_intact(row.crc):
            account = self.recount(connection, account)
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

    def recount(self, connection: Connection, account: AccountRow) -> AccountRow:
        """Recompute the account's sums from its requests."""
        counted = AccountRow(account=account.account, answers_served=account.answers_served, saved=account.saved)
        sums = select(REQUESTS.c.state, func.count(), func.sum(REQUESTS.c.most), func.sum(REQUESTS.c.cost))
        of_account = sums.where(REQUESTS.c.account == account.account).group_by(REQUESTS.c.state)
        for state, count, most, cost in connection.execute(of_account):
            counted = counted.with_requests(state, count=count, most=int(most), cost=int(cost))
        return counted

    def _lock_account(self, connection: Connection, name: str) -> AccountRow:
        """Lock the account until the transaction ends; recount it if its row is damaged or missing."""
        row = self._statements.lock_account
        found = connection.execute(row, {"name": name}).one_or_none()
        if found is None:
            new = AccountRow(account=name).values() | {"crc": _NOT_COUNTED}
            connection.execute(self._database.insert(ACCOUNTS).values(new).on_conflict_do_nothing())
            found = connection.execute(row, {"name": name}).one()
        account = AccountRow.read(found)
        if account.is_intact(found.crc):
            return account
        if found.crc != _NOT_COUNTED:
            log.error("The sums of account %s do not match their checksum; recomputing them from its requests.", name)
        counted = self.recount(connection, account)
        self._write_account(connection, None, counted)
        return counted

    def _write_account(self, connection: Connection, before: AccountRow | None, after: AccountRow) -> None:
        if after != before:
            connection.execute(self._statements.change_account, {"name": after.account, **after.values()})

    def _open_elsewhere(self, row: RequestRow, standing: Row[Any] | None) -> RequestRow | Busy:
        if standing is None:
            return Busy(holder="one that has just ended", seconds=POLL_SECONDS)
        if standing.request_id == row.request_id:
            # A retry: the connection was lost after the commit.
            return row
        if standing.holder == self._holder:
            return Busy(holder=standing.holder, seconds=POLL_SECONDS)
        seconds = min(standing.seconds_left, _MAX_POLL_SECONDS)
        return Busy(holder=standing.holder, seconds=max(seconds, POLL_SECONDS))

    def _claim_all(
        self, connection: Connection, wanted: Mapping[str, RequestRow]
    ) -> tuple[set[str], dict[str, Row[Any]]]:
        """Claim what is free; returns the claimed keys, and the open requests that block the others."""
        claimed = self._claim(connection, wanted.values())
        standing = self._find_open(connection, wanted.keys() - claimed)
        silent = [row.request_id for row in standing.values() if row.seconds_left <= 0]
        is_silent = REQUESTS.c.lease_until <= self._database.now
        freed = self._lose(connection, silent, "did not renew it in time", only_if=is_silent)
        freed |= self._take_over(connection, standing.values())
        claimed |= self._claim(connection, [wanted[key] for key in freed])
        return claimed, standing

    def _claim(self, connection: Connection, rows: Iterable[RequestRow]) -> set[str]:
        values = [row.values() for row in sorted(rows, key=lambda row: row.key)]
        if not values:
            return set()
        return set(connection.execute(self._statements.claim, one_or_many(values)).scalars())

    def _find_open(self, connection: Connection, keys: Collection[str]) -> dict[str, Row[Any]]:
        found: dict[str, Row[Any]] = {}
        for some in chunks(keys):
            found |= {row.key: row for row in connection.execute(self._statements.find_open, {"keys": some})}
        return found

    def _take_over(self, connection: Connection, rows: Iterable[Row[Any]]) -> set[str]:
        """Mark the open requests among these whose process has ended as lost; returns their keys."""
        left = [row.request_id for row in rows if self._ownership.has_ended(row._mapping.get(_OWNER))]
        return self._lose(connection, left, "has ended")

    def _lose(
        self,
        connection: Connection,
        request_ids: Collection[str],
        why: str,
        *,
        only_if: ColumnElement[bool] = _ALWAYS,
    ) -> set[str]:
        """Mark open requests as lost; returns their keys, which are free now. `why` follows the holder's name."""
        lost = []
        for ids in chunks(request_ids):
            rows = select(REQUESTS).where(
                REQUESTS.c.request_id.in_(ids), REQUESTS.c.state == RequestState.OPEN, only_if
            )
            # A locked row is being ended, or lost by another process.
            for found in connection.execute(rows.with_for_update(skip_locked=True)):
                row = RequestRow.read(found)
                if not row.is_intact(found.crc):
                    log.error("The row of request %s does not match its checksum; using it as it is.", row.request_id)
                lost.append(row.with_state(RequestState.LOST, reason=f"{row.holder} {why}"))
        self._save(connection, lost)
        return {row.key for row in lost}

    def _find_answers(
        self, connection: Connection, keys: Collection[str], replacing: Collection[str]
    ) -> dict[str, AnswerRecord]:
        answers = find_answers(connection, self._database, keys)
        replaceable = answers.keys() & set(replacing)
        unusable = replaceable - find_usable(connection, self._statements, replaceable)
        return {key: answer for key, answer in answers.items() if key not in unusable}

    def _keep(self, connection: Connection, paid: Mapping[str, Paid]) -> set[str]:
        """Store answers, in place of unusable ones; returns the ids of the requests whose answers were stored."""
        kept = keep_answers(connection, self._statements, paid.values())
        others = {key: paid[key] for key in paid.keys() - kept}
        if others:
            moved = remove_unusable(connection, self._database, {each.row.key for each in others.values()})
            # The sums of the account that paid do not change.
            self._save(
                connection, [row.with_state(RequestState.REPLACED, cost=row.cost, reason=row.reason) for row in moved]
            )
            kept |= keep_answers(connection, self._statements, others.values())
            surplus = [each for key, each in others.items() if key not in kept]
            quarantine_answers(connection, self._database, surplus, why="surplus")
        return kept

    def _rows_to_end(
        self, connection: Connection, outcomes: Mapping[str, Outcome]
    ) -> tuple[dict[str, RequestRow], list[RequestRow]]:
        """Lock the requests; returns their rows by id, and those missing from the store, as they were begun."""
        found: dict[str, Row[Any]] = {}
        for ids in chunks(outcomes.keys()):
            found |= {row.request_id: row for row in self._lock_requests(connection, ids)}
        rows = {}
        for key, outcome in outcomes.items():
            rows[key] = self.row_of(outcome.granted)
            if key in found and RequestRow.read(found[key]).is_intact(found[key].crc):
                rows[key] = RequestRow.read(found[key])
            elif key in found:
                log.error("The row of request %s does not match its checksum; rewriting it.", key)
        return rows, [rows[key] for key in rows.keys() - found.keys()]

    def _lock_requests(self, connection: Connection, ids: list[str]) -> Iterable[Row[Any]]:
        if len(ids) == 1:
            return connection.execute(self._statements.lock_request, {"id": ids[0]})
        return connection.execute(self._statements.lock_requests, {"ids": ids})

    def _save(self, connection: Connection, rows: Iterable[RequestRow]) -> None:
        """Insert or overwrite requests."""
        values = [row.values() for row in sorted(rows, key=lambda row: row.request_id)]
        if not values:
            return
        connection.execute(self._statements.save_request, one_or_many(values))

    def _lock_payer(self, connection: Connection, request_id: str | None) -> tuple[AccountRow, RequestRow] | None:
        """Lock the account that paid for an answer, and the request; None if unknown."""
        is_it = REQUESTS.c.request_id == request_id
        name = connection.scalar(select(REQUESTS.c.account).where(is_it))
        if name is None:
            return None
        account = self._lock_account(connection, name)
        found = connection.execute(select(REQUESTS).where(is_it).with_for_update()).one()
        row = RequestRow.read(found)
        return (account, row) if row.is_intact(found.crc) else None
