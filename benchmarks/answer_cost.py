"""Cost of keeping a paid answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import orjson

from benchmarks.figures import Section, ratio, tail_cells
from benchmarks.made_runs import new_tracker

__all__ = ["measure"]

_ANSWER_BYTES = 4096
_ANSWERS_A_THREAD = 100
_NUM_ROUNDS = 5
_THREADS = (1, 8)
_PERCENTS = (50, 99, 100)


def measure(work: Path, *, is_full: bool) -> Section:  # `is_full` changes nothing here.
    """`record_api_response` beside a bare write and sync, from one thread and from eight."""
    tracker = new_tracker(work / "run")
    response = {"model": "teacher", "text": "x" * _ANSWER_BYTES}
    line = orjson.dumps({"prompt_hash": "0" * 64, "response": response}) + b"\n"
    file = os.open(work / "floor.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def keep(key: str) -> None:
        tracker.record_api_response(key, response, cost=0.001)

    def write_and_sync(key: str) -> None:
        os.write(file, line)
        os.fsync(file)

    rows = []
    for num_threads in _THREADS:
        rows += _rows(num_threads, keep, write_and_sync)
    os.close(file)
    tracker.close()
    return Section(
        title="Keeping a paid answer of 4 KB",
        columns=["", "p50", "p99", "longest", "median, ratio", "answers a second"],
        rows=rows,
        notes=[
            f"{_NUM_ROUNDS} rounds of {_ANSWERS_A_THREAD} answers a thread, both ways in turn. Each call returns "
            "once the answer would survive a power loss; threads that wait for the disk share one sync.",
        ],
    )


def _rows(num_threads: int, keep: Callable[[str], None], floor: Callable[[str], None]) -> list[list[str]]:
    kept: list[float] = []
    bare: list[float] = []
    kept_wall = bare_wall = 0.0
    for each_round in range(_NUM_ROUNDS):
        kept_wall += _timed(kept, num_threads, each_round, keep)
        bare_wall += _timed(bare, num_threads, each_round, floor)
    who = f"{num_threads} thread{'s' if num_threads > 1 else ''}"
    return [
        [
            f"`record_api_response`, {who}",
            *tail_cells(kept, *_PERCENTS),
            ratio(kept, bare),
            f"{len(kept) / kept_wall:,.0f}",
        ],
        [
            f"`os.write` + `os.fsync`, {who}",
            *tail_cells(bare, *_PERCENTS),
            "1.00x",
            f"{len(bare) / bare_wall:,.0f}",
        ],
    ]


def _timed(seconds: list[float], num_threads: int, each_round: int, call: Callable[[str], None]) -> float:
    """Add each call's seconds; return those of all together."""

    def work(thread: int) -> list[float]:
        own = []
        for number in range(_ANSWERS_A_THREAD):
            key = f"{num_threads}-{each_round}-{thread}-{number}"
            begun = perf_counter()
            call(key)
            own.append(perf_counter() - begun)
        return own

    begun = perf_counter()
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        for own in pool.map(work, range(num_threads)):
            seconds += own
    return perf_counter() - begun
