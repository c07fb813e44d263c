"""Send a job's requests from this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from crashproof.answers.store import ResponseStore
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.records.requests import AnswerRecord
from crashproof.teacher.client.answers import Answer
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.jobs.engine import QUESTIONS_PER_REQUEST, EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.teacher.jobs.outcomes import End, Outcomes, Verdict
from crashproof.teacher.jobs.prompts import problem_with_answer
from crashproof.teacher.jobs.question import Question, groups_of
from crashproof.teacher.jobs.stop_signals import handle_stop_signals

__all__ = ["LocalEngine"]

log = logging.getLogger("crashproof")

_LOOKED_UP_TOGETHER = 32
"""Questions for whose answers the store is asked at once."""


@dataclass(slots=True, kw_only=True)
class LocalEngine:
    """Sends requests from this process, many at once."""

    settings: TeacherSettings
    on_failure: OnFailure
    clock: Clock = SYSTEM_CLOCK

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
        outcomes = Outcomes.for_settings(self.settings, asked, count_answers=lambda: store.spending().answers)

        def note_failure(retry_count: int, error: object) -> None:
            self.on_failure(retry_count, error)
            notice = outcomes.note_failure(error, now=self.clock.steady())
            if notice:
                log.warning("%s", notice)

        teacher = self.settings.open(job.form, store, note_failure, keeps_truncated=job.keeps_truncated)
        asking = _Asking(teacher, outcomes, on_end=on_end, clock=self.clock)
        async with handle_stop_signals() as signals:
            try:
                window = QUESTIONS_PER_REQUEST * self.settings.limits.concurrency
                await asking.ask_all(job.questions(), signals.stop, window=window)
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
        self, teacher: AsyncTeacher, outcomes: Outcomes, *, on_end: Callable[[int], None], clock: Clock
    ) -> None:
        self._teacher = teacher
        self._outcomes = outcomes
        self._on_end = on_end
        self._clock = clock
        self._pending: set[asyncio.Task[None]] = set()
        self._has_changed = asyncio.Event()
        """Whether a pending question or the job has ended since it was last cleared."""

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
            self._outcomes.asked.is_stopped = stop.is_set() and not (are_all_begun and not self._pending)
            left = [*self._pending, stopping]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        self._outcomes.finish()
        if self._outcomes.fatal is not None:
            raise self._outcomes.fatal

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
        return self._outcomes.fatal is not None or stop.is_set()

    async def _ask(self, question: Question, record: AnswerRecord | None) -> None:
        try:
            while (verdict := await self._ask_once(question, record)) is Verdict.ASK_AGAIN:
                await asyncio.sleep(self._outcomes.pause_seconds)
            if verdict is Verdict.STOP:
                self._teacher.stop()
            else:
                self._on_end(self._outcomes.num_finished)
        except Exception as error:  # Not of the question, but of the store or the run: it ends the job.
            self._outcomes.fail(error)
            self._teacher.stop()

    async def _ask_once(self, question: Question, record: AnswerRecord | None) -> Verdict:
        def check(answer: Answer) -> str | None:
            return problem_with_answer(question.prompt, answer.message)

        error: Exception | None = None
        try:
            if record is None:
                await self._teacher.ask_request(question.request, check=check)
            else:
                await self._teacher.take(question.request, record, check=check)
        except Exception as raised:  # Judged together with those of all other questions.
            error = raised
        return self._outcomes.note(question.request.key, End.of(error), now=self._clock.steady())
