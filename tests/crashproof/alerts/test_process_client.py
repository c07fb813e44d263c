from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from alert_receiver import eventually

from crashproof.alerts.process_client import AlertHelper, Channels, Watched


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[AlertHelper]:
    helper = AlertHelper(
        Watched(
            pid=os.getpid(),
            progress=str(tmp_path / "progress"),
            session_id="training_1",
            attempt=1,
            channels=Channels(webhook=None, slack_webhook=None, command=["true"], desktop=False),
            kinds=[],
        )
    )
    yield helper
    helper.say_good_bye()
    process = helper._process
    eventually(lambda: process is None or process.returncode is not None)


def content(message: str) -> dict[str, str]:
    return {"kind": "stalled", "message": message, "run": "/runs/one"}


def test_a_helper_that_does_not_read_is_not_waited_for(helper: AlertHelper, caplog: pytest.LogCaptureFixture) -> None:
    assert helper._process is not None
    os.kill(helper._process.pid, signal.SIGSTOP)
    for _ in range(200):
        helper.hand_over(content("m" * 10_000))
    os.kill(helper._process.pid, signal.SIGCONT)

    told = "The alert stalled is not sent: the process that sends alerts does not take it."
    assert {told} == set(caplog.messages)

    # What it got the beginning of is ended, and it goes on.
    def is_taken() -> bool:
        caplog.clear()
        helper.hand_over(content("m"))
        return caplog.messages == []

    eventually(is_taken)


def test_one_that_dies_again_and_again_is_left_dead(helper: AlertHelper, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(4):
        process = helper._process
        assert process is not None
        process.kill()
        eventually(lambda process=process: process.returncode is not None)
        helper.keep_alive()
    helper.hand_over(content("m"))
    helper.keep_alive()

    assert 3 == sum("it is started again" in message for message in caplog.messages)
    assert [
        "The process that sends alerts has died once more; no more alerts are sent.",
        "The alert stalled is not sent: the process that sends alerts does not take it.",
    ] == caplog.messages[-2:]
