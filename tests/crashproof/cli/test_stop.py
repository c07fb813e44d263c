from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from crashproof import RunReader
from crashproof.cli.app import app
from crashproof.disk.lock import Holder
from crashproof.disk.run_folder import RunFolder
from crashproof.errors import CannotStop
from crashproof.supervisor.processes import has_open

LISTENING = """
import signal, sys, time
from pathlib import Path
from crashproof import training_progress_context, write_atomically
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1) if {listens} else None)
out = Path(sys.argv[1])
with training_progress_context({{}}, out, 100000) as progress:
    for step in range(1, 100000):
        progress.update_metrics(step, 1.0, {{}}, 0.1, step, step)
        time.sleep(0.005)
        if asked:
            path = out / f"checkpoint_{{step}}.txt"
            written = write_atomically(path, lambda file: file.write(b"w"))
            progress.record_checkpoint(step, path, step, written=written)
            progress.end_as("preempted")
            sys.exit(75)
"""


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["stop", *arguments])


@pytest.fixture
def start(tmp_path):
    started = []

    def run(program: str) -> tuple[subprocess.Popen[bytes], Path]:
        out = tmp_path / "run"
        process = subprocess.Popen([sys.executable, "-c", program, str(out)])
        started.append(process)
        while (
            not (out / "progress" / "metrics.jsonl").exists() or not (out / "progress/metrics.jsonl").stat().st_size
        ):
            assert process.poll() is None
            time.sleep(0.02)
        return process, out

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_a_loop_that_listens_saves_and_ends(start):
    process, out = start(LISTENING.format(listens=True))

    answer = invoke(str(out))
    summary = RunReader.open(out).summary(now=time.time())

    assert 0 == answer.exit_code
    assert 75 == process.wait()
    assert "preempted" == summary["status"]
    assert f"Ended at step {summary['steps_completed']:,} of 100,000." in answer.output
    assert f"A restart would resume at step {summary['steps_completed']:,}" in answer.output


def test_a_loop_that_does_not_listen_ends_and_keeps_what_it_reported(start):
    program = LISTENING.replace("signal.signal(", "(lambda *_: None)(").format(listens=True)
    process, out = start(program)

    answer = invoke(str(out), "--json")

    assert -signal.SIGTERM == process.wait()
    assert (True, 0) == (json.loads(answer.output)["has_ended"], answer.exit_code)
    assert [] == RunReader.open(out).problems()


def test_a_run_that_does_not_end_is_reported_after_the_wait(start):
    process, out = start(LISTENING.format(listens=False))

    answer = invoke(str(out), "--seconds", "0.3")

    assert (1, None) == (answer.exit_code, process.poll())
    assert "Still running, at step" in answer.output


def test_no_wait_returns_at_once(start):
    process, out = start(LISTENING.format(listens=True))

    answer = invoke(str(out), "--no-wait")

    assert 0 == answer.exit_code
    assert f"Asked process {process.pid} to save and exit. Still running, at step" in answer.output
    assert 75 == process.wait()


def test_a_run_without_a_process_is_reported(open_tracker, update, run_dir):
    tracker = open_tracker()
    update(tracker, 1)
    tracker.close()

    answer = invoke(str(run_dir))

    assert 0 == answer.exit_code
    assert "it ended at step 1 of 100. A restart would begin at step 0: no checkpoint was recorded." in answer.output


@pytest.mark.parametrize(
    "holder, said",
    [
        pytest.param(
            Holder(host="node7", pid=4242, since=0.0), "process 4242 writes it on host node7", id="other-host"
        ),
        pytest.param(
            Holder(host=socket.gethostname(), pid=os.getppid(), since=0.0), "another container", id="other-process"
        ),
        pytest.param(
            Holder(host=socket.gethostname(), pid=1, since=0.0), "another container", id="the-first-process"
        ),
        pytest.param(Holder(host=socket.gethostname(), pid=0, since=0.0), "another container", id="its-own-group"),
    ],
)
def test_only_the_process_that_holds_the_run_is_asked(open_tracker, run_dir, holder, said):
    open_tracker()
    RunFolder.under(run_dir).lock.write_bytes(msgspec.json.encode(holder))

    answer = invoke(str(run_dir))

    assert isinstance(answer.exception, CannotStop)
    assert said in str(answer.exception)
    assert f"crashproof stop {run_dir}" in str(answer.exception)


def test_a_process_is_known_by_the_file_that_it_holds(open_tracker, run_dir, tmp_path):
    open_tracker()
    lock = RunFolder.under(run_dir).lock

    assert has_open(os.getpid(), lock)
    assert not has_open(os.getpid(), RunFolder.under(run_dir).progress)
    assert not has_open(2**22 + 1, lock)
    assert has_open(7, lock, processes=tmp_path)


def test_a_folder_without_a_run_is_an_error(tmp_path):
    assert "holds no run" in str(invoke(str(tmp_path)).exception)
