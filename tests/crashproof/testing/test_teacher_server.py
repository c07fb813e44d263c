from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from crashproof.testing import FakeClock, Fault, Faults, TeacherServer
from crashproof.testing.teacher_server import FaultTimes, Prices, TeacherCounts, request_hash

QUICK = FaultTimes(stall_seconds=0.05, slow_body_seconds=0.05)
REFUSALS = {
    Fault.RATE_LIMITED: 429,
    Fault.RATE_LIMITED_WITH_SECONDS: 429,
    Fault.RATE_LIMITED_WITH_DATE: 429,
    Fault.SERVER_ERROR: 500,
    Fault.OVERLOADED: 503,
    Fault.REQUEST_TIMEOUT: 408,
    Fault.CONFLICT: 409,
    Fault.TOO_EARLY: 425,
    Fault.GATEWAY_TIMEOUT: 504,
}
CHARGED = {
    *("gateway_timeout", "drop_after", "drop_midway", "stall", "slow_body", "broken_json", "wrong_usage"),
    *("broken_off", "truncated", "filtered"),
    *(fault for fault in Fault if fault.is_streamed),
}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)

    @property
    def choice(self) -> dict[str, Any]:
        return self.body["choices"][0]

    @property
    def text(self) -> str:
        return self.choice["message"]["content"]

    @property
    def usage(self) -> dict[str, Any]:
        return self.body["usage"]

    @property
    def error(self) -> dict[str, Any]:
        return self.body["error"]

    @property
    def events(self) -> list[Any]:
        lines = [line.removeprefix(b"data: ") for line in self.content.split(b"\n\n") if line]
        assert b"[DONE]" == lines.pop()
        return [json.loads(line) for line in lines]


def question(text: str = "What holds a ship?", **more: Any) -> dict[str, Any]:
    return {"model": "teacher", "messages": [{"role": "user", "content": text}], **more}


@contextlib.contextmanager
def connected(server: TeacherServer, *, timeout: float = 10.0) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc, timeout=timeout)
    try:
        yield connection
    finally:
        connection.close()


def asked_over(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any, headers: Any = None
) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, content, headers or {})
    response = connection.getresponse()
    named = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, named, response.read())


def ask(server: TeacherServer, body: Any = None, *, path: str = "/v1/chat/completions", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with connected(server) as connection:
        return asked_over(connection, "POST", path, question() if body is None else body, named)


def get(server: TeacherServer, path: str, **headers: str) -> Reply:
    with connected(server) as connection:
        return asked_over(connection, "GET", path, b"", headers)


def raw(server: TeacherServer, content: bytes) -> bytes:
    """What comes back for these bytes, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", urlsplit(server.base_url).port), timeout=10.0) as client:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.01)


def logprobs_of(server: TeacherServer, **more: Any) -> list[dict[str, Any]]:
    return ask(server, question(logprobs=True, **more)).choice["logprobs"]["content"]


def statuses_of(server: TeacherServer, bodies: list[dict[str, Any]]) -> list[int]:
    return [ask(server, body).status for body in bodies]


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer(faults=Faults(times=QUICK)) as running:
        yield running


def test_an_answer_is_what_the_callable_says_to_the_request():
    with TeacherServer(lambda body: body["messages"][0]["content"].upper()) as server:
        assert "AHOY" == ask(server, question("ahoy")).text


def test_an_answer_has_the_form_of_openai(server):
    body = ask(server).body

    assert {"id", "object", "created", "model", "choices", "usage"} == body.keys()
    assert ("chat.completion", "teacher") == (body["object"], body["model"])
    assert {"index", "message", "logprobs", "finish_reason"} == body["choices"][0].keys()
    assert ("assistant", "stop") == (body["choices"][0]["message"]["role"], body["choices"][0]["finish_reason"])


def test_an_answer_may_be_a_message_that_calls_tools():
    call = {"id": "call_1", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}
    with TeacherServer(lambda _: {"content": None, "tool_calls": [call]}) as server:
        reply = ask(server)
    choice = reply.choice

    assert {"role": "assistant", "content": None, "tool_calls": [call]} == choice["message"]
    assert "tool_calls" == choice["finish_reason"]
    assert reply.usage["completion_tokens"] > 1


def test_an_answer_may_bring_its_own_reason_and_probabilities():
    entries = [{"token": "Aye", "logprob": -0.5, "bytes": [65, 121, 101], "top_logprobs": []}]
    said = {"message": {"content": "Aye"}, "logprobs": {"content": entries}, "finish_reason": "content_filter"}
    with TeacherServer(lambda _: said) as server:
        choice = ask(server, question(logprobs=True)).choice

    assert ("content_filter", entries) == (choice["finish_reason"], choice["logprobs"]["content"])


def test_an_answer_follows_from_the_request_where_nobody_says_it(server):
    texts = [ask(server, question(temperature=0.5)).text for _ in range(2)]

    assert 1 == len(set(texts))
    assert 20 <= len(texts[0].split()) <= 31


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"temperature": 0.7}, id="sampling"),
        pytest.param({"tools": [{"type": "function", "function": {"name": "tide"}}]}, id="tools"),
        pytest.param({"messages": [{"role": "system", "content": "What holds a ship?"}]}, id="messages"),
    ],
)
def test_an_answer_differs_where_the_request_does(server, change):
    assert ask(server, question()).text != ask(server, question() | change).text


def test_an_answer_comes_as_often_as_asked_for(server):
    choices = ask(server, question(n=3)).body["choices"]

    assert [0, 1, 2] == [choice["index"] for choice in choices]
    assert 3 == len({choice["message"]["content"] for choice in choices})


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_the_length_that_was_asked_for(limit):
    with TeacherServer(lambda _: "one two, three") as server:
        reply = ask(server, question(**{limit: 3}))

    assert ("one two,", "length", 3) == (reply.text, reply.choice["finish_reason"], reply.usage["completion_tokens"])


def test_an_answer_as_long_as_asked_for_is_not_cut():
    with TeacherServer(lambda _: "one two, three") as server:
        assert "stop" == ask(server, question(max_tokens=4)).choice["finish_reason"]


def test_an_answer_that_the_callable_fails_to_give_is_an_error_that_costs_nothing(caplog):
    def fail(body: dict[str, Any]) -> str:
        raise LookupError("no such port")

    with TeacherServer(fail) as server:
        reply = ask(server)

    assert (500, 0) == (reply.status, server.counts.answers_computed)
    assert "no such port" in reply.error["message"]
    assert "The answer function failed." in caplog.text


def test_an_answer_comes_after_the_latency():
    with TeacherServer(latency_seconds=0.2) as server:
        started = time.monotonic()
        ask(server)

    assert time.monotonic() - started >= 0.2


def test_probabilities_are_not_there_unless_asked_for(server):
    assert ask(server).choice["logprobs"] is None


def test_probabilities_stand_at_each_token_of_the_text(server):
    reply = ask(server, question(logprobs=True, top_logprobs=2))
    entries = reply.choice["logprobs"]["content"]

    assert reply.text == "".join(entry["token"] for entry in entries)
    assert [list(entry["token"].encode()) for entry in entries] == [entry["bytes"] for entry in entries]
    assert len(entries) == reply.usage["completion_tokens"]


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_probabilities_are_as_many_as_asked_for_and_sum_to_no_more_than_one(server, num_top):
    for entry in logprobs_of(server, top_logprobs=num_top):
        top = entry["top_logprobs"]
        assert num_top == len(top) == len({each["token"] for each in top})
        assert sorted((each["logprob"] for each in top), reverse=True) == [each["logprob"] for each in top]
        assert sum(math.exp(each["logprob"]) for each in top) <= 1


def test_probabilities_are_the_same_for_the_same_request(server):
    assert logprobs_of(server, top_logprobs=3) == logprobs_of(server, top_logprobs=3)


def test_probabilities_are_cut_with_the_text(server):
    assert 4 == len(logprobs_of(server, top_logprobs=1, max_tokens=4))


PRICES = Prices(Decimal("2.5"), Decimal("0.3"), Decimal("10.07"))


def test_money_is_charged_exactly():
    with TeacherServer(lambda _: "Five tokens, no more", prices=PRICES) as server:
        usage = ask(server, question("How many tokens?")).usage

    assert (4, 5, 9) == (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"])
    assert Decimal("0.00006035") == server.counts.dollars


def test_money_adds_up_to_the_last_digit():
    with TeacherServer(lambda _: "Aye", prices=PRICES) as server:
        for _ in range(7):
            ask(server, question("Ready?"))

    assert 7 * (2 * Decimal("2.5") + Decimal("10.07")) / 1_000_000 == server.counts.dollars


def test_money_is_less_for_what_was_cached():
    with TeacherServer(lambda _: "Aye", prices=PRICES, cached_share=0.5) as server:
        usage = ask(server, question("one two three four five")).usage

    assert 2 == usage["prompt_tokens_details"]["cached_tokens"]
    assert (3 * Decimal("2.5") + 2 * Decimal("0.3") + Decimal("10.07")) / 1_000_000 == server.counts.dollars


def test_money_is_charged_for_thoughts_too():
    with TeacherServer(lambda _: {"content": "Aye", "reasoning_content": "Is it so?"}) as server:
        usage = ask(server).usage

    assert 4 == usage["completion_tokens_details"]["reasoning_tokens"]
    assert 5 == usage["completion_tokens"]


def test_money_is_charged_for_the_tools_in_a_prompt(server):
    tools = [{"type": "function", "function": {"name": "tide", "description": "When it turns."}}]
    plain, with_tools = ask(server), ask(server, question(tools=tools))

    assert 5 == with_tools.usage["prompt_tokens"] - plain.usage["prompt_tokens"]


@pytest.mark.parametrize(
    "text", ["plain words.", "¿Qué? naïve", "海の船 🚢🚢", "a\n\n  b\t", "!?!?!?", "\ud83d alone"]
)
def test_money_is_never_for_more_tokens_than_bytes(text):
    with TeacherServer(lambda _: text) as server:
        usage = ask(server, question(text)).usage
    num_bytes = len(text.encode(errors="surrogatepass"))

    assert 1 <= usage["prompt_tokens"] <= num_bytes
    assert 1 <= usage["completion_tokens"] <= num_bytes


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("one two three four five", id="text"),
        pytest.param({"content": "four five", "reasoning_content": "one two three"}, id="thoughts-and-text"),
        pytest.param({"content": "five", "reasoning": "one two three four"}, id="thoughts"),
        pytest.param({"tool_calls": [{"function": {"name": "tide", "arguments": '{"port": 1}'}}]}, id="tools"),
    ],
)
def test_money_is_never_for_more_tokens_than_were_asked_for(said):
    with TeacherServer(lambda _: said) as server:
        reply = ask(server, question(max_tokens=3))

    assert ("length", 3) == (reply.choice["finish_reason"], reply.usage["completion_tokens"])
    assert len((reply.text or "").split()) + reply.usage["completion_tokens_details"]["reasoning_tokens"] <= 3


def test_money_is_charged_for_each_choice():
    with TeacherServer(lambda _: "Aye, aye") as server:
        assert 6 == ask(server, question(n=2)).usage["completion_tokens"]


def test_a_stream_brings_the_same_text_in_pieces(server):
    whole = ask(server).text
    reply = ask(server, question(stream=True))
    deltas = [event["choices"][0]["delta"] for event in reply.events]

    assert "text/event-stream" == reply.headers["content-type"]
    assert whole == "".join(delta.get("content", "") for delta in deltas)
    assert "assistant" == deltas[0]["role"]
    assert len(deltas) > 20


def test_a_stream_ends_with_a_reason(server):
    reasons = [event["choices"][0]["finish_reason"] for event in ask(server, question(stream=True)).events]

    assert {None} == set(reasons[:-1])
    assert "stop" == reasons[-1]


def test_a_stream_brings_the_usage_where_asked_for(server):
    usage = ask(server).usage
    *events, last = ask(server, question(stream=True, stream_options={"include_usage": True})).events

    assert ([], usage) == (last["choices"], last["usage"])
    assert [None] * len(events) == [event["usage"] for event in events]


def test_a_stream_brings_each_tokens_probabilities(server):
    asked = question(logprobs=True, top_logprobs=2)
    whole = ask(server, asked).choice["logprobs"]["content"]
    choices = [event["choices"][0] for event in ask(server, asked | {"stream": True}).events]

    assert whole == [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]


def test_a_stream_numbers_the_tools_that_it_calls():
    call = {"id": "call_1", "type": "function", "function": {"name": "tide", "arguments": "{}"}}
    with TeacherServer(lambda _: {"content": None, "tool_calls": [call]}) as server:
        deltas = [event["choices"][0]["delta"] for event in ask(server, question(stream=True)).events]

    assert [{"index": 0, **call}] == deltas[-2]["tool_calls"]


def test_a_stream_costs_what_the_whole_answer_costs(server):
    ask(server)
    whole = server.counts.dollars
    ask(server, question(stream=True))

    assert 2 * whole == server.counts.dollars


def test_openais_own_client_understands_the_server():
    openai = pytest.importorskip("openai")
    with (
        TeacherServer(lambda _: "Aye, aye", api_key="secret") as server,
        openai.OpenAI(base_url=server.base_url, api_key="secret", max_retries=0) as client,
    ):
        asked = question(logprobs=True, top_logprobs=2)
        whole = client.chat.completions.create(**asked)
        with client.chat.completions.create(**asked, stream=True) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**asked, extra_headers={"X-Crashproof-Fault": "rate_limited"})
        models = [model.id for model in client.models.list()]

    assert ("Aye, aye", "Aye, aye", ["teacher"]) == (whole.choices[0].message.content, text, models)
    assert 3 == len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens


def test_whoever_asks_finds_the_models_that_are_served():
    with TeacherServer(models=("small", "large")) as server:
        assert ["small", "large"] == [model["id"] for model in get(server, "/v1/models").body["data"]]
        assert 200 == ask(server, question() | {"model": "large"}).status


def test_whoever_asks_does_not_find_another_model(server):
    reply = ask(server, question() | {"model": "other"})

    assert (404, "model_not_found") == (reply.status, reply.error["code"])
    assert {"message", "type", "param", "code"} == reply.error.keys()


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}], ids=["none", "wrong", "bare"]
)
@pytest.mark.parametrize("look", [ask, lambda server, **headers: get(server, "/v1/models", **headers)])
def test_whoever_asks_needs_the_key_where_there_is_one(look, headers):
    with TeacherServer(api_key="secret") as server:
        reply = look(server, **headers)

    assert (401, "invalid_api_key") == (reply.status, reply.error["code"])
    assert 0 == server.counts.answers_computed


def test_whoever_asks_is_let_in_with_the_key():
    with TeacherServer(api_key="secret") as server:
        assert 200 == ask(server, Authorization="Bearer secret").status


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half-an-object"),
        pytest.param(b"\xff\xfe", id="not-utf8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param([], id="a-list"),
        pytest.param({"messages": [{"role": "user", "content": "Hi"}]}, id="no-model"),
        pytest.param({"model": "teacher"}, id="no-messages"),
        pytest.param({"model": "teacher", "messages": []}, id="empty-messages"),
        pytest.param({"model": "teacher", "messages": ["Hi"]}, id="messages-of-text"),
        pytest.param(question(n=0), id="no-choices"),
        pytest.param(question(n=True), id="a-true-number-of-choices"),
        pytest.param(question(max_tokens=0), id="no-tokens"),
        pytest.param(question(max_tokens="10"), id="tokens-as-text"),
        pytest.param(question(logprobs=True, top_logprobs=21), id="too-many-probabilities"),
    ],
)
def test_whoever_asks_badly_is_refused_and_charged_nothing(server, body):
    reply = ask(server, body)

    assert (400, "invalid_request_error") == (reply.status, reply.error["type"])
    assert (1, 0, 0) == (server.counts.requests, server.counts.answers_computed, server.counts.dollars)


@pytest.mark.parametrize("content", ["images", None, [{"type": "image_url", "image_url": {"url": "data:,"}}], 3])
def test_whoever_asks_with_unusual_content_gets_an_answer(server, content):
    assert 200 == ask(server, {"model": "teacher", "messages": [{"role": "user", "content": content}]}).status


def test_whoever_asks_elsewhere_finds_nothing(server):
    assert [404, 404, 404] == [
        ask(server, path="/v1/completions").status,
        get(server, "/").status,
        get(server, "/v1/chat/completions").status,
    ]


@pytest.mark.parametrize(
    "content, status",
    [
        pytest.param(b"AHOY\r\n\r\n", 400, id="no-http"),
        pytest.param(b"GET /counts HTTP/3\r\n\r\n", 400, id="another-version"),
        pytest.param(b"GET /counts HTTP/1.1\r\nno colon\r\n\r\n", 400, id="no-header"),
        pytest.param(b"GET /counts HTTP/1.1\r\nHost:", 400, id="half-a-head"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, id="negative-length"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf", 400, id="half-a-body"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, id="chunks"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 16777217\r\n\r\n", 413, id="too-long-a-body"),
        pytest.param(b"GET / HTTP/1.1\r\nName: " + b"x" * 70_000 + b"\r\n\r\n", 431, id="too-long-a-head"),
    ],
)
def test_whoever_asks_in_no_known_language_is_told_so(server, content, status):
    head, _, body = raw(server, content).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert "invalid_request_error" == json.loads(body)["error"]["type"]


def test_whoever_asks_may_send_sixteen_mebibytes(server):
    body = json.dumps(question("x" * 100)).encode()

    assert 200 == ask(server, body + b" " * (16 * 2**20 - len(body))).status


def test_whoever_asks_reads_why_a_longer_body_is_refused(server):
    assert 413 == ask(server, b" " * (16 * 2**20 + 1)).status


def test_whoever_asks_may_ask_again_and_again_over_one_connection(server):
    with connected(server) as connection:
        replies = [asked_over(connection, "POST", "/v1/chat/completions", question(str(n))) for n in range(3)]
        kept = connection.sock

    assert [200] * 3 == [reply.status for reply in replies]
    assert kept is not None


def test_whoever_asks_may_close_the_connection_or_speak_the_older_version(server):
    for last in (b"HTTP/1.1\r\nConnection: close", b"HTTP/1.0"):
        assert raw(server, b"GET /v1/models " + last + b"\r\n\r\n").endswith(b"]}")


def test_whoever_asks_is_told_to_go_on_where_it_waits_for_that(server):
    said = raw(server, b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}")

    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 ")


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_fault_may_be_a_refusal(server, fault):
    reply = ask(server, X_Crashproof_Fault=fault)

    assert (REFUSALS[fault], fault) == (reply.status, reply.error["code"])


def test_a_fault_may_say_in_how_many_seconds_to_come_back():
    with TeacherServer(faults=Faults(times=FaultTimes(retry_after_seconds=7))) as server:
        assert "7" == ask(server, X_Crashproof_Fault="rate_limited_with_seconds").headers["retry-after"]


def test_a_fault_may_say_at_what_time_to_come_back():
    times = FaultTimes(retry_after_seconds=90)
    with TeacherServer(faults=Faults(times=times), clock=FakeClock(now=1_700_000_000.0)) as server:
        date = ask(server, X_Crashproof_Fault="rate_limited_with_date").headers["retry-after"]

    assert date.endswith(" GMT")
    assert 1_700_000_090 == parsedate_to_datetime(date).timestamp()


def test_a_fault_may_not_say_when_to_come_back(server):
    assert "retry-after" not in ask(server, X_Crashproof_Fault="rate_limited").headers


@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "stall"])
def test_a_fault_may_close_the_connection_without_a_byte(server, fault):
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, X_Crashproof_Fault=fault)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_fault_may_break_off_within_the_body(server, is_streamed):
    whole = ask(server, question(stream=is_streamed)).content
    with pytest.raises(http.client.IncompleteRead) as broken:
        ask(server, question(stream=is_streamed), X_Crashproof_Fault="drop_midway")

    assert 0 < len(broken.value.partial) < len(whole)


def test_a_fault_may_keep_a_client_waiting_until_it_leaves():
    with TeacherServer(faults=Faults(script=[Fault.STALL], times=FaultTimes(stall_seconds=3600))) as server:
        with connected(server, timeout=0.1) as connection, pytest.raises(TimeoutError):
            asked_over(connection, "POST", "/v1/chat/completions", question())

        assert 200 == ask(server).status


def test_a_fault_may_let_a_body_trickle(server):
    usual, slow = ask(server), ask(server, X_Crashproof_Fault="slow_body")

    assert usual.text == slow.text
    assert 2 == server.counts.answers_delivered


def test_a_fault_may_be_a_proxys_page(server):
    reply = ask(server, X_Crashproof_Fault="garbage")

    assert (200, "text/html") == (reply.status, reply.headers["content-type"])
    assert b"<html>" in reply.content


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_fault_may_break_the_json(server, is_streamed):
    whole = ask(server, question(stream=is_streamed))
    broken = ask(server, question(stream=is_streamed), X_Crashproof_Fault="broken_json")

    assert (200, whole.headers["content-type"]) == (broken.status, broken.headers["content-type"])
    assert len(whole.content) // 2 == len(broken.content)
    with pytest.raises(ValueError, match="char"):
        json.loads(broken.content)


def test_a_fault_may_show_a_usage_that_nobody_was_charged_for(server):
    charged = ask(server).usage
    replies = [ask(server, X_Crashproof_Fault="wrong_usage") for _ in range(3)]
    shown = [reply.body.get("usage", {}).get("prompt_tokens") for reply in replies]

    assert [-charged["prompt_tokens"], None, 0] == shown
    assert 1 == len({reply.text for reply in replies})
    assert 4 == server.counts.answers_delivered


def test_a_fault_may_be_an_error_in_a_good_status(server):
    reply = ask(server, X_Crashproof_Fault="error_body")

    assert (200, {"error"}) == (reply.status, reply.body.keys())


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_is_counted_and_charged_if_the_answer_was_computed(fault):
    with TeacherServer(faults=Faults(times=QUICK)) as server:
        ask(server)
        once = server.counts.dollars
        with contextlib.suppress(http.client.HTTPException):
            ask(server, X_Crashproof_Fault=fault)
    times_charged = 2 if fault in CHARGED else 1

    assert {fault: 1} == server.counts.faults
    assert (times_charged, times_charged * once) == (server.counts.answers_computed, server.counts.dollars)
    is_delivered = fault in {"slow_body", "wrong_usage", "truncated", "filtered"} or (
        fault.is_streamed and not fault.leaves_part
    )
    assert 1 + is_delivered == server.counts.answers_delivered


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_leaves_the_server_well(server, fault):
    with contextlib.suppress(http.client.HTTPException):
        ask(server, X_Crashproof_Fault=fault)

    assert 200 == ask(server).status


def test_a_fault_of_an_unknown_name_is_refused(server):
    reply = ask(server, X_Crashproof_Fault="mutiny")

    assert 400 == reply.status
    assert "mutiny" in reply.error["message"]


def test_a_script_is_played_in_order_and_then_all_is_well():
    script = [Fault.OVERLOADED, None, Fault.CONFLICT]
    with TeacherServer(faults=Faults(script=script)) as server:
        assert [503, 200, 409, 200] == statuses_of(server, [question()] * 4)


def test_refused_requests_and_named_faults_leave_the_script_alone():
    with TeacherServer(faults=Faults(script=[Fault.OVERLOADED])) as server:
        ask(server, b"{")
        ask(server, X_Crashproof_Fault="conflict")

        assert 503 == ask(server).status


def test_chance_is_the_same_for_the_same_seed_whatever_the_order():
    faults = Faults(seed=3, share=0.5, kinds=[Fault.OVERLOADED, Fault.CONFLICT])
    bodies = [question(str(number)) for number in range(30)]
    found = []
    for order in (bodies, bodies[::-1]):
        with TeacherServer(faults=faults) as server:
            found.append({body["messages"][0]["content"]: ask(server, body).status for body in order})

    assert found[0] == found[1]
    assert {200, 409, 503} == set(found[0].values())


def test_chance_differs_from_seed_to_seed():
    drawn = [[Faults(seed=seed, share=0.5).by_chance("a", number) for number in range(20)] for seed in (1, 2)]

    assert drawn[0] != drawn[1]


def test_chance_keeps_to_its_share():
    faults = Faults(seed=1, share=0.3)
    num_struck = sum(faults.by_chance(str(number), 0) is not None for number in range(10_000))

    assert 2_800 < num_struck < 3_200


def test_after_so_many_in_a_row_a_request_gets_through():
    faults = Faults(share=1.0, kinds=[Fault.OVERLOADED], most_in_a_row=2)
    with TeacherServer(faults=faults) as server:
        bodies = [question("one"), question("two")] * 6
        statuses = statuses_of(server, bodies)

    assert [503, 503, 200, 503, 503, 200] == statuses[::2] == statuses[1::2]


@pytest.mark.parametrize("share", [-0.1, 1.1, 30])
def test_a_share_is_no_percentage(share):
    with pytest.raises(ValueError, match="from 0 to 1"):
        Faults(share=share)


def test_faults_by_chance_need_kinds():
    with pytest.raises(ValueError, match="at least one kind"):
        Faults(share=0.5, kinds=[])


def test_counts_are_kept_by_request(server):
    for text, times in (("one", 1), ("two", 3)):
        for _ in range(times):
            ask(server, question(text))

    assert {request_hash(question("one")): 1, request_hash(question("two")): 3} == server.counts.by_prompt


def test_counts_take_the_order_of_keys_and_the_way_of_delivery_for_the_same_request():
    one = {"model": "teacher", "temperature": 1, "stream": True, "user": "me"}
    other = {"temperature": 1, "model": "teacher"}

    assert request_hash(one) == request_hash(other)


def test_counts_of_all_posts_are_kept(server):
    ask(server)
    ask(server, b"{")
    ask(server, path="/elsewhere")
    get(server, "/v1/models")

    assert 3 == server.counts.requests


def test_counts_tell_what_was_paid_for_and_never_arrived():
    with TeacherServer(latency_seconds=0.2) as server:
        with connected(server, timeout=0.05) as connection, pytest.raises(TimeoutError):
            asked_over(connection, "POST", "/v1/chat/completions", question())
        # Once the second has come through its latency, the first has as well.
        ask(server)

    assert (2, 1) == (server.counts.answers_computed, server.counts.answers_delivered)


def test_counts_tell_how_many_were_asked_at_once():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(TeacherServer(faults=Faults(times=FaultTimes(stall_seconds=3600))))
        for number in range(64):
            connection = stack.enter_context(connected(server))
            body = json.dumps(question(str(number)))
            connection.request("POST", "/v1/chat/completions", body, {"X-Crashproof-Fault": "stall"})
        wait_until(lambda: server.counts.requests == 64)

        assert 64 == server.counts.most_at_once


def test_counts_never_take_one_after_the_other_for_two_at_once(server):
    for _ in range(50):
        ask(server)

    assert 1 == server.counts.most_at_once


def test_counts_are_exact_with_many_clients():
    with TeacherServer(lambda _: "Aye") as server, ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda number: ask(server, question(f"{number % 10}")), range(400)))
    counts = server.counts

    assert (400, 400, 400) == (counts.requests, counts.answers_computed, counts.answers_delivered)
    assert {40} == set(counts.by_prompt.values())
    assert 400 * (Decimal("0.15") + Decimal("0.60")) / 1_000_000 == counts.dollars


def test_counts_are_told_over_http_too(server):
    ask(server, Idempotency_Key="one")
    ask(server, X_Crashproof_Fault="overloaded")

    assert server.counts == TeacherCounts.of(server.base_url)


def test_counts_tell_how_often_a_key_was_seen(server):
    for key in ("one", "two", "two"):
        ask(server, Idempotency_Key=key)

    assert {"one": 1, "two": 2} == server.counts.idempotency_keys
    assert 3 == server.counts.answers_computed


@pytest.fixture
def remembering() -> Iterator[TeacherServer]:
    faults = Faults(times=QUICK)
    with TeacherServer(faults=faults, honours_idempotency_keys=True) as running:
        yield running


def test_idempotency_keys_seen_before_are_answered_from_memory_and_free_of_charge(remembering):
    replies = [ask(remembering, Idempotency_Key="one") for _ in range(3)]

    assert 1 == len({reply.content for reply in replies})
    assert (1, 3) == (remembering.counts.answers_computed, remembering.counts.answers_delivered)


def test_idempotency_keys_bring_an_answer_that_was_lost_on_its_way(remembering):
    with pytest.raises(http.client.RemoteDisconnected):
        ask(remembering, Idempotency_Key="one", X_Crashproof_Fault="drop_after")

    assert 200 == ask(remembering, Idempotency_Key="one").status
    assert 1 == remembering.counts.answers_computed


def test_idempotency_keys_of_their_own_are_charged_each(remembering):
    ask(remembering, Idempotency_Key="one")
    ask(remembering, Idempotency_Key="two")

    assert 2 == remembering.counts.answers_computed


def test_idempotency_keys_serve_no_other_request(remembering):
    ask(remembering, question("one"), Idempotency_Key="one")

    assert 422 == ask(remembering, question("two"), Idempotency_Key="one").status


def test_requests_seen_are_kept_as_they_came(server):
    ask(server, question("one"))
    ask(server, question("two", temperature=0.5), X_Trace="abc")

    assert [question("one"), question("two", temperature=0.5)] == [seen.body for seen in server.requests_seen]
    assert "abc" == server.requests_seen[-1].headers["x-trace"]


def test_requests_seen_keep_no_secrets():
    with TeacherServer(api_key="secret") as server:
        ask(server, Authorization="Bearer secret")

    assert "secret" not in str(server.requests_seen)


def test_the_end_comes_although_clients_are_kept_waiting():
    with contextlib.ExitStack() as client:
        with TeacherServer(faults=Faults(script=[Fault.STALL], times=FaultTimes(stall_seconds=3600))) as server:
            connection = client.enter_context(connected(server))
            connection.request("POST", "/v1/chat/completions", json.dumps(question()))
            wait_until(lambda: server.counts.answers_computed == 1)

        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            connection.getresponse()


def test_the_end_leaves_no_thread_and_frees_the_port():
    before = threading.active_count()
    with TeacherServer() as first:
        port = urlsplit(first.base_url).port
        ask(first)
    with TeacherServer(port=port) as second:
        ask(second)

    assert before == threading.active_count()
    with pytest.raises(ConnectionRefusedError):
        ask(second)


def test_the_end_closes_connections_that_are_open_and_idle():
    with contextlib.ExitStack() as client:
        with TeacherServer() as server:
            connection = client.enter_context(connected(server))
            asked_over(connection, "POST", "/v1/chat/completions", question())

        assert b"" == connection.sock.recv(1)


def test_the_end_leaves_the_counts():
    with TeacherServer() as server:
        ask(server)

    assert 1 == server.counts.requests


def test_a_server_that_was_not_entered_has_no_address():
    with pytest.raises(RuntimeError, match="enter it"):
        _ = TeacherServer().base_url


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[str]:
    """The base URL of a server in its own process."""
    command = [sys.executable, "-m", "crashproof.testing.teacher_server"]
    files = ["--port-file", str(folder / "port"), "--state-file", str(folder / "state")]
    process = subprocess.Popen([*command, *files, *options], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(timeout=30)
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Elsewhere:
    """A server in another process, for those who only need its address."""

    base_url: str


def test_a_process_tells_its_address_its_port_and_its_counts(tmp_path):
    with running(tmp_path) as base_url:
        ask(Elsewhere(base_url))
        port = int((tmp_path / "port").read_text())
        counts = TeacherCounts.of(base_url)

    assert f"http://127.0.0.1:{port}/v1" == base_url
    assert (1, 1) == (counts.requests, counts.answers_delivered)
    assert counts == TeacherCounts.from_json((tmp_path / "state").read_bytes())


def test_a_process_takes_the_terms_that_it_is_given(tmp_path):
    terms = ["--model", "small", "--api-key", "secret", "--prices", "1.5", "0", "2", "--honours-idempotency-keys"]
    with running(tmp_path, *terms) as base_url:
        body = question(max_tokens=3) | {"model": "small"}
        for _ in range(2):
            ask(Elsewhere(base_url), body, Authorization="Bearer secret", Idempotency_Key="one")
        counts = TeacherCounts.of(base_url)

    assert (5 * Decimal("1.5") + 3 * 2) / 1_000_000 == counts.dollars


def test_a_process_takes_the_faults_that_it_is_given(tmp_path):
    faults = ["--script", "conflict,none", "--share", "1", "--kinds", "overloaded", "--most-in-a-row", "1"]
    with running(tmp_path, *faults) as base_url:
        statuses = [ask(Elsewhere(base_url)).status for _ in range(4)]

    assert [409, 200, 503, 200] == statuses


def test_a_process_outlives_a_client_that_is_killed(tmp_path):
    client = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], data=sys.argv[2].encode())"
    with running(tmp_path, "--script", "stall") as base_url:
        url = f"{base_url}/chat/completions"
        with subprocess.Popen([sys.executable, "-c", client, url, json.dumps(question())]) as killed:
            wait_until(lambda: TeacherCounts.of(base_url).answers_computed == 1)
            killed.kill()
        reply = ask(Elsewhere(base_url))
        counts = TeacherCounts.of(base_url)

    assert 200 == reply.status
    assert (2, 1, {"stall": 1}) == (counts.answers_computed, counts.answers_delivered, counts.faults)


def test_a_process_refuses_a_fault_that_it_does_not_know(tmp_path):
    command = [sys.executable, "-m", "crashproof.testing.teacher_server", "--script", "mutiny"]
    said = subprocess.run(command, capture_output=True, text=True)

    assert 2 == said.returncode
    assert re.search(r"--script: .*'mutiny'", said.stderr)
