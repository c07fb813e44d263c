"""Teacher answers that many processes and machines share.

A `ResponseStore` in a database: a SQLite file for the processes of one machine, PostgreSQL for many machines. What a
process begins is leased to it, and renewed by a thread; once the process is silent for longer, its requests are in
doubt, and others may send them. Who spends does so under the name of an account, whose budget holds for all
processes that share the name; answers are everybody's.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal
from types import TracebackType
from typing import Self, TypeVar

from crashproof.answers.store import Answered, Busy, Granted, Intent, Outcome, Verdict
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError, StorageError
from crashproof.optional_dependencies import require_modules
from crashproof.records.codec import encode
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import TeacherRequest, nearest_difference

require_modules("shared-store", "psycopg", "sqlalchemy")

from sqlalchemy import Connection

from crashproof.teacher.shared_store.answers import DamagedAnswers, find_answers, requests_asked
from crashproof.teacher.shared_store.check import problems_in
from crashproof.teacher.shared_store.database import Database
from crashproof.teacher.shared_store.leases import Leases
from crashproof.teacher.shared_store.ledger import SECONDS_TO_LOOK_AGAIN, Ledger, Said, Served
from crashproof.teacher.shared_store.tables import RequestRow, as_pico, make_ready

__all__ = ["SharedStore"]

log = logging.getLogger("crashproof")

T = TypeVar("T")

_LONGEST_ACCOUNT = 200


class SharedStore:
    """A `ResponseStore` that outlives its processes; `with SharedStore.open(…) as store`."""

    def __init__(self, database: Database, *, account: str, lease_seconds: float, clock: Clock) -> None:
        """Take a database; `open` is for a URL."""
        self._database = database
        self._account = account
        self._clock = clock
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._ledger = Ledger(database, account=account, holder=self._holder, lease_seconds=lease_seconds)
        self._leases = Leases(self._renew, interval_seconds=lease_seconds / 3)
        self._lock = threading.Lock()
        self._served = Served()
        """Not yet written: a transaction for each would cost more than it tells."""
        database.write(self._prepare)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        account: str,
        lease_seconds: float = 60.0,
        patience_seconds: float = 20.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Self:
        """Open a store, and make it where there is none.

        Args:
            url: `sqlite:////absolute/path.db`, or `postgresql+psycopg://user:password@host/database`.
            account: Who spends; a budget holds for all that spend under one name.
            lease_seconds: How long others wait for a process that is silent.
            patience_seconds: How long a database that is away is waited for.
            clock: The time, where the database has none of its own.

        Raises:
            ConfigError: the URL or the account is none.
            MissingExtra: SQLAlchemy or psycopg is not installed.
            NewerFormat: a newer crashproof made the store; nothing was changed.
            DiskFull, StoreUnavailable: it cannot be reached, or is none.
        """
        if not account.isprintable() or not account.isascii() or not 0 < len(account) <= _LONGEST_ACCOUNT:
            raise ConfigError(f"An account's name is printable ASCII text, got {account!r}.")
        if not lease_seconds > 0:
            raise ConfigError(f"lease_seconds must be above 0, got {lease_seconds}.")
        database = Database(url, patience_seconds=patience_seconds, clock=clock)
        try:
            return cls(database, account=account, lease_seconds=lease_seconds, clock=clock)
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def serve(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        answer = self.read(key)
        if answer is not None:
            self._count_served([answer])
        return answer

    def read(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        found = self._without_damage(
            lambda: self._database.read(lambda database: find_answers(database, self._database, [key]))
        )
        return found.get(key)

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        """See `ResponseStore`; all in one transaction."""
        if not intents:
            return []
        first: dict[str, Intent] = {}
        for intent in intents:
            first.setdefault(intent.request.key, intent)
        wanted = {
            key: Granted(request_id=secrets.token_hex(8), request=intent.request, most=intent.most)
            for key, intent in first.items()
        }
        replacing = {key for key, intent in first.items() if intent.replaces}
        rows = {key: self._ledger.row_of(granted) for key, granted in wanted.items()}
        said = self._without_damage(
            lambda: self._write(
                lambda database, served: self._ledger.begin(
                    database, rows, replacing=replacing, budget=budget, served=served
                )
            )
        )
        self._leases.hold(row.request_id for row in said.values() if isinstance(row, RequestRow))
        verdicts = [self._verdict(intent.request.key, wanted, said) for intent in intents]
        self._count_served([verdict for verdict in verdicts if isinstance(verdict, AnswerRecord)])
        return verdicts

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """See `ResponseStore`; all in one transaction.

        An answer is kept also where its lease ran out. Where another one is kept already, it is paid for and wasted.
        """
        ends: dict[str, Outcome] = {}
        for outcome in outcomes:
            # An answer is worth more than what was said before it.
            if isinstance(outcome, Answered) or outcome.granted.request_id not in ends:
                ends[outcome.granted.request_id] = outcome
        if not ends:
            return
        now = self._clock.now()
        records = {
            request_id: encode(outcome.as_record(timestamp=now, session_id=self._account, attempt=0))
            for request_id, outcome in ends.items()
            if isinstance(outcome, Answered)
        }
        self._write(lambda database, served: self._ledger.finish(database, ends, records, served=served))
        self._leases.let_go(ends)

    def mark(self, key: str, problem: str) -> None:
        """See `ResponseStore`."""
        self._database.write(lambda database: self._ledger.mark(database, key, problem))

    def why_miss(self, request: TeacherRequest) -> str:
        """See `ResponseStore`; reads the answers, the newest first, until one could not be nearer."""
        if self.read(request.key) is not None:
            return nearest_difference(request, [request.as_record()])
        return self._database.scan(lambda database: self._nearest(database, request))

    def spending(self) -> Spending:
        """See `ResponseStore`; of this account."""
        self._write_served()
        return self._database.read(self._ledger.spending)

    def problems(self) -> list[str]:
        """What is damaged, in words, with its price; reads everything and changes nothing."""
        return self._database.scan(lambda database: problems_in(database, self._ledger))

    def close(self) -> None:
        """See `ResponseStore`; requests under way are in doubt once their lease has run out."""
        self._leases.close()
        try:
            self._write_served()
        except StorageError as error:
            # A number that nothing depends on.
            log.warning("How many answers were served could not be written down: %s", error)
        self._database.close()

    def _prepare(self, database: Connection) -> None:
        make_ready(database, self._database)
        self._ledger.open_account(database)

    def _nearest(self, database: Connection, request: TeacherRequest) -> str:
        # Read no further than the question needs.
        with closing(requests_asked(database)) as asked:
            return nearest_difference(request, asked)

    def _verdict(self, key: str, unsaid: dict[str, Granted], said: dict[str, Said]) -> Verdict:
        verdict = said[key]
        if not isinstance(verdict, RequestRow):
            return verdict
        # Of two that are equal, one is sent.
        granted = unsaid.pop(key, None)
        return granted if granted is not None else Busy(holder=self._holder, seconds=SECONDS_TO_LOOK_AGAIN)

    def _write(self, work: Callable[[Connection, Served], T]) -> T:
        with self._served_so_far() as served:
            return self._database.write(lambda database: work(database, served))

    def _write_served(self) -> None:
        with self._served_so_far() as served:
            if served.count:
                self._database.write(lambda database: self._ledger.note_served(database, served))

    @contextmanager
    def _served_so_far(self) -> Iterator[Served]:
        """What is to be written now; remembered again where it cannot be."""
        with self._lock:
            served, self._served = self._served, Served()
        try:
            yield served
        except BaseException:
            with self._lock:
                self._served += served
            raise

    def _count_served(self, answers: Sequence[AnswerRecord]) -> None:
        served = Served(count=len(answers), saved=sum(as_pico(answer.cost) for answer in answers))
        with self._lock:
            self._served += served

    def _without_damage(self, do: Callable[[], T]) -> T:
        while True:
            try:
                return do()
            except DamagedAnswers as damage:
                for key, record in damage.found.items():
                    self._set_aside(key, record)

    def _set_aside(self, key: str, record: bytes) -> None:
        moved = self._database.write(lambda database: self._ledger.set_aside(database, key, record))
        if moved is not None:
            log.error(
                "The answer for %s in %s is damaged (%s had been paid for it). What is left of it is in the table "
                "crashproof_set_aside.",
                key,
                self._database.name,
                "an unknown sum" if moved.cost is None else f"${moved.cost}",
            )

    def _renew(self, request_ids: list[str]) -> None:
        self._database.write(lambda database: self._ledger.renew(database, request_ids))
        self._write_served()
