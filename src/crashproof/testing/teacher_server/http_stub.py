"""An HTTP/1.1 server with faults."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NoReturn

__all__ = ["MOST_BODY_BYTES", "Connection", "HttpThread", "Malformed", "Request", "Response"]

MOST_BODY_BYTES = 16 * 2**20
_MOST_HEAD_BYTES = 64 * 2**10
_LINGER_SECONDS = 1.0
_PIECES_OF_A_SLOW_BODY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as received."""

    method: str
    path: str
    query: str
    """What stands behind the `?` of the address."""
    headers: Mapping[str, str]
    """By lower-case name; the last one of several with the same name."""
    body: bytes
    is_last: bool
    """Whether the client wants the connection closed afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response to send."""

    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Sequence[bytes] = ()
    """The body; one HTTP chunk each if `is_chunked`."""
    is_chunked: bool = False

    def head(self) -> bytes:
        """The status line and headers as sent."""
        size = "transfer-encoding: chunked" if self.is_chunked else f"content-length: {sum(map(len, self.pieces))}"
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        status = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"
        return f"{status}\r\ncontent-type: {self.content_type}\r\n{size}\r\n{more}\r\n".encode("latin-1")

    def payload(self) -> bytes:
        """The body as sent."""
        if not self.is_chunked:
            return b"".join(self.pieces)
        return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in self.pieces) + b"0\r\n\r\n"


class Malformed(Exception):
    """A client sent invalid HTTP, or a feature that is not supported here."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """The server's end of one keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.is_over = False
        self._reader = reader
        self._writer = writer
        self._alter: Callable[[Response], Response] | None = None

    def spoil_responses(self, alter: Callable[[Response], Response]) -> None:
        """Alter each complete response before it is sent."""
        self._alter = alter

    async def send(self, response: Response, *, on_delivery: Callable[[], None] | None = None) -> None:
        """Send a complete response.

        `on_delivery` is called just before the last bytes are sent, so that whoever has them finds them counted; not
        if the client has disconnected.
        """
        if self._alter is not None:
            response = self._alter(response)
        await self._write(response.head() + response.payload(), on_delivery)

    async def send_slowly(
        self, response: Response, *, seconds: float, on_delivery: Callable[[], None] | None = None
    ) -> None:
        """Send a complete response, but its body in small pieces."""
        payload = response.payload()
        step = math.ceil(len(payload) / _PIECES_OF_A_SLOW_BODY)
        await self._write(response.head())
        for start in range(0, len(payload), step):
            await asyncio.sleep(seconds / _PIECES_OF_A_SLOW_BODY)
            is_last = start + step >= len(payload)
            await self._write(payload[start : start + step], on_delivery if is_last else None)

    async def send_half(self, response: Response, *, stalls_seconds: float | None = None) -> None:
        """Send the head with the full length and half of the body, then close; at once, or after a silence."""
        payload = response.payload()
        await self._write(response.head() + payload[: len(payload) // 2])
        if stalls_seconds is not None:
            await self.stall(seconds=stalls_seconds)
        self.drop()

    async def stall(self, *, seconds: float) -> None:
        """Send nothing until the client disconnects or the time is over, then close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reader.read()
        self.drop()

    def drop(self) -> None:
        """Close without sending anything more."""
        self.is_over = True

    async def read_request(self) -> Request | None:
        """Read the next request; None if the client is done.

        Raises:
            Malformed: the connection cannot be used any further.
        """
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Malformed(400, "The request ended within its headers.") from None
            return None
        except asyncio.LimitOverrunError:
            raise Malformed(431, f"The headers are longer than {_MOST_HEAD_BYTES:,} bytes.") from None
        method, target, version, headers = _parse_head(head)
        path, _, query = target.partition("?")
        if headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._read_body(headers)
        is_last = version == "HTTP/1.0" or headers.get("connection", "").lower() == "close"
        return Request(method=method, path=path, query=query, headers=headers, body=body, is_last=is_last)

    async def linger(self) -> None:
        """Drain what a client still sends, so that it gets to read its response."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self._reader.read(_MOST_HEAD_BYTES):
                    pass

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if "transfer-encoding" in headers:
            raise Malformed(411, "Send a content-length: chunked requests are not supported here.")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Malformed(400, f"{length!r} is not a valid content-length.")
        if int(length) > MOST_BODY_BYTES:
            raise Malformed(413, f"The body is longer than {MOST_BODY_BYTES:,} bytes.")
        try:
            return await self._reader.readexactly(int(length))
        except asyncio.IncompleteReadError:
            raise Malformed(400, "The body is shorter than its length.") from None

    async def _write(self, content: bytes, on_delivery: Callable[[], None] | None = None) -> None:
        if on_delivery is not None and not self._reader.at_eof():
            on_delivery()
        self._writer.write(content)
        await self._writer.drain()


class HttpThread:
    """A server on loopback in its own thread, which runs all callbacks."""

    def __init__(
        self,
        answer: Callable[[Request, Connection], Awaitable[None]],
        refuse: Callable[[Malformed], Response],
        *,
        port: int,
    ) -> None:
        """Start to listen.

        Args:
            answer: Called for each request; answers it over the connection.
            refuse: Makes the response to a malformed request.
            port: 0 picks a free one.
        """
        listener = socket.create_server(("127.0.0.1", port))
        self.port: int = listener.getsockname()[1]
        self._answer = answer
        self._refuse = refuse
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._is_closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="teacher-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Abort every connection, and stop the thread."""
        self._loop.call_soon_threadsafe(self._is_closing.set)
        self._thread.join()

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._listen(listener))

    async def _listen(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._accept, sock=listener, backlog=1024, limit=_MOST_HEAD_BYTES)
        await self._is_closing.wait()
        server.close()
        ended = dict(self._open)
        for task, writer in ended.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*ended, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._converse(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        # A client may disconnect at any moment.
        with contextlib.suppress(ConnectionError):
            try:
                await self._answer_all(connection)
            except Malformed as error:
                await connection.send(self._refuse(error))
                await connection.linger()
            finally:
                writer.close()
            await writer.wait_closed()

    async def _answer_all(self, connection: Connection) -> None:
        while not connection.is_over:
            request = await connection.read_request()
            if request is None:
                return
            await self._answer(request, connection)
            if request.is_last:
                return


def _parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    words = first.split(" ")
    if len(words) != 3 or words[2] not in {"HTTP/1.0", "HTTP/1.1"}:
        _refuse_line(first)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            _refuse_line(line)
        headers[name.lower()] = value.strip()
    return words[0], words[1], words[2], headers


def _refuse_line(line: str) -> NoReturn:
    raise Malformed(400, f"This is not HTTP/1.1: {line[:100]!r}")
