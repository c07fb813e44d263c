"""Which owner of a lease is known to have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from crashproof.teacher.shared_store.owners import LinuxProcesses, Owner, Ownership

HERE = Owner(host="one", boot_id="b1", namespaces="pid:[1] time:[1]", pid=10, started=500, run_lock="8:77")
ELSEWHERE = {"namespaces": "pid:[2] time:[1]"}


class Processes:
    """A table in which some processes have ended."""

    def __init__(self, own: Owner | None = HERE, *, ended: bool) -> None:
        self._own = own
        self._ended = ended

    def own(self) -> Owner | None:
        return self._own

    def has_ended(self, pid: int, started: int) -> bool:
        return self._ended


def is_known_to_have_ended(*, ended: bool, **others: object) -> bool:
    asker = Ownership(owner=HERE, processes=Processes(ended=ended))
    other = Ownership(owner=msgspec.structs.replace(HERE, **{"pid": 11} | others))
    return asker.has_ended(other.text)


@pytest.mark.parametrize("ended", [True, False])
def test_on_the_same_host_in_the_same_namespace_the_table_of_processes_tells(ended):
    assert ended == is_known_to_have_ended(ended=ended)


@pytest.mark.parametrize(
    "others",
    [
        pytest.param({"boot_id": "b2"}, id="another boot, and so perhaps another machine"),
        pytest.param({"boot_id": "b2"} | ELSEWHERE, id="another machine with the same lock"),
        pytest.param({"host": "two"}, id="another host name"),
        pytest.param(ELSEWHERE | {"run_lock": ""}, id="another container"),
        pytest.param(ELSEWHERE | {"run_lock": "8:78"}, id="another container that writes another run"),
        pytest.param({"namespaces": "pid:[1] time:[2]"} | {"run_lock": ""}, id="another namespace of times"),
    ],
)
def test_whoever_cannot_be_seen_from_here_may_be_alive(others):
    assert not is_known_to_have_ended(ended=True, **others)


def test_a_container_started_again_knows_by_the_runs_lock_that_its_predecessor_has_ended():
    assert is_known_to_have_ended(ended=False, host="two", **ELSEWHERE)


def test_a_lock_tells_nothing_of_a_process_that_can_be_seen():
    """A run can be opened again in the process that has it open."""
    assert not is_known_to_have_ended(ended=False, pid=HERE.pid)


def test_without_a_lock_of_ones_own_no_lock_tells_anything():
    asker = Ownership(owner=msgspec.structs.replace(HERE, run_lock=""), processes=Processes(ended=False))
    other = Ownership(owner=msgspec.structs.replace(HERE, run_lock="", **ELSEWHERE))

    assert not asker.has_ended(other.text)


@pytest.mark.parametrize(
    "recorded",
    [None, "", "{}", "host:12", '{"host":1}', "[" * 10_000, '{"host":"one","pid":11}'],
    ids=["none", "empty", "no-fields", "no-json", "other-types", "deep", "some-fields"],
)
def test_a_record_that_says_nothing_may_be_of_a_living_process(recorded):
    assert not Ownership(owner=HERE, processes=Processes(ended=True)).has_ended(recorded)


def test_whoever_does_not_know_itself_knows_nobody():
    asker = Ownership.of_this_process(Processes(None, ended=True))

    assert (None, False) == (asker.text, asker.has_ended(Ownership(owner=HERE).text))


def test_the_lock_of_a_run_is_told_by_its_inode(tmp_path):
    lock = tmp_path / "writer.lock"
    lock.write_text("")
    (tmp_path / "moved").symlink_to(lock)

    names = [
        Ownership.of_this_process(Processes(ended=False), run_lock=path).owner.run_lock
        for path in (lock, tmp_path / "moved", tmp_path / "missing")
    ]

    assert (True, True, "") == (names[0] == names[1], ":" in names[0], names[2])


@contextmanager
def process(program: str) -> Iterator[subprocess.Popen[str]]:
    """A process that says a word once it is ready."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout.readline()
            yield running
        finally:
            running.kill()


SLEEPER = "print(1, flush=True); import time; time.sleep(600)"
FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print(1, flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def started_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_this_process_knows_itself_and_is_alive():
    table = LinuxProcesses()
    own = table.own()

    assert (os.getpid(), True, True) == (own.pid, bool(own.boot_id), "pid:[" in own.namespaces)
    assert own == table.own()
    assert not table.has_ended(own.pid, own.started)


def test_a_killed_process_has_ended_before_its_parent_takes_note_and_after():
    with process(SLEEPER) as running:
        started = started_of(running.pid)
        before = LinuxProcesses().has_ended(running.pid, started)
        running.kill()
        wait_for_state(running.pid, "Z")
        unread = LinuxProcesses().has_ended(running.pid, started)
        running.wait()

        assert (False, True, True) == (before, unread, LinuxProcesses().has_ended(running.pid, started))


def test_a_stopped_process_is_alive():
    with process(SLEEPER) as running:
        running.send_signal(signal.SIGSTOP)
        wait_for_state(running.pid, "T")

        assert not LinuxProcesses().has_ended(running.pid, started_of(running.pid))


def test_a_process_whose_first_thread_has_ended_is_alive():
    with process(FIRST_THREAD_ENDS) as running:
        wait_for_state(running.pid, "Z")

        assert not LinuxProcesses().has_ended(running.pid, started_of(running.pid))


def test_a_process_with_the_id_of_another_that_started_earlier_is_not_that_one():
    with process(SLEEPER) as running:
        assert LinuxProcesses().has_ended(running.pid, started_of(running.pid) - 1)


def test_a_process_that_proc_hides_may_be_alive(tmp_path):
    with process(SLEEPER) as running:
        started = started_of(running.pid)

        assert not LinuxProcesses(tmp_path).has_ended(running.pid, started)
        running.kill()
        running.wait()
        assert LinuxProcesses(tmp_path).has_ended(running.pid, started)


@pytest.mark.parametrize("pid", [0, -1, 1 << 31, 1 << 70])
def test_what_is_no_process_id_tells_nothing(pid):
    assert not LinuxProcesses().has_ended(pid, 1)


@pytest.mark.parametrize("content", [b"", b"7 (x", b"7 (x) S 1", b"7 (x) S " + b"a " * 30], ids=str)
def test_a_status_that_cannot_be_read_tells_nothing(tmp_path, content):
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / str(os.getpid()) / "stat").write_bytes(content)

    assert not LinuxProcesses(tmp_path).has_ended(os.getpid(), 1)


def test_a_program_may_have_any_name(tmp_path):
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2]
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (a) Z 1 (b)) {fields}")

    assert not LinuxProcesses(tmp_path).has_ended(os.getpid(), started_of(os.getpid()))


def test_the_proc_of_another_namespace_is_not_asked(tmp_path):
    (tmp_path / "self").symlink_to("1")

    assert LinuxProcesses(tmp_path).own() is None


def test_without_proc_nobody_is_known(tmp_path):
    assert LinuxProcesses(tmp_path / "none").own() is None
