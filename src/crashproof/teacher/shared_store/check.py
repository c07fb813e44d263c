"""Say what is damaged in a shared store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from sqlalchemy import Connection, select

from crashproof.records.requests import price_left_in
from crashproof.teacher.shared_store.answers import RECORD, problem_in
from crashproof.teacher.shared_store.ledger import Ledger
from crashproof.teacher.shared_store.tables import (
    ACCOUNTS,
    ANSWERS,
    IS_TO_BE_FOUND,
    REQUESTS,
    AccountRow,
    RequestRow,
    as_dollars,
)

__all__ = ["problems_in"]


def problems_in(connection: Connection, ledger: Ledger) -> list[str]:
    """Every damaged row, in words; all of one moment."""
    return list(
        chain(
            _of_the_file(connection),
            _of_answers(connection),
            _of_requests(connection),
            _of_missing_answers(connection),
            _of_accounts(connection, ledger),
        )
    )


def _of_the_file(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        for (said,) in connection.exec_driver_sql("PRAGMA integrity_check"):
            if said != "ok":
                yield f"SQLite: {said}."


def _of_answers(connection: Connection) -> Iterator[str]:
    answers = select(ANSWERS.c.key, RECORD, REQUESTS.c.cost).outerjoin(
        REQUESTS, ANSWERS.c.request_id == REQUESTS.c.request_id
    )
    for key, record, cost in connection.execute(answers):
        problem = problem_in(key, record)
        if problem is not None:
            price = as_dollars(cost) if cost is not None else price_left_in(record)
            paid = "an unknown sum" if price is None else f"${price}"
            yield f"The answer for {key}: {problem} ({paid} had been paid for it)."
        elif cost is None:
            yield f"The answer for {key} belongs to no request."


def _of_requests(connection: Connection) -> Iterator[str]:
    for row in connection.execute(select(REQUESTS)):
        if not RequestRow.read(row).is_whole(row.crc):
            yield f"The row of request {row.request_id} for {row.key} was altered."


def _of_missing_answers(connection: Connection) -> Iterator[str]:
    rows = (
        select(REQUESTS.c.key, REQUESTS.c.cost)
        .outerjoin(ANSWERS, ANSWERS.c.request_id == REQUESTS.c.request_id)
        .where(REQUESTS.c.state.in_(IS_TO_BE_FOUND), ANSWERS.c.key.is_(None))
    )
    for key, cost in connection.execute(rows):
        yield f"The answer for {key} is missing (${as_dollars(cost)} had been paid for it)."


def _of_accounts(connection: Connection, ledger: Ledger) -> Iterator[str]:
    for row in connection.execute(select(ACCOUNTS)).all():
        account = AccountRow.read(row)
        if not account.is_whole(row.crc):
            yield f"The row of account {row.account} was altered."
        elif account != ledger.counted(connection, account):
            yield f"The sums of account {row.account} are not those of its requests."
