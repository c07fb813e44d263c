"""Run a generation job: ask, keep, write.

The job is a run of its own beside its output, with one writer. Killed at any moment and started again it goes on:
answers are in the store, and the output is written from there once all are asked.
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
from crashproof.teacher.client.retry import Patience
from crashproof.teacher.jobs.job import GenerationJob, Question, Written
from crashproof.teacher.jobs.prompts import problem_with_answer
from crashproof.teacher.shared_store.accounts import account_of
from crashproof.teacher.shared_store.fallback import SpooledStore
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["Asked", "Engine", "JobProgress", "JobResult", "LocalEngine", "TeacherSettings", "run_job"]

log = logging.getLogger("crashproof")

FORBIDDEN = 403
REFUSES_ALL = frozenset({301, 302, 303, 307, 308, 401, 402, 404, 405, 429})
"""Refusals that no other prompt would escape; a 429 is refused for good only where no money is left."""
_SECONDS_BETWEEN_REPORTS = 1.0
_LEAST_UNREACHABLE = 4
"""Questions in a row without any answer before a job stops: one alone may be at fault itself."""
_WINDOW = 4
"""Questions taken up for each that may be under way: answers that are there already are found meanwhile."""


class JobProgress(Protocol):
    """Somebody who watches."""

    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        """So many questions of all have an end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSettings:
    """How the teacher is asked; nothing of it changes an answer."""

    endpoint: Endpoint
    prices: PriceTable
    budget: Decimal | None = None
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)
    asks_again: bool = False
    """Whether answers that are kept and of no use are paid for once more."""


@dataclass(slots=True, kw_only=True)
class Asked:
    """How the asking went."""

    reasons: dict[str, str] = field(default_factory=dict)
    """Why there is no answer that can be used, by key."""
    over_budget: BudgetExhausted | None = None
    """What the budget did not allow."""
    is_stopped: bool = False
    """Whether somebody asked to stop before all questions had an end."""
    note: str = ""
    """What else there is to say, as a sentence."""


class Engine(Protocol):
    """Where the asking is done."""

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> Asked:
        """Bring an answer to every question into the store; `on_end` hears how many have an end.

        What the budget did not allow has none: a larger budget goes on there.

        Raises:
            TeacherError: no question could have an answer.
            DiskFull, StoreUnavailable: what was paid for is kept; no more can be.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What a job has come to."""

    asked: Asked
    written: Written | None
    """None where it was stopped: a part is no output."""
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
    """Ask all questions that have no answer yet, then write the output.

    Args:
        job: What is asked.
        engine: Makes the engine; what it is given hears of failed requests.
        progress: Somebody who watches.
        shared_store: Opens the store that other processes share, for the account that it is given; by default the run
            keeps its answers itself.
        alerts: Whom to alert, and of what; by default nobody.

    Raises:
        DataError: a prompt is malformed; nothing was sent.
        RunInUse: another process works on this output.
        TeacherError, StorageError: in words; what was paid for is kept.
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
    with _store_of(job, tracker, shared_store) as store:
        report = _Report(tracker, store, progress, num_questions, is_shared=shared_store is not None)
        progress.advance(0, num_questions, store.spending())
        asked = engine.ask_all(job, store, on_end=report.note)
        written = None if asked.is_stopped else job.write(store, asked.reasons)
        report.tell()
        return JobResult(asked=asked, written=written, num_questions=num_questions, spending=store.spending())


@contextmanager
def _store_of(
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
    """Tells the run and whoever watches, now and then."""

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
        self._told_at = time.monotonic()

    def note(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._told_at >= _SECONDS_BETWEEN_REPORTS:
            self.tell()

    def tell(self) -> None:
        self._told_at = time.monotonic()
        spending = self._store.spending()
        self._tracker.record_job_progress(self._done)
        if self._is_shared:
            self._tracker.record_spending(spending)
        self._progress.advance(self._done, self._num_questions, spending)


@dataclass(slots=True, kw_only=True)
class LocalEngine:
    """Asks from this process, many at once."""

    settings: TeacherSettings
    on_failure: OnFailure

    def ask_all(self, job: GenerationJob, store: ResponseStore, *, on_end: Callable[[int], None]) -> Asked:
        """See `Engine`."""
        return asyncio.run(self._ask_all(job, store, on_end))

    async def _ask_all(self, job: GenerationJob, store: ResponseStore, on_end: Callable[[int], None]) -> Asked:
        teacher = AsyncTeacher(
            job.form.model,
            store=store,
            endpoint=self.settings.endpoint,
            prices=self.settings.prices,
            budget=self.settings.budget,
            limits=self.settings.limits,
            patience=self.settings.patience,
            parameters=job.form.parameters,
            asks_again=self.settings.asks_again,
            on_failure=self.on_failure,
        )
        concurrency = self.settings.limits.concurrency
        most_unreachable = max(_LEAST_UNREACHABLE, concurrency)
        asking = _Asking(teacher, store, most_unreachable=most_unreachable, on_end=on_end)
        async with _signals() as signals:
            try:
                await asking.ask_all(job.questions(), signals.stop, window=_WINDOW * concurrency)
            finally:
                await _close(teacher, signals.give_up)
        return asking.asked


async def _close(teacher: AsyncTeacher, give_up: asyncio.Event) -> None:
    """Wait for the answers to what is sent, which is paid for, until somebody asks to give it up."""
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
        self, teacher: AsyncTeacher, store: ResponseStore, *, most_unreachable: int, on_end: Callable[[int], None]
    ) -> None:
        self.asked = Asked()
        self._teacher = teacher
        self._store = store
        self._most_unreachable = most_unreachable
        self._on_end = on_end
        self._num_ended = 0
        self._num_over_budget = 0
        self._num_unreachable = 0
        """In a row: no other question has brought an answer from the teacher meanwhile."""
        self._num_bought = 0
        self._unreachable: TeacherError | None = None
        self._fatal: Exception | None = None

    async def ask_all(self, questions: Iterator[Question], stop: asyncio.Event, *, window: int) -> None:
        pending: set[asyncio.Task[None]] = set()
        stopping = asyncio.create_task(stop.wait())
        are_all_taken_up = False
        try:
            for question in questions:
                if self._fatal is not None or stop.is_set():
                    break
                pending.add(asyncio.create_task(self._ask(question)))
                if len(pending) >= window:
                    pending = await self._some_end(pending, stopping)
            else:
                are_all_taken_up = True
            while pending and self._fatal is None and not stop.is_set():
                pending = await self._some_end(pending, stopping)
        finally:
            self.asked.is_stopped = stop.is_set() and not (are_all_taken_up and not pending)
            for task in (*pending, stopping):
                task.cancel()
            await asyncio.gather(*pending, stopping, return_exceptions=True)
        if self._fatal is None and self._num_unreachable == self._num_ended:
            # Of a few questions, too, none could have an answer.
            self._fatal = self._unreachable
        if self._fatal is not None:
            raise self._fatal

    async def _some_end(
        self, pending: set[asyncio.Task[None]], stopping: asyncio.Task[object]
    ) -> set[asyncio.Task[None]]:
        await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return {task for task in pending if not task.done()}

    async def _ask(self, question: Question) -> None:
        try:
            await self._ask_one(question)
            self._num_ended += 1
            self._on_end(self._num_ended - self._num_over_budget)
        except Exception as error:  # Whatever else it is, it ends the job.
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
            self._note_in_vain(key, error)
        except TeacherRefused as error:
            if error.status == FORBIDDEN:
                # The key may do nothing, or this one prompt is what nobody may ask: the others tell.
                self._note_in_vain(key, error)
                return
            self._num_unreachable = 0
            self.asked.reasons[key] = str(error)
            if error.status in REFUSES_ALL:
                raise

    def _note_in_vain(self, key: str, error: TeacherError) -> None:
        self.asked.reasons[key] = str(error)
        num_bought = self._store.spending().answers
        if num_bought != self._num_bought:
            self._num_bought, self._num_unreachable = num_bought, 0
        self._num_unreachable += 1
        self._unreachable = error
        if self._num_unreachable >= self._most_unreachable:
            raise error


@dataclass(frozen=True, slots=True)
class _Signals:
    stop: asyncio.Event
    give_up: asyncio.Event


@asynccontextmanager
async def _signals() -> AsyncIterator[_Signals]:
    """The first SIGINT or SIGTERM asks to stop, the second one to give up what is under way."""
    signals = _Signals(asyncio.Event(), asyncio.Event())
    loop = asyncio.get_running_loop()

    def note(number: signal.Signals) -> None:
        if signals.stop.is_set():
            signals.give_up.set()
            return
        log.warning("%s: no more requests; waiting for those that are sent. Once more to give them up.", number.name)
        signals.stop.set()

    # Python hands signals to its main thread alone.
    is_ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_ours else ()
    for number in numbers:
        loop.add_signal_handler(number, note, number)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
