"""Share the store's waits for the disk.

A store blocks while the disk or the database works. One thread asks it, and takes along whatever has come up in the
meantime: the more requests are under way, the more of them share one sync or one transaction.
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
from typing import Any

from crashproof.answers.store import Intent, Outcome, ResponseStore, Verdict
from crashproof.errors import StorageError, TeacherClosed
from crashproof.records.requests import AnswerRecord

__all__ = ["GroupCommit"]

log = logging.getLogger("crashproof")

_MOST_AT_ONCE = 256
_SECONDS_BETWEEN_TRIES = 1.0


@dataclass(frozen=True, slots=True)
class _Job:
    kind: str
    item: Any
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]


class GroupCommit:
    """Awaitable faces of a store's methods; close it when nothing is under way any more."""

    def __init__(
        self,
        store: ResponseStore,
        *,
        budget: Decimal | None,
        full_disk_seconds: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`full_disk_seconds` is how long a paid answer waits for space before its request fails."""
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
        answer: AnswerRecord | None = await self._ask("serve", key)
        return answer

    async def begin(self, intent: Intent) -> Verdict:
        """See `ResponseStore.begin`."""
        verdict: Verdict = await self._ask("begin", intent)
        return verdict

    async def finish(self, outcome: Outcome) -> None:
        """See `ResponseStore.finish`."""
        await self._ask("finish", outcome)

    async def mark(self, key: str, problem: str) -> None:
        """See `ResponseStore.mark`."""
        await self._ask("mark", (key, problem))

    def close(self) -> None:
        """Do what is left, and stop; whoever asks from now on is told so."""
        with self._closing:
            self._is_closed = True
            self._jobs.put(None)
        self._thread.join()

    async def _ask(self, kind: str, item: Any) -> Any:
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        with self._closing:
            # Behind the end of the queue nobody would ever look at it.
            if self._is_closed:
                raise TeacherClosed
            self._jobs.put(_Job(kind, item, loop, result))
        return await result

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            jobs = [job for job in batch if job is not None]
            # Answers first: they are paid for, and free money for the next requests.
            self._answer(jobs, "finish", self._finish_all)
            self._answer(jobs, "mark", self._mark_all)
            self._answer(jobs, "serve", self._serve_all)
            self._answer(jobs, "begin", self._begin_all)
            if len(jobs) < len(batch):
                return

    def _next_batch(self) -> list[_Job | None]:
        batch = [self._jobs.get()]
        while batch[-1] is not None and len(batch) < _MOST_AT_ONCE:
            try:
                batch.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return batch

    def _answer(self, all_jobs: list[_Job], kind: str, do: Callable[[list[Any]], Sequence[Any]]) -> None:
        jobs = [job for job in all_jobs if job.kind == kind]
        if not jobs:
            return
        results: Sequence[Any]
        try:
            results = do([job.item for job in jobs])
        except BaseException as error:
            # Whatever it is, it is for those who asked: without this thread they would wait for ever.
            results = [error] * len(jobs)
        loop = jobs[0].loop
        pairs = [(job.result, result) for job, result in zip(jobs, results, strict=True)]
        loop.call_soon_threadsafe(_resolve, pairs)

    def _finish_all(self, outcomes: list[Outcome]) -> list[None]:
        waited = 0.0
        pause = min(_SECONDS_BETWEEN_TRIES, self._full_disk_seconds / 10)
        while True:
            try:
                self._store.finish(outcomes)
            except StorageError as error:
                if waited >= self._full_disk_seconds:
                    raise
                if not waited:
                    log.warning("%d ends of requests wait in memory: %s", len(outcomes), error)
                self._sleep(pause)
                waited += pause
            else:
                return [None] * len(outcomes)

    def _begin_all(self, intents: list[Intent]) -> list[Verdict]:
        return self._store.begin(intents, budget=self._budget)

    def _serve_all(self, keys: list[str]) -> list[AnswerRecord | None]:
        return [self._store.serve(key) for key in keys]

    def _mark_all(self, marks: list[tuple[str, str]]) -> list[None]:
        for key, problem in marks:
            self._store.mark(key, problem)
        return [None] * len(marks)


def _resolve(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in pairs:
        if future.cancelled():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
