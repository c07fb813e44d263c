from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from alert_receiver import PATH, AlertReceiver, eventually

from crashproof.alerts.delivery import Deliveries
from crashproof.alerts.process_client import Channels

CONTENT: dict[str, Any] = {
    "kind": "raised",
    "message": "ValueError: <b> & so on",
    "run": "/runs/one",
    "session_id": "training_1",
    "attempt": 2,
    "step": 1400,
    "host": "node7",
    "time": 1_700_000_000.5,
    "progress_pct": 14.0,
}


def sent(**channels: Any) -> list[str]:
    """Send one alert, wait, and return what was told of it."""
    told: list[str] = []
    none = {"webhook": None, "slack_webhook": None, "command": None, "desktop": False}
    deliveries = Deliveries(Channels(**(none | channels)), tell=told.append)
    deliveries.begin(CONTENT)
    deliveries.wait()
    return told


def test_a_webhook_gets_all_of_it_as_json() -> None:
    with AlertReceiver() as receiver:
        told = sent(webhook=receiver.address)

    assert ([], [(PATH, CONTENT)]) == (told, receiver.received)
    assert "application/json" == receiver.headers[0]["Content-Type"]


def test_slack_gets_a_line_in_which_nothing_is_a_link() -> None:
    with AlertReceiver() as receiver:
        sent(slack_webhook=receiver.address)

    line = "raised: ValueError: &lt;b&gt; &amp; so on (/runs/one on node7, step 1,400, 14.0 %)"
    assert [(PATH, {"text": line})] == receiver.received


def test_a_name_and_a_password_in_the_address_are_sent_as_such() -> None:
    with AlertReceiver() as receiver:
        told = sent(webhook=receiver.address.replace("://", "://me:p%40ss@"))

    assert [] == told
    assert f"Basic {base64.b64encode(b'me:p@ss').decode()}" == receiver.headers[0]["Authorization"]


@pytest.mark.parametrize(
    "statuses, num_tries, expected",
    [
        pytest.param((503, 429), 3, [], id="a-server-that-is-busy-is-asked-again"),
        pytest.param((500, 500, 500, 500), 3, ["HTTP 500"], id="but-not-for-ever"),
        pytest.param((404,), 1, ["HTTP 404"], id="a-no-is-a-no"),
        pytest.param((302,), 1, ["HTTP 302"], id="nobody-is-led-elsewhere"),
    ],
)
def test_a_failure_is_told_without_the_address(
    statuses: tuple[int, ...], num_tries: int, expected: list[str]
) -> None:
    with AlertReceiver(statuses=statuses) as receiver:
        told = sent(webhook=receiver.address)

    assert [f"the alert raised was not sent by webhook: {reason}" for reason in expected] == told
    assert [PATH] * num_tries == [path for path, _ in receiver.received]


def test_a_receiver_that_is_not_there_is_told_without_the_address() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        told = sent(webhook=f"http://127.0.0.1:{nobody.getsockname()[1]}/secret")

    assert ["the alert raised was not sent by webhook: Connection refused"] == told


@pytest.mark.parametrize("is_a_line", [True, False], ids=["a-line-for-the-shell", "a-program"])
def test_a_command_gets_the_json_and_its_environment(tmp_path: Path, is_a_line: bool) -> None:
    script = (
        'cat > "$0/json"; echo "$CRASHPROOF_ALERT_KIND|$CRASHPROOF_ALERT_MESSAGE|$CRASHPROOF_ALERT_RUN" > "$0/env"'
    )
    line = script.replace("$0", str(tmp_path))
    told = sent(command=line if is_a_line else ["sh", "-c", script, str(tmp_path)])

    assert [] == told
    assert CONTENT == json.loads((tmp_path / "json").read_text())
    assert "raised|ValueError: <b> & so on|/runs/one\n" == (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    "command, expected",
    [
        pytest.param(["false"], "exit code 1", id="it-fails"),
        pytest.param(["/no/such/program"], "it cannot be started (No such file or directory)", id="it-is-not-there"),
    ],
)
def test_a_command_that_fails_is_told(command: list[str], expected: str) -> None:
    assert [f"the alert raised was not sent by command: {expected}"] == sent(command=command)


def test_a_desktop_without_a_way_to_show_it_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []
    deliveries = Deliveries(Channels(webhook=None, slack_webhook=None, command=None, desktop=True), tell=told.append)
    for _ in range(2):
        deliveries.begin(CONTENT)
        deliveries.wait()

    assert ["no alert is shown on a desktop: there is neither notify-send nor osascript"] == told


def test_a_notification_is_shown_with_its_words_as_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "notify-send"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/shown\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    assert [] == sent(desktop=True)
    assert ["--", "crashproof: raised"] == (tmp_path / "shown").read_text().splitlines()[:2]


def test_a_command_that_hangs_is_killed_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashproof.alerts.delivery._COMMAND_SECONDS", 1.0)
    told = sent(command=f"sleep 300 & echo $! > {tmp_path}/pid; sleep 300")

    assert ["the alert raised was not sent by command: it took longer than 1 s"] == told
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    eventually(lambda: not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_webhook_that_does_not_answer_is_not_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crashproof.alerts.delivery._WEBHOOK_SECONDS", 1.0)
    with AlertReceiver(hangs=True) as receiver:
        told = sent(webhook=receiver.address)

    assert ["the alert raised was not sent by webhook: no answer in 1 s"] == told
    assert 1 == len(receiver.received)


def test_so_many_may_hang_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crashproof.alerts.delivery._MOST_UNDER_WAY", 2)
    told: list[str] = []
    with AlertReceiver(hangs=True) as receiver:
        channels = Channels(webhook=receiver.address, slack_webhook=None, command=None, desktop=False)
        deliveries = Deliveries(channels, tell=told.append)
        for _ in range(3):
            deliveries.begin(CONTENT)

        assert ["the alert raised is not sent by webhook: too many are under way"] == told
        receiver.wait_for(2)
