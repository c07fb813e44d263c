from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator

import msgspec
import pytest
from alert_receiver import CONTENT, PATH, AlertReceiver

from crashproof.alerts.channels.ascii_json import as_json
from crashproof.alerts.channels.base import ChannelUnavailable, DeliveryError
from crashproof.alerts.channels.slack import SlackWebhook
from crashproof.alerts.channels.webhook import Webhook


def test_a_webhook_receives_the_whole_alert_as_json() -> None:
    with AlertReceiver() as receiver:
        Webhook(address=receiver.address).send(CONTENT)

    assert [(PATH, msgspec.structs.asdict(CONTENT))] == receiver.received
    assert "application/json" == receiver.headers[0]["Content-Type"]


def test_the_names_in_the_json_are_fixed() -> None:
    assert {
        "kind": "raised",
        "message": "ValueError: <b> & so on",
        "run": "/runs/one",
        "session_id": "training_1",
        "attempt": 2,
        "step": 1400,
        "host": "node7",
        "time": 1_700_000_000.5,
        "progress_pct": 14.0,
    } == json.loads(as_json(CONTENT))


def test_slack_receives_one_line_without_links() -> None:
    with AlertReceiver() as receiver:
        SlackWebhook(address=receiver.address).send(CONTENT)

    line = "raised: ValueError: &lt;b&gt; &amp; so on (/runs/one on node7, step 1,400, 14.0 %)"
    assert [(PATH, {"text": line})] == receiver.received


def test_credentials_in_the_address_are_sent_as_a_header() -> None:
    with AlertReceiver() as receiver:
        Webhook(address=receiver.address.replace("://", "://me:p%40ss@")).send(CONTENT)

    assert f"Basic {base64.b64encode(b'me:p@ss').decode()}" == receiver.headers[0]["Authorization"]


@pytest.mark.parametrize(
    "statuses, num_attempts, expected",
    [
        pytest.param((503, 429), 3, [], id="a-busy-server-is-retried"),
        pytest.param((500, 500, 500, 500), 3, ["HTTP 500"], id="retries-end"),
        pytest.param((404,), 1, ["HTTP 404"], id="a-refusal-is-final"),
        pytest.param((302,), 1, ["HTTP 302"], id="no-redirect-is-followed"),
    ],
)
def test_a_request_is_retried_only_where_the_server_is_busy(
    statuses: tuple[int, ...], num_attempts: int, expected: list[str]
) -> None:
    failures = []
    with AlertReceiver(statuses=statuses) as receiver:
        try:
            Webhook(address=receiver.address).send(CONTENT)
        except DeliveryError as error:
            failures.append(str(error))

    assert (expected, [PATH] * num_attempts) == (failures, [path for path, _ in receiver.received])


def test_a_refused_connection_is_reported_without_the_address() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(DeliveryError, match=r"^Connection refused$"):
            Webhook(address=f"http://127.0.0.1:{nobody.getsockname()[1]}/secret").send(CONTENT)


def test_a_request_without_a_response_is_not_sent_twice() -> None:
    with AlertReceiver(hangs=True) as receiver:
        with pytest.raises(DeliveryError, match=r"^no response after 0\.5 s$"):
            Webhook(address=receiver.address, response_seconds=0.5).send(CONTENT)

        assert 1 == len(receiver.received)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[AlertReceiver]:
    """The environment's proxy."""
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "CRASHPROOF_PROXY_MAY_SEE_KEYS"):
        monkeypatch.delenv(name, raising=False)
    with AlertReceiver() as receiver:
        monkeypatch.setenv("http_proxy", receiver.address.removesuffix(PATH))
        yield receiver


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_on_this_machine_is_reached_without_the_proxy(proxy: AlertReceiver, host: str) -> None:
    with AlertReceiver() as receiver:
        Webhook(address=receiver.address.replace("127.0.0.1", host)).send(CONTENT)

    assert (1, []) == (len(receiver.received), proxy.received)


def test_an_address_is_not_sent_in_clear_through_a_proxy(proxy: AlertReceiver) -> None:
    with pytest.raises(ChannelUnavailable, match="CRASHPROOF_PROXY_MAY_SEE_KEYS") as refusal:
        Webhook(address="http://hooks.example/very-secret-path").send(CONTENT)

    assert "very-secret-path" not in str(refusal.value)
    assert [] == proxy.received


def test_it_is_where_the_user_allows_it(proxy: AlertReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRASHPROOF_PROXY_MAY_SEE_KEYS", "1")

    Webhook(address="http://hooks.example/very-secret-path").send(CONTENT)

    assert ["http://hooks.example/very-secret-path"] == [path for path, _ in proxy.received]


def test_a_proxy_of_an_unknown_kind_is_not_used(proxy: AlertReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")

    with pytest.raises(DeliveryError) as failure:
        Webhook(address="http://hooks.invalid/very-secret-path").send(CONTENT)

    assert not isinstance(failure.value, ChannelUnavailable)
