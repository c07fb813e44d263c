"""The same teacher for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from crashproof.errors import TeacherClosed
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.answers import Answer, Check
from crashproof.teacher.client.client import AsyncTeacher

__all__ = ["Teacher"]

T = TypeVar("T")


class Teacher:
    """An `AsyncTeacher` in a thread of its own: `with Teacher(AsyncTeacher(…)) as teacher`.

    Every method may be called from any thread; equal questions of several threads share one answer.
    """

    def __init__(self, teacher: AsyncTeacher) -> None:
        """Take a teacher that nobody else uses."""
        self._teacher = teacher
        self._closing = threading.Lock()
        """Held while it is closed: a second thread that closes it waits for the first."""
        self._asking = threading.Lock()
        """Held for a moment: behind the end of the loop nobody would ever answer."""
        self._is_closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crashproof-teacher", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def request(self, messages: str | Sequence[Any], **parameters: Any) -> TeacherRequest:
        """See `AsyncTeacher.request`."""
        return self._teacher.request(messages, **parameters)

    def ask(self, messages: str | Sequence[Any], *, check: Check | None = None, **parameters: Any) -> Answer:
        """See `AsyncTeacher.ask`."""
        return self.begin(self.request(messages, **parameters), check=check).result()

    def ask_all(self, questions: Iterable[str | Sequence[Any]], **parameters: Any) -> Iterator[Answer]:
        """The answers to many questions, in their order; all are asked at once, as far as the limits allow."""
        asked = [self.begin(self.request(question, **parameters)) for question in questions]
        for future in asked:
            yield future.result()

    def begin(self, request: TeacherRequest, *, check: Check | None = None) -> Future[Answer]:
        """Ask in the background; the future's `result()` raises what `AsyncTeacher.ask` would."""
        return self._submit(self._teacher.ask_request(request, check=check))

    def close(self, *, waits: bool = False) -> None:
        """See `AsyncTeacher.close`; a second call does nothing."""
        with self._closing:
            with self._asking:
                if self._is_closing:
                    return
                self._is_closing = True
            try:
                asyncio.run_coroutine_threadsafe(self._ended(waits=waits), self._loop).result()
            finally:
                self._stop()

    async def _ended(self, *, waits: bool) -> None:
        await self._teacher.close(waits=waits)
        # Whoever still asks is told that it is closed, before the loop stands still.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._asking:
            if not self._is_closing:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise TeacherClosed

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
