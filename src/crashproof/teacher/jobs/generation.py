"""Run a generation job.

The job is a run of its own beside its output, with one writer. Killed at any moment, it resumes when started again:
answers are in the store, and the output is written from there once every request is done.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from crashproof.alerts.settings import AlertSettings
from crashproof.answers.store import ResponseStore
from crashproof.errors import AnswerUnusable, BudgetExhausted, TeacherError, TeacherRefused, TeacherUnreachable
from crashproof.records.requests import Spending
from crashproof.records.states import AttemptState, SessionKind
from crashproof.teacher.client.client import AsyncTeacher, OnFailure
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.jobs.job import GenerationJob, Question, Written
from crashproof.teacher.jobs.prompts import problem_with_answer
from crashproof.teacher.shared_store.accounts import account_of
from crashproof.teacher.shared_store.fallback import SpooledStore
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["Engine", "EngineResult", "JobProgress", "JobResult", "LocalEngine", "TeacherSettings", "run_job"]

log = logging.getLogger("crashproof")

FORBIDDEN = 403
_SECONDS_BETWEEN_REPORTS = 1.0
_MIN_UNREACHABLE = 4
"""Consecutive questions without an answer before a job stops: the first may fail for reasons of their own."""
_WINDOW = 4
"""Open questions per allowed request in flight, so that stored answers are looked up meanwhile."""


class JobProgress(Protocol):
    """Displays the progress of a job."""

    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        """Report that `done` of all questions are finished."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSettings:
    """How requests are sent; nothing here changes an answer."""

    endpoint: Endpoint
    prices: PriceTable
    budget: Decimal | None = None
    limits: Limits = field(default_factory=Limits)
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    asks_again: bool = False
    """Whether to pay once more for stored answers that are unusable."""

    def open(
        self, form: RequestForm, store: ResponseStore, on_failure: OnFailure, *, keeps_truncated: bool
    ) -> AsyncTeacher:
        """Open a teacher with these settings; `form` is what all requests have in common."""
        return AsyncTeacher(
            form.model,
            parameters=form.parameters,
            store=store,
            endpoint=self.endpoint,
            prices=self.prices,
            budget=self.budget,
            limits=self.limits,
            retry_policy=self.retry_policy,
            asks_again=self.asks_again,
            keeps_truncated=keeps_truncated,
            on_failure=on_failure,
        )


@dataclass(slots=True, kw_only=True)
class EngineResult:
    """The outcome of `Engine.ask_all`."""

    reasons: dict[str, str] = field(default_factory=dict)
    """Why there is no usable answer, by key."""
    over_budget: BudgetExhausted | None = None
    """The last request that the budget did not allow."""
    is_stopped: bool = False
    """Whether the job was stopped before all questions were finished."""
    note: str = ""
    """A further sentence for the user."""


class Engine(Protocol):
    """Obtains the answers of a job."""

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> EngineResult:
        """Obtain an answer to every question into the store; `on_end` gets the number of finished questions.

        Questions beyond the budget do not count as finished: a larger budget continues there.

        Raises:
            TeacherError: no question can be answered.
            DiskFull, StoreUnavailable: paid answers are stored, but no further one can be.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The result of a job."""

    asked: EngineResult
    written: Written | None
    """None if it was stopped: no partial output is written."""
    num_questions: int
    spending: Spending


def run_job(
    job: GenerationJob,
    engine: Callable[[OnFailure], Engine],
    *,
    progress: JobProgress,
    shared_store: Callable[[str], ResponseStore] | None = None,
    alerts: AlertSettings | None = None,
) -> JobResult:
    """Obtain all answers that are missing, then write the output.

    Args:
        job: The prompts and the output.
        engine: Makes the engine from a callback for failed requests.
        progress: Displays the progress.
        shared_store: Opens a shared store for an account; by default the run stores its answers itself.
        alerts: Whom to alert, and of what; by default nobody.

    Raises:
        DataError: a prompt is malformed; nothing was sent.
        RunInUse: another process works on this output.
        TeacherError, StorageError: the job cannot go on; paid answers are stored.
    """
    job.check_paths()
    num_questions = job.count()
    settings = TrackerSettings(alerts=alerts or AlertSettings())
    tracker = ProgressTracker(
        job.folder.progress, job.config(), num_questions, kind=SessionKind.GENERATION, settings=settings
    )
    try:
        result = _run(job, engine(tracker.record_connection_failure), tracker, num_questions, progress, shared_store)
    except BaseException as error:
        tracker.close(AttemptState.RAISED, error)
        raise
    how = AttemptState.PREEMPTED if result.asked.is_stopped else AttemptState.COMPLETED
    tracker.close(how, result.asked.over_budget)
    return result


def _run(
    job: GenerationJob,
    engine: Engine,
    tracker: ProgressTracker,
    num_questions: int,
    progress: JobProgress,
    shared_store: Callable[[str], ResponseStore] | None,
) -> JobResult:
    with _open_store(job, tracker, shared_store) as store:
        report = _Report(tracker, store, progress, num_questions, is_shared=shared_store is not None)
        progress.advance(0, num_questions, store.spending())
        asked = engine.ask_all(job, store, on_end=report.note)
        written = None if asked.is_stopped else job.write(store, asked.reasons)
        report.send()
        return JobResult(asked=asked, written=written, num_questions=num_questions, spending=store.spending())


@contextmanager
def _open_store(
    job: GenerationJob, tracker: ProgressTracker, shared_store: Callable[[str], ResponseStore] | None
) -> Iterator[ResponseStore]:
    if shared_store is None:
        yield tracker.responses
        return
    store = shared_store(account_of(job.folder))
    try:
        yield SpooledStore(store, spool=tracker.responses)
    finally:
        store.close()


class _Report:
    """Reports progress to the run and the display at intervals."""

    def __init__(
        self,
        tracker: ProgressTracker,
        store: ResponseStore,
        progress: JobProgress,
        num_questions: int,
        *,
        is_shared: bool,
    ) -> None:
        self._tracker = tracker
        self._store = store
        self._progress = progress
        self._num_questions = num_questions
        self._is_shared = is_shared
        self._done = 0
        self._reported_at = time.monotonic()

    def note(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._reported_at >= _SECONDS_BETWEEN_REPORTS:
            self.send()

    def send(self) -> None:
        self._reported_at = time.monotonic()
        spending = self._store.spending()
        self._tracker.record_job_progress(self._done)
        if self._is_shared:
            self._tracker.record_spending(spending)
        self._progress.advance(self._done, self._num_questions, spending)


@dataclass(slots=True, kw_only=True)
class LocalEngine:
    """Sends requests from this process, many at once."""

    settings: TeacherSettings
    on_failure: OnFailure

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> EngineResult:
        """See `Engine`."""
        return asyncio.run(self._ask_all(job, store, on_end))

    async def _ask_all(self, job: GenerationJob, store: ResponseStore, on_end: Callable[[int], None]) -> EngineResult:
        teacher = self.settings.open(job.form, store, self.on_failure, keeps_truncated=job.keeps_truncated)
        concurrency = self.settings.limits.concurrency
        max_unreachable = max(_MIN_UNREACHABLE, concurrency)
        asking = _Asking(teacher, store, max_unreachable=max_unreachable, on_end=on_end)
        async with _handle_signals() as signals:
            try:
                await asking.ask_all(job.questions(), signals.stop, window=_WINDOW * concurrency)
            finally:
                await _close(teacher, signals.give_up)
        return asking.asked


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
        self, teacher: AsyncTeacher, store: ResponseStore, *, max_unreachable: int, on_end: Callable[[int], None]
    ) -> None:
        self.asked = EngineResult()
        self._teacher = teacher
        self._store = store
        self._max_unreachable = max_unreachable
        self._on_end = on_end
        self._num_ended = 0
        self._num_over_budget = 0
        self._num_unreachable = 0
        """Consecutive: no other question got an answer from the teacher meanwhile."""
        self._num_answers = 0
        self._unreachable: TeacherError | None = None
        self._fatal: Exception | None = None

    async def ask_all(self, questions: Iterator[Question], stop: asyncio.Event, *, window: int) -> None:
        pending: set[asyncio.Task[None]] = set()
        stopping = asyncio.create_task(stop.wait())
        are_all_begun = False
        try:
            for question in questions:
                if self._fatal is not None or stop.is_set():
                    break
                pending.add(asyncio.create_task(self._ask(question)))
                if len(pending) >= window:
                    pending = await self._wait_for_any(pending, stopping)
            else:
                are_all_begun = True
            while pending and self._fatal is None and not stop.is_set():
                pending = await self._wait_for_any(pending, stopping)
        finally:
            self.asked.is_stopped = stop.is_set() and not (are_all_begun and not pending)
            for task in (*pending, stopping):
                task.cancel()
            await asyncio.gather(*pending, stopping, return_exceptions=True)
        if self._fatal is None and self._num_unreachable == self._num_ended:
            # A small job fails too if none of its questions got an answer.
            self._fatal = self._unreachable
        if self._fatal is not None:
            raise self._fatal

    async def _wait_for_any(
        self, pending: set[asyncio.Task[None]], stopping: asyncio.Task[object]
    ) -> set[asyncio.Task[None]]:
        await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return {task for task in pending if not task.done()}

    async def _ask(self, question: Question) -> None:
        try:
            await self._ask_one(question)
            self._num_ended += 1
            self._on_end(self._num_ended - self._num_over_budget)
        except Exception as error:  # Any other error ends the job.
            self._fatal = self._fatal or error
            self._teacher.stop()

    async def _ask_one(self, question: Question) -> None:
        key = question.request.key
        try:
            await self._teacher.ask_request(
                question.request, check=lambda answer: problem_with_answer(question.prompt, answer.message)
            )
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
