from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletionMessage
from teaching import (
    COST,
    EAGER,
    URL,
    FakeTransport,
    Held,
    completion,
    delivered,
    failed,
    http_server,
    in_virtual_time,
    json_response,
    price_table_at,
    request_for,
)

from crashproof import ProgressTracker, RunReader
from crashproof.answers.run_store import RunResponses
from crashproof.answers.store import Answered, Intent, Outcome, Refused, ResponseStore, Verdict
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import (
    AnswerUnusable,
    BudgetExhausted,
    ConfigError,
    RequestError,
    StorageError,
    TeacherClosed,
    TeacherRefused,
    TeacherUnreachable,
    UnknownPrice,
)
from crashproof.reading.run_state import read_run
from crashproof.teacher import Answer, AsyncTeacher, Endpoint, Limits, PriceTable, RetryPolicy
from crashproof.teacher.client.transport import Delivered, Reply
from crashproof.testing import FakeClock, Fault, Faults, FaultyDisk, PowerLost, TeacherServer, forget_open_runs
from crashproof.testing.teacher_server.faults import FaultTimes
from crashproof.testing.teacher_server.http_stub import Request, Response

KEY = "a-key/that+looks=like~none"


@pytest.fixture
def prices(tmp_path: Path) -> PriceTable:
    return PriceTable.load(price_table_at(tmp_path))


@pytest.fixture
def tracker(open_tracker: Callable[..., ProgressTracker]) -> ProgressTracker:
    return open_tracker()


@pytest.fixture
def folder(run_dir: Path) -> RunFolder:
    return RunFolder.under(run_dir)


@pytest.fixture
def teacher_of(prices):
    """Make a teacher over a store and a transport, or an address; `async with` it."""

    @asynccontextmanager
    async def make(store: ResponseStore, transport: FakeTransport | str, **how: Any) -> AsyncIterator[AsyncTeacher]:
        address = transport if isinstance(transport, str) else URL
        arguments = {
            "endpoint": Endpoint(base_url=address),
            "prices": prices,
            "retry_policy": EAGER,
            "transport": None if isinstance(transport, str) else transport,
        }
        async with AsyncTeacher("teacher", store=store, **(arguments | how)) as teacher:
            yield teacher

    return make


@pytest.fixture
def asked(teacher_of):
    """Ask some questions, one after the other, over a new teacher; answers and errors, in order."""

    def ask(
        store: ResponseStore,
        transport: FakeTransport | str,
        *questions: Any,
        check: Any = None,
        parameters: dict[str, Any] | None = None,
        **how: Any,
    ) -> list[Any]:
        async def work() -> list[Any]:
            found: list[Any] = []
            async with teacher_of(store, transport, parameters=parameters, **how) as teacher:
                for question in questions or ("2 + 2?",):
                    found += await asyncio.gather(teacher.ask(question, check=check), return_exceptions=True)
            return found

        return asyncio.run(work())

    return ask


def lines_about_requests(folder: RunFolder) -> list[str]:
    return [msgspec.json.decode(line)["event"] for line in folder.requests.read_bytes().splitlines()]


def is_consistent(tracker: ProgressTracker, folder: RunFolder) -> bool:
    """Whether the run's own audit finds nothing, and its journals tell what was lived."""
    lived = msgspec.to_builtins(tracker.session)
    told = msgspec.to_builtins(read_run(folder, trust_snapshot=False).session)
    return RunReader(folder).problems() == [] and told == lived


# An answer, and how it is kept.


def test_an_answer_is_given_priced_and_kept_with_its_question(asked, tracker, folder):
    (answer,) = asked(tracker.responses, FakeTransport(), parameters={"temperature": 0.5})

    assert ("4", COST, completion()) == (answer.text, answer.cost, answer.response)
    kept = tracker.responses.read(answer.key)
    assert (completion(), COST) == (kept.response, kept.cost)
    assert {
        "base_url": URL,
        "sample": 0,
        "body": {"model": "teacher", "messages": [{"role": "user", "content": "2 + 2?"}], "temperature": 0.5},
    } == kept.request
    assert is_consistent(tracker, folder)


def test_an_answer_is_paid_for_once_in_one_life_and_in_the_next(asked, tracker, open_tracker):
    transport = FakeTransport()
    first = asked(tracker.responses, transport, "a", "a", "b")
    tracker.save()
    forget_open_runs()
    store = open_tracker().responses
    second = asked(store, transport, "a", "b")

    assert 2 == len(transport.sent)
    assert [first[0].response] * 3 == [first[1].response, second[0].response, first[0].response]
    assert (2, 3, 3 * COST) == (store.spending().answers, store.spending().answers_served, store.spending().saved)


def test_many_answers_are_looked_up_together_and_each_is_checked_when_it_is_taken(teacher_of, tracker):
    transport = FakeTransport()

    async def work() -> tuple[Any, ...]:
        async with teacher_of(tracker.responses, transport) as teacher:
            await teacher.ask("a")
            requests = [teacher.request(each) for each in "ba"]
            missing, found = await teacher.look_up(requests)
            answer = await teacher.take(requests[1], found)
            (error,) = await asyncio.gather(
                teacher.take(requests[1], found, check=lambda answer: "it is wrong"), return_exceptions=True
            )
            return missing, answer, error

    missing, answer, error = asyncio.run(work())

    assert (None, "4", "it is wrong") == (missing, answer.text, error.problem)
    assert (1, 1, 1) == (len(transport.sent), *counts_of(tracker))


def counts_of(tracker: ProgressTracker) -> tuple[int, int]:
    spending = tracker.responses.spending()
    return spending.answers_served, spending.answers_bad


def test_an_unusable_answer_that_was_looked_up_is_replaced_where_that_is_wanted(teacher_of, tracker):
    transport = FakeTransport(delivered(""), delivered("better"))

    async def work() -> str:
        async with teacher_of(tracker.responses, transport) as teacher:
            await asyncio.gather(teacher.ask("a", check=is_empty), return_exceptions=True)
        async with teacher_of(tracker.responses, transport, asks_again=True) as teacher:
            request = teacher.request("a")
            (found,) = await teacher.look_up([request])
            return (await teacher.take(request, found, check=is_empty)).text

    assert ("better", 2) == (asyncio.run(work()), len(transport.sent))


def is_empty(answer: Any) -> str | None:
    return None if answer.text else "it is empty"


def test_the_answer_is_on_disk_before_it_is_returned(teacher_of, tracker, folder):
    async def work() -> bytes:
        async with teacher_of(tracker.responses, FakeTransport(delivered("an answer to look for"))) as teacher:
            await teacher.ask("2 + 2?")
            return folder.answers.read_bytes()

    assert b"an answer to look for" in asyncio.run(work())


def test_the_intent_is_on_disk_before_the_request_arrives(asked, tracker, folder, prices):
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> str:
        seen.extend(msgspec.json.decode(line) for line in folder.requests.read_bytes().splitlines())
        return "4"

    with TeacherServer(answer) as server:
        asked(tracker.responses, server.base_url, parameters={"max_tokens": 10}, budget=Decimal(1))
        most = prices.of("teacher").worst_case(request_for(base_url=server.base_url, max_tokens=10).body)

    (line,) = seen
    assert ("request_sent", "teacher") == (line["event"], line["model"])
    assert request_for(base_url=server.base_url, max_tokens=10).key == line["prompt_hash"]
    assert float(most) == line["most"]


@pytest.mark.parametrize("world", ["strict", "torn"])
def test_wherever_the_power_goes_off_nothing_that_was_sent_is_forgotten_and_nothing_returned_is_lost(
    asked, open_tracker, tmp_path, left_by_a_kill, world
):
    open_tracker(output_dir=tmp_path / "ended").close()

    def ask_until_the_power_goes_off(disk: FaultyDisk, run: Path) -> tuple[list[str], list[Any]]:
        transport, found = FakeTransport(), []
        try:
            store = open_tracker(output_dir=run, disk=disk).responses
            for question in "ab":
                found += asked(store, transport, question)
                if not isinstance(found[-1], Answer):
                    break
        except PowerLost:
            pass
        forget_open_runs()
        return [request.key for request in transport.sent], [each for each in found if isinstance(each, Answer)]

    run = left_by_a_kill(tmp_path / "ended")
    counting = FaultyDisk(run, tmp_path / "scratch")
    assert 2 == len(ask_until_the_power_goes_off(counting, run)[1])
    num_returned = set()
    for number in range(counting.num_operations):
        run, left = left_by_a_kill(tmp_path / "ended"), tmp_path / f"after_{number}"
        disk = FaultyDisk(run, tmp_path / f"scratch_{number}", fails_at=number)
        sent, returned = ask_until_the_power_goes_off(disk, run)
        disk.after_power_loss(left, world, seed=number)
        lines = RunFolder.under(left).requests
        begun = [msgspec.json.decode(line)["prompt_hash"] for line in lines.read_bytes().splitlines()[: len(sent)]]
        tracker = open_tracker(output_dir=left)
        assert sent == begun
        assert [each.response for each in returned] == [
            tracker.responses.read(each.key).response for each in returned
        ]
        assert [] == RunReader.open(left).problems()
        tracker.close()
        num_returned.add(len(returned))
    assert {0, 1, 2} >= num_returned >= {0, 1}


def test_the_official_clients_messages_may_be_asked(asked, tracker):
    transport = FakeTransport()
    as_objects = [ChatCompletionMessage(role="assistant", content="2 + 2?")]
    asked(tracker.responses, transport, as_objects, [{"role": "assistant", "content": "2 + 2?"}])

    assert 1 == len(transport.sent)


def test_samples_of_a_question_are_asked_apart_and_move_the_seed(teacher_of, tracker):
    transport = FakeTransport()

    async def work() -> None:
        async with teacher_of(tracker.responses, transport, parameters={"seed": 7}) as teacher:
            for sample in (0, 1, 0, 2):
                await teacher.ask("2 + 2?", sample=sample)

    asyncio.run(work())
    assert [7, 8, 9] == [request.body["seed"] for request in transport.sent]


def test_tools_and_parameters_of_a_question_are_sent(teacher_of, tracker):
    transport = FakeTransport()
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}

    async def work() -> None:
        async with teacher_of(tracker.responses, transport, parameters={"temperature": 0.5, "seed": 1}) as teacher:
            await teacher.ask("2 + 2?", tools=[tool], temperature=0.1, seed=None)

    asyncio.run(work())
    assert {"model", "messages", "tools", "temperature"} == transport.sent[0].body.keys()
    assert ([tool], 0.1) == (transport.sent[0].body["tools"], transport.sent[0].body["temperature"])


@pytest.mark.parametrize(
    "of_all, of_one, expected",
    [(["t"], None, ["t"]), (["t"], ["u"], ["u"]), (["t"], [], None), (None, [], None), (None, ("u",), ["u"])],
    ids=str,
)
def test_tools_may_be_those_of_all_questions_or_of_one(teacher_of, tracker, of_all, of_one, expected):
    transport = FakeTransport()

    async def work() -> None:
        async with teacher_of(tracker.responses, transport, parameters={"tools": of_all}) as teacher:
            await teacher.ask("2 + 2?", tools=of_one)

    asyncio.run(work())
    assert expected == transport.sent[0].body.get("tools")


def test_what_is_no_question_is_refused_before_anything_is_written(asked, tracker, folder):
    transport = FakeTransport()
    (error,) = asked(tracker.responses, transport, [{"role": "user", "content": b"bytes"}])

    assert isinstance(error, RequestError)
    assert ([], []) == (transport.sent, lines_about_requests(folder))


# What goes wrong, and is tried again or not.

KEPT_AT_ONCE = (Fault.SLOW_BODY, Fault.WRONG_USAGE)
KINDS_TRIED_AGAIN = [
    kind
    for kind in Fault
    if kind not in KEPT_AT_ONCE and not kind.spoils_answer and not kind.is_streamed and not kind.is_lasting
]


@pytest.mark.parametrize("fault", KINDS_TRIED_AGAIN)
def test_what_passes_is_tried_again_and_its_money_is_in_doubt_where_it_may_be_spent(asked, tracker, folder, fault):
    times = FaultTimes(retry_after_seconds=0, stall_seconds=20.0)
    told: list[tuple[int, object]] = []
    with TeacherServer(
        faults=Faults(script=[fault], times=times), prices=(Decimal(1), Decimal(1), Decimal(2))
    ) as server:
        (answer,) = asked(
            tracker.responses,
            server.base_url,
            budget=Decimal(1),
            parameters={"max_tokens": 100},
            retry_policy=dataclasses.replace(EAGER, first_byte_seconds=0.3),
            on_failure=lambda retries, error: told.append((retries, error)),
        )
        counts = server.counts

    assert answer.text
    assert 2 == counts.requests
    spending = tracker.responses.spending()
    assert [1] == [retries for retries, _ in told]
    assert (1, 0) == (spending.answers, spending.reserved)
    assert counts.dollars <= spending.committed
    assert (spending.requests_in_doubt == 1) or not fault.is_charged
    assert is_consistent(tracker, folder)


def test_a_slow_body_is_waited_for(asked, tracker):
    with TeacherServer(faults=Faults(script=[Fault.SLOW_BODY])) as server:
        (answer,) = asked(tracker.responses, server.base_url, retry_policy=RetryPolicy(first_byte_seconds=5.0))
        counts = server.counts

    assert answer.text
    assert 1 == counts.requests


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_a_status_that_passes_is_tried_again(asked, tracker, status):
    answers = iter([json_response({"error": {"message": "later"}}, status=status)])
    with http_server(lambda request: next(answers, json_response(completion()))) as url:
        (answer,) = asked(tracker.responses, url)

    assert "4" == answer.text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_status_that_stays_is_raised_at_once(asked, tracker, folder, status):
    seen = []

    def answer(request: Request) -> Response:
        seen.append(request)
        return json_response({"error": {"message": "never"}}, status=status)

    with http_server(answer) as url:
        (error,) = asked(tracker.responses, url, budget=Decimal(1), parameters={"max_tokens": 10})

    assert isinstance(error, TeacherRefused)
    assert (status, 1) == (error.status, len(seen))
    assert f"{url} refused the request: HTTP {status}: never" in str(error)
    assert ["request_sent", "request_refused"] == lines_about_requests(folder)
    assert 0 == tracker.responses.spending().committed


@pytest.mark.parametrize("status, hint", [(401, "OPENAI_API_KEY"), (403, "permissions"), (404, "model name")])
def test_a_refusal_says_what_to_do(asked, tracker, status, hint):
    (error,) = asked(tracker.responses, FakeTransport(failed(status, is_retryable=False)))

    assert hint in error.hint


def test_an_empty_account_is_not_asked_again(asked, tracker):
    seen = []

    def answer(request: Request) -> Response:
        seen.append(request)
        return json_response({"error": {"message": "quota", "code": "insufficient_quota"}}, status=429)

    with http_server(answer) as url:
        (error,) = asked(tracker.responses, url)

    assert isinstance(error, TeacherRefused)
    assert 1 == len(seen)


def test_attempts_are_bounded_and_each_is_told(asked, tracker, folder):
    transport = FakeTransport(otherwise=failed(503))
    told: list[tuple[int, object]] = []
    (error,) = asked(
        tracker.responses,
        transport,
        retry_policy=dataclasses.replace(EAGER, attempts=4),
        on_failure=lambda retries, error: told.append((retries, error)),
    )

    assert isinstance(error, TeacherUnreachable)
    assert f"{URL}: no response after 4 attempts" in str(error)
    assert "HTTP 503" in str(error)
    assert 4 == len(transport.sent)
    assert [(1, "HTTP 503")] * 3 + [(0, "HTTP 503")] == told
    assert ["request_sent", "request_refused"] * 4 == lines_about_requests(folder)


def test_each_failure_is_journalled_by_the_run(asked, tracker, folder):
    asked(
        tracker.responses,
        FakeTransport(failed(429), failed(500), failed(400, is_retryable=False)),
        on_failure=tracker.record_connection_failure,
    )

    told = [event for event in RunReader(folder).events() if type(event).__name__ == "ConnectionFailed"]
    assert [(1, "HTTP 429"), (1, "HTTP 500"), (0, "HTTP 400")] == [(each.retry_count, each.error) for each in told]
    assert (3, 2) == (tracker.session.connection_failures, tracker.session.connection_retries)


class Least(random.Random):
    """Waits as short as they may be."""

    def uniform(self, low: float, high: float) -> float:
        return low


class Most(random.Random):
    """Waits as long as they may be."""

    def uniform(self, low: float, high: float) -> float:
        return high


def sent_at(
    teacher_of: Any, store: ResponseStore, clock: FakeClock, replies: Sequence[Reply], **how: Any
) -> tuple[list[float], Any]:
    """When each attempt was sent, and what came of it, with all waits spent in virtual time."""
    moments: list[float] = []
    start = clock.steady()

    class Timed(FakeTransport):
        async def send(self, request: Any) -> Reply:
            moments.append(round(clock.steady() - start, 3))
            return await super().send(request)

    async def work() -> Any:
        async with teacher_of(
            store, Timed(*replies), **({"clock": clock, "retry_policy": RetryPolicy()} | how)
        ) as teacher:
            return (await asyncio.gather(teacher.ask("2 + 2?"), return_exceptions=True))[0]

    found = in_virtual_time(work(), clock, quiet_seconds=0.05)
    return moments, found


@pytest.mark.parametrize("chance, expected", [(Least(), 30.0), (Most(), 30.5)], ids=["least", "most"])
def test_what_the_server_asks_to_wait_is_waited(teacher_of, tracker, clock, chance, expected):
    moments, found = sent_at(
        teacher_of, tracker.responses, clock, [failed(429, retry_after_seconds=30.0)], chance=chance
    )

    assert [0.0, expected] == moments
    assert "4" == found.text


def test_without_a_word_the_wait_doubles(teacher_of, tracker, clock):
    moments, _ = sent_at(teacher_of, tracker.responses, clock, [failed(500)] * 5, chance=Most())

    assert [0.0, 0.5, 1.5, 3.5, 7.5, 15.5] == moments


def test_no_attempt_begins_behind_the_deadline(teacher_of, tracker, clock):
    moments, found = sent_at(
        teacher_of,
        tracker.responses,
        clock,
        [failed(429, retry_after_seconds=40.0)] * 9,
        chance=Least(),
        retry_policy=RetryPolicy(deadline_seconds=100.0),
    )

    assert [0.0, 40.0, 80.0] == moments
    assert isinstance(found, TeacherUnreachable)
    assert "no response after 3 attempts over 80 s" in str(found)


def test_a_server_that_asks_for_more_than_the_deadline_is_not_waited_for(teacher_of, tracker, clock):
    moments, found = sent_at(
        teacher_of, tracker.responses, clock, [failed(429, retry_after_seconds=1e9)], chance=Least()
    )

    assert [0.0] == moments
    assert isinstance(found, TeacherUnreachable)


def test_fewer_are_sent_at_once_after_an_overload(teacher_of, tracker):
    async def work() -> tuple[int, int]:
        transport = FakeTransport(*[failed(429)] * 8)
        async with teacher_of(tracker.responses, transport, limits=Limits(concurrency=8)) as teacher:
            before = teacher.concurrency
            await asyncio.gather(*(teacher.ask(f"{number}") for number in range(8)))
            return before, teacher.concurrency

    before, after = asyncio.run(work())
    assert 8 == before
    assert after < 8


def test_no_more_are_under_way_than_allowed(teacher_of, tracker):
    async def slow(request: Any) -> Reply:
        await asyncio.sleep(0.002)
        return delivered()

    async def work() -> int:
        transport = FakeTransport(otherwise=slow)
        async with teacher_of(tracker.responses, transport, limits=Limits(concurrency=3)) as teacher:
            await asyncio.gather(*(teacher.ask(f"{number}") for number in range(20)))
        return transport.most_at_once

    assert 3 == asyncio.run(work())


# Answers that are of no use.


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"choices": [', id="cut off"),
        pytest.param(b'{"a": "\\ud800"}', id="half a character"),
        pytest.param(b'{"a": 1e999}', id="number beyond all floats"),
        pytest.param(b'{"a":' * 10_000, id="too deep"),
    ],
)
def test_a_body_that_is_no_json_object_is_kept_to_the_letter_and_not_paid_for_again(
    asked, tracker, open_tracker, folder, body
):
    first = asked(
        tracker.responses,
        FakeTransport(Delivered(body=body)),
        "2 + 2?",
        "2 + 2?",
        budget=Decimal(1),
        parameters={"max_tokens": 10},
    )
    forget_open_runs()
    transport = FakeTransport()
    tracker = open_tracker()
    second = asked(tracker.responses, transport, parameters={"max_tokens": 10})

    assert [AnswerUnusable] * 3 == [type(error) for error in first + second]
    assert "its body is not a JSON object" in str(first[0])
    assert [] == transport.sent
    kept = tracker.responses.read(request_for(max_tokens=10).key)
    assert ({}, body.decode("utf-8", "backslashreplace")) == (kept.response, kept.raw)
    spending = tracker.responses.spending()
    assert 1 == spending.answers_bad
    assert kept.cost == spending.wasted == spending.spent > 0
    assert is_consistent(tracker, folder)


@pytest.mark.parametrize("levels", [700, 800, 900, 940, 960, 980])
def test_a_body_so_deep_that_only_some_could_read_it_back_is_kept_to_the_letter(
    asked, tracker, open_tracker, folder, levels
):
    """Otherwise the run could not be opened any more by whoever has more on the stack."""
    body = json.dumps(completion())[:-1] + ',"x":' + "[" * levels + "]" * levels + "}"
    (error,) = asked(tracker.responses, FakeTransport(Delivered(body=body.encode())))
    tracker.close()
    folder.session.unlink()

    def opened(levels_below: int) -> ProgressTracker:
        return open_tracker() if levels_below == 0 else opened(levels_below - 1)

    assert isinstance(error, AnswerUnusable)
    assert body == opened(100).responses.read(request_for().key).raw


def test_a_body_of_many_levels_is_an_answer(asked, tracker):
    body = json.dumps(completion())[:-1] + ',"x":' + "[" * 300 + "]" * 300 + "}"
    (answer,) = asked(tracker.responses, FakeTransport(Delivered(body=body.encode())))

    assert "4" == answer.text


def test_of_a_body_that_no_line_could_hold_the_first_part_is_kept(asked, tracker):
    body = b'{"x":' + b"\x01" * (8 << 20)
    (error,) = asked(tracker.responses, FakeTransport(Delivered(body=body)))

    kept = tracker.responses.read(request_for().key)
    assert isinstance(error, AnswerUnusable)
    assert body[: 4 << 20].decode() == kept.raw
    assert "only its first 4,194,304 characters are kept" in kept.problem


def test_broken_json_of_a_real_server_is_kept_and_not_paid_for_again(asked, tracker):
    with TeacherServer(faults=Faults(script=[Fault.BROKEN_JSON])) as server:
        found = asked(tracker.responses, server.base_url, "a", "a")
        counts = server.counts

    assert [AnswerUnusable] * 2 == [type(each) for each in found]
    assert 1 == counts.requests


def test_a_page_instead_of_an_answer_is_lost_and_tried_again(asked, tracker, folder):
    page = Delivered(body=b"<html>Bad Gateway</html>")
    found = asked(tracker.responses, FakeTransport(page))

    assert "4" == found[0].text
    assert ["request_sent", "request_lost", "request_sent"] == lines_about_requests(folder)


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(completion() | {"choices": []}, id="no choices"),
        pytest.param(completion() | {"choices": 5}, id="a number of choices"),
        pytest.param(completion() | {"choices": True}, id="true choices"),
        pytest.param(completion() | {"choices": {"a": 1}}, id="an object of choices"),
        pytest.param(completion() | {"choices": [7, None]}, id="choices that are none"),
        pytest.param(completion() | {"choices": [{"message": []}]}, id="a list as message"),
        pytest.param(completion({"content": ["4"]}), id="content in parts"),
        pytest.param(completion({"content": None}), id="no content"),
    ],
)
def test_an_object_that_is_no_completion_is_kept_with_its_reason(asked, tracker, folder, response):
    found = asked(
        tracker.responses,
        FakeTransport(Delivered(body=json.dumps(response).encode())),
        "2 + 2?",
        "2 + 2?",
        budget=Decimal(1),
        parameters={"max_tokens": 10},
    )

    assert [AnswerUnusable] * 2 == [type(each) for each in found]
    kept = tracker.responses.read(request_for(max_tokens=10).key)
    assert (response, found[0].problem) == (kept.response, kept.problem)
    assert (1, 0) == (tracker.responses.spending().answers_bad, tracker.responses.spending().reserved)
    assert is_consistent(tracker, folder)


PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
ADD = {"type": "function", "function": {"name": "add", "parameters": PERSON}}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message, parameters, told",
    [
        pytest.param("no JSON", {"response_format": {"type": "json_object"}}, "not valid JSON", id="format"),
        pytest.param(
            "", {"response_format": {"type": "json_object"}}, "not valid JSON", id="format, and nothing said"
        ),
        pytest.param(
            '{"age": "x"}',
            {"response_format": {"type": "json_schema", "json_schema": {"schema": PERSON}}},
            "$.age",
            id="schema",
        ),
        pytest.param({"content": None, "tool_calls": [CALL]}, {"tools": [ADD]}, "arguments of add", id="tool"),
        pytest.param({"content": None, "tool_calls": [CALL]}, {}, "not offered", id="tool not offered"),
        pytest.param({"content": "x", "tool_calls": 5}, {}, "tool calls are a int", id="no list of calls"),
        pytest.param("too short", {}, "too short, says the caller", id="the caller's own check"),
    ],
)
def test_an_answer_that_breaks_the_requests_word_is_kept_marked_once_and_not_asked_again(
    asked, tracker, open_tracker, folder, message, parameters, told
):
    def check(answer: Any) -> str | None:
        return "too short, says the caller" if answer.text == "too short" else None

    first = asked(tracker.responses, FakeTransport(delivered(message)), "a", "a", check=check, parameters=parameters)
    wasted = tracker.responses.spending().wasted
    forget_open_runs()
    transport = FakeTransport()
    tracker = open_tracker()
    second = asked(tracker.responses, transport, "a", check=check, parameters=parameters)

    assert [AnswerUnusable] * 3 == [type(error) for error in first + second]
    assert all(told in str(error) for error in first + second)
    assert [] == transport.sent
    assert 1 == lines_about_requests(folder).count("answer_marked")
    spending = tracker.responses.spending()
    assert (1, 1, COST, COST) == (spending.answers, spending.answers_bad, spending.spent, spending.wasted)
    assert COST == wasted
    assert is_consistent(tracker, folder)


def test_a_check_that_raises_is_heard_and_the_answer_is_kept(asked, tracker):
    def check(answer: Any) -> str | None:
        raise ZeroDivisionError("own mistake")

    found = asked(tracker.responses, FakeTransport(), check=check)

    assert isinstance(found[0], ZeroDivisionError)
    assert 1 == tracker.responses.spending().answers


def test_an_answer_of_no_use_is_asked_for_once_more_where_that_is_wanted(asked, tracker):
    def check(answer: Any) -> str | None:
        return None if answer.text == "good" else "bad"

    transport = FakeTransport(delivered("bad"), delivered("good"), delivered("worse"))
    found = asked(tracker.responses, transport, "a", "a", check=check, asks_again=True)

    assert ["good", "good"] == [answer.text for answer in found]
    assert 2 == len(transport.sent)
    spending = tracker.responses.spending()
    assert (2, 1, 2 * COST, COST) == (spending.answers, spending.answers_bad, spending.spent, spending.wasted)


def test_an_answer_of_no_use_is_replaced_once_by_all_teachers_of_a_run(teacher_of, asked, tracker):
    def check(answer: Any) -> str | None:
        return None if answer.text == "good" else "bad"

    asked(tracker.responses, FakeTransport(delivered("bad")), "a", check=check)

    async def work() -> list[str]:
        held = Held(delivered("good"))
        other = FakeTransport(otherwise=delivered("good"))
        async with (
            teacher_of(tracker.responses, FakeTransport(held), asks_again=True) as first,
            teacher_of(tracker.responses, other, asks_again=True) as second,
        ):
            asking = [asyncio.create_task(first.ask("a", check=check))]
            await held.is_sent.wait()
            asking.append(asyncio.create_task(second.ask("a", check=check)))
            await asyncio.sleep(0.08)
            held.may_arrive.set()
            texts = [answer.text for answer in await asyncio.gather(*asking)]
        assert [] == other.sent
        return texts

    assert ["good", "good"] == asyncio.run(work())


def test_an_answer_that_is_being_kept_while_it_is_closed_is_kept(teacher_of, tracker, folder):
    class SlowToFinish(SlowStore):
        def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
            return self._store.begin(intents, budget=budget)

        def finish(self, outcomes: Sequence[Outcome]) -> None:
            self.is_asked.set()
            assert self.may_go_on.wait(30)
            self._store.finish(outcomes)

    slow = SlowToFinish(tracker.responses)

    async def work() -> Any:
        async with teacher_of(slow, FakeTransport()) as teacher:
            asking = asyncio.create_task(teacher.ask("2 + 2?"))
            await asyncio.to_thread(slow.is_asked.wait)
            closing = asyncio.create_task(teacher.close())
            await asyncio.sleep(0.01)
            slow.may_go_on.set()
            await closing
        return (await asyncio.gather(asking, return_exceptions=True))[0]

    assert isinstance(asyncio.run(work()), asyncio.CancelledError)
    assert "4" == tracker.responses.read(request_for().key).response["choices"][0]["message"]["content"]
    assert 0 == tracker.responses.spending().requests_in_doubt
    assert is_consistent(tracker, folder)


def test_an_answer_is_asked_for_once_more_under_another_idempotency_key(asked, tracker):
    """Under the same one, a server that knows it would give the same answer again."""

    def check(answer: Any) -> str | None:
        return "bad"

    transport = FakeTransport(failed(503), delivered("bad"), failed(503), delivered("bad"))
    asked(tracker.responses, transport, "a", check=check, asks_again=True)

    keys = [request.idempotency_key for request in transport.sent]
    assert (keys[0], keys[2]) == (keys[1], keys[3])
    assert keys[0] != keys[2]


def test_an_answer_of_no_use_is_not_asked_for_again_while_it_is_closed(teacher_of, tracker):
    transport = FakeTransport(otherwise=delivered("bad"))

    async def work() -> Any:
        async with teacher_of(tracker.responses, transport, asks_again=True) as teacher:
            closing = []

            def check(answer: Any) -> str | None:
                closing.append(asyncio.get_running_loop().create_task(teacher.close(waits=True)))
                return "bad"

            (found,) = await asyncio.gather(teacher.ask("a", check=check), return_exceptions=True)
            await asyncio.gather(*closing)
        return found

    assert isinstance(asyncio.run(work()), TeacherClosed)
    assert 1 == len(transport.sent)


def test_an_answer_of_no_use_is_asked_for_once_more_and_not_for_ever(asked, tracker):
    transport = FakeTransport(otherwise=delivered("bad"))
    found = asked(tracker.responses, transport, "a", "a", "a", check=lambda answer: "bad", asks_again=True)

    assert [AnswerUnusable] * 3 == [type(each) for each in found]
    assert 2 == len(transport.sent)


def test_all_who_found_an_answer_of_no_use_share_the_second_one(teacher_of, tracker, folder):
    def check(answer: Any) -> str | None:
        return None if answer.text == "good" else "bad"

    async def work() -> list[Any]:
        held = Held(delivered("good"))
        transport = FakeTransport(delivered("bad"), held, delivered("worse"))
        async with teacher_of(tracker.responses, transport, asks_again=True) as teacher:
            asking = [asyncio.create_task(teacher.ask("a", check=check)) for _ in range(3)]
            await held.is_sent.wait()
            asking += [asyncio.create_task(teacher.ask("a", check=check)) for _ in range(3)]
            await asyncio.sleep(0.05)
            held.may_arrive.set()
            found = await asyncio.gather(*asking, return_exceptions=True)
        assert 2 == len(transport.sent)
        return found

    assert ["good"] * 6 == [answer.text for answer in asyncio.run(work())]
    assert is_consistent(tracker, folder)


# Who asks the same.


def test_equal_questions_at_once_share_one_request(teacher_of, tracker, folder):
    async def work(base_url: str) -> list[Any]:
        async with teacher_of(tracker.responses, base_url) as teacher:
            return await asyncio.gather(*(teacher.ask("2 + 2?") for _ in range(20)))

    with TeacherServer(latency_seconds=0.05) as server:
        answers = asyncio.run(work(server.base_url))
        counts = server.counts

    assert 1 == len({answer.text for answer in answers})
    assert (1, 1) == (counts.requests, counts.answers_computed)
    assert (1, 19) == (tracker.responses.spending().answers, tracker.responses.spending().answers_served)
    assert is_consistent(tracker, folder)


def test_equal_questions_of_several_teachers_in_several_threads_share_one_request(teacher_of, tracker, folder):
    found: list[str] = []

    def ask_in_a_thread(base_url: str) -> None:
        async def work() -> None:
            async with teacher_of(tracker.responses, base_url) as teacher:
                answers = await asyncio.gather(*(teacher.ask(f"{number}") for number in range(5)))
                found.extend(answer.response["id"] for answer in answers)

        asyncio.run(work())

    with TeacherServer(latency_seconds=0.05) as server:
        threads = [threading.Thread(target=ask_in_a_thread, args=(server.base_url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = server.counts

    assert (20, 5) == (len(found), len(set(found)))
    assert [1] * 5 == list(counts.by_prompt.values())
    assert is_consistent(tracker, folder)


@pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "refused"])
def test_what_another_teacher_of_this_run_has_sent_is_waited_for(teacher_of, tracker, is_answered):
    request = request_for("a")
    (granted,) = tracker.responses.begin([Intent(request=request, most=COST)], budget=None)
    ends = [
        Answered(granted=granted, cost=COST, response=completion("from the other")),
        Refused(granted=granted, reason="HTTP 400"),
    ]

    async def work() -> tuple[str, int]:
        transport = FakeTransport(delivered("from this one"))
        async with teacher_of(tracker.responses, transport) as teacher:
            asking = asyncio.create_task(teacher.ask("a"))
            await asyncio.sleep(0.08)
            assert not asking.done()
            tracker.responses.finish([ends[0] if is_answered else ends[1]])
            return (await asking).text, len(transport.sent)

    assert (("from the other", 0) if is_answered else ("from this one", 1)) == asyncio.run(work())


def test_a_failure_is_heard_by_all_who_asked(teacher_of, tracker):
    async def work() -> list[Any]:
        transport = FakeTransport(otherwise=failed(400, is_retryable=False))
        async with teacher_of(tracker.responses, transport) as teacher:
            found = await asyncio.gather(*(teacher.ask("a") for _ in range(4)), return_exceptions=True)
        assert 1 == len(transport.sent)
        return found

    assert [TeacherRefused] * 4 == [type(each) for each in asyncio.run(work())]


def test_a_question_may_be_asked_again_after_it_failed(asked, tracker):
    found = asked(tracker.responses, FakeTransport(failed(400, is_retryable=False)), "a", "a")

    assert [TeacherRefused, "4"] == [type(found[0]), found[1].text]


def test_who_gives_up_waiting_does_not_stop_the_request(teacher_of, tracker, folder):
    async def work() -> tuple[list[Any], int]:
        held = Held()
        transport = FakeTransport(held)
        async with teacher_of(tracker.responses, transport) as teacher:
            asking = [asyncio.create_task(teacher.ask("a")) for _ in range(3)]
            await held.is_sent.wait()
            # The first one began the request.
            asking[0].cancel()
            asking[1].cancel()
            await asyncio.sleep(0)
            held.may_arrive.set()
            found = await asyncio.gather(*asking, return_exceptions=True)
            again = await teacher.ask("a")
        return [*found, again], len(transport.sent)

    (first, second, third, again), num_sent = asyncio.run(work())
    assert [asyncio.CancelledError] * 2 == [type(first), type(second)]
    assert ("4", "4", 1) == (third.text, again.text, num_sent)
    assert is_consistent(tracker, folder)


def test_an_answer_that_nobody_waits_for_any_more_is_kept(teacher_of, tracker):
    async def work() -> None:
        held = Held()
        async with teacher_of(tracker.responses, FakeTransport(held)) as teacher:
            asking = asyncio.create_task(teacher.ask("2 + 2?"))
            await held.is_sent.wait()
            asking.cancel()
            held.may_arrive.set()
            while tracker.responses.read(request_for().key) is None:
                await asyncio.sleep(0.01)

    asyncio.run(work())
    assert 1 == tracker.responses.spending().answers


def test_a_request_that_fails_while_nobody_waits_is_no_lost_error(teacher_of, tracker, folder):
    async def work() -> None:
        held = Held(failed(400, is_retryable=False))
        async with teacher_of(tracker.responses, FakeTransport(held)) as teacher:
            asking = asyncio.create_task(teacher.ask("a"))
            await held.is_sent.wait()
            asking.cancel()
            held.may_arrive.set()
            while "request_refused" not in lines_about_requests(folder):
                await asyncio.sleep(0.01)

    asyncio.run(work())


# The end.


def test_closing_gives_up_what_is_under_way_which_is_in_doubt(teacher_of, tracker, folder, open_tracker):
    async def work() -> list[Any]:
        helds = [Held() for _ in range(3)]
        async with teacher_of(
            tracker.responses, FakeTransport(*helds), budget=Decimal(1), parameters={"max_tokens": 10}
        ) as teacher:
            asking = [asyncio.create_task(teacher.ask(f"{number}")) for number in range(3)]
            for held in helds:
                await held.is_sent.wait()
        return await asyncio.gather(*asking, return_exceptions=True)

    assert [asyncio.CancelledError] * 3 == [type(each) for each in asyncio.run(work())]
    spending = tracker.responses.spending()
    assert (0, 3, 0) == (spending.answers, spending.requests_in_doubt, spending.reserved)
    assert spending.in_doubt > 0
    assert ["request_sent"] * 3 + ["request_lost"] * 3 == lines_about_requests(folder)
    assert is_consistent(tracker, folder)


def test_what_was_given_up_may_be_asked_again_by_another_teacher(teacher_of, asked, tracker, folder):
    async def work() -> None:
        held = Held()
        async with teacher_of(tracker.responses, FakeTransport(held)) as teacher:
            asking = asyncio.create_task(teacher.ask("a"))
            await held.is_sent.wait()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(work())
    (answer,) = asked(tracker.responses, FakeTransport(), "a")
    assert "4" == answer.text


def test_closing_may_wait_for_what_is_paid_for_and_keeps_it(teacher_of, tracker, folder):
    async def work() -> list[Any]:
        helds = [Held() for _ in range(2)]
        transport = FakeTransport(*helds)
        async with teacher_of(tracker.responses, transport, limits=Limits(concurrency=2)) as teacher:
            asking = [asyncio.create_task(teacher.ask(f"{number}")) for number in range(4)]
            for held in helds:
                await held.is_sent.wait()
            closing = asyncio.create_task(teacher.close(waits=True))
            await asyncio.sleep(0.01)
            for held in helds:
                held.may_arrive.set()
            await closing
        assert 2 == len(transport.sent)
        return await asyncio.gather(*asking, return_exceptions=True)

    found = asyncio.run(work())
    assert ["4", "4"] == [each.text for each in found[:2]]
    assert all(isinstance(each, (asyncio.CancelledError, TeacherClosed)) for each in found[2:])
    spending = tracker.responses.spending()
    assert (2, 0, 0) == (spending.answers, spending.requests_in_doubt, spending.reserved)
    assert is_consistent(tracker, folder)


def test_closing_and_waiting_does_not_try_again(teacher_of, tracker):
    async def work() -> Any:
        held = Held(failed(503))
        transport = FakeTransport(held)
        async with teacher_of(tracker.responses, transport) as teacher:
            asking = asyncio.create_task(teacher.ask("a"))
            await held.is_sent.wait()
            closing = asyncio.create_task(teacher.close(waits=True))
            await asyncio.sleep(0.01)
            held.may_arrive.set()
            await closing
        assert 1 == len(transport.sent)
        return (await asyncio.gather(asking, return_exceptions=True))[0]

    assert isinstance(asyncio.run(work()), asyncio.CancelledError)
    assert 0 == tracker.responses.spending().requests_in_doubt


class SlowStore:
    """A run's store whose `begin` takes until it is let go on."""

    def __init__(self, store: RunResponses) -> None:
        self._store = store
        self.is_asked = threading.Event()
        self.may_go_on = threading.Event()

    def begin(self, intents: Sequence[Intent], *, budget: Decimal | None) -> list[Verdict]:
        verdicts = self._store.begin(intents, budget=budget)
        self.is_asked.set()
        assert self.may_go_on.wait(30)
        return verdicts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("waits", [False, True], ids=["gives up", "waits"])
def test_a_permission_that_comes_while_it_is_closed_is_given_back(teacher_of, tracker, folder, waits):
    """Otherwise the request would stay under way for ever, and its money with it."""
    slow = SlowStore(tracker.responses)

    async def work() -> Any:
        transport = FakeTransport()
        async with teacher_of(slow, transport) as teacher:
            asking = asyncio.create_task(teacher.ask("a"))
            await asyncio.to_thread(slow.is_asked.wait)
            closing = asyncio.create_task(teacher.close(waits=waits))
            await asyncio.sleep(0.01)
            slow.may_go_on.set()
            await closing
        assert [] == transport.sent
        return (await asyncio.gather(asking, return_exceptions=True))[0]

    assert isinstance(asyncio.run(work()), (asyncio.CancelledError, TeacherClosed))
    assert ["request_sent", "request_refused"] == lines_about_requests(folder)
    assert 0 == tracker.responses.spending().committed
    assert is_consistent(tracker, folder)


def test_whoever_asks_a_closed_teacher_is_told_so(teacher_of, tracker):
    async def work() -> list[Any]:
        async with teacher_of(tracker.responses, FakeTransport()) as teacher:
            await teacher.ask("a")
        asking = asyncio.gather(teacher.ask("a"), teacher.ask("b"), return_exceptions=True)
        return await asyncio.wait_for(asking, timeout=10)

    assert [TeacherClosed] * 2 == [type(each) for each in asyncio.run(work())]


def test_all_who_ask_while_it_is_closed_come_to_an_end(teacher_of, tracker, folder):
    async def slow(request: Any) -> Reply:
        await asyncio.sleep(0.003)
        return delivered("bad" if request.body["messages"][0]["content"] == "2" else "4")

    async def work() -> list[Any]:
        transport = FakeTransport(otherwise=slow)
        async with teacher_of(tracker.responses, transport, asks_again=True) as teacher:
            asking = []
            for number in range(60):
                check = (lambda answer: "bad") if number % 3 else None
                asking.append(asyncio.create_task(teacher.ask(f"{number % 7}", check=check)))
                if number == 30:
                    closing = asyncio.create_task(teacher.close(waits=True))
                await asyncio.sleep(0.0005)
            await closing
            return await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), timeout=20)

    found = asyncio.run(work())
    kinds = {type(each).__name__ for each in found}
    assert {"Answer", "AnswerUnusable", "TeacherClosed", "CancelledError"} >= kinds
    assert is_consistent(tracker, folder)


def test_closing_twice_does_nothing(teacher_of, tracker):
    async def work() -> None:
        async with teacher_of(tracker.responses, FakeTransport()) as teacher:
            await teacher.close()
            await teacher.close(waits=True)

    asyncio.run(work())


def test_the_loop_may_end_without_a_word_and_nothing_stays_under_way(prices, tracker, folder):
    """`asyncio.run` cancels what is left; the store hears of it."""

    async def work() -> AsyncTeacher:
        held = Held()
        teacher = AsyncTeacher(
            "teacher",
            store=tracker.responses,
            endpoint=Endpoint(base_url=URL),
            prices=prices,
            transport=FakeTransport(held),
        )
        asyncio.get_running_loop().create_task(teacher.ask("a"))
        await held.is_sent.wait()
        return teacher

    teacher = asyncio.run(work())
    teacher._commits.close()
    assert ["request_sent", "request_lost"] == lines_about_requests(folder)


def test_a_mistake_in_the_transport_is_raised_and_its_money_is_in_doubt(asked, tracker, folder):
    found = asked(tracker.responses, FakeTransport(ZeroDivisionError("own mistake")), "a", "a")

    assert [ZeroDivisionError, "4"] == [type(found[0]), found[1].text]
    assert ["request_sent", "request_lost", "request_sent"] == lines_about_requests(folder)
    assert is_consistent(tracker, folder)


class RefusingStore(SlowStore):
    """A run's store whose `finish` finds no space."""

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        raise StorageError("The disk is full.")


def test_an_answer_that_cannot_be_kept_is_raised_to_who_asked(asked, tracker):
    store = RefusingStore(tracker.responses)
    store.may_go_on.set()
    (error,) = asked(store, FakeTransport(), retry_policy=dataclasses.replace(EAGER, full_disk_seconds=0.05))

    assert isinstance(error, StorageError)


# Money.


def test_many_at_once_never_spend_more_than_the_budget(teacher_of, tracker, folder):
    """By the server's own count; it fails, and charges for what it never delivers."""
    budget = Decimal("0.002")

    async def work(base_url: str) -> list[Any]:
        async with teacher_of(
            tracker.responses,
            base_url,
            budget=budget,
            parameters={"max_tokens": 20},
            keeps_truncated=True,
            retry_policy=dataclasses.replace(EAGER, first_byte_seconds=0.3),
            limits=Limits(concurrency=8),
        ) as teacher:
            return await asyncio.gather(*(teacher.ask(f"{number}") for number in range(40)), return_exceptions=True)

    faults = Faults(
        seed=7, share=0.3, times=FaultTimes(retry_after_seconds=0, stall_seconds=5.0, slow_body_seconds=0.02)
    )
    with TeacherServer(faults=faults, prices=(Decimal(1), Decimal(1), Decimal(2))) as server:
        found = asyncio.run(work(server.base_url))
        counts = server.counts

    kinds = [type(each).__name__ for each in found]
    assert {"Answer", "AnswerUnusable", "BudgetExhausted"} >= set(kinds)
    assert min(kinds.count("Answer"), kinds.count("BudgetExhausted")) > 0
    spending = tracker.responses.spending()
    assert counts.dollars <= spending.committed <= budget
    assert 0 == spending.reserved
    assert is_consistent(tracker, folder)


def test_a_budget_that_is_used_up_is_told_with_its_sums(asked, tracker, prices):
    most = prices.of("teacher").worst_case(request_for("a", max_tokens=10).body)
    found = asked(
        tracker.responses,
        FakeTransport(),
        "a",
        "b",
        "a",
        budget=most + COST - Decimal("0.000001"),
        parameters={"max_tokens": 10},
    )

    assert ["4", "4"] == [found[0].text, found[2].text]
    assert isinstance(found[1], BudgetExhausted)
    assert "$0.000020 are spent" in str(found[1])


def test_a_request_waits_for_money_that_another_may_not_need(teacher_of, tracker, prices):
    most = prices.of("teacher").worst_case(request_for("a", max_tokens=10).body)

    async def work() -> list[Any]:
        held = Held()
        async with teacher_of(
            tracker.responses, FakeTransport(held), budget=most + COST, parameters={"max_tokens": 10}
        ) as teacher:
            asking = [asyncio.create_task(teacher.ask("a"))]
            await held.is_sent.wait()
            asking.append(asyncio.create_task(teacher.ask("b")))
            await asyncio.sleep(0.05)
            held.may_arrive.set()
            return await asyncio.gather(*asking)

    assert ["4", "4"] == [answer.text for answer in asyncio.run(work())]


def test_what_is_in_doubt_is_not_spent_again(asked, tracker, open_tracker, prices):
    most = prices.of("teacher").worst_case(request_for("a", max_tokens=10).body)
    how = {"budget": 2 * most - Decimal("0.000001"), "parameters": {"max_tokens": 10}}
    lost = failed(None, may_have_been_paid=True)
    (first,) = asked(
        tracker.responses, FakeTransport(lost), "a", retry_policy=dataclasses.replace(EAGER, attempts=1), **how
    )
    forget_open_runs()
    (second,) = asked(open_tracker().responses, FakeTransport(), "a", **how)

    assert [TeacherUnreachable, BudgetExhausted] == [type(first), type(second)]
    assert "requests in doubt may have cost" in str(second)


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param(None, id="missing"),
        pytest.param({"prompt_tokens": -5, "completion_tokens": 5}, id="negative"),
        pytest.param({"prompt_tokens": 0, "completion_tokens": 0}, id="zero"),
        pytest.param({"prompt_tokens": 10}, id="half of it"),
        pytest.param([], id="list"),
        pytest.param({"prompt_tokens": 10, "completion_tokens": 1}, id="too few tokens for the text"),
    ],
)
def test_a_count_that_cannot_be_true_is_estimated_up_to_the_worst_case(asked, tracker, prices, usage):
    long_answer = delivered("a long text " * 100, usage=usage)
    (answer,) = asked(tracker.responses, FakeTransport(long_answer), budget=Decimal(1), parameters={"max_tokens": 10})

    assert prices.of("teacher").worst_case(request_for(max_tokens=10).body) == answer.cost
    assert tracker.responses.spending().spent == answer.cost


@pytest.mark.parametrize("prompt, said", [(10**9, 5), (10, 10**9), (10**12, 10**12)])
def test_a_count_beyond_all_reason_books_no_less_than_it_says(asked, tracker, prices, prompt, said):
    (answer,) = asked(
        tracker.responses,
        FakeTransport(delivered(prompt=prompt, said=said)),
        budget=Decimal(1),
        parameters={"max_tokens": 10},
    )

    assert answer.cost >= prices.of("teacher").worst_case(request_for(max_tokens=10).body)


def test_counts_that_cannot_be_true_are_told_once(asked, tracker, caplog):
    wrong = delivered(prompt=10**9)
    asked(
        tracker.responses,
        FakeTransport(otherwise=wrong),
        *"abc",
        budget=Decimal(10**6),
        parameters={"max_tokens": 10},
    )

    assert 1 == sum("implausible usage" in message for message in caplog.messages)


def test_real_answers_with_wrong_counts_book_no_less_than_was_charged(asked, tracker):
    faults = Faults(script=[Fault.WRONG_USAGE] * 3)
    with TeacherServer(faults=faults, prices=(Decimal(1), Decimal(1), Decimal(2))) as server:
        asked(tracker.responses, server.base_url, *"abc", budget=Decimal(1), parameters={"max_tokens": 10})
        counts = server.counts

    assert 3 == counts.answers_computed
    assert counts.dollars <= tracker.responses.spending().spent


def test_an_honest_server_and_the_run_count_the_same_dollars(asked, tracker):
    with TeacherServer(prices=(Decimal(1), Decimal(1), Decimal(2))) as server:
        asked(tracker.responses, server.base_url, *"abcdef", budget=Decimal(1), parameters={"max_tokens": 10})
        counts = server.counts

    assert counts.dollars == tracker.responses.spending().spent > 0


def test_a_model_without_a_price_has_no_budget(asked, tracker, prices):
    with pytest.raises(UnknownPrice, match="gpt-unknown"):
        AsyncTeacher(
            "gpt-unknown",
            store=tracker.responses,
            endpoint=Endpoint(base_url=URL),
            prices=prices,
            budget=Decimal(1),
            transport=FakeTransport(),
        )


def test_without_a_budget_a_model_without_a_price_counts_as_free(prices, tracker):
    async def work() -> Any:
        async with AsyncTeacher(
            "gpt-unknown",
            store=tracker.responses,
            endpoint=Endpoint(base_url=URL),
            prices=prices,
            transport=FakeTransport(),
        ) as teacher:
            return await teacher.ask("a")

    assert 0 == asyncio.run(work()).cost


def test_the_table_that_comes_along_is_used_where_none_is_given(tracker):
    async def work() -> None:
        async with AsyncTeacher(
            "gpt-4o-mini",
            store=tracker.responses,
            endpoint=Endpoint(base_url=URL),
            budget=Decimal(1),
            transport=FakeTransport(),
        ) as teacher:
            await teacher.ask("a", max_tokens=10)

    asyncio.run(work())
    assert tracker.responses.spending().spent > 0


def test_with_a_budget_a_request_without_a_bound_is_not_sent(asked, tracker, folder):
    transport = FakeTransport()
    (error,) = asked(tracker.responses, transport, budget=Decimal(1))

    assert isinstance(error, ConfigError)
    assert "Set max_tokens" in str(error)
    assert ([], []) == (transport.sent, lines_about_requests(folder))


def test_without_a_budget_a_request_without_a_bound_is_sent(asked, tracker):
    found = asked(tracker.responses, FakeTransport(), parameters={"max_tokens": "ten"})

    assert "4" == found[0].text


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"budget": Decimal(0)}, id="budget"),
        pytest.param({"budget": Decimal(-1)}, id="negative budget"),
        pytest.param({"budget": Decimal("NaN")}, id="budget that is no number"),
        pytest.param({"limits": Limits(concurrency=0)}, id="concurrency"),
        pytest.param({"limits": Limits(requests_per_minute=0)}, id="requests_per_minute"),
        pytest.param({"limits": Limits(tokens_per_minute=-1)}, id="tokens_per_minute"),
        pytest.param({"retry_policy": RetryPolicy(attempts=0)}, id="attempts"),
        pytest.param({"retry_policy": RetryPolicy(answer_seconds=0)}, id="answer_seconds"),
    ],
)
def test_a_limit_that_lets_nothing_through_is_refused(tracker, prices, how):
    with pytest.raises(ConfigError, match="must be above 0"):
        AsyncTeacher(
            "teacher",
            store=tracker.responses,
            endpoint=Endpoint(base_url=URL),
            prices=prices,
            transport=FakeTransport(),
            **how,
        )


def test_tokens_a_minute_are_held_by_what_answers_have_used(teacher_of, tracker, clock):
    moments: list[float] = []

    class Timed(FakeTransport):
        async def send(self, request: Any) -> Reply:
            moments.append(round(clock.steady(), 1))
            return await super().send(request)

    async def work() -> None:
        transport = Timed(otherwise=delivered(prompt=40, said=40))
        async with teacher_of(
            tracker.responses,
            transport,
            limits=Limits(tokens_per_minute=200),
            parameters={"max_tokens": 60},
            clock=clock,
        ) as teacher:
            for number in range(4):
                await teacher.ask(f"{number}")

    in_virtual_time(work(), clock, quiet_seconds=0.02)
    # 80 each in truth: with an estimate of about 73 the third one does not fit.
    assert [0.0, 0.0] == [moment - moments[0] for moment in moments[:2]]
    assert moments[2] - moments[0] >= 60.0


# The same over retries, restarts and with the provider's help.


def test_the_idempotency_key_is_the_same_over_retries_and_a_restart(asked, tracker, open_tracker):
    faults = Faults(script=[Fault.DROP_AFTER, Fault.DROP_AFTER, Fault.DROP_AFTER])
    with TeacherServer(faults=faults, honours_idempotency_keys=True) as server:
        (first,) = asked(tracker.responses, server.base_url, "a", retry_policy=dataclasses.replace(EAGER, attempts=2))
        forget_open_runs()
        (second,) = asked(open_tracker().responses, server.base_url, "a")
        counts = server.counts

    assert isinstance(first, TeacherUnreachable)
    assert second.text
    assert [4] == list(counts.idempotency_keys.values())
    assert 1 == counts.answers_computed


# The API key.

ECHOES: list[Callable[[str], Response]] = [
    lambda key: json_response({"error": {"message": f"Incorrect API key provided: {key}."}}, status=429),
    lambda key: json_response({"error": {"message": f"x{'x' * 280} Bearer {key}", "code": key}}, status=500),
    lambda key: json_response({"detail": [{"headers": {"authorization": key}}]}, status=503),
    lambda key: Response(status=502, content_type="text/html", pieces=(f"<pre>{key}</pre>".encode(),)),
    lambda key: Response(content_type="text/html", pieces=(f"<pre>{key}</pre>".encode(),)),
    lambda key: json_response({"error": {"message": f"{key} is over its limit"}}),
    lambda key: json_response({"error": f"{key} is over its limit"}),
    lambda key: json_response({"error": {"message": f"never: {key}"}}, status=401),
]


@pytest.mark.parametrize(
    "key", [KEY, "sk-proj-0123456789abcdef", "wordwordword", "123456", "q\"uo'te\\s", "<b>&amp;%"]
)
def test_the_api_key_is_written_nowhere_though_the_server_echoes_it(asked, tracker, run_dir, caplog, key):
    caplog.set_level(logging.DEBUG)
    replies = iter(ECHOES)
    with http_server(lambda request: next(replies)(key)) as url:
        endpoint = Endpoint(base_url=url, api_key=key)
        (error,) = asked(
            tracker.responses,
            url,
            endpoint=endpoint,
            retry_policy=dataclasses.replace(EAGER, attempts=20),
            on_failure=tracker.record_connection_failure,
        )
    tracker.close(how="raised", error=error)

    assert isinstance(error, TeacherRefused)
    assert next(replies, None) is None
    assert key not in f"{error} {error!r} {error.__cause__!r} {error.__context__!r} {endpoint!r}"
    assert key not in caplog.text
    spelled = {key, json.dumps(key)[1:-1]}
    for path in run_dir.rglob("*"):
        assert not path.is_file() or not any(each.encode() in path.read_bytes() for each in spelled), path


def test_the_api_key_is_written_nowhere_when_all_goes_well(asked, tracker, run_dir, caplog):
    caplog.set_level(logging.DEBUG)
    with TeacherServer(api_key=KEY) as server:
        found = asked(tracker.responses, server.base_url, endpoint=Endpoint(base_url=server.base_url, api_key=KEY))
    tracker.close()

    assert found[0].text
    assert KEY not in caplog.text
    assert not any(KEY.encode() in path.read_bytes() for path in run_dir.rglob("*") if path.is_file())


def test_a_wrong_key_is_refused_and_neither_is_told(asked, tracker):
    with TeacherServer(api_key="the-right-one") as server:
        (error,) = asked(tracker.responses, server.base_url, endpoint=Endpoint(base_url=server.base_url, api_key=KEY))

    assert isinstance(error, TeacherRefused)
    assert (401, "Check OPENAI_API_KEY.") == (error.status, error.hint)
    assert KEY not in str(error)


def test_a_thousand_questions_leave_a_store_that_is_consistent(teacher_of, tracker, folder):
    async def quick(request: Any) -> Reply:
        number = int(request.body["messages"][0]["content"])
        if number % 10 == 3:
            return failed(400, is_retryable=False)
        return delivered(f"answer {number}")

    async def work() -> list[Any]:
        async with teacher_of(
            tracker.responses, FakeTransport(otherwise=quick), limits=Limits(concurrency=64)
        ) as teacher:
            asking = (teacher.ask(f"{number % 300}") for number in range(1000))
            return await asyncio.gather(*asking, return_exceptions=True)

    found = asyncio.run(work())
    assert [TeacherRefused if number % 300 % 10 == 3 else f"answer {number % 300}" for number in range(1000)] == [
        type(each) if isinstance(each, Exception) else each.text for each in found
    ]
    assert 270 == tracker.responses.spending().answers
    assert is_consistent(tracker, folder)
