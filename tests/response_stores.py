"""Fixtures for every kind of answer store, with one interface to open, kill and damage them."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from postgres import PostgresServer

from crashproof import ProgressTracker, TrackerSettings
from crashproof.answers.store import Answered, Granted, Intent, ResponseStore
from crashproof.clock import SYSTEM_CLOCK
from crashproof.rules.requests import teacher_request
from crashproof.teacher.shared_store.database import Database
from crashproof.teacher.shared_store.store import SharedStore
from crashproof.testing import FakeClock, forget_open_runs

QUIET = TrackerSettings(has_heartbeat=False)
CENT = Decimal("0.01")


def intent(question: object, most: Decimal = CENT, **parameters: Any) -> Intent:
    """The intent to ask one question."""
    body = {"model": "m", "messages": [{"role": "user", "content": str(question)}]} | parameters
    return Intent(request=teacher_request("http://teacher/v1", body), most=most)


def key_of(question: object) -> str:
    """The key under which its answer is stored."""
    return intent(question).request.key


def granted(store: ResponseStore, question: object, *, budget: Decimal | None = None, **how: Any) -> Granted:
    """Begin a request, which must be granted."""
    (verdict,) = store.begin([intent(question, **how)], budget=budget)
    assert isinstance(verdict, Granted), verdict
    return verdict


def answered(request: Granted, cost: Decimal = CENT / 2, **others: Any) -> Answered:
    """The outcome of a granted request that was answered."""
    response = {"text": f"about {request.request.body['messages'][0]['content']}"}
    return Answered(**{"granted": request, "cost": cost, "response": response} | others)


def keep(store: ResponseStore, *questions: object, cost: Decimal = CENT / 2) -> None:
    """Store the answers to questions."""
    store.finish([answered(granted(store, question), cost) for question in questions])


class StoreFixture(Protocol):
    """Opens stores of one kind."""

    def open(self, account: str = "us") -> ResponseStore:
        """Open the store of this test, for the first time or again."""
        ...

    def after_death_of(self, store: ResponseStore) -> ResponseStore:
        """Kill the process, let its leases expire, and open the store again."""
        ...

    def flip(self, key: str, place: float, bit: int) -> bytes:
        """Flip one bit of a stored answer, at a fraction of its length; returns its bytes now."""
        ...

    def set_aside(self) -> bytes:
        """All quarantined bytes."""
        ...

    def close(self) -> None:
        """Close what was opened."""
        ...


class RunStoreFixture:
    """The run's own store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trackers: list[ProgressTracker] = []

    def open(self, account: str = "us") -> ResponseStore:
        tracker = ProgressTracker(self._folder, {"account": account}, 10, settings=QUIET, clock=FakeClock())
        self._trackers.append(tracker)
        return tracker.responses

    def after_death_of(self, store: ResponseStore) -> ResponseStore:
        forget_open_runs()
        self._trackers.clear()
        return self.open()

    def flip(self, key: str, place: float, bit: int) -> bytes:
        path = self._folder / "api_recovery.jsonl"
        content = bytearray(path.read_bytes())
        line = next(line for line in bytes(content).splitlines(keepends=True) if key.encode() in line)
        start = content.index(line)
        content[start + int(place * len(line))] ^= 1 << bit
        path.write_bytes(content)
        return bytes(content[start : start + len(line)])

    def set_aside(self) -> bytes:
        return b"".join(path.read_bytes() for path in (self._folder / "set_aside").glob("*.jsonl"))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class SqlStoreFixture:
    """A shared store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = FakeClock()
        self._stores: list[SharedStore] = []

    def open(self, account: str = "us", **how: Any) -> SharedStore:
        arguments = {"lease_seconds": 60.0, "clock": self.clock, "retry_seconds": 5.0} | how
        self._stores.append(SharedStore.open(self.url, account=account, **arguments))
        return self._stores[-1]

    @contextmanager
    def database(self, **how: Any) -> Iterator[Database]:
        """The database under it."""
        database = Database(self.url, **{"retry_seconds": 0.1, "clock": SYSTEM_CLOCK} | how)
        yield database
        database.close()

    def after_death_of(self, store: ResponseStore) -> SharedStore:
        store.close()
        self.let_leases_run_out()
        return self.open()

    def set_aside(self) -> bytes:
        return b"".join(bytes(row[0]) for row in self.execute("SELECT record FROM crashproof_set_aside"))

    def content(self) -> dict[str, list[Any]]:
        """All that is stored, by table."""
        tables = ("version", "answers", "set_aside", "requests", "accounts")
        return {name: sorted(self.execute(f"SELECT * FROM crashproof_{name}")) for name in tables}

    def flip(self, key: str, place: float, bit: int) -> bytes:
        ((found,),) = self.execute(f"SELECT record FROM crashproof_answers WHERE key = '{key}'")
        record = bytearray(found)
        record[int(place * len(record))] ^= 1 << bit
        self.put(key, bytes(record))
        return bytes(record)

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def execute(self, statement: str) -> list[Any]:
        """Run a statement directly on the database."""
        raise NotImplementedError

    def let_leases_run_out(self) -> None:
        """Let two minutes pass."""
        raise NotImplementedError

    def put(self, key: str, record: bytes) -> None:
        """Overwrite an answer."""
        raise NotImplementedError


class SqliteFixture(SqlStoreFixture):
    """A shared store in a SQLite file, with a fake clock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "answers.db"
        super().__init__(f"sqlite:///{self.path}")

    def execute(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()

    def let_leases_run_out(self) -> None:
        self.clock.advance(minutes=2)

    def put(self, key: str, record: bytes) -> None:
        self.execute(f"UPDATE crashproof_answers SET record = x'{record.hex()}' WHERE key = '{key}'")


class PostgresFixture(SqlStoreFixture):
    """A shared store on a PostgreSQL server, in its own schema."""

    _numbers = itertools.count()

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.schema = f"test_{next(self._numbers)}"
        server.execute(f"CREATE SCHEMA {self.schema}")
        super().__init__(server.url(self.schema))

    def execute(self, statement: str) -> list[Any]:
        return self.server.execute(statement, schema=self.schema)

    def let_leases_run_out(self) -> None:
        # The clock is the server's.
        self.execute("UPDATE crashproof_requests SET lease_until = lease_until - 120")

    def put(self, key: str, record: bytes) -> None:
        self.execute(f"UPDATE crashproof_answers SET record = decode('{record.hex()}', 'hex') WHERE key = '{key}'")
