from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashproof.supervisor.evidence import OomWatch, line_about
from crashproof.supervisor.processes import catches, command_line, descendants, is_stopped, status_of
from crashproof.supervisor.stacks import collect_stacks

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are seen in /proc")

NO_PROCESS = 2**22 + 1


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_is_seen_with_its_parent(sleeper):
    found = status_of(sleeper.pid)

    assert found is not None
    assert os.getpid() == found.parent
    assert not found.is_zombie
    assert sleeper.pid in [each.pid for each in descendants(os.getpid())]
    assert "time.sleep(60)" in command_line(sleeper.pid)


def test_nothing_is_known_of_what_is_not_there():
    assert status_of(NO_PROCESS) is None
    assert "" == command_line(NO_PROCESS)
    assert not catches(NO_PROCESS, signal.SIGTERM)
    assert [] == descendants(NO_PROCESS)


def test_a_stopped_process_is_told_from_one_that_runs(sleeper):
    before = is_stopped(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not is_stopped(sleeper.pid) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert not before
    assert is_stopped(sleeper.pid)


def test_a_handler_is_seen_from_outside(sleeper):
    # Python itself handles SIGINT.
    assert catches(sleeper.pid, signal.SIGINT)
    assert not catches(sleeper.pid, signal.SIGTERM)


def test_without_a_tracker_stacks_say_why_there_are_none(sleeper, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "py-spy is not installed" in collect_stacks([sleeper.pid], None)


@pytest.mark.parametrize(
    "script, expected",
    [
        pytest.param('echo "Thread $3 main.py:7"', "Thread", id="it-may-look"),
        pytest.param('echo "Permission denied" >&2; exit 1', "Permission denied", id="it-may-not"),
    ],
)
def test_py_spy_is_asked_where_it_is_installed(script, expected, sleeper, monkeypatch, tmp_path):
    program = tmp_path / "py-spy"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    text = collect_stacks([sleeper.pid], None)

    assert expected in text
    assert f"process {sleeper.pid}" in text


@pytest.mark.parametrize(
    "line, counter",
    [
        pytest.param("0::/job", "job/memory.events", id="version-2"),
        pytest.param("4:memory:/job", "memory/job/memory.oom_control", id="version-1"),
    ],
)
def test_kills_for_lack_of_memory_are_counted_from_when_the_group_was_seen(line, counter, tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text(f"3:cpu:/job\n{line}\n")
    (groups / counter).parent.mkdir(parents=True)
    (groups / counter).write_text("low 0\noom_kill 2\n")
    watch = OomWatch(proc=proc, groups=groups)
    watch.note([7, 8])
    before = watch.kills()
    (groups / counter).write_text("low 0\noom_kill 5\n")
    watch.note([7])

    assert (0, 3) == (before, watch.kills())
    (groups / counter).unlink()
    assert 0 == watch.kills()


def test_a_group_without_a_counter_counts_nothing(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/job\n4:memory:/job\n")
    watch = OomWatch(proc=tmp_path, groups=tmp_path)
    watch.note([7])

    assert 0 == watch.kills()


@pytest.mark.parametrize(
    "pids, since, expected",
    [
        pytest.param([42], 100.0, "Memory cgroup out of memory: Killed process 42 (python)", id="of-this-life"),
        pytest.param([42], 300.0, "", id="before-it"),
        pytest.param([43], 100.0, "", id="of-another-process"),
    ],
)
def test_the_kernel_names_whom_it_killed(pids, since, expected, monkeypatch, tmp_path):
    program = tmp_path / "dmesg"
    program.write_text(
        "#!/bin/sh\necho '[  200.5] Memory cgroup out of memory: Killed process 42 (python)'\necho '[201.0] other'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert expected == line_about(pids, since_boot=since)


def test_without_a_kernel_log_nothing_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "" == line_about([1], since_boot=0.0)
