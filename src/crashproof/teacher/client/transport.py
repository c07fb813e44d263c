"""Send requests over HTTP."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.request import getproxies

import httpx2
import msgspec

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError
from crashproof.records.checksummed_line import MAX_LINE_BYTES
from crashproof.rules.requests import TeacherRequest
from crashproof.rules.secrets.proxies import MAY_SEE_KEYS, proxy_of, reads_requests
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.retry import Patience, parse_retry_after
from crashproof.teacher.replies.errors import ReportedError, error_in

__all__ = ["Delivered", "Failed", "HttpTransport", "Reply", "Transport", "failed_by"]

_STREAM_PARAMETERS = frozenset({"stream", "stream_options"})
_LONGEST_REASON = 300
_LONGEST_BODY_BYTES = MAX_LINE_BYTES // 2
"""An answer is stored with its request (at most a quarter of a line), in one line."""
_KEY_IN_CLEAR = "The API key would go through a proxy unencrypted, since the base URL is http:// and a proxy is set."
_KEY_IN_CLEAR_HINT = (
    "Use https://, add the server's host to NO_PROXY, or allow it with CRASHPROOF_PROXY_MAY_SEE_KEYS=1."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A complete body with a status of success."""

    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No answer arrived."""

    reason: str
    status: int | None = None
    """The HTTP status; None without a reply."""
    is_retryable: bool
    may_have_been_paid: bool
    retry_after_seconds: float | None = None
    """The `Retry-After` of the server, if any."""

    @property
    def is_overload(self) -> bool:
        """Whether a lower concurrency might help."""
        return self.status in (429, 503)


Reply = Delivered | Failed


class Transport(Protocol):
    """Sends requests over a network."""

    async def send(self, request: TeacherRequest) -> Reply:
        """Send one chat completion."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class HttpTransport:
    """HTTP/1.1 with keep-alive; redirects are not followed, since they would send the key elsewhere."""

    def __init__(self, endpoint: Endpoint, patience: Patience, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._endpoint = endpoint
        self._retry_policy = patience
        self._clock = clock
        headers = {"User-Agent": "crashproof", "Content-Type": "application/json"}
        if endpoint.api_key is not None:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        self._headers = headers
        self._tls = httpx2.create_ssl_context()
        self._clients: list[httpx2.AsyncClient] = []
        self._idle_clients: defaultdict[str | None, list[httpx2.AsyncClient]] = defaultdict(list)
        """By their proxy."""
        self._proxies = getproxies()
        self._proxy_of: dict[str, str | None] = {}
        self._may_proxy_see_key = os.environ.get(MAY_SEE_KEYS) == "1"
        if self._is_key_readable(endpoint.base_url):
            raise ConfigError(_KEY_IN_CLEAR, hint=_KEY_IN_CLEAR_HINT)
        self._urls: dict[str, httpx2.URL] = {}

    async def send(self, request: TeacherRequest) -> Reply:
        """See `Transport`."""
        # Answers are always received in one piece, even if the request is for a stream.
        content = msgspec.json.encode(
            {name: each for name, each in request.body.items() if name not in _STREAM_PARAMETERS}
        )
        headers = {"Idempotency-Key": request.idempotency_key}
        if self._is_key_readable(request.base_url):
            return Failed(reason=_KEY_IN_CLEAR, is_retryable=False, may_have_been_paid=False)
        client = self._client_for(request.base_url)
        try:
            message = client.build_request("POST", self._url(request.base_url), content=content, headers=headers)
            async with asyncio.timeout(self._retry_policy.answer_seconds):
                return await self._exchange(client, message)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            reason = f"no connection to {request.base_url} ({self._redact(error)})"
            return Failed(reason=reason, is_retryable=True, may_have_been_paid=False)
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.LocalProtocolError) as error:
            return Failed(reason=self._redact(error), is_retryable=False, may_have_been_paid=False)
        except TimeoutError:
            reason = f"no complete answer within {self._retry_policy.answer_seconds:g} s"
            return Failed(reason=reason, is_retryable=True, may_have_been_paid=True)
        except httpx2.TransportError as error:
            reason = f"the connection was lost ({self._redact(error)})"
            return Failed(reason=reason, is_retryable=True, may_have_been_paid=True)
        except httpx2.DecodingError as error:
            reason = f"the body could not be decompressed ({self._redact(error)})"
            return Failed(reason=reason, is_retryable=True, may_have_been_paid=True)
        finally:
            self._idle_clients[self._proxy(request.base_url)].append(client)

    async def close(self) -> None:
        """See `Transport`."""
        for client in self._clients:
            await client.aclose()

    def _proxy(self, base_url: str) -> str | None:
        if base_url not in self._proxy_of:
            self._proxy_of[base_url] = proxy_of(base_url, self._proxies)
        return self._proxy_of[base_url]

    def _is_key_readable(self, base_url: str) -> bool:
        """Whether a proxy would receive the key in clear, and that is not allowed."""
        if self._endpoint.api_key is None or self._may_proxy_see_key:
            return False
        return reads_requests(base_url, self._proxy(base_url))

    def _client_for(self, base_url: str) -> httpx2.AsyncClient:
        proxy = self._proxy(base_url)
        idle = self._idle_clients[proxy]
        return idle.pop() if idle else self._new_client(proxy)

    def _new_client(self, proxy: str | None) -> httpx2.AsyncClient:
        """Make a client for one request in flight: a shared pool scans all its idle connections for every request."""
        client = httpx2.AsyncClient(
            headers=self._headers,
            timeout=httpx2.Timeout(None, connect=self._retry_policy.connect_seconds),
            limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
            follow_redirects=False,
            verify=self._tls,
            proxy=proxy,
            # The environment would send the requests to loopback addresses through its proxy, too.
            trust_env=False,
        )
        self._clients.append(client)
        return client

    def _url(self, base_url: str) -> httpx2.URL:
        if base_url not in self._urls:
            self._urls[base_url] = httpx2.URL(f"{base_url}/chat/completions")
        return self._urls[base_url]

    async def _exchange(self, client: httpx2.AsyncClient, message: httpx2.Request) -> Reply:
        try:
            async with asyncio.timeout(self._retry_policy.first_byte_seconds):
                response = await client.send(message, stream=True)
        except TimeoutError:
            reason = f"no first byte within {self._retry_policy.first_byte_seconds:g} s"
            return Failed(reason=reason, is_retryable=True, may_have_been_paid=True)
        try:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > _LONGEST_BODY_BYTES:
                    reason = f"the body is longer than {_LONGEST_BODY_BYTES:,} bytes"
                    return Failed(reason=reason, is_retryable=False, may_have_been_paid=True)
        finally:
            await response.aclose()
        return self._reply(response, bytes(body))

    def _reply(self, response: httpx2.Response, body: bytes) -> Reply:
        # A server that echoes the request would put the key into the run.
        body = self._endpoint.without_key(body)
        if response.is_success:
            return Delivered(body=body)
        error = error_in(response.status_code, body)
        assert error is not None, "a status without success is an error"
        failed = failed_by(error, self._endpoint)
        reason = f"HTTP {response.status_code}: {failed.reason or self._redact(response.reason_phrase)}"
        wait = parse_retry_after(response.headers.get("retry-after"), now=self._clock.now())
        return replace(failed, reason=reason, retry_after_seconds=wait)

    def _redact(self, error: Exception | str) -> str:
        return self._endpoint.hide_key(f"{error}" or type(error).__name__, longest=_LONGEST_REASON)


def failed_by(error: ReportedError, endpoint: Endpoint) -> Failed:
    """The failure of an attempt by an error that its reply reports."""
    return Failed(
        reason=endpoint.hide_key(error.told, longest=_LONGEST_REASON),
        status=error.status,
        is_retryable=error.is_retryable,
        may_have_been_paid=error.may_have_been_paid,
    )
