"""Transactions with retries."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Select,
    Table,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    make_url,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError, DiskFull, StorageError, StoreUnavailable
from crashproof.optional_dependencies import missing_extra

__all__ = ["Database", "Insert", "chunks"]

log = logging.getLogger("crashproof")

T = TypeVar("T")

Insert = postgresql.Insert | sqlite.Insert

_MAX_LIST = 500
_LONGEST_WAIT_SECONDS = 2.0
_IDLE_SECONDS = 10
"""How long a transaction may be idle: a suspended process must not block all others."""

_CONNECT = {"connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
"""Detects a dead connection within half a minute."""

_TRANSIENT_STATES = ("08", "40", "57P", "53300", "55P03", "25P03")
"""SQLSTATEs or their prefixes: connection lost, deadlock, shutdown, too many clients, locked, idle for too long."""


class Database:
    """Transactions on SQLite or PostgreSQL, retried after transient errors.

    A transaction must be idempotent: the connection can be lost after the commit.
    """

    def __init__(
        self, url: str, *, retry_seconds: float, lock_seconds: float = 20.0, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """Configure without connecting; errors are retried for `retry_seconds`, locks awaited for `lock_seconds`.

        Raises:
            ConfigError: the URL is invalid, or names another kind of database.
            StoreUnavailable: the folder of a SQLite file is missing, or the database is incomplete.
        """
        self._url = _parse_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self.name = self._url.set(query={}).render_as_string(hide_password=True)
        """The URL without secrets."""
        self._retry_seconds = retry_seconds
        self._lock_seconds = lock_seconds
        self._clock = clock
        self._pid = os.getpid()
        self._has_been_reached = False
        self._is_closed = False
        self._driver_statements: dict[Select[Any], tuple[str, list[str]]] = {}
        """As the driver of SQLite takes them, and the names of their parameters."""
        self.now = self._now()
        """Seconds since 1970 by the clock that all users of the database share, whenever a statement with it runs."""
        if self.is_sqlite:
            self._check_file()
        self._engine = self._create_engine()
        # SQLite has one writer at a time: threads queue here instead of in its busy loop.
        self._turn: AbstractContextManager[object] = threading.Lock() if self.is_sqlite else nullcontext()
        self._reader = (
            self._engine if self.is_sqlite else self._engine.execution_options(isolation_level="AUTOCOMMIT")
        )
        self._writer = self._engine.execution_options(crashproof_begin="BEGIN IMMEDIATE")

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, which is durable when this returns.

        Raises:
            DiskFull, StoreUnavailable: it failed, also after retries.
        """

        def do() -> T:
            with self._turn, self._writer.begin() as connection:
                return work(connection)

        return self._with_retries(do)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run one read-only statement.

        Raises:
            StoreUnavailable: it failed.
        """

        def do() -> T:
            with self._reader.connect() as connection:
                return work(connection)

        return self._with_retries(do)

    def look_up(self, statement: Select[Any], parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        """Run one read-only statement that is made once; returns its rows.

        On SQLite the driver runs it, at a fifth of the price.

        Raises:
            StoreUnavailable: it failed.
        """
        if not self.is_sqlite:
            return self.read(lambda connection: connection.execute(statement, parameters).all())
        if statement not in self._driver_statements:
            compiled = statement.compile(self._engine)
            self._driver_statements[statement] = str(compiled), list(getattr(compiled, "positiontup", None) or ())
        text, names = self._driver_statements[statement]
        return self._with_retries(lambda: self._run_by_driver(text, [parameters[name] for name in names]))

    def _run_by_driver(self, text: str, values: list[object]) -> Sequence[Sequence[Any]]:
        pooled = self._engine.raw_connection()
        try:
            driver: Any = pooled.driver_connection
            rows: Sequence[Sequence[Any]] = driver.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise DBAPIError(text, None, error) from error
        finally:
            pooled.close()
        return rows

    def scan(self, work: Callable[[Connection], T]) -> T:
        """Read many rows in one consistent snapshot, without holding them in memory.

        Raises:
            StoreUnavailable: it failed.
        """
        snapshot: dict[str, str] = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}

        def do() -> T:
            with self._engine.connect() as connection:
                return work(connection.execution_options(yield_per=100, **snapshot))

        return self._with_retries(do)

    def _now(self) -> ColumnElement[float]:
        if self.is_sqlite:
            return bindparam("now", callable_=self._clock.now, type_=Float(53))
        return cast(func.extract("epoch", func.clock_timestamp()), Float(53))

    def insert(self, table: Table) -> Insert:
        """An INSERT that supports ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def unavailable(self, reason: str) -> StoreUnavailable:
        """The error for this database."""
        return StoreUnavailable(self.name, reason=reason)

    def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        # In a forked child the connections belong to the parent.
        self._engine.dispose(close=os.getpid() == self._pid)

    def _with_retries(self, do: Callable[[], T]) -> T:
        deadline = self._clock.steady() + self._retry_seconds
        wait_seconds = 0.02
        while True:
            self._require_open()
            try:
                result = do()
            except DBAPIError as error:
                if not self._is_transient(error) or self._clock.steady() + wait_seconds > deadline:
                    raise self._as_storage_error(error) from error
                log.debug("Retrying the store %s: %s", self.name, error.orig)
                time.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)
            except SQLAlchemyError as error:
                raise self.unavailable(_first_line(error)) from error
            else:
                self._has_been_reached = True
                return result

    def _require_open(self) -> None:
        if self._is_closed:
            raise self.unavailable("it is closed")
        if os.getpid() != self._pid:
            raise self.unavailable(
                f"it was opened by process {self._pid}, of which this is a fork: open it again here"
            )

    def _is_transient(self, error: DBAPIError) -> bool:
        if self.is_sqlite:
            return _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        state = getattr(error.orig, "sqlstate", None)
        if state is None and isinstance(error, (InterfaceError, OperationalError)):
            # Connection lost: a server reached before will come back; a wrong address will not.
            return self._has_been_reached
        return str(state).startswith(_TRANSIENT_STATES)

    def _as_storage_error(self, error: DBAPIError) -> StorageError:
        if self.is_sqlite:
            if _sqlite_code(error) == sqlite3.SQLITE_FULL:
                return DiskFull(Path(str(self._url.database)))
            return self.unavailable(_first_line(error.orig))
        if getattr(error.orig, "sqlstate", None) == "53100":
            return self.unavailable("the disk of the database is full; free space there")
        reason = _first_line(error.orig)
        password = self._url.password
        return self.unavailable(reason.replace(password, "***") if password else reason)

    def _check_file(self) -> None:
        path = Path(str(self._url.database))
        if not path.parent.is_dir():
            raise self.unavailable(f"the folder {path.parent} does not exist")
        # Checked first: SQLite creates the log only after the file's first page.
        has_log = _size(Path(f"{path}-wal")) > 0
        if has_log and not _size(path):
            # SQLite would treat the file as new, and delete the log with all its content.
            raise self.unavailable(f"{path} is empty but {path.name}-wal is not: restore both from a backup")

    def _create_engine(self) -> Engine:
        if self.is_sqlite:
            engine = create_engine(self._url, hide_parameters=True, connect_args={"timeout": self._lock_seconds})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        arguments = {name: value for name, value in _CONNECT.items() if name not in self._url.query}
        try:
            engine = create_engine(self._url, hide_parameters=True, connect_args=arguments, pool_size=8)
        except ImportError as error:
            raise missing_extra("shared-store") from error
        event.listen(engine, "connect", self._prepare_postgresql)
        return engine

    def _prepare_postgresql(self, connection: Any, _: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT set_config('idle_in_transaction_session_timeout', '{_IDLE_SECONDS}s', false), "
                f"set_config('lock_timeout', '{self._lock_seconds:.0f}s', false), "
                "current_setting('synchronous_commit'), current_setting('fsync')"
            )
            _, _, commit, sync = cursor.fetchone()
            if commit == "off":
                cursor.execute("SET synchronous_commit = on")
        connection.commit()
        if not self._has_been_reached:
            self._warn_about_settings(commit, sync)

    def _warn_about_settings(self, commit: str, sync: str) -> None:
        if commit == "off":
            log.warning(
                "The database %s has synchronous_commit off; crashproof turns it on for its connections.", self.name
            )
        if sync == "off":
            log.warning("The database %s has fsync off: a power loss there can lose paid answers.", self.name)


def chunks(values: Collection[str]) -> Iterator[list[str]]:
    """Split values into sorted lists that are short enough for one statement."""
    ordered = sorted(values)
    for start in range(0, len(ordered), _MAX_LIST):
        yield ordered[start : start + _MAX_LIST]


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    # Transactions are begun explicitly.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL").close()
    # A commit survives a power loss.
    connection.execute("PRAGMA synchronous = FULL").close()


def _begin_sqlite(connection: Connection) -> None:
    statement = connection.get_execution_options().get("crashproof_begin", "BEGIN")
    driver: Any = connection.connection.driver_connection
    try:
        driver.execute(statement).close()
    except sqlite3.Error as error:
        raise DBAPIError(statement, None, error) from error


def _parse_url(text: str) -> URL:
    hint = "For example sqlite:////data/answers.db or postgresql+psycopg://user:password@host/database."
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        # Not shown: it may contain a password.
        raise ConfigError("The URL of the store cannot be parsed.", hint=hint) from error
    kind = url.drivername.partition("+")[0]
    if kind == "sqlite":
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise ConfigError("A shared SQLite store must be a file.", hint=hint)
        return url.set(drivername="sqlite")
    if kind != "postgresql":
        raise ConfigError(f"A store in {url.drivername!r} is not supported.", hint=hint)
    return url.set(drivername="postgresql+psycopg")


def _sqlite_code(error: DBAPIError) -> int:
    # The upper bits are the extended code.
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
