"""Send a job's requests from this process."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from crashproof.answers.store import ResponseStore
from crashproof.errors import AnswerUnusable, BudgetExhausted, TeacherError, TeacherRefused, TeacherUnreachable
from crashproof.records.requests import AnswerRecord
from crashproof.teacher.client.answers import Answer
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.jobs.engine import EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.prompts import problem_with_answer
from crashproof.teacher.jobs.question import Question, groups_of

__all__ = ["FORBIDDEN", "LocalEngine"]

log = logging.getLogger("crashproof")

FORBIDDEN = 403
_MIN_UNREACHABLE = 4
"""Consecutive questions without an answer before a job stops: the first may fail for reasons of their own."""
_WINDOW = 4
"""Open questions per allowed request in flight, so that stored answers are looked up meanwhile."""
_LOOKED_UP_TOGETHER = 32
"""Questions for whose answers the store is asked at once."""


@dataclass(slots=True, kw_only=True)
class LocalEngine:
    """Sends requests from this process, many at once."""

    settings: TeacherSettings
    on_failure: OnFailure

    def ask_all(
        self,
        job: GenerationJob,
        store: ResponseStore,
        *,
        reasons: MutableMapping[str, str],
        on_end: Callable[[int], None],
    ) -> EngineResult:
        """See `Engine`."""
        return asyncio.run(self._ask_all(job, store, EngineResult(reasons=reasons), on_end))

    async def _ask_all(
        self, job: GenerationJob, store: ResponseStore, asked: EngineResult, on_end: Callable[[int], None]
    ) -> EngineResult:
        teacher = self.settings.open(job.form, store, self.on_failure, keeps_truncated=job.keeps_truncated)
        concurrency = self.settings.limits.concurrency
        max_unreachable = max(_MIN_UNREACHABLE, concurrency)
        asking = _Asking(teacher, store, asked, max_unreachable=max_unreachable, on_end=on_end)
        async with _handle_signals() as signals:
            try:
                await asking.ask_all(job.questions(), signals.stop, window=_WINDOW * concurrency)
            finally:
                await _close(teacher, signals.give_up)
        return asked


async def _close(teacher: AsyncTeacher, give_up: asyncio.Event) -> None:
    """Wait for the answers in flight, which are paid for, until a second signal gives them up."""
    closing = asyncio.create_task(teacher.close(waits=True))
    giving_up = asyncio.create_task(give_up.wait())
    await asyncio.wait({closing, giving_up}, return_when=asyncio.FIRST_COMPLETED)
    giving_up.cancel()
    if closing.done():
        await closing
        return
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await teacher.close()


class _Asking:
    """One pass over all questions."""

    def __init__(
        self,
        teacher: AsyncTeacher,
        store: ResponseStore,
        asked: EngineResult,
        *,
        max_unreachable: int,
        on_end: Callable[[int], None],
    ) -> None:
        self.asked = asked
        self._teacher = teacher
        self._store = store
        self._max_unreachable = max_unreachable
        self._on_end = on_end
        self._pending: set[asyncio.Task[None]] = set()
        self._has_changed = asyncio.Event()
        """Whether a pending question or the job has ended since it was last cleared."""
        self._num_ended = 0
        self._num_over_budget = 0
        self._num_unreachable = 0
        """Consecutive: no other question got an answer from the teacher meanwhile."""
        self._num_answers = 0
        self._unreachable: TeacherError | None = None
        self._fatal: Exception | None = None

    async def ask_all(self, questions: Iterator[Question], stop: asyncio.Event, *, window: int) -> None:
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._has_changed.set())
        are_all_begun = False
        try:
            for some in groups_of(questions, _LOOKED_UP_TOGETHER):
                await self._begin_all(some, stop, window=window)
                if self._is_over(stop):
                    break
            else:
                are_all_begun = True
            await self._wait_for_room(stop, window=1)
        finally:
            self.asked.is_stopped = stop.is_set() and not (are_all_begun and not self._pending)
            left = [*self._pending, stopping]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        if self._fatal is None and self._num_unreachable == self._num_ended:
            # A small job fails too if none of its questions got an answer.
            self._fatal = self._unreachable
        if self._fatal is not None:
            raise self._fatal

    async def _begin_all(self, questions: Sequence[Question], stop: asyncio.Event, *, window: int) -> None:
        """Complete those whose answers are stored, and begin to ask the others."""
        records = await self._teacher.look_up([question.request for question in questions])
        for question, record in zip(questions, records, strict=True):
            await self._wait_for_room(stop, window=window)
            if self._is_over(stop):
                return
            task = asyncio.create_task(self._ask(question, record))
            self._pending.add(task)
            task.add_done_callback(self._note_ended)

    def _note_ended(self, task: asyncio.Task[None]) -> None:
        self._pending.discard(task)
        self._has_changed.set()

    async def _wait_for_room(self, stop: asyncio.Event, *, window: int) -> None:
        """Wait until fewer questions than the window are pending, or the job is over."""
        while len(self._pending) >= window and not self._is_over(stop):
            self._has_changed.clear()
            await self._has_changed.wait()

    def _is_over(self, stop: asyncio.Event) -> bool:
        return self._fatal is not None or stop.is_set()

    async def _ask(self, question: Question, record: AnswerRecord | None) -> None:
        try:
            await self._ask_one(question, record)
            self._num_ended += 1
            self._on_end(self._num_ended - self._num_over_budget)
        except Exception as error:  # Any other error ends the job.
            self._fatal = self._fatal or error
            self._teacher.stop()

    async def _ask_one(self, question: Question, record: AnswerRecord | None) -> None:
        key = question.request.key

        def check(answer: Answer) -> str | None:
            return problem_with_answer(question.prompt, answer.message)

        try:
            if record is None:
                await self._teacher.ask_request(question.request, check=check)
            else:
                await self._teacher.take(question.request, record, check=check)
        except AnswerUnusable as error:
            self.asked.reasons[key] = error.problem
        except BudgetExhausted as error:
            self.asked.reasons[key] = str(error)
            self.asked.over_budget = error
            self._num_over_budget += 1
        except TeacherUnreachable as error:
            if error.hits_all:
                raise
            self._note_unanswered(key, error)
        except TeacherRefused as error:
            if error.hits_all:
                raise
            if error.status == FORBIDDEN:
                # Either the key is not permitted, or this prompt is not allowed: other questions will show.
                self._note_unanswered(key, error)
                return
            self._num_unreachable = 0
            self.asked.reasons[key] = str(error)

    def _note_unanswered(self, key: str, error: TeacherError) -> None:
        self.asked.reasons[key] = str(error)
        num_answers = self._store.spending().answers
        if num_answers != self._num_answers:
            self._num_answers, self._num_unreachable = num_answers, 0
        self._num_unreachable += 1
        self._unreachable = error
        if self._num_unreachable >= self._max_unreachable:
            raise error


@dataclass(frozen=True, slots=True)
class _Signals:
    stop: asyncio.Event
    give_up: asyncio.Event


@asynccontextmanager
async def _handle_signals() -> AsyncIterator[_Signals]:
    """Stop at the first SIGINT, SIGTERM or SIGHUP; at the second, give up the requests in flight."""
    signals = _Signals(asyncio.Event(), asyncio.Event())
    loop = asyncio.get_running_loop()

    def note(number: signal.Signals) -> None:
        if signals.stop.is_set():
            signals.give_up.set()
            return
        log.warning(
            "%s: sending no more requests; waiting for those in flight. Repeat the signal to give them up.",
            number.name,
        )
        signals.stop.set()

    # Python delivers signals to its main thread only.
    is_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, signal.SIGTERM] if is_main_thread else []
    # `nohup` ignores it, and so does the job then.
    if is_main_thread and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, note, number)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
