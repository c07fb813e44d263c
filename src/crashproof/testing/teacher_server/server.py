"""A fake teacher server."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Self

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.rules.requests import JsonObject
from crashproof.testing.teacher_server.completions import Choice, Completion, Prices, Usage
from crashproof.testing.teacher_server.counts import Ledger, SeenRequest, TeacherCounts
from crashproof.testing.teacher_server.echo import KeyEcho, echo_key
from crashproof.testing.teacher_server.faults import Fault, FaultPlan, Faults
from crashproof.testing.teacher_server.http_stub import Connection, HttpThread, Malformed, Request, Response
from crashproof.testing.teacher_server.misbehaviour import cut_short, refuse, spoil, wrong_usage
from crashproof.testing.teacher_server.provider_refusals import check_parameters
from crashproof.testing.teacher_server.providers import MANNERS, Provider
from crashproof.testing.teacher_server.questions import Question, Refused, error_response
from crashproof.testing.teacher_server.tokens import num_tokens, some_text

__all__ = ["TeacherServer"]

log = logging.getLogger(__name__)

_USUAL_PRICES = Prices(Decimal("0.15"), Decimal("0.075"), Decimal("0.60"))


class TeacherServer:
    """An OpenAI-compatible server on loopback, while its `with` block lasts.

    Serves `POST /v1/chat/completions`, complete or streamed, `GET /v1/models`, and its own counts at `GET /counts`.
    Every computed answer is charged exactly, whether or not it arrives. `python -m
    crashproof.testing.teacher_server` runs one in a process of its own.

    A request gets the fault in its header `X-Crashproof-Fault`, or else the one that `faults` chooses.
    """

    def __init__(
        self,
        answer: Callable[[JsonObject], str | Mapping[str, object]] | None = None,
        *,
        faults: Faults | None = None,
        prices: tuple[Decimal, Decimal, Decimal] = _USUAL_PRICES,
        cached_share: float = 0.0,
        models: Sequence[str] = ("teacher",),
        api_key: str | None = None,
        echoes_key: KeyEcho | None = None,
        latency_seconds: float = 0.0,
        honours_idempotency_keys: bool = False,
        provider: Provider = Provider.OPENAI,
        refuses: Collection[str] = (),
        only_streams: bool = False,
        port: int = 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Configure a server; entering it starts it.

        Args:
            answer: Called with a request's body; returns the text of the answer, or a complete message, or a dict of
                the message and optionally its `logprobs` and `finish_reason`; a message's content may be a list of
                parts. Runs on the server's only thread, once per choice, and must not block. By default, words
                derived from the request.
            faults: Faults to inject; by default none.
            prices: Dollars per million prompt tokens, cached prompt tokens and completion tokens.
            cached_share: How much of each prompt is charged as cached, from 0 to 1.
            models: The models served; any other is not found.
            api_key: The key that clients must send; None for no authentication.
            echoes_key: How each complete body spells the key that the client sent; None for no echo.
            latency_seconds: Time between computing and delivering an answer.
            honours_idempotency_keys: Whether a repeated key gets the earlier answer, free of charge.
            provider: Whose manner of answering it takes on.
            refuses: Parameters that are refused by name, such as `max_tokens` or `stream_options`.
            only_streams: Whether a request that does not ask for a stream is refused.
            port: 0 picks a free one.
            clock: Source of time for answers and `Retry-After`.
        """
        self._answer = answer
        self._faults = faults or Faults()
        self._prices = Prices(*prices)
        self._cached_share = cached_share
        self._models = models
        self._api_key = api_key
        self._echoes_key = echoes_key
        self._latency_seconds = latency_seconds
        self._honours_idempotency_keys = honours_idempotency_keys
        self._manner = MANNERS[provider]
        self._refuses = refuses
        self._only_streams = only_streams
        self._wanted_port = port
        self._clock = clock
        self._plan = FaultPlan(self._faults)
        self._ledger = Ledger()
        self._remembered: dict[str, tuple[str, Completion]] = {}
        self._http: HttpThread | None = None

    def __enter__(self) -> Self:
        self._http = HttpThread(self._serve, _refusal_of_malformed, port=self._wanted_port)
        return self

    def __exit__(self, *_: object) -> None:
        if self._http is not None:
            self._http.close()

    @property
    def base_url(self) -> str:
        """The base URL for clients; available once the server has been entered."""
        if self._http is None:
            raise RuntimeError("The server is not running: enter it with `with`.")
        return f"http://127.0.0.1:{self._http.port}/v1"

    @property
    def counts(self) -> TeacherCounts:
        """Requests and charges so far; also after the server has stopped."""
        return self._ledger.counts

    @property
    def requests_seen(self) -> tuple[SeenRequest, ...]:
        """The last 10,000 valid requests, oldest first."""
        return self._ledger.seen

    async def _serve(self, request: Request, connection: Connection) -> None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._echoes_key is not None and key:
            connection.spoil_responses(functools.partial(echo_key, key=key, echo=self._echoes_key))
        try:
            if request.method == "POST":
                with self._ledger.in_flight():
                    await self._complete(self._parse(request), request, connection)
            else:
                await connection.send(self._response_to_get(request))
        except Refused as refusal:
            await connection.send(
                error_response(refusal.status, str(refusal), code=refusal.code, parameter=refusal.parameter)
            )

    def _response_to_get(self, request: Request) -> Response:
        if (request.method, request.path) == ("GET", "/counts"):
            return Response(pieces=(self.counts.as_json(),))
        self._check_key(request)
        if (request.method, request.path) != ("GET", "/v1/models"):
            raise Refused(404, f"Not found: {request.method} {request.path}.")
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "crashproof"} for name in self._models]
        return Response(pieces=(json.dumps({"object": "list", "data": models}).encode(),))

    def _parse(self, request: Request) -> Question:
        self._check_key(request)
        if request.path != "/v1/chat/completions":
            raise Refused(404, f"Not found: POST {request.path}.")
        question = Question.read(request.body)
        check_parameters(question.body, refuses=self._refuses, only_streams=self._only_streams)
        if question.model not in self._models:
            message = f"The model {question.model!r} does not exist or you do not have access to it."
            raise Refused(404, message, code="model_not_found")
        return question

    def _check_key(self, request: Request) -> None:
        if self._api_key is not None and request.headers.get("authorization") != f"Bearer {self._api_key}":
            raise Refused(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _complete(self, question: Question, request: Request, connection: Connection) -> None:
        self._ledger.see(question.body, request.headers)
        fault = self._fault_for(question, request)
        number = self._ledger.strike(fault) if fault is not None else 0
        if fault is not None and not fault.is_charged:
            await refuse(fault, connection, self._faults.times, self._clock)
            return
        completion = self._compute_or_recall(question, request.headers.get("idempotency-key"))
        await asyncio.sleep(self._latency_seconds)
        usage = completion.usage
        told = self._manner.usage(usage, usage.dollars(self._prices))
        shown = wrong_usage(usage, number) if fault is Fault.WRONG_USAGE else told
        if fault is not None and fault.is_streamed:
            question = replace(question, is_streamed=True, includes_usage=True)
        ended = completion if fault is None else cut_short(fault, completion)
        response = ended.response(question, usage=shown)
        if fault is None:
            await connection.send(response, on_delivery=self._ledger.deliver)
        else:
            await spoil(fault, connection, response, self._faults.times, self._ledger.deliver)

    def _fault_for(self, question: Question, request: Request) -> Fault | None:
        named = request.headers.get("x-crashproof-fault")
        if named is None:
            return self._plan.next_for(question.request_hash)
        try:
            return Fault(named)
        except ValueError as error:
            raise Refused(400, f"{error}.") from None

    def _compute_or_recall(self, question: Question, key: str | None) -> Completion:
        """Compute and charge an answer, or recall the one under the same idempotency key."""
        if key is None or not self._honours_idempotency_keys:
            return self._compute(question)
        if key not in self._remembered:
            self._remembered[key] = question.request_hash, self._compute(question)
        asked, completion = self._remembered[key]
        if asked != question.request_hash:
            raise Refused(
                422, "This idempotency key was used for another request before.", code="idempotency_key_reused"
            )
        return completion

    def _compute(self, question: Question) -> Completion:
        choices = [self._choose(question, number) for number in range(question.num_choices)]
        prompt_tokens = num_tokens(question.body["messages"]) + num_tokens(question.body.get("tools"))
        usage = Usage(
            prompt_tokens=prompt_tokens,
            cached_tokens=int(prompt_tokens * self._cached_share) if self._manner.reports_cache else 0,
            completion_tokens=sum(choice.completion_tokens for choice in choices),
            reasoning_tokens=sum(choice.reasoning_tokens for choice in choices),
        )
        times = self._ledger.charge(question.request_hash, usage.dollars(self._prices))
        return Completion(
            identity=f"chatcmpl-{question.request_hash[:24]}-{times}",
            created=int(self._clock.now()),
            model=question.model,
            choices=[replace(choice, message=choice.message | self._manner.message) for choice in choices],
            usage=usage,
            manner_of_body=self._manner.body,
            manner_of_choice=self._manner.choice,
        )

    def _choose(self, question: Question, number: int) -> Choice:
        if self._answer is None:
            return Choice.of(some_text(question.request_hash, number), question)
        try:
            return Choice.of(self._answer(question.body), question)
        except Exception as error:
            # A bug in the test: reported in the response and the log, while the server keeps running.
            log.exception("The answer function failed.")
            raise Refused(500, f"The answer function failed: {error!r}") from error


def _refusal_of_malformed(error: Malformed) -> Response:
    return error_response(error.status, str(error), headers={"connection": "close"})
