"""Answers that arrive as a stream, whoever asked for it."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from generating import generate
from teaching import EAGER, completion, http_server, price_table_at

from crashproof import ProgressTracker
from crashproof.errors import AnswerUnusable
from crashproof.teacher import Answer, AsyncTeacher, Endpoint, PriceTable
from crashproof.testing import Fault, Faults, TeacherServer
from crashproof.testing.teacher_server import FaultTimes
from crashproof.testing.teacher_server.http_stub import Response

PRICES = (Decimal(1), Decimal(1), Decimal(2))
TEXT = "The keel holds the ship."


@pytest.fixture
def tracker(open_tracker: Callable[..., ProgressTracker]) -> ProgressTracker:
    return open_tracker()


@pytest.fixture
def ask(tracker, tmp_path) -> Callable[..., list[Any]]:
    """Ask a server at an address; answers and errors, in order."""

    def of(base_url: str, *questions: str, retry_policy=EAGER, **parameters: Any) -> list[Any]:
        async def work() -> list[Any]:
            async with AsyncTeacher(
                "teacher",
                store=tracker.responses,
                endpoint=Endpoint(base_url=base_url),
                prices=PriceTable.load(price_table_at(tmp_path)),
                budget=Decimal(1),
                retry_policy=retry_policy,
                parameters={"max_tokens": 50} | parameters,
            ) as teacher:
                asking = (teacher.ask(question) for question in questions or ("2 + 2?",))
                return await asyncio.gather(*asking, return_exceptions=True)

        return asyncio.run(work())

    return of


def events(*chunks: Any, done: bool = True, end: str = "\n\n", mark: str = "data: ") -> bytes:
    said = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return "".join(f"{mark}{each}{end}" for each in (*said, *(["[DONE]"] if done else []))).encode()


def chunk(delta: dict[str, Any] | None = None, *, index: int = 0, finish: str | None = None, **others: Any) -> Any:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "teacher", "choices": [choice]} | others


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
LAST = {"id": "c", "object": "chat.completion.chunk", "model": "teacher", "choices": [], "usage": USAGE}


WHOLE = (chunk({"content": TEXT}, finish="stop"), LAST)
"""The answer in one part, and what it cost."""
TEXT_ALONE = chunk({"content": TEXT})
END_ALONE = chunk(finish="stop")


def part_of_call(
    index: int, arguments: str, *, name: str | None = None, identity: str | None = None
) -> dict[str, Any]:
    function = {"arguments": arguments} if not name else {"name": name, "arguments": arguments}
    opened = {} if not identity else {"id": identity, "type": "function"}
    return {"index": index, **opened, "function": function}


def as_lines(*chunks: Any) -> bytes:
    return b"\n".join(json.dumps(each).encode() for each in chunks)


def said(ask: Callable[..., list[Any]], body: bytes, content_type: str = "text/event-stream", **headers: str) -> Any:
    response = Response(content_type=content_type, headers=headers, pieces=(body,), is_chunked=True)
    with http_server(lambda request: response) as url:
        return ask(url)[0]


@pytest.mark.parametrize(
    "fault", [Fault.STREAM_UNASKED, Fault.STREAM_ODD, Fault.STREAM_OF_LINES, Fault.STREAM_OF_ONE]
)
def test_a_server_that_streams_unasked_is_paid_once_and_its_answer_is_the_one_it_would_send_whole(
    ask, tracker, fault
):
    with TeacherServer(faults=Faults(script=[fault, None]), prices=PRICES) as server:
        (streamed,) = ask(server.base_url)
        counts = server.counts

        (whole,) = ask(server.base_url, "2 + 3?")

    assert isinstance(streamed, Answer)
    assert 1 == counts.requests
    assert counts.dollars == streamed.cost
    assert whole.response.keys() - {"system_fingerprint"} <= streamed.response.keys()
    assert ("stop", "chat.completion") == (streamed.finish_reason, streamed.response["object"])
    assert (2, 0) == (tracker.responses.spending().answers, tracker.responses.spending().requests_in_doubt)


def test_forty_questions_to_a_server_that_only_streams_are_forty_answers(ask):
    with TeacherServer(faults=Faults(share=1, kinds=[Fault.STREAM_UNASKED], most_in_a_row=99)) as server:
        answers = ask(server.base_url, *(f"{number} + 1?" for number in range(40)))
        requests = server.counts.requests

    assert (40, 40) == (requests, sum(isinstance(answer, Answer) for answer in answers))


def test_a_stream_is_asked_for_with_its_usage_where_the_request_says_so(ask):
    with TeacherServer(prices=PRICES) as server:
        (answer,) = ask(server.base_url, stream=True, logprobs=True, top_logprobs=2)
        (seen,) = server.requests_seen
        counts = server.counts

    assert (True, {"include_usage": True}) == (seen.body["stream"], seen.body["stream_options"])
    assert counts.dollars == answer.cost
    assert answer.text == "".join(entry["token"] for entry in answer.logprobs)


def test_an_endpoint_that_only_streams_is_asked_for_a_stream_after_its_first_refusal(ask, caplog):
    with TeacherServer(only_streams=True) as server:
        answers = ask(server.base_url, "1?") + ask(server.base_url, "2?", "3?")
        requests = server.counts.requests

    assert all(isinstance(answer, Answer) for answer in answers)
    assert requests <= 3 + 3
    assert "Answers are asked for as a stream from here on" in caplog.text


@pytest.mark.parametrize("refused", ["stream_options", "stream"])
def test_a_server_that_takes_no_such_parameter_is_asked_without_it(ask, caplog, refused):
    with TeacherServer(refuses=[refused]) as server:
        (answer,) = ask(server.base_url, stream=True)

    assert isinstance(answer, Answer)
    assert refused in caplog.text


@pytest.mark.parametrize("fault", [Fault.STREAM_CUT, Fault.STREAM_STALL, Fault.STREAM_ERROR])
def test_a_broken_stream_is_kept_and_marked_and_asked_for_once_more(ask, tracker, run_dir, fault):
    retry_policy = dataclasses.replace(EAGER, between_chunks_seconds=0.3)
    with TeacherServer(faults=Faults(script=[fault], times=FaultTimes(stall_seconds=20.0)), prices=PRICES) as server:
        (answer,) = ask(server.base_url, retry_policy=retry_policy)
        counts = server.counts

    spending = tracker.responses.spending()
    assert isinstance(answer, Answer)
    assert 2 == counts.requests
    assert counts.dollars <= spending.committed
    assert (2, 1, 0) == (spending.answers, spending.answers_bad, spending.requests_in_doubt)
    kept = (run_dir / "progress" / "api_recovery.jsonl").read_text()
    assert "it is incomplete, since" in kept


def test_a_broken_stream_is_replaced_in_a_shared_store_too(tmp_path):
    with TeacherServer(faults=Faults(script=[Fault.STREAM_CUT])) as server:
        result = generate(
            tmp_path,
            server.base_url,
            "--store",
            f"sqlite:///{tmp_path / 'answers.db'}",
            "--attempts",
            2,
            num_prompts=1,
        )

        assert (0, 2) == (result.exit_code, server.counts.requests)


def test_a_stream_that_breaks_each_time_is_not_paid_for_again_and_again(ask, tracker):
    with TeacherServer(faults=Faults(share=1, kinds=[Fault.STREAM_CUT], most_in_a_row=99)) as server:
        (error,) = ask(server.base_url)
        requests = server.counts.requests
        (again,) = ask(server.base_url)

        assert (3, 3) == (requests, server.counts.requests)

    assert isinstance(error, AnswerUnusable)
    assert "incomplete" in error.problem
    assert error.problem == again.problem


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(events(chunk({"role": "assistant"}), TEXT_ALONE, END_ALONE, LAST), id="role only first"),
        pytest.param(events(TEXT_ALONE, chunk(finish="stop", usage=USAGE), done=False), id="no end marker"),
        pytest.param(events(*WHOLE, end="\r\n\r\n"), id="CRLF"),
        pytest.param(events(*WHOLE, end="\r\r"), id="CR"),
        pytest.param(events(*WHOLE, end="\n"), id="no empty lines"),
        pytest.param(events(*WHOLE, mark="data:"), id="no space"),
        pytest.param(b"\xef\xbb\xbf" + events(*WHOLE), id="byte order mark"),
        pytest.param(b": PROCESSING\n\n\n" * 9 + events(*WHOLE), id="comments"),
        pytest.param(
            events(chunk({"content": TEXT[:5]}, finish=""), chunk({"content": TEXT[5:]}, finish=""), END_ALONE, LAST),
            id="empty finish reasons",
        ),
        pytest.param(events(TEXT_ALONE, chunk(finish="stop", x_groq={"usage": USAGE})), id="usage beside"),
        pytest.param(events({"id": "", "choices": [], "prompt_filter_results": []}, *WHOLE), id="no choices first"),
        pytest.param(events(completion(TEXT)), id="whole in one event"),
        pytest.param(events(completion(TEXT), done=False), id="whole in one event without end marker"),
        pytest.param(json.dumps(completion(TEXT)).encode(), id="no stream at all"),
        pytest.param(as_lines(TEXT_ALONE, END_ALONE, LAST), id="lines"),
    ],
)
@pytest.mark.parametrize("content_type", ["text/event-stream; charset=utf-8", "application/json", "text/plain"])
def test_every_manner_of_a_stream_is_read(ask, body, content_type):
    answer = said(ask, body, content_type)

    assert isinstance(answer, Answer), answer
    assert (TEXT, "stop", Decimal("0.00002")) == (answer.text, answer.finish_reason, answer.cost)


def test_a_compressed_stream_is_read(ask):
    body = gzip.compress(events(*WHOLE))

    answer = said(ask, body, **{"content-encoding": "gzip"})

    assert TEXT == answer.text


def test_lines_of_ollamas_own_form_are_read(ask):
    lines = [
        {"model": "m", "message": {"role": "assistant", "content": "The keel "}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "holds."}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
         "prompt_eval_count": 10, "eval_count": 5},
    ]  # fmt: skip

    answer = said(ask, "\n".join(map(json.dumps, lines)).encode(), "application/x-ndjson")

    assert ("The keel holds.", "stop", Decimal("0.00002")) == (answer.text, answer.finish_reason, answer.cost)


def test_thoughts_and_tool_calls_in_parts_are_joined(ask):
    tools = [{"type": "function", "function": {"name": name}} for name in ("depth", "wind")]
    body = events(
        chunk({"role": "assistant", "content": None, "reasoning_content": "How "}),
        chunk({"reasoning_content": "deep?"}),
        chunk({"tool_calls": [part_of_call(0, "", name="depth", identity="a")]}),
        chunk({"tool_calls": [part_of_call(1, "{", name="wind", identity="b")]}),
        chunk({"tool_calls": [part_of_call(0, '{"x": ', name="depth")]}),
        chunk({"tool_calls": [part_of_call(0, "1}"), part_of_call(1, "}")]}),
        chunk(finish="tool_calls"),
        LAST,
    )

    response = Response(content_type="text/event-stream", pieces=(body,), is_chunked=True)
    with http_server(lambda request: response) as url:
        (answer,) = ask(url, tools=tools)

    assert {
        "role": "assistant",
        "content": None,
        "reasoning_content": "How deep?",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "depth", "arguments": '{"x": 1}'}},
            {"id": "b", "type": "function", "function": {"name": "wind", "arguments": "{}"}},
        ],
    } == answer.message


def test_calls_that_share_an_index_are_told_apart_by_their_ids(ask):
    calls = [
        {"index": 0, "id": name, "type": "function", "function": {"name": "depth", "arguments": "{}"}}
        for name in ("a", "b")
    ]
    body = events(*(chunk({"tool_calls": [call]}) for call in calls), chunk(finish="tool_calls"), LAST)
    response = Response(content_type="text/event-stream", pieces=(body,))
    with http_server(lambda request: response) as url:
        (answer,) = ask(url, tools=[{"type": "function", "function": {"name": "depth"}}])

    assert ["a", "b"] == [call["id"] for call in answer.message["tool_calls"]]


def test_several_choices_interleaved_are_told_apart(ask):
    body = events(
        chunk({"content": "four"}, index=1),
        chunk({"content": "The "}),
        chunk({"content": "keel"}),
        chunk(finish="stop", index=1),
        chunk(finish="stop"),
        LAST,
    )

    answer = said(ask, body)

    assert ["The keel", "four"] == [choice["message"]["content"] for choice in answer.response["choices"]]


def test_log_probabilities_in_parts_are_joined(ask):
    entries = [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in ("The", " keel")]
    chunks = [chunk({"content": entry["token"]}) for entry in entries]
    for each, entry in zip(chunks, entries, strict=True):
        each["choices"][0]["logprobs"] = {"content": [entry], "refusal": None}

    answer = said(ask, events(*chunks, chunk(finish="stop"), LAST))

    assert entries == answer.logprobs


def test_an_error_before_the_first_word_costs_nothing_and_is_tried_again(ask, tracker):
    error = {"error": {"message": "no worker is free", "code": 503}}
    bodies = iter([b"event: error\n" + events(error, done=False), events(*WHOLE)])
    with http_server(lambda request: Response(content_type="text/event-stream", pieces=(next(bodies),))) as url:
        (answer,) = ask(url)

    assert TEXT == answer.text
    assert 0 == tracker.responses.spending().requests_in_doubt


def test_a_stream_of_another_api_is_kept_to_the_letter_and_not_paid_for_again(ask, tracker, run_dir: Path):
    body = b'event: content_block_delta\ndata: {"type": "content_block_delta", "delta": {"text": "four"}}\n\n'

    error = said(ask, body)

    assert isinstance(error, AnswerUnusable)
    assert "content_block_delta" in (run_dir / "progress" / "api_recovery.jsonl").read_text()
    assert 1 == tracker.responses.spending().answers


def test_a_stream_that_ends_without_saying_so_is_no_whole_answer(ask, tracker):
    bodies = iter([events(chunk({"content": "The"}), done=False), events(*WHOLE)])
    with http_server(lambda request: Response(content_type="text/event-stream", pieces=(next(bodies),))) as url:
        (answer,) = ask(url)

    assert TEXT == answer.text
    assert (2, 1) == (tracker.responses.spending().answers, tracker.responses.spending().answers_bad)
