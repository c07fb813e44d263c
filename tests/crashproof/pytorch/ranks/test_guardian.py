"""A process that is stopped, and what its guardian does about it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from crashproof.pytorch.ranks import guardian_program

PROGRAM = """
import signal, subprocess, sys
# A trainer hears of it after its step; unhandled, it would end also a process that is stopped.
signal.signal(signal.SIGTERM, lambda *_: None)
command = [sys.executable, "-I", "-S", sys.argv[1], "Rank 1 (host-b, pid 7)", *sys.argv[2:]]
guardian = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
print("ready", flush=True)
sys.stdin.readline()
guardian.stdin.close()
guardian.wait()
print("closed", flush=True)
sys.stdin.readline()
"""
"""As `Guardian` starts it, without the seconds that importing it takes."""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")


@pytest.fixture
def start() -> Iterator[Any]:
    """Start a process with a guardian, which lets it be stopped for some seconds, or 1 s once it was asked to end."""
    started = []

    def start_it(longest_seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-S", "-c", PROGRAM, guardian_program.__file__, str(longest_seconds), "1"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        return process

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


def test_a_process_that_stays_stopped_is_ended_and_named(start):
    process = start(1.0)
    process.send_signal(signal.SIGSTOP)

    said = process.communicate(timeout=60)[1]

    assert -signal.SIGKILL == process.returncode
    assert said.startswith("Rank 1 (host-b, pid 7) is stopped (state T) for"), said


def test_one_that_was_asked_to_end_while_it_is_stopped_is_ended_long_before(start):
    process = start(600.0)
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)

    said = process.communicate(timeout=60)[1]

    assert (-signal.SIGKILL, True) == (process.returncode, "was asked to end" in said), said


def test_one_that_goes_on_in_time_is_left_alone(start):
    process = start(2.0)
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.9)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.6)

    assert ("closed\n", "") == process.communicate("\n\n", timeout=60)
    assert 0 == process.returncode


def test_the_guardian_ends_with_its_process_or_when_it_is_closed(start):
    killed, closed = start(600.0), start(600.0)
    guardians = [psutil.Process(each.pid).children()[0] for each in (killed, closed)]

    killed.kill()
    closed.communicate("\n\n", timeout=60)

    assert [] == psutil.wait_procs(guardians, timeout=30)[1]


def test_a_guardian_that_is_stopped_with_its_process_counts_no_time(start):
    process = start(1.5)
    guardian = psutil.Process(process.pid).children()[0]

    process.send_signal(signal.SIGSTOP)
    guardian.suspend()
    time.sleep(3)
    guardian.resume()
    process.send_signal(signal.SIGCONT)

    assert ("closed\n", "") == process.communicate("\n\n", timeout=60)
    assert 0 == process.returncode
