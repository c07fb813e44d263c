"""Cost of a store of answers."""

from __future__ import annotations

import importlib
import os
import random
import shutil
from collections.abc import Callable
from contextlib import closing
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
        columns=["", "entries", "p50", "p99", "longest", "bare p50", "bare p99", "median, ratio"],
        rows=rows,
        notes=[
            f"{_NUM_READS:,} answers read at random, {_NUM_PUTS} put one by one, {_NUM_BATCHES} batches of {_BATCH} "
            "put; each call and its bare one in turn. A put is `begin`, which syncs the intent, and `finish`, which "
            f"syncs the answer; bare it is one `os.write` of the same line and one `os.fsync`, of a batch {_BATCH} "
            "and one. A read is `read`; bare it is `os.pread` of the same line and `orjson.loads`. The journal is in "
            "the page cache, the heartbeat is on.",
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
    with closing(store), closing(_Bare(journal, line_bytes)) as bare:
        for first in range(0, size, _BATCH):
            _put(store, range(first, min(size, first + _BATCH)))
        return _rows("shared, SQLite", store, bare, size)


class _Bare:
    """What the same costs without a store."""

    def __init__(self, journal: Path, line_bytes: int) -> None:
        self._read_from = os.open(journal, os.O_RDONLY)
        self._write_to = os.open(journal.with_name("bare.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._line_bytes = line_bytes
        self._line = os.pread(self._read_from, line_bytes, 0)

    def put(self, num_answers: int) -> None:
        for _ in range(num_answers):
            os.write(self._write_to, self._line)
        os.fsync(self._write_to)

    def read(self, number: int) -> Any:
        return orjson.loads(os.pread(self._read_from, self._line_bytes, number * self._line_bytes))

    def close(self) -> None:
        os.close(self._read_from)
        os.close(self._write_to)


def _rows(name: str, store: ResponseStore, bare: _Bare, size: int) -> list[list[str]]:
    # The first question makes the index, which is another benchmark's.
    store.read(made_key(0))
    reads, bare_reads = _reads(store, bare, size)
    singles, bare_singles = _puts(store, bare, first=size, num_puts=_NUM_PUTS, batch=1)
    batches, bare_batches = _puts(store, bare, first=size + _NUM_PUTS, num_puts=_NUM_BATCHES, batch=_BATCH)
    return [
        _row(f"read, {name}", size, reads, bare_reads),
        _row(f"put, {name}", size, singles, bare_singles),
        _row(f"put {_BATCH} together, {name}", size, batches, bare_batches),
    ]


def _row(name: str, size: int, ours: list[float], bare: list[float]) -> list[str]:
    return [name, f"{size:,}", *tail_cells(ours, 50, 99, 100), *tail_cells(bare, 50, 99), ratio(ours, bare)]


def _reads(store: ResponseStore, bare: _Bare, size: int) -> tuple[list[float], list[float]]:
    chance = random.Random(size)
    ours, theirs = [], []
    for number in (chance.randrange(size) for _ in range(_NUM_READS)):
        key = made_key(number)
        ours.append(_seconds(partial(store.read, key)))
        theirs.append(_seconds(partial(bare.read, number)))
    return ours, theirs


def _puts(
    store: ResponseStore, bare: _Bare, *, first: int, num_puts: int, batch: int
) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    for start in range(first, first + num_puts * batch, batch):
        ours.append(_put(store, range(start, start + batch)))
        theirs.append(_seconds(partial(bare.put, batch)))
    if store.read(made_key(first + num_puts * batch - 1)) is None:
        raise AssertionError("The last answer put is not there.")
    return ours, theirs


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
