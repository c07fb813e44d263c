"""A real run sends each alert once, whatever happens to the run, the receiver or the process that sends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from alert_receiver import PATH, AlertReceiver, eventually

from crashproof import RunReader
from crashproof.records.events import AlertRaised

PROGRAM = """
import logging, os, signal, subprocess, sys, time
from decimal import Decimal
from pathlib import Path
from crashproof import AlertSettings, TrackerSettings, training_progress_context
from crashproof.testing import FakeClock

logging.basicConfig(level=logging.INFO)
out, address = Path(sys.argv[1]), sys.stdin.readline().strip()
clock = FakeClock(time.time())

def report(progress, step, loss=1.0):
    clock.advance(1.0)
    progress.update_metrics(step, loss, {}, 0.1, step, step)

def say(word):
    print(word, flush=True)

def wait_for_a_line():
    sys.stdin.readline()

def open_run(total_steps=100, **alerts):
    settings = TrackerSettings(
        sync_interval_seconds=0.05, summary_interval_seconds=0.05,
        alerts=AlertSettings(webhook=address, disk_low_bytes=alerts.pop("disk_low_bytes", 0), **alerts),
    )
    return training_progress_context({"lr": 1}, out, total_steps, settings=settings, clock=clock)
"""


class Training:
    """A real process that trains and proceeds line by line."""

    def __init__(self, output_dir: Path, address: str, program: str) -> None:
        self._log = output_dir.with_suffix(".log")
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM + program, str(output_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # A file, so that nobody waits for its end.
                stderr=log,
                text=True,
                env=environment,
            )
        self.proceed(address)

    def proceed(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read_line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.log()
        return line

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        code = self.process.wait(60)
        self.process.stdin.close()
        self.process.stdout.close()
        return code

    def log(self) -> str:
        return self._log.read_text()

    def sender(self) -> int:
        return senders_of(self.process.pid)[0]


def senders_of(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children() if is_sender(child)]


def is_sender(process: psutil.Process) -> bool:
    try:
        return any("crashproof.alerts.process" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def recorded(run: Path) -> list[str]:
    return sorted(event.kind for event in RunReader.open(run).events() if isinstance(event, AlertRaised))


@pytest.fixture
def receiver() -> Iterator[AlertReceiver]:
    with AlertReceiver() as receiver:
        yield receiver


@pytest.mark.parametrize(
    "program, expected",
    [
        pytest.param(
            """
with open_run(total_steps=3) as progress:
    for step in range(1, 4):
        report(progress, step)
""",
            ["complete"],
            id="complete",
        ),
        pytest.param(
            """
with open_run(total_steps=30) as progress:
    for step in range(1, 31):
        report(progress, step, float("nan") if step in (5, 6, 9) else 1.0)
""",
            ["complete", "non_finite"],
            id="non-finite-losses",
        ),
        pytest.param(
            """
with open_run(total_steps=101) as progress:
    for step in range(1, 101):
        report(progress, step, 1.0 + 0.1 * step)
""",
            ["diverging"],
            id="a-rising-loss",
        ),
        pytest.param(
            """
with open_run(disk_low_bytes=1 << 62) as progress:
    report(progress, 1)
""",
            ["disk_low"],
            id="a-nearly-full-disk",
        ),
        pytest.param(
            """
with open_run(budget_dollars=Decimal("1.00")) as progress:
    for step in range(1, 12):
        progress.record_api_response(f"question {step}", {"text": "yes"}, 0.1)
        report(progress, step)
        progress.tracker.save()
""",
            ["budget_100", "budget_80"],
            id="a-spent-budget",
        ),
        pytest.param(
            """
try:
    with open_run() as progress:
        report(progress, 1)
        raise RuntimeError("no more")
except RuntimeError:
    pass
""",
            ["raised"],
            id="raised",
        ),
        pytest.param(
            """
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with open_run() as progress:
    report(progress, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    while not asked:
        time.sleep(0.01)
    progress.end_as("preempted")
""",
            ["preempted"],
            id="preempted",
        ),
        pytest.param(
            """
with open_run() as progress:
    report(progress, 1)
    report(progress, 2)
    clock.advance(1000.0)
    while "stalled" not in progress.tracker.session.alerts_active:
        time.sleep(0.01)
    time.sleep(0.3)
    report(progress, 3)
    while "stalled" in progress.tracker.session.alerts_active:
        time.sleep(0.01)
""",
            ["stalled"],
            id="stalled",
        ),
        pytest.param("with open_run() as progress: report(progress, 1)", [], id="ended-early"),
    ],
)
def test_each_kind_is_sent_once_and_recorded(
    tmp_path: Path, receiver: AlertReceiver, program: str, expected: list[str]
) -> None:
    training = Training(tmp_path / "run", receiver.address, program + "\nsay('done')\nwait_for_a_line()")
    training.read_line()
    receiver.wait_for(len(expected))
    eventually(lambda: senders_of(training.process.pid) == [])
    training.proceed()

    assert 0 == training.end(), training.log()
    assert expected == receiver.kinds
    assert expected == recorded(tmp_path / "run")
    assert {str(tmp_path / "run")} >= {content["run"] for _, content in receiver.received}
    assert [] == RunReader.open(tmp_path / "run").problems()


STEPS = """
progress = open_run().__enter__()
for step in range(1, 6):
    report(progress, step)
say("open")
wait_for_a_line()
"""


def start(run: Path, receiver: AlertReceiver, program: str = STEPS) -> Training:
    training = Training(run, receiver.address, program)
    training.read_line()
    return training


def test_a_kill_is_reported_once_after_the_training_is_gone(tmp_path: Path, receiver: AlertReceiver) -> None:
    first = start(tmp_path / "run", receiver)
    sender = first.sender()
    first.kill()
    receiver.wait_for(1)
    eventually(lambda: not is_running(sender))
    second = start(tmp_path / "run", receiver)
    second.proceed()
    second.end()

    assert ["crashed"] == receiver.kinds == recorded(tmp_path / "run")
    content = receiver.received[0][1]
    assert (1, 5, 5.0) == (content["attempt"], content["step"], content["progress_pct"])
    assert f"process {first.process.pid} " in content["message"]
    assert [] == RunReader.open(tmp_path / "run").problems()


def test_a_kill_is_reported_once_where_the_run_is_restarted_at_once(tmp_path: Path, receiver: AlertReceiver) -> None:
    first = start(tmp_path / "run", receiver)
    sender = first.sender()
    first.kill()
    second = start(tmp_path / "run", receiver)
    receiver.wait_for(1)
    eventually(lambda: not is_running(sender))
    second.proceed()
    second.end()

    assert ["crashed"] == receiver.kinds == recorded(tmp_path / "run")


def test_a_run_can_be_resumed_while_its_crash_is_reported(tmp_path: Path, receiver: AlertReceiver) -> None:
    for _ in range(3):
        first = start(tmp_path / "run", receiver)
        first.kill()
        before = len(recorded(tmp_path / "run"))
        eventually(lambda before=before: len(recorded(tmp_path / "run")) > before)
        second = start(tmp_path / "run", receiver)
        second.proceed()
        assert 0 == second.end(), second.log()

    receiver.wait_for(3)
    assert ["crashed"] * 3 == receiver.kinds == recorded(tmp_path / "run")


def test_a_surviving_child_does_not_hide_a_kill(tmp_path: Path, receiver: AlertReceiver) -> None:
    forking = STEPS.replace(
        'say("open")', "child = os.fork()\nif child == 0:\n    time.sleep(60)\n    os._exit(0)\nsay(str(child))"
    )
    training = Training(tmp_path / "run", receiver.address, forking)
    child = int(training.read_line())
    training.process.kill()
    try:
        receiver.wait_for(1)
    finally:
        os.kill(child, signal.SIGKILL)
    training.end()

    assert ["crashed"] == receiver.kinds == recorded(tmp_path / "run")


def test_a_truncated_line_is_quarantined_before_the_crash_is_recorded(
    tmp_path: Path, receiver: AlertReceiver
) -> None:
    training = start(tmp_path / "run", receiver)
    training.kill()
    with (tmp_path / "run" / "progress" / "events.jsonl").open("ab") as events:
        events.write(b'{"event":"paus')
    receiver.wait_for(1)

    assert ["crashed"] == recorded(tmp_path / "run")
    assert [] == RunReader.open(tmp_path / "run").problems()
    assert 1 == RunReader.open(tmp_path / "run").session().damage_found


def test_a_signal_to_all_processes_of_a_job_does_not_silence_the_alert(
    tmp_path: Path, receiver: AlertReceiver
) -> None:
    training = start(tmp_path / "run", receiver)
    sender = training.sender()
    os.kill(sender, signal.SIGTERM)
    os.kill(sender, signal.SIGINT)
    groups = [os.getpgid(pid) for pid in (sender, training.process.pid)]
    training.kill()
    receiver.wait_for(1)

    assert sender == groups[0] != groups[1]
    assert ["crashed"] == receiver.kinds


def test_a_receiver_that_hangs_slows_neither_a_step_nor_the_end(tmp_path: Path) -> None:
    program = """
with open_run(total_steps=300, disk_low_bytes=1 << 62) as progress:
    for step in range(1, 301):
        report(progress, step, float("nan") if step == 3 else 1.0)
        if step == 10:
            say("running")
            wait_for_a_line()
say("left")
wait_for_a_line()
"""
    with AlertReceiver(hangs=True) as receiver:
        training = Training(tmp_path / "run", receiver.address, program)
        training.read_line()
        receiver.wait_for(2)
        sender = training.sender()
        training.proceed()
        # 290 steps and the end, while two deliveries hang.
        assert "left" == training.read_line()
        assert is_running(sender)
        training.proceed()
        assert 0 == training.end()
        eventually(lambda: not is_running(sender))

    assert ["complete", "disk_low", "non_finite"] == receiver.kinds == recorded(tmp_path / "run")


def test_a_sending_process_that_is_killed_is_restarted_and_stops_nothing(
    tmp_path: Path, receiver: AlertReceiver
) -> None:
    program = """
# As programs that write to a pipe do: writing to a dead reader is fatal.
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with open_run(total_steps=10) as progress:
    report(progress, 1)
    say("open")
    wait_for_a_line()
    for step in range(2, 11):
        report(progress, step)
say("left")
wait_for_a_line()
"""
    training = Training(tmp_path / "run", receiver.address, program)
    training.read_line()
    sender = training.sender()
    os.kill(sender, signal.SIGKILL)
    eventually(lambda: senders_of(training.process.pid) not in ([], [sender]))
    training.proceed()
    training.read_line()
    receiver.wait_for(1)
    training.proceed()

    assert 0 == training.end()
    assert ["complete"] == receiver.kinds == recorded(tmp_path / "run")
    assert "died (exit code -9); restarting it." in training.log()


def test_the_address_is_in_no_file_no_log_and_no_process_list(tmp_path: Path, receiver: AlertReceiver) -> None:
    training = start(tmp_path / "run", receiver, STEPS.replace("open_run()", "open_run(disk_low_bytes=1 << 62)"))
    receiver.wait_for(1)
    listed = Path(f"/proc/{training.sender()}/cmdline").read_bytes()
    environment = Path(f"/proc/{training.sender()}/environ").read_bytes()
    training.kill()
    receiver.wait_for(2)
    secret = PATH.rpartition("/")[2].encode()
    files: list[Any] = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert len(files) > 5
    assert [] == [path.name for path in files if secret in path.read_bytes()]
    assert secret not in listed + environment
