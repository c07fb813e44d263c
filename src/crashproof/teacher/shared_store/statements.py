"""Build the statements of a shared store once.

To put a statement together takes SQLAlchemy three times as long as to run it on SQLite. Those that a put or a read
needs are made when a store is opened; what differs from call to call is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, and_, bindparam, delete, select, update

from crashproof.teacher.shared_store.database import Database
from crashproof.teacher.shared_store.tables import ACCOUNTS, ANSWERS, REQUESTS, RequestRow, RequestState

__all__ = ["Statements", "one_or_many"]


class Statements:
    """What a put needs, for one database; parameters are named in each docstring."""

    def __init__(self, database: Database, requests: Table, *, owner: dict[str, str], lease_seconds: float) -> None:
        """Build them.

        Args:
            database: Its dialect and clock.
            requests: The table of requests, with owners or without.
            owner: The column of the owner, where there is one, and this process.
            lease_seconds: How long a request is leased.
        """
        now = database.now
        self.lock_account = select(ACCOUNTS).where(ACCOUNTS.c.account == bindparam("name")).with_for_update()
        """`name`"""
        self.change_account = update(ACCOUNTS).where(ACCOUNTS.c.account == bindparam("name"))
        """`name`, and the columns that change"""
        # Waits for a transaction that is ending a request to the same key.
        self.claim = (
            database.insert(requests)
            .on_conflict_do_nothing()
            .values(sent_at=now, lease_until=now + lease_seconds, **owner)
            .returning(REQUESTS.c.key)
        )
        """the columns of `RequestRow`"""
        self.lock_request = select(REQUESTS).where(REQUESTS.c.request_id == bindparam("id")).with_for_update()
        """`id`"""
        self.lock_requests = (
            select(REQUESTS)
            .where(REQUESTS.c.request_id.in_(bindparam("ids", expanding=True)))
            .order_by(REQUESTS.c.request_id)
            .with_for_update()
        )
        """`ids`"""
        self.drop_requests = delete(REQUESTS).where(REQUESTS.c.request_id.in_(bindparam("ids", expanding=True)))
        """`ids`"""
        seconds_left = (requests.c.lease_until - now).label("seconds_left")
        self.find_open = select(requests, seconds_left).where(
            requests.c.key.in_(bindparam("keys", expanding=True)), requests.c.state == RequestState.OPEN
        )
        """`keys`"""
        # The owner of what has ended is of no interest; without it the row is shorter.
        nobody = dict.fromkeys(owner)
        new = database.insert(requests).values(sent_at=now, lease_until=now, **nobody)
        columns = [*RequestRow.__struct_fields__, "crc"]
        changed = {name: new.excluded[name] for name in columns if name != "request_id"} | nobody
        self.save_request = new.on_conflict_do_update(index_elements=["request_id"], set_=changed)
        """the columns of `RequestRow`"""
        self.keep_answer = (
            database.insert(ANSWERS).on_conflict_do_nothing().values(created_at=now).returning(ANSWERS.c.request_id)
        )
        """`key`, `request_id`, `record`"""
        self.find_usable = (
            select(ANSWERS.c.key)
            .select_from(ANSWERS.join(REQUESTS, ANSWERS.c.request_id == REQUESTS.c.request_id))
            .where(
                and_(ANSWERS.c.key.in_(bindparam("keys", expanding=True)), REQUESTS.c.state == RequestState.ANSWERED)
            )
        )
        """`keys`"""


def one_or_many(values: Sequence[dict[str, Any]]) -> dict[str, Any] | list[dict[str, Any]]:
    """Rows as parameters: one alone is sent without the preparations for many."""
    return values[0] if len(values) == 1 else list(values)
