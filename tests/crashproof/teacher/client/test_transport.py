from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from teaching import completion, http_server, json_response, request_for

from crashproof.teacher import Endpoint, RetryPolicy
from crashproof.teacher.client.transport import Delivered, HttpTransport, Reply, failed_by
from crashproof.teacher.replies.errors import error_in
from crashproof.testing import FakeClock
from crashproof.testing.teacher_server.http_stub import Connection, Request, Response

KEY = "plain+lowercase/secret=="

RETRIED = [408, 409, 425, 429, 500, 502, 503, 504, 507, 508]
NEVER_RETRIED = [300, 301, 302, 307, 308, 304, 400, 401, 402, 403, 404, 405, 410, 413, 415, 422, 451]


def sent_to(
    base_url: str,
    *,
    retry_policy: RetryPolicy | None = None,
    endpoint: Endpoint | None = None,
    clock: FakeClock | None = None,
    times: int = 1,
    **parameters: Any,
) -> Reply:
    """How sending a question ended, the last of several times over one transport."""

    async def send() -> Reply:
        transport = HttpTransport(
            endpoint or Endpoint(base_url=base_url, api_key=KEY),
            retry_policy or RetryPolicy(connect_seconds=2.0),
            **({} if clock is None else {"clock": clock}),
        )
        try:
            for _ in range(times):
                reply = await transport.send(request_for(base_url=base_url, **parameters))
            return reply
        finally:
            await transport.close()

    return asyncio.run(send())


def said(response: Response | Callable[[Connection], Any], **how: Any) -> Reply:
    """How a question ends to which a server says something."""
    with http_server(lambda request: response) as url:
        return sent_to(url, **how)


def error_body(message: Any = "no", **others: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": None} | others}


@pytest.fixture
def seen() -> list[Request]:
    return []


@pytest.fixture
def recorder(seen):
    """A server that remembers what it was sent."""

    def answer(request: Request) -> Response:
        seen.append(request)
        return json_response(completion())

    with http_server(answer) as url:
        yield url


def test_a_question_is_sent_as_the_api_wants_it(recorder, seen):
    reply = sent_to(recorder, temperature=0.5)

    assert completion() == json.loads(reply.body)
    (request,) = seen
    assert ("POST", "/v1/chat/completions") == (request.method, request.path)
    assert {
        "model": "teacher",
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "temperature": 0.5,
    } == json.loads(request.body)
    assert ("application/json", f"Bearer {KEY}", "crashproof") == tuple(
        request.headers[name] for name in ("content-type", "authorization", "user-agent")
    )


def test_without_a_key_none_is_sent(recorder, seen):
    sent_to(recorder, endpoint=Endpoint(base_url=recorder))

    assert "authorization" not in seen[0].headers


def test_the_same_question_is_sent_with_the_same_idempotency_key_and_another_with_another(recorder, seen):
    sent_to(recorder, times=2)
    sent_to(recorder)
    sent_to(recorder, seed=1)

    keys = [request.headers["idempotency-key"] for request in seen]
    assert 1 == len(set(keys[:3]))
    assert keys[0] != keys[3]
    assert f"crashproof-{request_for(base_url=recorder).key}" == keys[0]


def test_an_answer_comes_in_one_piece_unless_the_request_is_for_a_stream(recorder, seen):
    sent_to(recorder, stream_options={"include_usage": True}, user="me")
    sent_to(recorder, stream=True, stream_options={"chunk_include_usage": True})

    plain, streamed = (json.loads(request.body) for request in seen)
    assert {"model", "messages", "user"} == plain.keys()
    assert (True, {"chunk_include_usage": True, "include_usage": True}) == (
        streamed["stream"],
        streamed["stream_options"],
    )


def test_connections_are_kept(recorder, seen):
    sent_to(recorder, times=3)

    assert 3 == len(seen)


@pytest.mark.parametrize("status", RETRIED)
def test_a_status_that_passes_is_tried_again(status):
    reply = said(json_response(error_body("come back"), status=status))

    assert (status, True, f"HTTP {status}: come back") == (reply.status, reply.is_retryable, reply.reason)


@pytest.mark.parametrize("status", NEVER_RETRIED)
def test_a_status_that_stays_is_not_tried_again(status):
    reply = said(json_response(error_body("never"), status=status, headers={"location": "http://127.0.0.1:1/"}))

    assert (status, False, False) == (reply.status, reply.is_retryable, reply.may_have_been_paid)


@pytest.mark.parametrize(
    "status, expected",
    [(408, True), (502, True), (504, True), (429, False), (500, False), (503, False), (400, False)],
)
def test_only_where_somebody_in_between_gave_up_the_model_may_have_gone_on(status, expected):
    assert expected == said(json_response(error_body(), status=status)).may_have_been_paid


@pytest.mark.parametrize("status, expected", [(429, True), (503, True), (500, False), (502, False), (408, False)])
def test_only_some_failures_ask_for_fewer_requests(status, expected):
    assert expected == said(json_response(error_body(), status=status)).is_overload


@pytest.mark.parametrize("name", ["code", "type"])
@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"])
@pytest.mark.parametrize("status", [429, 200])
def test_no_waiting_helps_against_an_empty_account(status, code, name):
    content = error_body("You exceeded your current quota", **{name: code})
    reply = said(json_response(content, status=status))
    if isinstance(reply, Delivered):
        reply = failed_by(error_in(status, reply.body), Endpoint())

    assert not reply.is_retryable
    assert "exceeded" in reply.reason


@pytest.mark.parametrize("code", [None, 5, 1.5, True, [], ["insufficient_quota"], {}, {"a": 1}], ids=str)
def test_an_error_code_of_any_kind_is_survived(code):
    reply = said(json_response(error_body(code=code, type=code), status=429))

    assert (429, True) == (reply.status, reply.is_retryable)


def test_a_redirect_is_not_followed_since_it_would_carry_the_key_elsewhere(recorder, seen):
    reply = said(Response(status=307, headers={"location": f"{recorder}/chat/completions"}))

    assert (307, []) == (reply.status, seen)


@pytest.mark.parametrize("header, expected", [("7", 7.0), ("0", 0.0), ("soon", None)])
def test_what_the_server_asks_to_wait_is_told(header, expected):
    assert (
        expected == said(json_response(error_body(), status=429, headers={"retry-after": header})).retry_after_seconds
    )


def test_a_date_to_come_back_at_is_held_against_the_clock():
    clock = FakeClock()
    later = formatdate(clock.now() + 90, usegmt=True)

    reply = said(json_response(error_body(), status=503, headers={"retry-after": later}), clock=clock)
    assert 90.0 == reply.retry_after_seconds


def test_without_a_word_nothing_is_asked():
    assert said(json_response(error_body(), status=429)).retry_after_seconds is None


@pytest.mark.parametrize(
    "body, told",
    [
        pytest.param(b'{"error": {"message": "no"}}', "HTTP 500: no", id="as OpenAI"),
        pytest.param(b'{"error": "no"}', "HTTP 500: no", id="error as text"),
        pytest.param(b'{"message": "no"}', "HTTP 500: no", id="message alone"),
        pytest.param(b'{"detail": "no"}', "HTTP 500: no", id="as FastAPI"),
        pytest.param(b'{"detail": [{"loc": ["body"], "msg": "missing"}]}', "missing", id="as FastAPI, in detail"),
        pytest.param(b'{"error": {"code": "no_model"}}', "HTTP 500: no_model", id="code alone"),
        pytest.param(b'{"error": null}', 'HTTP 500: {"error":null}', id="error null"),
        pytest.param(b'["no"]', "HTTP 500: no", id="list"),
        pytest.param(b"no  way\n\n out", "HTTP 500: no way out", id="text"),
        pytest.param(b"", "HTTP 500: Internal Server Error", id="empty"),
        pytest.param(b"\xff\xfe\x00", "HTTP 500: ", id="no text"),
        pytest.param(b"[" * 100_000, "HTTP 500: [[[", id="too deep"),
        pytest.param(b'{"error": {"message": "' + b"x" * 1_000_000 + b'"}}', "HTTP 500: xxx", id="long"),
        pytest.param(b"x" * 1_000_000, "HTTP 500: xxx", id="long text"),
    ],
)
def test_an_error_is_told_in_the_servers_words_whatever_they_are(body, told):
    reply = said(Response(status=500, pieces=(body,)))

    assert told in reply.reason
    assert len(reply.reason) <= 310


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda key: json.dumps(error_body(f"Incorrect API key: {key}")), id="in a message"),
        pytest.param(lambda key: json.dumps(error_body(f"header 'Authorization: Bearer {key}'")), id="as a header"),
        pytest.param(lambda key: json.dumps({"error": {"code": key}}), id="as a code"),
        pytest.param(lambda key: json.dumps({"headers": {"authorization": key}}), id="somewhere"),
        pytest.param(lambda key: json.dumps([key]), id="in a list"),
        pytest.param(lambda key: f"<html>{key}</html>", id="on a page"),
        *(
            pytest.param(lambda key, n=n: json.dumps(error_body("x" * n + key)), id=f"at character {n}")
            for n in (270, 280, 290, 299)
        ),
        *(pytest.param(lambda key, n=n: "x" * n + key, id=f"in text, at character {n}") for n in (280, 290, 299)),
    ],
)
@pytest.mark.parametrize("key", [KEY, "sk-proj-0123456789abcdef", "word" * 8, 'with"quote\\and/slash'], ids=str)
def test_no_part_of_the_key_comes_back_in_an_error(spell, key):
    with http_server(lambda request: Response(status=401, pieces=(spell(key).encode(),))) as url:
        reply = sent_to(url, endpoint=Endpoint(base_url=url, api_key=key))

    assert key not in reply.reason
    # Nor the beginning of it, where the message was cut.
    assert key[:8] not in reply.reason


@pytest.mark.parametrize(
    "content_type, body",
    [("application/json", b'{"a": 1} '), ("text/html", b"<html></html>"), ("text/plain", b"")],
    ids=["JSON", "page", "nothing"],
)
def test_a_success_is_delivered_to_the_letter(content_type, body):
    assert Delivered(body=body) == said(Response(content_type=content_type, pieces=(body,)))


def test_a_compressed_answer_is_unpacked():
    body = gzip.compress(json.dumps(completion()).encode())

    reply = said(Response(headers={"content-encoding": "gzip"}, pieces=(body,)))
    assert completion() == json.loads(reply.body)


def test_an_answer_that_cannot_be_unpacked_is_lost_and_tried_again():
    reply = said(Response(headers={"content-encoding": "gzip"}, pieces=(b"no gzip",)))

    assert (True, True) == (reply.is_retryable, reply.may_have_been_paid)
    assert "could not be decompressed" in reply.reason


async def drop(connection: Connection) -> None:
    connection.drop()


async def half(connection: Connection) -> None:
    await connection.send_half(json_response(completion()))


@pytest.mark.parametrize("act", [drop, half])
def test_a_connection_that_breaks_may_have_cost_money(act):
    reply = said(act)

    assert (None, True, True) == (reply.status, reply.is_retryable, reply.may_have_been_paid)
    assert "the connection was lost" in reply.reason


def test_what_is_no_http_may_have_cost_money():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def send() -> Reply:
            async def speak() -> None:
                loop = asyncio.get_running_loop()
                listener.setblocking(False)
                connection, _ = await loop.sock_accept(listener)
                with connection:
                    await loop.sock_recv(connection, 10_000)
                    await loop.sock_sendall(connection, b"SSH-2.0-OpenSSH_9.9\r\n")

            speaking = asyncio.create_task(speak())
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            transport = HttpTransport(Endpoint(base_url=url), RetryPolicy())
            reply = await transport.send(request_for(base_url=url))
            await speaking
            await transport.close()
            return reply

        reply = asyncio.run(send())

    assert (True, True) == (reply.is_retryable, reply.may_have_been_paid)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nowhere.invalid"])
def test_where_nobody_listens_nothing_was_paid(host):
    reply = sent_to(f"http://{host}/v1")

    assert (True, False) == (reply.is_retryable, reply.may_have_been_paid)
    assert f"no connection to http://{host}/v1" in reply.reason


def test_a_server_that_speaks_no_tls_costs_nothing():
    with http_server(lambda request: json_response(completion())) as url:
        reply = sent_to(url.replace("http:", "https:"))

    assert (True, False) == (reply.is_retryable, reply.may_have_been_paid)


async def stall(connection: Connection) -> None:
    await connection.stall(seconds=20.0)


async def trickle(connection: Connection) -> None:
    await connection.send_slowly(json_response(completion()), seconds=0.4)


async def trickle_without_end(connection: Connection) -> None:
    await connection.send_slowly(json_response(completion()), seconds=20.0)


def test_the_first_byte_is_waited_for_only_so_long():
    reply = said(stall, retry_policy=RetryPolicy(first_byte_seconds=0.1))

    assert (True, True, "no first byte within 0.1 s") == (reply.is_retryable, reply.may_have_been_paid, reply.reason)


def test_the_whole_answer_is_waited_for_only_so_long():
    reply = said(trickle_without_end, retry_policy=RetryPolicy(first_byte_seconds=5.0, answer_seconds=0.2))

    assert (True, True) == (reply.is_retryable, reply.may_have_been_paid)
    assert "no complete answer within 0.2 s" == reply.reason


def test_the_limit_of_the_whole_holds_for_the_first_byte_too():
    reply = said(stall, retry_policy=RetryPolicy(first_byte_seconds=5.0, answer_seconds=0.1))

    assert "no complete answer within 0.1 s" == reply.reason


def test_a_slow_body_is_not_cut_off_by_the_limit_of_the_first_byte():
    reply = said(trickle, retry_policy=RetryPolicy(first_byte_seconds=0.2, answer_seconds=20.0))

    assert completion() == json.loads(reply.body)


def test_a_transport_that_was_stopped_in_mid_answer_can_be_closed():
    async def stopped(url: str) -> None:
        transport = HttpTransport(Endpoint(base_url=url), RetryPolicy())
        sending = asyncio.create_task(transport.send(request_for(base_url=url)))
        await asyncio.sleep(0.1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await transport.close()

    with http_server(lambda request: stall) as url:
        asyncio.run(stopped(url))
