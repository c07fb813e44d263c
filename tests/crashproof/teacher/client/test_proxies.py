"""What a proxy of the environment receives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from teaching import completion, http_server, json_response, request_for

from crashproof.errors import ConfigError
from crashproof.teacher import Endpoint, RetryPolicy
from crashproof.teacher.client.transport import Delivered, HttpTransport, Reply
from crashproof.testing import TeacherServer
from crashproof.testing.teacher_server.http_stub import Request

KEY = "plain+lowercase/secret=="


@pytest.fixture
def at_proxy(monkeypatch) -> Iterator[list[Request]]:
    """The requests that the environment's proxy has received."""
    received: list[Request] = []

    def answer(request: Request):
        received.append(request)
        return json_response(completion())

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "CRASHPROOF_PROXY_MAY_SEE_KEYS"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with http_server(answer) as url:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, url.removesuffix("/v1"))
        yield received


def send(endpoint: Endpoint, base_url: str | None = None) -> Reply:
    async def once() -> Reply:
        transport = HttpTransport(endpoint, RetryPolicy(connect_seconds=2.0))
        try:
            return await transport.send(request_for(base_url=base_url or endpoint.base_url))
        finally:
            await transport.close()

    return asyncio.run(once())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_without_the_proxy(at_proxy, host):
    with TeacherServer(api_key=KEY) as server:
        url = server.base_url.replace("127.0.0.1", host)
        reply = send(Endpoint(base_url=url, api_key=KEY))

    assert isinstance(reply, Delivered)
    assert [] == at_proxy


def test_a_key_is_not_sent_in_clear_through_a_proxy(at_proxy):
    with pytest.raises(ConfigError, match="proxy") as refusal:
        send(Endpoint(base_url="http://teacher.example/v1", api_key=KEY))

    assert "NO_PROXY" in str(refusal.value)
    assert "CRASHPROOF_PROXY_MAY_SEE_KEYS" in str(refusal.value)
    assert KEY not in str(refusal.value)
    assert [] == at_proxy


def test_nor_is_it_for_a_request_to_another_server_than_the_endpoints(at_proxy):
    reply = send(Endpoint(base_url="http://127.0.0.1:1/v1", api_key=KEY), base_url="http://teacher.example/v1")

    assert not isinstance(reply, Delivered)
    assert "proxy" in reply.reason
    assert (False, False) == (reply.is_retryable, reply.may_have_been_paid)
    assert [] == at_proxy


def test_it_is_where_the_user_allows_it(at_proxy, monkeypatch):
    monkeypatch.setenv("CRASHPROOF_PROXY_MAY_SEE_KEYS", "1")

    assert isinstance(send(Endpoint(base_url="http://teacher.example/v1", api_key=KEY)), Delivered)
    assert [f"Bearer {KEY}"] == [request.headers["authorization"] for request in at_proxy]


def test_without_a_key_a_request_goes_through_the_proxy(at_proxy):
    assert isinstance(send(Endpoint(base_url="http://teacher.example/v1")), Delivered)
    assert 1 == len(at_proxy)


def test_a_host_that_no_proxy_covers_is_asked_directly(at_proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "teacher.invalid")

    reply = send(Endpoint(base_url="http://teacher.invalid/v1", api_key=KEY))

    assert "no connection" in reply.reason
    assert [] == at_proxy
