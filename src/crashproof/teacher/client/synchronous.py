"""A teacher without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Self

from crashproof.errors import TeacherClosed
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.answers import Answer, Check
from crashproof.teacher.client.client import AsyncTeacher
from crashproof.teacher.client.request_builder import Messages

__all__ = ["Teacher"]


class Teacher:
    """An `AsyncTeacher` in a thread of its own: `with Teacher(AsyncTeacher(…)) as teacher`.

    Every method may be called from any thread; equal questions of several threads share one answer.
    """

    def __init__(self, teacher: AsyncTeacher) -> None:
        """Wrap a teacher that nothing else uses."""
        self._teacher = teacher
        self._closing = threading.Lock()
        """Held while closing: a second thread that closes waits for the first."""
        self._submitting = threading.Lock()
        """Held briefly while submitting: a stopped loop would never answer."""
        self._is_closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crashproof-teacher", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, messages: Messages, **parameters: Any) -> TeacherRequest:
        """See `AsyncTeacher.request`."""
        return self._teacher.request(messages, **parameters)

    def ask(self, messages: Messages, *, check: Check | None = None, **parameters: Any) -> Answer:
        """See `AsyncTeacher.ask`."""
        return self.begin(self.request(messages, **parameters), check=check).result()

    def ask_all(self, questions: Iterable[Messages], **parameters: Any) -> Iterator[Answer]:
        """Yield the answers to many questions in order; all are submitted at once, within the limits."""
        futures = [self.begin(self.request(question, **parameters)) for question in questions]
        for future in futures:
            yield future.result()

    def begin(self, request: TeacherRequest, *, check: Check | None = None) -> Future[Answer]:
        """Ask in the background; the future's `result()` raises what `AsyncTeacher.ask` would."""
        with self._submitting:
            if self._is_closing:
                raise TeacherClosed
            return asyncio.run_coroutine_threadsafe(self._teacher.ask_request(request, check=check), self._loop)

    def close(self, *, waits: bool = False) -> None:
        """See `AsyncTeacher.close`; a second call does nothing."""
        with self._closing:
            with self._submitting:
                if self._is_closing:
                    return
                self._is_closing = True
            try:
                asyncio.run_coroutine_threadsafe(self._close_teacher(waits=waits), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()

    async def _close_teacher(self, *, waits: bool) -> None:
        await self._teacher.close(waits=waits)
        # Pending callers get `TeacherClosed` before the loop stops.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
