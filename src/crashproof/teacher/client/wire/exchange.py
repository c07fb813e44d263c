"""Exchange one request for one response.

An exchange knows what an exception alone does not tell: whether the request has left, and what had come back.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from crashproof.records.lines.checksummed_line import MAX_LINE_BYTES
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.client.wire.body_reader import BodyReader

__all__ = ["LONGEST_BODY_BYTES", "Exchange", "TooLong", "reason_of"]

LONGEST_BODY_BYTES = MAX_LINE_BYTES // 2
"""An answer is stored with its request (at most a quarter of a line), in one line."""
_LONGEST_STREAM_BYTES = 8 * LONGEST_BODY_BYTES
"""Around each part of a streamed answer there is a frame that is not kept."""
_PROXY_STATUS = re.compile(r"([1-5]\d\d)\b")
_LASTING_PROXY_STATUSES = frozenset({"401", "403", "405", "407"})


class TooLong(Exception):
    """A body is longer than can be stored."""


class Exchange:
    """One request over one client."""

    def __init__(self, client: httpx2.AsyncClient, retry_policy: RetryPolicy) -> None:
        self.has_left = False
        """Whether any byte of the request itself was handed to a connection; one of a proxy's handshake is none."""
        self.is_success = False
        """Whether a status of success has come back."""
        self.body: BodyReader | None = None
        """What has come back; None before the headers."""
        self.timeout_reason = f"no complete answer within {retry_policy.answer_seconds:g} s"
        self._client = client
        self._retry_policy = retry_policy

    async def run(self, url: httpx2.URL, *, content: bytes, headers: Mapping[str, str]) -> httpx2.Response:
        """Send a request and read its response to the end, into `body`.

        Raises:
            TimeoutError: a limit has passed, named by `timeout_reason`.
            TooLong: the body cannot be stored.
            httpx2.HTTPError: there is no connection, or it was lost.
        """
        message = self._client.build_request("POST", url, content=content, headers=dict(headers))
        message.extensions["trace"] = self._note_event
        async with asyncio.timeout(self._retry_policy.answer_seconds):
            async with self._limit("no first byte", self._retry_policy.first_byte_seconds):
                response = await self._client.send(message, stream=True)
            self.is_success = response.is_success
            self.body = BodyReader(response.headers.get("content-type", ""))
            try:
                await self._read(response, self.body)
            finally:
                await response.aclose()
        return response

    async def _read(self, response: httpx2.Response, body: BodyReader) -> None:
        pieces = response.aiter_bytes()
        seconds, what = self._retry_policy.first_byte_seconds, "no first byte"
        while True:
            async with self._limit(what, seconds):
                piece = await anext(pieces, None)
            if piece is None:
                return
            body.feed(piece)
            if body.num_kept_bytes > LONGEST_BODY_BYTES or body.num_bytes > _LONGEST_STREAM_BYTES:
                raise TooLong(f"the body is longer than {LONGEST_BODY_BYTES:,} bytes")
            seconds, what = self._retry_policy.between_chunks_seconds, "no further byte"

    async def _note_event(self, name: str, info: Mapping[str, Any]) -> None:
        if name.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            self.has_left = True

    def _limit(self, what: str, seconds: float) -> _Limit:
        return _Limit(self, f"{what} within {seconds:g} s", seconds)


class _Limit:
    """A limit of time that says its name when it has passed."""

    def __init__(self, exchange: Exchange, reason: str, seconds: float) -> None:
        self._exchange = exchange
        self._reason = reason
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            self._exchange.timeout_reason = self._reason
            raise


def reason_of(error: Exception, exchange: Exchange, redact: Callable[[Exception | str], str]) -> tuple[str, bool]:
    """Why an exchange failed, and whether a retry may help."""
    if isinstance(error, TimeoutError):
        return exchange.timeout_reason, True
    if isinstance(error, TooLong):
        return str(error), False
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.LocalProtocolError)):
        return redact(error), False
    if isinstance(error, httpx2.ProxyError):
        status = _PROXY_STATUS.match(str(error))
        return f"the proxy refused: {redact(error)}", status is None or status[1] not in _LASTING_PROXY_STATUSES
    if not exchange.has_left:
        return redact(error), not _is_about_certificates(error)
    if isinstance(error, httpx2.DecodingError):
        return f"the body could not be decompressed ({redact(error)})", True
    return f"the connection was lost ({redact(error)})", True


def _is_about_certificates(error: BaseException | None) -> bool:
    """Whether TLS failed for a reason that stays: a certificate, or a server without TLS."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            return True
        error = error.__cause__ or error.__context__
    return False
