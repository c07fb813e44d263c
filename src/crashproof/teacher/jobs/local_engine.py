"""Send a job's requests from this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from crashproof.answers.store import ResponseStore
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.jobs.engine import QUESTIONS_PER_REQUEST, EngineResult, TeacherSettings
from crashproof.teacher.jobs.job import GenerationJob, Question
from crashproof.teacher.jobs.outcomes import End, Outcomes, Verdict
from crashproof.teacher.jobs.prompts import problem_with_answer
from crashproof.teacher.jobs.stop_signals import handle_stop_signals

__all__ = ["LocalEngine"]

log = logging.getLogger("crashproof")


@dataclass(slots=True, kw_only=True)
class LocalEngine:
    """Sends requests from this process, many at once."""

    settings: TeacherSettings
    on_failure: OnFailure
    clock: Clock = SYSTEM_CLOCK

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> EngineResult:
        """See `Engine`."""
        return asyncio.run(self._ask_all(job, store, on_end))

    async def _ask_all(self, job: GenerationJob, store: ResponseStore, on_end: Callable[[int], None]) -> EngineResult:
        asked = EngineResult()
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

    async def ask_all(self, questions: Iterator[Question], stop: asyncio.Event, *, window: int) -> None:
        pending: set[asyncio.Task[None]] = set()
        stopping = asyncio.create_task(stop.wait())
        are_all_begun = False
        try:
            for question in questions:
                if self._outcomes.fatal is not None or stop.is_set():
                    break
                pending.add(asyncio.create_task(self._ask(question)))
                if len(pending) >= window:
                    pending = await self._wait_for_any(pending, stopping)
            else:
                are_all_begun = True
            while pending and self._outcomes.fatal is None and not stop.is_set():
                pending = await self._wait_for_any(pending, stopping)
        finally:
            self._outcomes.asked.is_stopped = stop.is_set() and not (are_all_begun and not pending)
            for task in (*pending, stopping):
                task.cancel()
            await asyncio.gather(*pending, stopping, return_exceptions=True)
        self._outcomes.finish()
        if self._outcomes.fatal is not None:
            raise self._outcomes.fatal

    async def _wait_for_any(
        self, pending: set[asyncio.Task[None]], stopping: asyncio.Task[object]
    ) -> set[asyncio.Task[None]]:
        await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return {task for task in pending if not task.done()}

    async def _ask(self, question: Question) -> None:
        try:
            while (verdict := await self._ask_once(question)) is Verdict.ASK_AGAIN:
                await asyncio.sleep(self._outcomes.pause_seconds)
            if verdict is Verdict.STOP:
                self._teacher.stop()
            else:
                self._on_end(self._outcomes.num_finished)
        except Exception as error:  # Not of the question, but of the store or the run: it ends the job.
            self._outcomes.fail(error)
            self._teacher.stop()

    async def _ask_once(self, question: Question) -> Verdict:
        error: Exception | None = None
        try:
            await self._teacher.ask_request(
                question.request, check=lambda answer: problem_with_answer(question.prompt, answer.message)
            )
        except Exception as raised:  # Judged together with those of all other questions.
            error = raised
        return self._outcomes.note(question.request.key, End.of(error), now=self._clock.steady())
