"""A teacher without a network, a network without a teacher, and time that passes while nobody does anything."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from crashproof.rules.requests import TeacherRequest, teacher_request
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.client.transport import Delivered, Failed, Reply
from crashproof.testing import FakeClock
from crashproof.testing.teacher_server.http_stub import Connection, HttpThread, Malformed, Request, Response

T = TypeVar("T")

URL = "http://teacher.example/v1"
EAGER = RetryPolicy(first_wait_seconds=0.0001, longest_wait_seconds=0.001)
"""Tries again at once."""
PRICES = """\
as_of: 2026-01-01
models:
  teacher: {input: 1, output: 2}
  free: {input: 0, output: 0}
"""
"""A dollar for a million tokens asked, two for a million said."""


def request_for(question: object = "2 + 2?", *, base_url: str = URL, **parameters: Any) -> TeacherRequest:
    """Ask one question of one model."""
    body = {"model": "teacher", "messages": [{"role": "user", "content": str(question)}]} | parameters
    return teacher_request(base_url, body)


def completion(
    message: str | dict[str, Any] = "4", *, prompt: int = 10, said: int = 5, **others: Any
) -> dict[str, Any]:
    """A chat completion, which costs 20 millionths of a dollar by `PRICES`."""
    whole = {"role": "assistant", "content": message} if isinstance(message, str) else {"role": "assistant"} | message
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    choices = [{"index": 0, "message": whole, "finish_reason": "stop"}]
    return {"id": "c", "object": "chat.completion", "model": "teacher", "choices": choices, "usage": usage} | others


COST = Decimal("0.00002")
"""Of a `completion` as it stands, by `PRICES`."""


def delivered(message: str | dict[str, Any] = "4", **others: Any) -> Delivered:
    """A good answer, as it comes over the network."""
    return Delivered(body=json.dumps(completion(message, **others)).encode())


def failed(status: int | None = 503, **others: Any) -> Failed:
    """A failure that may be tried again, and cost nothing."""
    usual = {"reason": f"HTTP {status}", "is_retryable": True, "may_have_been_paid": False}
    return Failed(status=status, **(usual | others))


Scripted = Reply | BaseException | Callable[[TeacherRequest], Awaitable[Reply]]


class FakeTransport:
    """Says what its script says, then good answers; remembers what it was sent."""

    def __init__(self, *script: Scripted, otherwise: Scripted | None = None) -> None:
        self.sent: list[TeacherRequest] = []
        self.most_at_once = 0
        self.num_closed = 0
        self._script: Iterator[Scripted] = iter(script)
        self._otherwise = otherwise or delivered()
        self._num_under_way = 0

    async def send(self, request: TeacherRequest) -> Reply:
        self.sent.append(request)
        self._num_under_way += 1
        self.most_at_once = max(self.most_at_once, self._num_under_way)
        try:
            said = next(self._script, self._otherwise)
            if isinstance(said, BaseException):
                raise said
            return said if isinstance(said, (Delivered, Failed)) else await said(request)
        finally:
            self._num_under_way -= 1

    async def close(self) -> None:
        self.num_closed += 1


class Held:
    """Replies that are on their way until told to arrive."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.is_sent = asyncio.Event()
        self.may_arrive = asyncio.Event()
        self._reply = reply or delivered()

    async def __call__(self, request: TeacherRequest) -> Reply:
        self.is_sent.set()
        await self.may_arrive.wait()
        return self._reply


def price_table_at(folder: Path) -> Path:
    """A file with `PRICES`."""
    path = folder / "prices.yaml"
    path.write_text(PRICES)
    return path


def in_virtual_time(work: Coroutine[Any, Any, T], clock: FakeClock, *, quiet_seconds: float = 0.0) -> T:
    """Run something; where it would wait, the clock is set forward instead.

    Threads beside it are given `quiet_seconds` of real time before the clock is moved.
    """
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(clock, quiet_seconds)) as runner:
        return runner.run(work)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: FakeClock, quiet_seconds: float) -> None:
        self._virtual = clock
        super().__init__(_Selector(clock, quiet_seconds))

    def time(self) -> float:
        return self._virtual.steady()


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: FakeClock, quiet_seconds: float) -> None:
        super().__init__()
        self._clock = clock
        self._quiet_seconds = quiet_seconds

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(self._quiet_seconds)
        if not ready:
            self._clock.advance(timeout)
        return ready


@contextmanager
def http_server(answer: Callable[[Request], Response | Callable[[Connection], Awaitable[None]]]) -> Iterator[str]:
    """A server on loopback that says whatever a test wants; gives its base URL."""

    async def serve(request: Request, connection: Connection) -> None:
        said = answer(request)
        await (connection.send(said) if isinstance(said, Response) else said(connection))

    def refuse(error: Malformed) -> Response:
        return Response(status=error.status, pieces=(str(error).encode(),))

    server = HttpThread(serve, refuse, port=0)
    try:
        yield f"http://127.0.0.1:{server.port}/v1"
    finally:
        server.close()


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON, as an API sends it."""
    return Response(status=status, headers=headers or {}, pieces=(json.dumps(content).encode(),))
