"""Cost of a store of answers."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson

from benchmarks.figures import Section, ratio, tail_cells
from benchmarks.made_answers import made_answer, made_intent, made_key, write_answers
from benchmarks.made_runs import new_tracker
from crashproof.answers.store import Granted, ResponseStore

__all__ = ["measure"]

_SIZES = (1_000, 100_000)
_LARGEST_SIZE = 1_000_000
_BATCH = 16
_NUM_PUTS = 400
_NUM_BATCHES = 100
_NUM_READS = 4_000
_BUDGET = Decimal(1_000_000)


def measure(work: Path, *, is_full: bool) -> Section:
    """Keep answers, one alone and 16 together, and read them, beside what the disk costs anyway."""
    rows = []
    for size in (*_SIZES, _LARGEST_SIZE) if is_full else _SIZES:
        rows += _rows_of_a_run(work / str(size), size)
    rows += _rows_of_a_shared_store(work / "shared", _SIZES[0])
    return Section(
        title="A store of answers of 4 KB",
        columns=["", "entries", "p50", "p99", "longest", "bare p50", "bare p99", "median, ratio", "to bare SQLite"],
        rows=rows,
        notes=[
            f"{_NUM_READS:,} answers read at random, {_NUM_PUTS} put one by one, {_NUM_BATCHES} batches of {_BATCH} "
            "put; each call and its bare one in turn. A put is `begin`, which syncs the intent, and `finish`, which "
            f"syncs the answer; bare it is one `os.write` of the same line and one `os.fsync`, of a batch {_BATCH} "
            "and one. A read is `read`; bare it is `os.pread` of the same line and `orjson.loads`. Bare SQLite is "
            "one `INSERT` of the same line in a durable transaction, or one `SELECT` by its key and `orjson.loads`. "
            "The journal is in the page cache, the heartbeat is on.",
            *([] if is_full else [f"A store of {_LARGEST_SIZE:,} (4.8 GB) is measured with `--full`."]),
        ],
    )


def _rows_of_a_run(folder: Path, size: int) -> list[list[str]]:
    line_bytes = write_answers(folder, size)
    tracker = new_tracker(folder)
    with closing(tracker), closing(_Bare(tracker.api_recovery_file, line_bytes)) as bare:
        rows = _rows("the run's own", tracker.responses, bare, size)
    shutil.rmtree(folder)
    return rows


def _rows_of_a_shared_store(folder: Path, size: int) -> list[list[str]]:
    """Nothing where that store, or what it needs, is not there."""
    try:
        module: Any = importlib.import_module("crashproof.teacher.shared_store.store")
    except ImportError:
        return []
    line_bytes = write_answers(folder, size)
    journal = folder / "progress" / "api_recovery.jsonl"
    store = module.SharedStore.open(f"sqlite:///{folder / 'answers.db'}", account="benchmark")
    with (
        closing(store),
        closing(_Bare(journal, line_bytes)) as bare,
        closing(_BareDatabase(folder / "bare.db", bare.line)) as database,
    ):
        for first in range(0, size, _BATCH):
            _put(store, range(first, min(size, first + _BATCH)))
            database.put(range(first, min(size, first + _BATCH)))
        return _rows("shared, SQLite", store, bare, size, database=database)


class _Bare:
    """What the same costs without a store."""

    def __init__(self, journal: Path, line_bytes: int) -> None:
        self._read_from = os.open(journal, os.O_RDONLY)
        self._write_to = os.open(journal.with_name("bare.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._line_bytes = line_bytes
        self.line = os.pread(self._read_from, line_bytes, 0)

    def put(self, numbers: range) -> None:
        for _ in numbers:
            os.write(self._write_to, self.line)
        os.fsync(self._write_to)

    def read(self, number: int) -> Any:
        return orjson.loads(os.pread(self._read_from, self._line_bytes, number * self._line_bytes))

    def close(self) -> None:
        os.close(self._read_from)
        os.close(self._write_to)


class _BareDatabase:
    """The same in a table of SQLite with a key: one transaction for a put, which is durable when it ends."""

    def __init__(self, path: Path, line: bytes) -> None:
        self._line = line
        self._connection = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
            self._connection.execute(statement)
        self._connection.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, record BLOB)")

    def put(self, numbers: range) -> None:
        rows = [(made_key(number), self._line) for number in numbers]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO answers VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")

    def read(self, number: int) -> Any:
        found = self._connection.execute("SELECT record FROM answers WHERE key = ?", [made_key(number)])
        return orjson.loads(found.fetchone()[0])

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class _Times:
    """Of a store, and of what the same costs without it, call by call in turn."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    database: list[float] = field(default_factory=list)


def _rows(
    name: str, store: ResponseStore, bare: _Bare, size: int, *, database: _BareDatabase | None = None
) -> list[list[str]]:
    # The first question makes the index, which is another benchmark's.
    store.read(made_key(0))
    reads = _reads(store, bare, database, size)
    singles = _puts(store, bare, database, first=size, num_puts=_NUM_PUTS, batch=1)
    batches = _puts(store, bare, database, first=size + _NUM_PUTS, num_puts=_NUM_BATCHES, batch=_BATCH)
    return [
        _row(f"read, {name}", size, reads),
        _row(f"put, {name}", size, singles),
        _row(f"put {_BATCH} together, {name}", size, batches),
    ]


def _row(name: str, size: int, times: _Times) -> list[str]:
    cells = [*tail_cells(times.ours, 50, 99, 100), *tail_cells(times.bare, 50, 99), ratio(times.ours, times.bare)]
    return [name, f"{size:,}", *cells, ratio(times.ours, times.database) if times.database else ""]


def _reads(store: ResponseStore, bare: _Bare, database: _BareDatabase | None, size: int) -> _Times:
    chance = random.Random(size)
    times = _Times()
    for number in (chance.randrange(size) for _ in range(_NUM_READS)):
        key = made_key(number)
        times.ours.append(_seconds(partial(store.read, key)))
        times.bare.append(_seconds(partial(bare.read, number)))
        if database is not None:
            times.database.append(_seconds(partial(database.read, number)))
    return times


def _puts(
    store: ResponseStore, bare: _Bare, database: _BareDatabase | None, *, first: int, num_puts: int, batch: int
) -> _Times:
    times = _Times()
    for start in range(first, first + num_puts * batch, batch):
        numbers = range(start, start + batch)
        times.ours.append(_put(store, numbers))
        times.bare.append(_seconds(partial(bare.put, numbers)))
        if database is not None:
            times.database.append(_seconds(partial(database.put, numbers)))
    if store.read(made_key(first + num_puts * batch - 1)) is None:
        raise AssertionError("The last answer put is not there.")
    return times


def _put(store: ResponseStore, numbers: range) -> float:
    intents = [made_intent(number) for number in numbers]
    begun = perf_counter()
    verdicts = store.begin(intents, budget=_BUDGET)
    store.finish([made_answer(verdict) for verdict in verdicts if isinstance(verdict, Granted)])
    return perf_counter() - begun


def _seconds(call: Callable[[], object]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun
