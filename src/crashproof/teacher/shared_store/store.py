"""A store shared by many processes.

A `ResponseStore` in a database: a SQLite file for the processes of one machine, PostgreSQL for many machines. A
request in flight is leased to its process, and renewed by a thread. Once the process is known to have ended, or the
lease expires, the request is in doubt, and others may send it. Spending is booked to an account, whose budget covers
all processes that use its name; answers are shared by all accounts.
"""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Self, TypeVar

from crashproof.answers.store import Answered, Busy, Granted, Intent, Outcome, Verdict
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError, StorageError
from crashproof.optional_dependencies import require_modules
from crashproof.records.lines.codec import encode
from crashproof.records.requests import AnswerRecord, Spending
from crashproof.rules.requests import TeacherRequest, nearest_difference

require_modules("shared-store", "psycopg", "sqlalchemy")

from sqlalchemy import Connection

from crashproof.teacher.shared_store.answers import DamagedAnswers, decode_answer, read_records, scan_requests
from crashproof.teacher.shared_store.check import find_problems
from crashproof.teacher.shared_store.database import Database
from crashproof.teacher.shared_store.leases import Leases
from crashproof.teacher.shared_store.ledger import POLL_SECONDS, Decision, Ledger, Served
from crashproof.teacher.shared_store.owners import LINUX_PROCESSES, UNKNOWN_OWNER, Ownership, ProcessTable
from crashproof.teacher.shared_store.tables import RequestRow, as_pico, make_ready

__all__ = ["SharedStore"]

log = logging.getLogger("crashproof")

T = TypeVar("T")

_LONGEST_ACCOUNT = 200


class SharedStore:
    """A `ResponseStore` that outlives its processes; `with SharedStore.open(…) as store`."""

    def __init__(
        self,
        database: Database,
        *,
        account: str,
        lease_seconds: float,
        clock: Clock,
        run_lock: Path | None = None,
        processes: ProcessTable = LINUX_PROCESSES,
    ) -> None:
        """Use a database; see `open` for a URL."""
        self._database = database
        self._account = account
        self._clock = clock
        self._pid = os.getpid()
        self._holder = f"{socket.gethostname()}:{self._pid}"
        can_have_owners = database.write(lambda connection: make_ready(connection, database))
        self._ledger = Ledger(
            database,
            account=account,
            holder=self._holder,
            lease_seconds=lease_seconds,
            ownership=(Ownership.of_this_process(processes, run_lock=run_lock) if can_have_owners else UNKNOWN_OWNER),
        )
        self._leases = Leases(self._renew, interval_seconds=lease_seconds / 3)
        self._lock = threading.Lock()
        self._served = Served()
        """Not yet written: a transaction for each would be too expensive."""
        database.write(self._ledger.open_account)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        account: str,
        lease_seconds: float = 60.0,
        retry_seconds: float = 20.0,
        clock: Clock = SYSTEM_CLOCK,
        run_lock: Path | None = None,
        processes: ProcessTable = LINUX_PROCESSES,
    ) -> Self:
        """Open a store; create it if it does not exist.

        Args:
            url: `sqlite:////absolute/path.db`, or `postgresql+psycopg://user:password@host/database`.
            account: The account to book spending to; a budget covers all processes that use the name.
            lease_seconds: How long others wait for a process that does not renew its leases, unless they know that it
                has ended.
            retry_seconds: How long transient database errors are retried.
            clock: Source of time for SQLite; PostgreSQL has its own.
            run_lock: The lock file of a run of which this process is the writer: the next writer on this kernel knows
                by it that this one has ended, whatever container each runs in.
            processes: The processes that this one can see.

        Raises:
            ConfigError: the URL or the account is invalid.
            MissingExtra: SQLAlchemy or psycopg is not installed.
            NewerFormat: a newer crashproof created the store; nothing was changed.
            DiskFull, StoreUnavailable: it cannot be reached, or is not a store.
        """
        if not account.isprintable() or not account.isascii() or not 0 < len(account) <= _LONGEST_ACCOUNT:
            raise ConfigError(
                f"An account name must be 1 to {_LONGEST_ACCOUNT} printable ASCII characters, got {account!r}."
            )
        if not lease_seconds > 0:
            raise ConfigError(f"lease_seconds must be above 0, got {lease_seconds}.")
        database = Database(url, retry_seconds=retry_seconds, clock=clock)
        try:
            return cls(
                database,
                account=account,
                lease_seconds=lease_seconds,
                clock=clock,
                run_lock=run_lock,
                processes=processes,
            )
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def serve(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        return self.serve_all([key])[0]

    def read(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore`."""
        return next(self.read_all([key]))

    def serve_all(self, keys: Sequence[str]) -> list[AnswerRecord | None]:
        """See `ResponseStore`."""
        answers = list(self.read_all(keys))
        self._count_served([answer for answer in answers if answer is not None])
        return answers

    def read_all(self, keys: Sequence[str]) -> Iterator[AnswerRecord | None]:
        """See `ResponseStore`."""
        records = self._retry_without_damaged(lambda: read_records(self._database, keys))
        return (decode_answer(records[key], self._database) if key in records else None for key in keys)

    def lacks(self, key: str) -> bool:
        """See `ResponseStore`; another process may have put it there by now."""
        return False

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
        decisions = self._retry_without_damaged(
            lambda: self._write(
                lambda database, served: self._ledger.begin(
                    database, rows, replacing=replacing, budget=budget, served=served
                )
            )
        )
        self._leases.hold(row.request_id for row in decisions.values() if isinstance(row, RequestRow))
        verdicts = [self._verdict(intent.request.key, wanted, decisions) for intent in intents]
        self._count_served([verdict for verdict in verdicts if isinstance(verdict, AnswerRecord)])
        return verdicts

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """See `ResponseStore`; all in one transaction.

        An answer is stored even if its lease expired. If another one is stored already, its cost counts as wasted.
        """
        ends: dict[str, Outcome] = {}
        for outcome in outcomes:
            # An answer overrides an earlier outcome.
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
        self._leases.release(ends)

    def mark(self, key: str, problem: str) -> None:
        """See `ResponseStore`."""
        self._database.write(lambda database: self._ledger.mark(database, key, problem))

    def why_miss(self, request: TeacherRequest) -> str:
        """See `ResponseStore`; reads the answers, newest first, until none could be nearer."""
        if self.read(request.key) is not None:
            return nearest_difference(request, [request.as_record()])
        return self._database.scan(lambda database: self._nearest(database, request))

    def spending(self) -> Spending:
        """See `ResponseStore`; for this account."""
        self._write_served()
        return self._database.read(self._ledger.spending)

    def problems(self) -> list[str]:
        """Describe all damage, with its cost; reads everything and changes nothing."""
        return self._database.scan(lambda database: find_problems(database, self._ledger))

    def close(self) -> None:
        """See `ResponseStore`; requests still in flight are in doubt from now on, and others may send them."""
        left = self._leases.close()
        # A fork has the requests of its parent in memory, who goes on with them.
        if left and os.getpid() == self._pid:
            self._give_up(left)
        try:
            self._write_served()
        except StorageError as error:
            # Nothing depends on this number.
            log.warning("Could not record how many answers were served: %s", error)
        self._database.close()

    def _give_up(self, request_ids: Collection[str]) -> None:
        try:
            self._database.write(lambda connection: self._ledger.give_up(connection, request_ids))
        except StorageError as error:
            log.warning(
                "Could not give up %d requests in flight, whose leases have to expire: %s", len(request_ids), error
            )

    def _nearest(self, database: Connection, request: TeacherRequest) -> str:
        # Close the cursor as soon as the difference is known.
        with closing(scan_requests(database)) as requests:
            return nearest_difference(request, requests)

    def _verdict(self, key: str, unused: dict[str, Granted], decisions: dict[str, Decision]) -> Verdict:
        verdict = decisions[key]
        if not isinstance(verdict, RequestRow):
            return verdict
        # Of equal requests only one is sent.
        granted = unused.pop(key, None)
        return granted if granted is not None else Busy(holder=self._holder, seconds=POLL_SECONDS)

    def _write(self, work: Callable[[Connection, Served], T]) -> T:
        with self._take_served() as served:
            return self._database.write(lambda database: work(database, served))

    def _write_served(self) -> None:
        with self._take_served() as served:
            if served.count:
                self._database.write(lambda database: self._ledger.note_served(database, served))

    @contextmanager
    def _take_served(self) -> Iterator[Served]:
        """Take the counts to write; restore them on failure."""
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

    def _retry_without_damaged(self, do: Callable[[], T]) -> T:
        while True:
            try:
                return do()
            except DamagedAnswers as damage:
                for key, record in damage.found.items():
                    self._quarantine(key, record)

    def _quarantine(self, key: str, record: bytes) -> None:
        moved = self._database.write(lambda database: self._ledger.quarantine(database, key, record))
        if moved is not None:
            log.error(
                "The answer for %s in %s is damaged (%s was paid for it). Its bytes were moved to the table "
                "crashproof_set_aside.",
                key,
                self._database.name,
                "an unknown amount" if moved.cost is None else f"${moved.cost}",
            )

    def _renew(self, request_ids: list[str]) -> None:
        self._database.write(lambda database: self._ledger.renew(database, request_ids))
        self._write_served()
