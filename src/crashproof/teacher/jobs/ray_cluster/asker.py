"""Ask from one machine of a cluster.

The machine shares nothing with the others but the store, which deduplicates requests, enforces the budget, and keeps
the answers of a machine that is lost.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from crashproof.errors import CrashproofError, TeacherError
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.client import AsyncTeacher
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.engine import TeacherSettings
from crashproof.teacher.jobs.outcomes import End, EndKind
from crashproof.teacher.jobs.prompts import Prompt, problem_with_answer
from crashproof.teacher.jobs.ray_cluster.hidden import Hidden
from crashproof.teacher.jobs.ray_cluster.store_file import StoreFile, store_file_of
from crashproof.teacher.shared_store.store import SharedStore

__all__ = ["Asker", "AskerSetup", "Ended", "FailedAttempt", "News", "Opened", "Row", "version_here"]

log = logging.getLogger("crashproof")

_GATHERING_SECONDS = 0.02
"""How long ends are gathered after the first, so that a fast teacher does not cost a call for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskerSetup:
    """What an asker has to know; holds the key and the store's password."""

    form: RequestForm
    keeps_truncated: bool
    settings: TeacherSettings
    store_url: str = field(repr=False)
    account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The machine of an asker, as it finds it."""

    version: str
    """Of crashproof."""
    store_file: StoreFile | None
    """Which file the store is there; None for a server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A question, as an asker needs it."""

    request: TeacherRequest
    text: str | None
    """The prompt of a `{"prompt": …}` line, whose answer must be text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the question with this number ended."""

    number: int
    end: End


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """An attempt failed; `retry_count` is 1 if it will be tried again, or else 0."""

    retry_count: int
    reason: str


News = Ended | FailedAttempt


class Asker:
    """An actor; every call may be repeated, since a connection may break after it was obeyed."""

    def __init__(self) -> None:
        self._teacher: AsyncTeacher | None = None
        self._store: SharedStore | None = None
        self._news: list[News] = []
        """Not known to be received."""
        self._num_received = 0
        self._has_news = asyncio.Event()
        self._num_begun = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Task[None] | None = None

    async def open(self, hidden: Hidden[AskerSetup]) -> Opened | CrashproofError:
        """Open the store and the teacher; an error is returned, since Ray cannot raise it as what it is."""
        setup = hidden.open()
        try:
            self._store = await asyncio.to_thread(SharedStore.open, setup.store_url, account=setup.account)
            settings = _with_key_of_machine(setup.settings)
            self._teacher = settings.open(
                setup.form, self._store, self._note_failure, keeps_truncated=setup.keeps_truncated
            )
        except CrashproofError as error:
            return error
        return Opened(version=version_here(), store_file=store_file_of(setup.store_url))

    async def exchange(
        self, questions: Sequence[tuple[int, Row]], *, num_received: int, wait_seconds: float
    ) -> list[News]:
        """Take questions, numbered without a gap, and return the news behind those that were received.

        Waits for news for `wait_seconds` at most.
        """
        for number, row in questions:
            if number >= self._num_begun:
                self._num_begun = number + 1
                self._begin(number, row)
        del self._news[: num_received - self._num_received]
        self._num_received = num_received
        if not self._news:
            self._has_news.clear()
            try:
                await asyncio.wait_for(self._has_news.wait(), wait_seconds)
                await asyncio.sleep(_GATHERING_SECONDS)
            except TimeoutError:
                return []
        return list(self._news)

    async def limit(self, limits: Limits) -> None:
        """Apply another part of the job's limits."""
        if self._teacher is not None:
            self._teacher.limit(limits)

    async def stop(self, *, waits: bool) -> None:
        """Send nothing more; with `waits`, the answers in flight are awaited and stored, or else given up."""
        if self._teacher is None:
            return
        if self._stopping is not None and not waits:
            self._stopping.cancel()
            await asyncio.gather(self._stopping, return_exceptions=True)
            self._stopping = None
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._teacher.close(waits=waits))

    async def close(self) -> None:
        """Finish stopping, and close the store, which releases what is still leased."""
        await self.stop(waits=True)
        if self._stopping is not None:
            await self._stopping
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    @property
    def _teacher_here(self) -> AsyncTeacher:
        assert self._teacher is not None, "questions come after `open`"
        return self._teacher

    def _begin(self, number: int, row: Row) -> None:
        task = asyncio.create_task(self._ask(number, row))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, number: int, row: Row) -> None:
        try:
            end = End.of(await self._error_of_asking(row))
        except asyncio.CancelledError:
            # By `stop`: it was not sent, or given up.
            end = End(kind=EndKind.NOT_ASKED)
        if end.kind is EndKind.FATAL:
            # Before the driver knows, so that no other question meets the same end.
            self._teacher_here.stop()
        self._tell(Ended(number=number, end=end))

    async def _error_of_asking(self, row: Row) -> Exception | None:
        prompt = Prompt(line=0, messages=[], text=row.text)
        try:
            await self._teacher_here.ask_request(
                row.request, check=lambda answer: problem_with_answer(prompt, answer.message)
            )
        except CrashproofError as error:
            return error
        except Exception as error:
            log.exception("An asker failed.")
            return TeacherError(f"An asker failed: {type(error).__name__}: {error}.")
        return None

    def _note_failure(self, retry_count: int, error: object) -> None:
        self._tell(FailedAttempt(retry_count=retry_count, reason=str(error)))

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._has_news.set()


def _with_key_of_machine(settings: TeacherSettings) -> TeacherSettings:
    """The settings with the machine's own key, which takes precedence."""
    key = None if settings.endpoint.has_key_in_header else os.environ.get("OPENAI_API_KEY")
    return settings if not key else replace(settings, endpoint=replace(settings.endpoint, api_key=key))


def version_here() -> str:
    """The version of crashproof in this process."""
    try:
        return importlib.metadata.version("crashproof")
    except importlib.metadata.PackageNotFoundError:
        return "from a folder of sources"
