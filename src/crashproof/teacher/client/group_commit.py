"""Batch concurrent calls of a store.

A store blocks for the disk or the database. One thread calls it, each time with everything that was queued meanwhile:
the more requests are in flight, the more of them share one sync or one transaction.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, TypeVar

from crashproof.answers.store import Intent, Outcome, ResponseStore, Verdict
from crashproof.errors import StorageError, TeacherClosed
from crashproof.records.requests import AnswerRecord

__all__ = ["GroupCommit"]

log = logging.getLogger("crashproof")

_MAX_BATCH = 256
_SECONDS_BETWEEN_RETRIES = 1.0


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Batch = Callable[[list[_Item]], Sequence[_Result]]
"""Handles many items with one sync or transaction; returns one result for each."""


@dataclass(frozen=True, slots=True)
class _Job:
    run: _Batch[Any, Any]
    item: object
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]


class GroupCommit:
    """A store's methods as coroutines; close it once nothing is in flight."""

    def __init__(
        self,
        store: ResponseStore,
        *,
        budget: Decimal | None,
        full_disk_seconds: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`full_disk_seconds` is how long a paid answer is retried on a full disk before its request fails."""
        self._store = store
        self._budget = budget
        self._full_disk_seconds = full_disk_seconds
        self._sleep = sleep
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closed = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="crashproof-commits", daemon=True)
        self._thread.start()

    async def serve(self, key: str) -> AnswerRecord | None:
        """See `ResponseStore.serve`."""
        if self._store.lacks(key):
            # Most questions are new: their way through the thread would be for nothing.
            return None
        (answer,) = await self.serve_all([key])
        return answer

    async def serve_all(self, keys: Sequence[str]) -> Sequence[AnswerRecord | None]:
        """See `ResponseStore.serve_all`."""
        return await self._submit(self._serve_all, keys)

    async def begin(self, intent: Intent) -> Verdict:
        """See `ResponseStore.begin`."""
        return await self._submit(self._begin_all, intent)

    async def finish(self, outcome: Outcome) -> None:
        """See `ResponseStore.finish`."""
        await self._submit(self._finish_all, outcome)

    async def mark(self, key: str, problem: str) -> None:
        """See `ResponseStore.mark`."""
        await self._submit(self._mark_all, (key, problem))

    def close(self) -> None:
        """Finish what is queued, and stop; later calls raise `TeacherClosed`."""
        with self._closing:
            self._is_closed = True
            self._jobs.put(None)
        self._thread.join()

    async def _submit(self, run: _Batch[_Item, _Result], item: _Item) -> _Result:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_Result] = loop.create_future()
        with self._closing:
            # Nobody reads the queue after its end marker.
            if self._is_closed:
                raise TeacherClosed
            self._jobs.put(_Job(run, item, loop, result))
        return await result

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            jobs = [job for job in batch if job is not None]
            # Outcomes first: they are paid for, and release budget for the next requests.
            for run in (self._finish_all, self._mark_all, self._serve_all, self._begin_all):
                self._run_batch(run, [job for job in jobs if job.run == run])
            if len(jobs) < len(batch):
                return

    def _next_batch(self) -> list[_Job | None]:
        batch = [self._jobs.get()]
        while batch[-1] is not None and len(batch) < _MAX_BATCH:
            try:
                batch.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return batch

    def _run_batch(self, run: _Batch[Any, object], jobs: list[_Job]) -> None:
        if not jobs:
            return
        results: Sequence[object]
        try:
            results = run([job.item for job in jobs])
        except BaseException as error:
            # Passed to the callers: if this thread died, they would wait forever.
            results = [error] * len(jobs)
        loop = jobs[0].loop
        pairs = [(job.result, result) for job, result in zip(jobs, results, strict=True)]
        loop.call_soon_threadsafe(_resolve, pairs)

    def _finish_all(self, outcomes: list[Outcome]) -> list[None]:
        waited = 0.0
        pause = min(_SECONDS_BETWEEN_RETRIES, self._full_disk_seconds / 10)
        while True:
            try:
                self._store.finish(outcomes)
            except StorageError as error:
                if waited >= self._full_disk_seconds:
                    raise
                if not waited:
                    log.warning(
                        "%d request outcomes wait in memory until they can be stored: %s", len(outcomes), error
                    )
                self._sleep(pause)
                waited += pause
            else:
                return [None] * len(outcomes)

    def _begin_all(self, intents: list[Intent]) -> list[Verdict]:
        return self._store.begin(intents, budget=self._budget)

    def _serve_all(self, lists: list[Sequence[str]]) -> list[Sequence[AnswerRecord | None]]:
        answers = iter(self._store.serve_all([key for keys in lists for key in keys]))
        return [list(islice(answers, len(keys))) for keys in lists]

    def _mark_all(self, marks: list[tuple[str, str]]) -> list[None]:
        for key, problem in marks:
            self._store.mark(key, problem)
        return [None] * len(marks)


def _resolve(pairs: list[tuple[asyncio.Future[Any], object]]) -> None:
    for future, result in pairs:
        if future.cancelled():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
