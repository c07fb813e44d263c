"""Query one model, paying once per request.

The life of a request: look it up in the store; wait for a free slot; record the intent and its worst-case cost
durably; send; store the answer durably, unchanged; only then parse it. Failures are retried with backoff as
`RetryPolicy` says, each attempt with an intent of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Self

import msgspec
from msgspec import structs

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
from crashproof.errors import AnswerIncomplete, AnswerUnusable, BudgetExhausted, ConfigError, TeacherClosed
from crashproof.formatting import as_dollars_text
from crashproof.records.lines.checksummed_line import MAX_LINE_BYTES, is_nested_too_deeply
from crashproof.records.requests import AnswerRecord
from crashproof.rules.requests import TeacherRequest
from crashproof.teacher.client.answers import (
    Answer,
    Check,
    answer_in,
    note_problem,
    problem_with,
    problem_with_ending,
)
from crashproof.teacher.client.attempts import Attempts, Interrupted
from crashproof.teacher.client.bills import Billing
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.group_commit import GroupCommit
from crashproof.teacher.client.limits import Gate, Limits, Place
from crashproof.teacher.client.prices import PriceTable, price_of
from crashproof.teacher.client.request_builder import Messages, RequestForm
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.client.transport import Delivered, Failed, HttpTransport, Reply, Transport, failed_by
from crashproof.teacher.replies.endings import Ending
from crashproof.teacher.replies.errors import error_in, parse
from crashproof.teacher.replies.usage import Usage

__all__ = ["AsyncTeacher", "OnFailure"]

log = logging.getLogger("crashproof")

OnFailure = Callable[[int, object], None]
"""Called for every failed attempt, with 1 if it will be retried or else 0, and the error; such as a tracker's
`record_connection_failure`."""

_BYTES_PER_TOKEN = 4
"""Typical of prose; used only for the limit of tokens per minute."""
_OK = 200
_SECONDS_BETWEEN_POLLS = 0.2
_LONGEST_RAW = MAX_LINE_BYTES // 16


class AsyncTeacher:
    """A model behind an OpenAI-compatible API, for use in one event loop: `async with AsyncTeacher(…) as teacher`.

    Equal requests share one answer: those in flight, those answered before, and, with a shared store, those of other
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
        retry_policy: RetryPolicy | None = None,
        parameters: Mapping[str, object] | None = None,
        asks_again: bool = False,
        keeps_truncated: bool = False,
        on_failure: OnFailure | None = None,
        transport: Transport | None = None,
        clock: Clock = SYSTEM_CLOCK,
        chance: random.Random | None = None,
    ) -> None:
        """Configure a teacher; nothing is sent yet.

        Args:
            model: The model name at the API.
            store: Where answers are stored: `tracker.responses`, or a `SharedStore`.
            endpoint: Base URL and key; by default from the environment.
            prices: What models cost; by default the table that comes with crashproof.
            budget: US dollars that may be spent in this store; with None, a model without a price counts as free.
            limits: Concurrent requests, and requests and tokens per minute.
            retry_policy: Retry policy: attempts, backoff and timeouts.
            parameters: Sampling parameters of every request, such as `{"temperature": 0.7, "max_tokens": 512}`.
            asks_again: Whether to pay once more for a stored answer that is unusable.
            keeps_truncated: Whether an answer is usable that was cut off, filtered, or ended in an unknown way.
            on_failure: Called for every failed attempt.
            transport: The network; by default HTTP.
            clock: Source of time.
            chance: Source of jitter.

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
        self._retry_policy = retry_policy or RetryPolicy()
        _check_settings(budget, self._limits, self._retry_policy)
        table = prices or PriceTable.load()
        self._price = table.of(model) if budget is not None else price_of(model, table)
        self._billing = Billing(self._price)
        self._asks_again = asks_again
        self._keeps_truncated = keeps_truncated
        self._asked_again: set[bytes] = set()
        self._on_failure = on_failure
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311 - jitter is no secret
        self._transport = transport or HttpTransport(endpoint, self._retry_policy, clock=clock)
        self._gate = Gate(self._limits, steady=clock.steady)
        self._commits = GroupCommit(store, budget=budget, full_disk_seconds=self._retry_policy.full_disk_seconds)
        self._in_flight: dict[str, asyncio.Task[AnswerRecord]] = {}
        self._sending: set[asyncio.Task[object] | None] = set()
        self._is_closing = False
        self._has_warned_of_ending = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight now."""
        return self._gate.allowed

    def limit(self, limits: Limits) -> None:
        """Apply other limits from now on."""
        self._gate.change(limits)

    def stop(self) -> None:
        """Send no further requests; those in flight are completed."""
        self._is_closing = True

    async def close(self, *, waits: bool = False) -> None:
        """Close all connections.

        Requests in flight are abandoned and left in doubt; with `waits`, their answers are awaited and stored, since
        they are paid for anyway.
        """
        self._is_closing = True
        tasks = list(self._in_flight.values())
        for task in tasks:
            if not waits or task not in self._sending:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._transport.close()
        self._billing.report()
        await asyncio.get_running_loop().run_in_executor(None, self._commits.close)

    def request(
        self, messages: Messages, *, tools: Sequence[object] | None = None, sample: int = 0, **parameters: object
    ) -> TeacherRequest:
        """Build the request that `ask` would send; see `RequestForm.fill`."""
        return self.form.fill(messages, tools=tools, sample=sample, **parameters)

    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[object] | None = None,
        sample: int = 0,
        check: Check | None = None,
        **parameters: object,
    ) -> Answer:
        """Get the answer to one question, from the store or from the teacher; see `request` for the arguments.

        Raises:
            AnswerIncomplete: the paid answer is stored, but it was cut off or filtered.
            AnswerUnusable: the paid answer is stored but violates its response format, its tools, or `check`.
            BudgetExhausted: the request could cost more than is left.
            TeacherRefused: the teacher refused, and would refuse again.
            TeacherUnreachable: every attempt failed.
            DiskFull, StoreUnavailable: nothing was sent, or the answer could not be stored.
        """
        return await self.ask_request(self.request(messages, tools=tools, sample=sample, **parameters), check=check)

    async def ask_request(self, request: TeacherRequest, *, check: Check | None = None) -> Answer:
        """The same for a request from `request`."""
        record = await self._commits.serve(request.key)
        while record is None:
            if self._is_closing:
                raise TeacherClosed
            task = self._in_flight.get(request.key)
            if task is not None:
                # Another caller sends it; its answer is served from the store afterwards.
                await asyncio.shield(task)
                record = await self._commits.serve(request.key)
            else:
                # A cancelled caller leaves the request in flight: its answer will be paid for.
                record = await asyncio.shield(self._start(request))
        return await self.take(request, record, check=check)

    async def look_up(self, requests: Sequence[TeacherRequest]) -> Sequence[AnswerRecord | None]:
        """What the store has for many requests, in their order, for `take`; its answers count as served."""
        return await self._commits.serve_all([request.key for request in requests])

    async def take(self, request: TeacherRequest, record: AnswerRecord, *, check: Check | None = None) -> Answer:
        """The same as `ask_request`, for a request whose answer `look_up` has found."""
        try:
            return await self._check_answer(record, request, check)
        except AnswerUnusable:
            if not self._asks_again:
                raise
        return await self._check_answer(await self._replace_unusable(request, record), request, check)

    async def _replace_unusable(self, request: TeacherRequest, unusable: AnswerRecord) -> AnswerRecord:
        """Request an unusable answer once more; all callers that found it unusable share the new one."""
        if request.digest in self._asked_again and request.key not in self._in_flight:
            record = await self._commits.serve(request.key)
            if record is not None:
                return record
        task = self._in_flight.get(request.key)
        if task is None:
            if self._is_closing:
                raise TeacherClosed
            self._asked_again.add(request.digest)
            # With the same idempotency key a server would return the same answer.
            replaced = unusable.request_id if isinstance(unusable.request_id, str) else "again"
            task = self._start(structs.replace(request, replaced=replaced))
        return await asyncio.shield(task)

    def _start(self, request: TeacherRequest) -> asyncio.Task[AnswerRecord]:
        task = asyncio.create_task(self._obtain(request))
        self._in_flight[request.key] = task
        task.add_done_callback(lambda done: self._forget(request.key, done))
        return task

    def _forget(self, key: str, task: asyncio.Task[AnswerRecord]) -> None:
        del self._in_flight[key]
        if not task.cancelled():
            # Retrieved here: all callers may have been cancelled.
            task.exception()

    async def _check_answer(self, record: AnswerRecord, request: TeacherRequest, check: Check | None) -> Answer:
        if isinstance(record.problem, str):
            raise AnswerUnusable(request.key, problem=record.problem)
        answer = answer_in(record)
        self._note_ending(answer)
        if not self._keeps_truncated and (cut := problem_with_ending(answer)) is not None:
            if self._asks_again:
                # Without a mark it would not be replaced; with one it counts as wasted.
                await self._commits.mark(request.key, cut)
            raise AnswerIncomplete(request.key, problem=cut)
        problem = problem_with(answer, request.body) or (check(answer) if check is not None else None)
        if problem is not None:
            await self._commits.mark(request.key, problem)
            raise AnswerUnusable(request.key, problem=problem)
        return answer

    async def _obtain(self, request: TeacherRequest) -> AnswerRecord:
        """Send, with retries, until the answer is stored."""
        intent = Intent(request=request, most=self._worst_case(request), replaces=bool(request.replaced))
        attempts = Attempts(self._retry_policy, steady=self._clock.steady, chance=self._chance)
        while True:
            found = await self._attempt(intent)
            if isinstance(found, AnswerRecord):
                return found
            if self._is_closing:
                raise asyncio.CancelledError
            failure = found.failure if isinstance(found, Interrupted) else found
            pause = attempts.pause_after(failure)
            self._report_failure(failure, will_retry=pause is not None)
            if pause is not None:
                if failure.is_overload and failure.retry_after_seconds is not None:
                    self._gate.hold(failure.retry_after_seconds)
                intent = structs.replace(intent, replaces=intent.replaces or isinstance(found, Interrupted))
                await asyncio.sleep(pause)
            elif isinstance(found, Interrupted):
                return found.record
            else:
                raise attempts.error(failure, request.base_url, parameters=self.form.parameters)

    async def _attempt(self, intent: Intent) -> AnswerRecord | Failed | Interrupted:
        tokens = self._estimated_tokens(intent.request) if self._gate.counts_tokens else 0
        async with self._gate.place(tokens=tokens) as place:
            granted = await self._wait_for_grant(intent)
            if isinstance(granted, AnswerRecord):
                return granted
            if self._is_closing:
                await self._keep(Refused(granted=granted, reason="never sent"))
                raise TeacherClosed
            self._sending.add(asyncio.current_task())
            try:
                reply, outcome = await self._send(granted)
                await self._keep(outcome)
            finally:
                self._sending.discard(asyncio.current_task())
            self._adjust_limits(outcome, reply, place)
        if isinstance(reply, Failed) and not isinstance(outcome, Answered):
            return reply
        assert isinstance(outcome, Answered)
        record = outcome.as_record(timestamp=self._clock.now(), session_id="", attempt=0)
        return Interrupted(failure=reply, record=record) if isinstance(reply, Failed) else record

    async def _send(self, granted: Granted) -> tuple[Reply, Outcome]:
        try:
            reply = self._classify(await self._transport.send(granted.request))
            return reply, self._outcome(reply, granted)
        except BaseException:
            # Cancelled, or a bug: the request was sent, so its cost is in doubt.
            await self._keep(Lost(granted=granted, reason="given up on"))
            raise

    async def _keep(self, outcome: Outcome) -> None:
        """Wait until it is stored, even if cancelled meanwhile: it may be paid for."""
        keeping = asyncio.ensure_future(self._commits.finish(outcome))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await keeping
            raise

    async def _wait_for_grant(self, intent: Intent) -> Granted | AnswerRecord:
        while True:
            verdict = await self._begin(intent)
            if isinstance(verdict, Busy):
                await asyncio.sleep(verdict.seconds)
            elif isinstance(verdict, OverBudget):
                if not verdict.may_change:
                    raise self._budget_exhausted(verdict, intent)
                await asyncio.sleep(_SECONDS_BETWEEN_POLLS)
            else:
                return verdict

    async def _begin(self, intent: Intent) -> Verdict:
        """Ask the store for a verdict; a grant that arrives after cancellation is returned unsent."""
        asking = asyncio.ensure_future(self._commits.begin(intent))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            verdict = await asking
            if isinstance(verdict, Granted):
                await self._keep(Refused(granted=verdict, reason="not sent"))
            raise

    def _note_ending(self, answer: Answer) -> None:
        if answer.ending is Ending.UNSTATED and not self._has_warned_of_ending:
            self._has_warned_of_ending = True
            log.warning(
                "The teacher does not say how its answers end (no finish_reason). One that has all the tokens it "
                "might have counts as cut off, any other as complete."
            )

    def _classify(self, reply: Reply) -> Reply:
        """Turn a success without an answer into a failure."""
        if isinstance(reply, Failed) or reply.is_foreign_stream:
            return reply
        error = error_in(_OK, reply.body)
        return reply if error is None else failed_by(error, self._endpoint)

    def _outcome(self, reply: Reply, granted: Granted) -> Outcome:
        if isinstance(reply, Failed):
            return self._outcome_of_failure(reply, granted)
        response, _ = parse(reply.body)
        if not isinstance(response, dict):
            return self._answered_verbatim(reply, granted, "its body is not a JSON object")
        if _is_too_deep(reply.body):
            return self._answered_verbatim(reply, granted, "its body is nested too deeply")
        cost = self._billing.cost(response, granted.request.body, most=granted.most)
        return note_problem(Answered(granted=granted, cost=cost, response=response))

    def _outcome_of_failure(self, failure: Failed, granted: Granted) -> Outcome:
        partial = None if failure.partial is None else parse(failure.partial)[0]
        if not isinstance(partial, dict):
            kind = Lost if failure.may_have_been_paid else Refused
            return kind(granted=granted, reason=failure.reason)
        # What was generated is kept, also where it ends in the middle of a sentence.
        problem = f"it is incomplete, since {failure.reason}"
        cost = self._billing.cost(partial, granted.request.body, most=granted.most)
        return Answered(granted=granted, cost=cost, response=partial, problem=problem)

    def _answered_verbatim(self, reply: Delivered, granted: Granted, problem: str) -> Answered:
        raw = reply.body.decode("utf-8", "backslashreplace")
        if len(raw) > _LONGEST_RAW:
            # A character can take six bytes in a line, which holds the request too.
            raw, problem = raw[:_LONGEST_RAW], f"{problem}; only its first {_LONGEST_RAW:,} characters are kept"
        cost = self._billing.cost_of_damaged(granted.request.body, len(reply.body), most=granted.most)
        return Answered(granted=granted, cost=cost, response={}, raw=raw, problem=problem)

    def _adjust_limits(self, outcome: Outcome, reply: Reply, place: Place) -> None:
        if isinstance(outcome, Answered):
            self._gate.note_answer()
            usage = Usage.read(outcome.response) if self._gate.counts_tokens else None
            if usage is not None:
                place.used(usage.prompt_tokens + usage.completion_tokens)
        elif isinstance(reply, Failed) and reply.is_overload:
            self._gate.note_overload(place)

    def _report_failure(self, failure: Failed, *, will_retry: bool) -> None:
        log.info("%s%s", failure.reason, "; retrying" if will_retry else "")
        if self._on_failure is not None:
            self._on_failure(int(will_retry), failure.reason)

    def _worst_case(self, request: TeacherRequest) -> Decimal:
        """The most that a request can cost; 0 if nothing bounds it and no budget is set."""
        priced = self._price if self._budget is not None else self._billing
        return priced.worst_case(request.body)

    def _estimated_tokens(self, request: TeacherRequest) -> int:
        try:
            answer = self._price.most_completion_tokens(request.body) or 0
        except ConfigError:
            answer = 0
        return len(msgspec.json.encode(request.body["messages"])) // _BYTES_PER_TOKEN + answer

    def _budget_exhausted(self, verdict: OverBudget, intent: Intent) -> BudgetExhausted:
        spending = verdict.spending
        assert self._budget is not None
        budget, most = as_dollars_text(self._budget), as_dollars_text(intent.most)
        spent, in_doubt = as_dollars_text(spending.spent + spending.spent_before), as_dollars_text(spending.in_doubt)
        return BudgetExhausted(
            f"The budget of {budget} does not allow a request that can cost {most}: {spent} are spent, and requests "
            f"in doubt may have cost {in_doubt}."
        )


def _is_too_deep(body: bytes) -> bool:
    """Whether a journal could not hold it as an object, in which it lies some levels down."""
    return is_nested_too_deeply(b"[[" + body + b"]]")


def _check_settings(budget: Decimal | None, limits: Limits, retry_policy: RetryPolicy) -> None:
    for name, value in (
        ("budget", budget),
        ("concurrency", limits.concurrency),
        ("requests_per_minute", limits.requests_per_minute),
        ("tokens_per_minute", limits.tokens_per_minute),
        ("attempts", retry_policy.attempts),
        ("answer_seconds", retry_policy.answer_seconds),
    ):
        # NaN does not equal itself.
        if value is not None and (value != value or value <= 0):
            raise ConfigError(f"{name} must be above 0, got {value}.")
