from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from alert_receiver import CONTENT, eventually

from crashproof.alerts.process_client import AlertProcess, WatchedRun


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[AlertProcess]:
    sender = AlertProcess(
        WatchedRun(
            pid=os.getpid(),
            progress=str(tmp_path / "progress"),
            session_id="training_1",
            attempt=1,
            channels={"command": ("true",)},
            kinds=[],
        )
    )
    yield sender
    sender.finish()
    process = sender._process
    eventually(lambda: process is None or process.returncode is not None)


def test_nobody_waits_for_a_process_that_does_not_read(
    sender: AlertProcess, caplog: pytest.LogCaptureFixture
) -> None:
    assert sender._process is not None
    os.kill(sender._process.pid, signal.SIGSTOP)
    for _ in range(200):
        sender.hand_over(msgspec.structs.replace(CONTENT, message="m" * 10_000))
    os.kill(sender._process.pid, signal.SIGCONT)

    assert {"Alert raised was not sent: the process that sends alerts is not reading."} == set(caplog.messages)

    # The rest of a line that it began to read comes first.
    def is_accepted() -> bool:
        caplog.clear()
        sender.hand_over(CONTENT)
        return caplog.messages == []

    eventually(is_accepted)


def test_a_process_that_keeps_dying_is_not_restarted_for_ever(
    sender: AlertProcess, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(4):
        process = sender._process
        assert process is not None
        process.kill()
        eventually(lambda process=process: process.returncode is not None)
        sender.restart_if_dead()
    sender.hand_over(CONTENT)
    sender.restart_if_dead()

    assert 3 == sum(message.endswith("restarting it.") for message in caplog.messages)
    assert [
        "The process that sends alerts died 4 times; no more alerts are sent.",
        "Alert raised was not sent: the process that sends alerts is not reading.",
    ] == caplog.messages[-2:]
