"""Ask one model, and pay for each question once.

The life of a request: it is looked up in the store; it waits for a place among those under way; the store notes the
intent, with the most that it can cost, durably; it is sent; the answer is made durable as it came; only then is it
read. What goes wrong in between is tried again as `Patience` says, each try with an intent of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

import msgspec

from crashproof.answers.store import (
    Answered,
    Busy,
    Granted,
    Intent,
    Lost,
    Outcome,
    OverBudget,
    Refused,
    ResponseStore,
    Verdict,
)
from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.errors import (
    AnswerUnusable,
    BudgetExhausted,
    ConfigError,
    TeacherClosed,
    TeacherRefused,
    TeacherUnreachable,
)
from crashproof.formatting import as_dollars_text
from crashproof.records.requests import AnswerRecord
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.answers import Answer, Check, answer_in, problem_with
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.group_commit import GroupCommit
from crashproof.teacher.client.limits import Gate, Limits, Place
from crashproof.teacher.client.prices import PriceTable, Usage, is_plausible, price_of
from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.client.retry import Patience
from crashproof.teacher.client.transport import Delivered, Failed, HttpTransport, Reply, Transport, failure_said_in

__all__ = ["AsyncTeacher", "OnFailure"]

log = logging.getLogger("crashproof")

OnFailure = Callable[[int, object], None]
"""Hears of every failed attempt: 1 where it is tried again and 0 where not, and the error; of a run,
`record_connection_failure`."""

_BYTES_A_TOKEN = 4
"""About, in prose: for the limit of tokens a minute alone."""
_SECONDS_TO_LOOK_AGAIN = 0.2
_LEVELS_TO_SPARE = 300
_HINTS = {
    401: "Check OPENAI_API_KEY.",
    403: "Check what the API key may do.",
    404: "Check the name of the model and the base URL.",
}


class AsyncTeacher:
    """A model behind an OpenAI-compatible API; for one event loop, `async with AsyncTeacher(…) as teacher`.

    Equal requests share one answer: those under way, those answered before, and, with a shared store, those of other
    processes.
    """

    def __init__(
        self,
        model: str,
        *,
        store: ResponseStore,
        endpoint: Endpoint | None = None,
        prices: PriceTable | None = None,
        budget: Decimal | None = None,
        limits: Limits | None = None,
        patience: Patience | None = None,
        parameters: Mapping[str, Any] | None = None,
        asks_again: bool = False,
        on_failure: OnFailure | None = None,
        transport: Transport | None = None,
        clock: Clock = SYSTEM_CLOCK,
        chance: random.Random | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            model: Its name at the API.
            store: Where answers are kept: `tracker.responses`, or a `SharedStore`.
            endpoint: Address and key; those of the environment where not given.
            prices: What models cost; the table that comes with crashproof where not given.
            budget: US dollars that may be spent in this store; with None, a model without a price counts as free.
            limits: Requests at once and per minute.
            patience: Attempts and time limits.
            parameters: Sampling parameters of every request, such as `{"temperature": 0.7, "max_tokens": 512}`.
            asks_again: Whether an answer that is kept and of no use is paid for once more.
            on_failure: Hears of every failed attempt.
            transport: The network; HTTP where not given.
            clock: Where the time comes from.
            chance: Where jitter comes from.

        Raises:
            UnknownPrice: a budget is set and the price of the model is not known.
            ConfigError: a limit is not above 0.
        """
        endpoint = endpoint or Endpoint.of(os.environ)
        self.form = RequestForm(base_url=endpoint.base_url, model=model, parameters=dict(parameters or {}))
        self._endpoint = endpoint
        self._store = store
        self._budget = budget
        self._limits = limits or Limits()
        self._patience = patience or Patience()
        _check(budget, self._limits, self._patience)
        table = prices or PriceTable.load()
        self._price = table.of(model) if budget is not None else price_of(model, table)
        self._asks_again = asks_again
        self._asked_again: set[str] = set()
        self._on_failure = on_failure
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311 - jitter is no secret
        self._transport = transport or HttpTransport(endpoint, self._patience, clock=clock)
        self._gate = Gate(self._limits, steady=clock.steady)
        self._commits = GroupCommit(store, budget=budget, full_disk_seconds=self._patience.full_disk_seconds)
        self._under_way: dict[str, asyncio.Task[AnswerRecord]] = {}
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._is_closing = False
        self._has_doubted_a_count = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def concurrency(self) -> int:
        """How many requests may be under way now."""
        return self._gate.allowed

    def stop(self) -> None:
        """Send no more; what is sent already comes to its end."""
        self._is_closing = True

    async def close(self, *, waits: bool = False) -> None:
        """Let go of everything.

        Requests that are sent already are given up and in doubt; with `waits`, what they bring is waited for and
        kept, since it is paid for anyway.
        """
        self._is_closing = True
        tasks = list(self._under_way.values())
        for task in tasks:
            if not waits or task not in self._sending:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._transport.close()
        await asyncio.get_running_loop().run_in_executor(None, self._commits.close)

    def request(
        self, messages: str | Sequence[Any], *, tools: Sequence[Any] | None = None, sample: int = 0, **parameters: Any
    ) -> TeacherRequest:
        """The request that `ask` would send; see `RequestForm.fill`."""
        return self.form.fill(messages, tools=tools, sample=sample, **parameters)

    async def ask(
        self,
        messages: str | Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        sample: int = 0,
        check: Check | None = None,
        **parameters: Any,
    ) -> Answer:
        """The answer to one question, from the store or from the teacher; see `request` for the arguments.

        Raises:
            AnswerUnusable: it was paid for and is kept, and breaks its response format, its tools, or `check`.
            BudgetExhausted: it could cost more than is left.
            TeacherRefused: it was refused, and would be again.
            TeacherUnreachable: no answer came in all attempts.
            DiskFull, StoreUnavailable: nothing was sent, or what was sent could not be kept.
        """
        return await self.ask_request(self.request(messages, tools=tools, sample=sample, **parameters), check=check)

    async def ask_request(self, request: TeacherRequest, *, check: Check | None = None) -> Answer:
        """The same for a request that is made already."""
        record = await self._commits.serve(request.key)
        while record is None:
            if self._is_closing:
                raise TeacherClosed
            task = self._under_way.get(request.key)
            if task is not None:
                # Who finds it under way is served from the store afterwards.
                await asyncio.shield(task)
                record = await self._commits.serve(request.key)
            else:
                # Whoever gives up waiting leaves the request under way: its answer will be paid for.
                record = await asyncio.shield(self._begun(request))
        try:
            return await self._checked(record, request, check)
        except AnswerUnusable:
            if not self._asks_again:
                raise
        return await self._checked(await self._replaced(request, record), request, check)

    async def _replaced(self, request: TeacherRequest, useless: AnswerRecord) -> AnswerRecord:
        """What came, or comes, when an answer of no use was asked for once more; all who found it so share that."""
        if request.key in self._asked_again and request.key not in self._under_way:
            record = await self._commits.serve(request.key)
            if record is not None:
                return record
        task = self._under_way.get(request.key)
        if task is None:
            if self._is_closing:
                raise TeacherClosed
            self._asked_again.add(request.key)
            # Under the same idempotency key a server would give the same answer again.
            replaced = useless.request_id if isinstance(useless.request_id, str) else "again"
            task = self._begun(dataclasses.replace(request, replaced=replaced))
        return await asyncio.shield(task)

    def _begun(self, request: TeacherRequest) -> asyncio.Task[AnswerRecord]:
        task = asyncio.create_task(self._obtain(request))
        self._under_way[request.key] = task
        task.add_done_callback(lambda done: self._let_go(request.key, done))
        return task

    def _let_go(self, key: str, task: asyncio.Task[AnswerRecord]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            # Where all who asked have given up waiting, nobody else looks at it.
            task.exception()

    async def _checked(self, record: AnswerRecord, request: TeacherRequest, check: Check | None) -> Answer:
        if isinstance(record.problem, str):
            raise AnswerUnusable(request.key, problem=record.problem)
        answer = answer_in(record)
        problem = problem_with(answer, request.body) or (check(answer) if check is not None else None)
        if problem is not None:
            await self._commits.mark(request.key, problem)
            raise AnswerUnusable(request.key, problem=problem)
        return answer

    async def _obtain(self, request: TeacherRequest) -> AnswerRecord:
        """Ask until there is an answer in the store."""
        intent = Intent(request=request, most=self._most(request), replaces=bool(request.replaced))
        begun_at = self._clock.steady()
        failures = 0
        while True:
            found = await self._one_attempt(intent)
            if isinstance(found, AnswerRecord):
                return found
            if self._is_closing:
                raise asyncio.CancelledError
            failures += 1
            waited = self._clock.steady() - begun_at
            pause = self._patience.wait_seconds(failures, asked_for=found.asked_seconds, chance=self._chance)
            is_last = failures >= self._patience.attempts or waited + pause > self._patience.deadline_seconds
            self._tell(found, is_tried_again=found.is_retryable and not is_last)
            if not found.is_retryable:
                hint = _HINTS.get(found.status or 0, "")
                raise TeacherRefused(request.base_url, status=found.status or 0, reason=found.reason, hint=hint)
            if is_last:
                raise TeacherUnreachable(request.base_url, attempts=failures, seconds=waited, last=found.reason)
            await asyncio.sleep(pause)

    async def _one_attempt(self, intent: Intent) -> AnswerRecord | Failed:
        async with self._gate.place(tokens=self._about_tokens(intent.request)) as place:
            granted = await self._permission(intent)
            if isinstance(granted, AnswerRecord):
                return granted
            if self._is_closing:
                await self._kept(Refused(granted=granted, reason="never sent"))
                raise TeacherClosed
            self._sending.add(asyncio.current_task())
            try:
                reply, outcome = await self._sent(granted)
                await self._kept(outcome)
            finally:
                self._sending.discard(asyncio.current_task())
            self._note(outcome, reply, place)
        if isinstance(reply, Failed):
            return reply
        assert isinstance(outcome, Answered)
        return outcome.as_record(timestamp=self._clock.now(), session_id="", attempt=0)

    async def _sent(self, granted: Granted) -> tuple[Reply, Outcome]:
        try:
            reply = self._understood(await self._transport.send(granted.request))
            return reply, self._outcome(reply, granted)
        except BaseException:
            # Given up on, or a mistake of ours: whatever it was, the request was sent, and its money is in doubt.
            await self._kept(Lost(granted=granted, reason="given up on"))
            raise

    async def _kept(self, outcome: Outcome) -> None:
        """Wait until the store has it, also where somebody stops us now: it may be paid for."""
        keeping = asyncio.ensure_future(self._commits.finish(outcome))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await keeping
            raise

    async def _permission(self, intent: Intent) -> Granted | AnswerRecord:
        while True:
            verdict = await self._verdict(intent)
            if isinstance(verdict, Busy):
                await asyncio.sleep(verdict.seconds)
            elif isinstance(verdict, OverBudget):
                if not verdict.may_change:
                    raise self._exhausted(verdict, intent)
                await asyncio.sleep(_SECONDS_TO_LOOK_AGAIN)
            else:
                return verdict

    async def _verdict(self, intent: Intent) -> Verdict:
        """The store's; a permission that comes when somebody has stopped us is given back: nothing was sent."""
        asking = asyncio.ensure_future(self._commits.begin(intent))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            verdict = await asking
            if isinstance(verdict, Granted):
                await self._kept(Refused(granted=verdict, reason="not sent"))
            raise

    def _understood(self, reply: Reply) -> Reply:
        """A success that is none is a failure."""
        if isinstance(reply, Failed):
            return reply
        response = _as_object(reply.body)
        if response is not None:
            return failure_said_in(response, self._endpoint) or reply
        if reply.is_json:
            return reply
        # Not the teacher speaks here, but somebody in between.
        return Failed(reason="a page instead of an answer", is_retryable=True, may_have_been_paid=True)

    def _outcome(self, reply: Reply, granted: Granted) -> Outcome:
        if isinstance(reply, Failed):
            kind = Lost if reply.may_have_been_paid else Refused
            return kind(granted=granted, reason=reply.reason)
        response = _as_object(reply.body)
        if response is None:
            return self._kept_to_the_letter(reply, granted, "its body is no JSON object")
        if _is_too_deep(reply.body):
            return self._kept_to_the_letter(reply, granted, "its body has too many levels")
        answered = Answered(granted=granted, cost=self._cost(response, granted), response=response)
        try:
            answer_in(answered.as_record(timestamp=0.0, session_id="", attempt=0))
        except ValueError as error:
            return dataclasses.replace(answered, problem=str(error))
        return answered

    def _kept_to_the_letter(self, reply: Delivered, granted: Granted, problem: str) -> Answered:
        raw = reply.body.decode("utf-8", "backslashreplace")
        # What it cost is not known: the most that it can.
        return Answered(granted=granted, cost=granted.most, response={}, raw=raw, problem=problem)

    def _cost(self, response: Mapping[str, Any], granted: Granted) -> Decimal:
        """By the server's count, where it can be true; else the most that it can be."""
        usage = Usage.read(response)
        if usage is None:
            return granted.most
        body = granted.request.body
        choices = response.get("choices")
        text_bytes = sum(
            len(str(choice["message"].get("content") or "").encode("utf-8", "replace"))
            for choice in (choices if isinstance(choices, list) else [])
            if isinstance(choice, dict) and isinstance(choice.get("message"), dict)
        )
        most_tokens = self._price.most_completion_tokens(body) if self._budget is not None else None
        cost = self._price.cost(usage)
        if is_plausible(usage, len(msgspec.json.encode(body)), text_bytes, most_tokens):
            return cost
        if not self._has_doubted_a_count:
            self._has_doubted_a_count = True
            log.warning(
                "The teacher's count of tokens cannot be true (%d of the prompt, %d of the answer). The worst case "
                "is booked, here and wherever else it cannot be.",
                usage.prompt_tokens,
                usage.completion_tokens,
            )
        return max(cost, granted.most)

    def _note(self, outcome: Outcome, reply: Reply, place: Place) -> None:
        if isinstance(outcome, Answered):
            self._gate.note_answer()
            usage = Usage.read(outcome.response)
            if usage is not None:
                place.used(usage.prompt_tokens + usage.completion_tokens)
        elif isinstance(reply, Failed) and reply.is_overload:
            self._gate.note_overload(place)

    def _tell(self, failure: Failed, *, is_tried_again: bool) -> None:
        log.info("%s%s", failure.reason, "; trying again" if is_tried_again else "")
        if self._on_failure is not None:
            self._on_failure(int(is_tried_again), failure.reason)

    def _most(self, request: TeacherRequest) -> Decimal:
        """The most that a request can cost; without a budget also 0, where nothing bounds it."""
        try:
            return self._price.worst_case(request.body)
        except ConfigError:
            if self._budget is not None:
                raise
            return Decimal(0)

    def _about_tokens(self, request: TeacherRequest) -> int:
        try:
            answer = self._price.most_completion_tokens(request.body) or 0
        except ConfigError:
            answer = 0
        return len(msgspec.json.encode(request.body["messages"])) // _BYTES_A_TOKEN + answer

    def _exhausted(self, verdict: OverBudget, intent: Intent) -> BudgetExhausted:
        spending = verdict.spending
        assert self._budget is not None
        budget, most = as_dollars_text(self._budget), as_dollars_text(intent.most)
        spent, in_doubt = as_dollars_text(spending.spent + spending.spent_before), as_dollars_text(spending.in_doubt)
        return BudgetExhausted(
            f"The budget of {budget} does not allow a request that can cost {most}: {spent} are spent, and requests "
            f"in doubt may have cost {in_doubt}."
        )


def _as_object(body: bytes) -> dict[str, Any] | None:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _is_too_deep(body: bytes) -> bool:
    """Whether somebody with less room on the stack could not read it back: nobody could open the run any more."""
    return not _can_be_read(body, within=_LEVELS_TO_SPARE) and _can_be_read(b"{}", within=_LEVELS_TO_SPARE + 20)


def _can_be_read(body: bytes, *, within: int) -> bool:
    try:
        msgspec.json.decode(b"[" * within + body + b"]" * within, type=msgspec.Raw)
    except RecursionError:
        return False
    return True


def _check(budget: Decimal | None, limits: Limits, patience: Patience) -> None:
    for name, value in (
        ("budget", budget),
        ("concurrency", limits.concurrency),
        ("requests_per_minute", limits.requests_per_minute),
        ("tokens_per_minute", limits.tokens_per_minute),
        ("attempts", patience.attempts),
        ("answer_seconds", patience.answer_seconds),
    ):
        # What is no number equals nothing, itself included.
        if value is not None and (value != value or value <= 0):
            raise ConfigError(f"{name} must be above 0, got {value}.")
