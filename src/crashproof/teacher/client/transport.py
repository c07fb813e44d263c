"""Send requests over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import httpx2
import msgspec

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import ConfigError
from crashproof.rules.base_urls import canonical_base_url, completions_url
from crashproof.rules.requests import JsonObject, TeacherRequest
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.client.wire.body_form import LearnedForm, parameter_of
from crashproof.teacher.client.wire.body_reader import StreamEnd
from crashproof.teacher.client.wire.connections import Connections
from crashproof.teacher.client.wire.error_object import error_object, stated_status, stated_words
from crashproof.teacher.client.wire.exchange import LONGEST_BODY_BYTES, Exchange, TooLong, reason_of
from crashproof.teacher.client.wire.refusals import refusal_of
from crashproof.teacher.client.wire.waits import seconds_asked_for
from crashproof.teacher.replies.errors import ReportedError, error_in

__all__ = ["Delivered", "Failed", "HttpTransport", "Reply", "Transport", "failed_by"]

_FROM_PROXIES = frozenset({403, 407, 502, 503, 504})
"""Statuses that a proxy answers with itself; a message names it beside them."""
_ABOUT_PARAMETERS = frozenset({400, 404, 422, 501})
_MOST_FORMS = 4
"""How often a request is sent at most because its form was refused."""
_LONGEST_REASON = 300
_KEY_IN_CLEAR = "The API key would go through a proxy unencrypted, since the base URL is http:// and a proxy is set."
_KEY_IN_CLEAR_HINT = (
    "Use https://, add the server's host to NO_PROXY, or allow it with CRASHPROOF_PROXY_MAY_SEE_KEYS=1."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A complete body with a status of success."""

    body: bytes
    is_foreign_stream: bool = False
    """Whether it is a stream in another form than this API's, which was computed all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No answer arrived."""

    reason: str
    status: int | None = None
    """The HTTP status; None without a reply."""
    is_retryable: bool
    may_have_been_paid: bool
    retry_after_seconds: float | None = None
    """How long the server asks to wait, if it says."""
    hits_all: bool = False
    """Whether every other request would fail for the same reason."""
    hint: str = ""
    """What to do about it, where that is known."""
    parameter: str | None = None
    """The parameter of the request that the server does not take, whatever the prompt."""
    error: Mapping[str, object] = field(default_factory=dict, repr=False)
    """The server's own account of it."""
    partial: bytes | None = field(default=None, repr=False)
    """What had arrived of a streamed answer, as a completion; it is paid for."""

    @property
    def is_overload(self) -> bool:
        """Whether a lower concurrency might help."""
        return self.status in (429, 503)

    @property
    def is_without_connection(self) -> bool:
        """Whether the request was never handed to a connection: the reason lies in none of its words."""
        return self.status is None and not self.may_have_been_paid


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

    def __init__(self, endpoint: Endpoint, retry_policy: RetryPolicy, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Make a client for the endpoint; nothing is sent yet.

        Raises:
            ConfigError: a proxy or certificates of the environment cannot be used, or a proxy would read the key.
            RequestError: the base URL cannot be used.
        """
        self._endpoint = endpoint
        self._retry_policy = retry_policy
        self._clock = clock
        headers = {"User-Agent": "crashproof", "Content-Type": "application/json", **endpoint.all_headers()}
        self._connections = Connections(headers=headers, connect_seconds=retry_policy.connect_seconds)
        self._urls: dict[str, httpx2.URL] = {}
        self._forms: dict[tuple[str, str], LearnedForm] = {}
        """By base URL and model."""
        base_url = canonical_base_url(endpoint.base_url)
        if self._is_key_readable(base_url):
            raise ConfigError(_KEY_IN_CLEAR, hint=_KEY_IN_CLEAR_HINT)
        self._url(base_url)
        # What is wrong with a proxy comes up here, before any request is on record as sent.
        self._connections.give_back(self._connections.take(base_url), base_url)

    async def send(self, request: TeacherRequest) -> Reply:
        """See `Transport`; a request that was refused for its form is sent once more in the one that is taken."""
        learned = self._forms.setdefault((request.base_url, request.model), LearnedForm(request.model))
        for _ in range(_MOST_FORMS):
            form = learned.current
            body = form.body_of(request)
            reply = await self._send(request, body)
            if not isinstance(reply, Failed) or not learned.learn(reply.status, reply.error, sent=form, body=body):
                break
        return reply

    async def close(self) -> None:
        """See `Transport`."""
        await self._connections.close()

    async def _send(self, request: TeacherRequest, body: JsonObject) -> Reply:
        base_url = request.base_url
        if self._is_key_readable(base_url):
            return Failed(reason=_KEY_IN_CLEAR, is_retryable=False, may_have_been_paid=False)
        try:
            client = self._connections.take(base_url)
        except ConfigError as error:
            return Failed(reason=str(error), is_retryable=False, may_have_been_paid=False, hits_all=True)
        exchange = Exchange(client, self._retry_policy)
        try:
            response = await exchange.run(
                self._url(base_url),
                content=msgspec.json.encode(body),
                headers={"Idempotency-Key": request.idempotency_key},
            )
            return self._reply(response, exchange, request)
        except (TimeoutError, TooLong, httpx2.HTTPError, httpx2.InvalidURL) as error:
            return self._failure(error, exchange, base_url)
        finally:
            self._connections.give_back(client, base_url)

    def _is_key_readable(self, base_url: str) -> bool:
        return self._endpoint.has_secrets and self._connections.is_readable_on_the_way(base_url)

    def _url(self, base_url: str) -> httpx2.URL:
        if base_url not in self._urls:
            url = httpx2.URL(completions_url(base_url))
            self._urls[base_url] = url.copy_merge_params(dict(self._endpoint.secret_query))
        return self._urls[base_url]

    def _reply(self, response: httpx2.Response, exchange: Exchange, request: TeacherRequest) -> Reply:
        assert exchange.body is not None
        if not response.is_success:
            return self._refused(response, exchange.body.raw, request)
        stream = exchange.body.end_of_stream(is_cut=False)
        if stream is not None and stream.body:
            return self._streamed(stream, "the stream ended without saying that the answer is complete")
        # A server that echoes the request would put the key into the run.
        content = self._endpoint.without_key(exchange.body.raw)
        # A stream in another form than this API's was computed, and is kept.
        is_foreign = stream is not None and stream.is_foreign
        is_json = "json" in response.headers.get("content-type", "") or content.lstrip()[:1] in (b"{", b"[")
        route = self._connections.route(request.base_url)
        if route and not is_json and not is_foreign:
            reason = f"a page instead of an answer{route}"
            return Failed(reason=reason, is_retryable=True, may_have_been_paid=True)
        return Delivered(body=content, is_foreign_stream=is_foreign)

    def _streamed(self, stream: StreamEnd, why_cut: str) -> Reply:
        content = self._endpoint.without_key(msgspec.json.encode(stream.body))
        if len(content) > LONGEST_BODY_BYTES:
            reason = f"the body is longer than {LONGEST_BODY_BYTES:,} bytes"
            return Failed(reason=reason, is_retryable=False, may_have_been_paid=True)
        if stream.is_complete or (not stream.has_answer and "error" in stream.body):
            return Delivered(body=content)
        if not stream.has_answer:
            return Failed(reason=why_cut, is_retryable=True, may_have_been_paid=True)
        if "error" not in stream.body:
            return Failed(reason=why_cut, is_retryable=True, may_have_been_paid=True, partial=content)
        error = error_object(content)
        refusal = refusal_of(stated_status(error), error)
        return Failed(
            reason=f"an error in the middle of the stream: {self._redact(stated_words(error))}",
            is_retryable=refusal.is_retryable,
            may_have_been_paid=True,
            hits_all=refusal.hits_all,
            hint=refusal.hint,
            partial=content,
        )

    def _refused(self, response: httpx2.Response, content: bytes, request: TeacherRequest) -> Failed:
        status = response.status_code
        content = self._endpoint.without_key(content)
        reported, error = error_in(status, content), error_object(content)
        assert reported is not None, "a status without success is an error"
        wait = seconds_asked_for(response.headers, content, now=self._clock.now())
        refusal = refusal_of(status, error, has_wait=wait is not None)
        by_proxy = self._connections.route(request.base_url) if status in _FROM_PROXIES else ""
        described = self._redact(reported.told or response.reason_phrase)
        return Failed(
            reason=f"HTTP {status}{by_proxy}: {described}",
            status=status,
            is_retryable=refusal.is_retryable and not reported.is_permanent,
            may_have_been_paid=reported.may_have_been_paid,
            retry_after_seconds=wait,
            hits_all=refusal.hits_all or reported.is_permanent,
            hint=refusal.hint,
            parameter=parameter_of(request, error) if status in _ABOUT_PARAMETERS else None,
            error=error,
        )

    def _failure(self, error: Exception, exchange: Exchange, base_url: str) -> Reply:
        """What an exception means: by what had been sent, and by what had come back."""
        reason, is_retryable = reason_of(error, exchange, self._redact)
        route = self._connections.route(base_url)
        if not exchange.has_left:
            return Failed(
                reason=f"no connection to {base_url}{route} ({reason})",
                is_retryable=is_retryable,
                may_have_been_paid=False,
                hits_all=not is_retryable,
            )
        stream = (
            exchange.body.end_of_stream(is_cut=True) if exchange.body is not None and exchange.is_success else None
        )
        if stream is not None and stream.has_answer:
            return self._streamed(stream, f"{reason}{route}")
        return Failed(reason=f"{reason}{route}", is_retryable=is_retryable, may_have_been_paid=True)

    def _redact(self, error: Exception | str) -> str:
        return self._endpoint.hide_key(f"{error}" or type(error).__name__, longest=_LONGEST_REASON)


def failed_by(error: ReportedError, endpoint: Endpoint) -> Failed:
    """The failure of an attempt by an error within a status of success."""
    refusal = refusal_of(error.status, {"message": error.words})
    return Failed(
        reason=endpoint.hide_key(error.told, longest=_LONGEST_REASON),
        status=error.status,
        is_retryable=error.is_retryable and refusal.is_retryable,
        may_have_been_paid=error.may_have_been_paid,
        hits_all=refusal.hits_all,
        hint=refusal.hint,
    )
