"""Check the integrity of a shared store."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, select

from crashproof.records.requests import price_left_in
from crashproof.rules.spending import as_dollars
from crashproof.teacher.shared_store.answers import RECORD, problem_with_record
from crashproof.teacher.shared_store.ledger import Ledger
from crashproof.teacher.shared_store.tables import ACCOUNTS, ANSWERS, REQUESTS, STORED_STATES, AccountRow, RequestRow

__all__ = ["find_problems"]


def find_problems(connection: Connection, ledger: Ledger) -> list[str]:
    """Describe every damaged row, in one consistent snapshot."""
    return [
        *_check_file(connection),
        *_check_answers(connection),
        *_check_requests(connection),
        *_check_missing_answers(connection),
        *_check_accounts(connection, ledger),
    ]


def _check_file(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        for (said,) in connection.exec_driver_sql("PRAGMA integrity_check"):
            if said != "ok":
                yield f"SQLite: {said}."


def _check_answers(connection: Connection) -> Iterator[str]:
    answers = select(ANSWERS.c.key, RECORD, REQUESTS.c.cost).outerjoin(
        REQUESTS, ANSWERS.c.request_id == REQUESTS.c.request_id
    )
    for key, record, cost in connection.execute(answers):
        problem = problem_with_record(key, record)
        if problem is not None:
            price = as_dollars(cost) if cost is not None else price_left_in(record)
            paid = "an unknown amount" if price is None else f"${price}"
            yield f"The answer for {key}: {problem} ({paid} was paid for it)."
        elif cost is None:
            yield f"The answer for {key} has no request."


def _check_requests(connection: Connection) -> Iterator[str]:
    for row in connection.execute(select(REQUESTS)):
        if not RequestRow.read(row).is_intact(row.crc):
            yield f"The row of request {row.request_id} for {row.key} does not match its checksum."


def _check_missing_answers(connection: Connection) -> Iterator[str]:
    rows = (
        select(REQUESTS.c.key, REQUESTS.c.cost)
        .outerjoin(ANSWERS, ANSWERS.c.request_id == REQUESTS.c.request_id)
        .where(REQUESTS.c.state.in_(STORED_STATES), ANSWERS.c.key.is_(None))
    )
    for key, cost in connection.execute(rows):
        yield f"The answer for {key} is missing (${as_dollars(cost)} was paid for it)."


def _check_accounts(connection: Connection, ledger: Ledger) -> Iterator[str]:
    for row in connection.execute(select(ACCOUNTS)).all():
        account = AccountRow.read(row)
        if not account.is_intact(row.crc):
            yield f"The row of account {row.account} does not match its checksum."
        elif account != ledger.recount(connection, account):
            yield f"The sums of account {row.account} do not match its requests."
