"""Run a generation job.

The job is a run of its own beside its output, with one writer. Killed at any moment, it resumes when started again:
answers are in the store. The output grows from there in the run's folder, and gets its name once every request is
done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from crashproof.alerts.settings import AlertSettings
from crashproof.answers.store import ResponseStore
from crashproof.disk.spool.spooled_texts import SpooledTexts
from crashproof.errors import DiskFull
from crashproof.records.requests import Spending
from crashproof.records.states import AttemptState, SessionKind
from crashproof.teacher.client.client import OnFailure
from crashproof.teacher.jobs.engine import Engine, EngineResult
from crashproof.teacher.jobs.growing_output import GrowingOutput
from crashproof.teacher.jobs.job import GenerationJob, Written
from crashproof.teacher.shared_store.accounts import account_of
from crashproof.teacher.shared_store.fallback import SpooledStore
from crashproof.tracking.settings import TrackerSettings
from crashproof.tracking.tracker import ProgressTracker

__all__ = ["JobProgress", "JobResult", "run_job"]

_SECONDS_BETWEEN_REPORTS = 1.0


class JobProgress(Protocol):
    """Displays the progress of a job."""

    def advance(self, done: int, num_questions: int, spending: Spending) -> None:
        """Report that `done` of all questions are finished."""
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
        reasons = SpooledTexts(job.folder.root)
        output = job.output(store, reasons)
        try:
            with GrowingOutput(output):
                asked = engine.ask_all(job, store, reasons=reasons, on_end=report.note)
            written = None if asked.is_stopped else output.finish()
            report.send()
        except DiskFull:
            # The space is for paid answers.
            output.discard()
            raise
        finally:
            # What there is of it stays in sight.
            output.close()
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
