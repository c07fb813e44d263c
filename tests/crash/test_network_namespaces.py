"""The two hosts that other tests run on: apart from each other, joined by a link, and gone afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest
from network_namespaces import Host, two_hosts

ANSWERS_ONCE = "import socket; s = socket.create_server(('0.0.0.0', 7000)); s.accept()[0].sendall(b'hello')"
ASKS = "import socket; print(socket.create_connection(('host-a', 7000), timeout=2).recv(9))"
SLEEPS = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def asks(host: Host) -> str:
    """What it hears from the other, once that one listens."""
    for _ in range(50):
        asked = host.start([sys.executable, "-c", ASKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        printed, problem = asked.communicate(timeout=30)
        if asked.returncode == 0:
            return str(printed).strip()
        if "refused" not in problem:
            return str(problem).strip().splitlines()[-1]
        time.sleep(0.1)
    return "nothing"


def test_they_have_names_reach_each_other_and_are_cut_apart():
    with two_hosts() as network:
        one, other = network.hosts
        with one.start([sys.executable, "-c", ANSWERS_ONCE]):
            assert ("host-a", "host-b") == (one.run(["hostname"]).strip(), other.run(["hostname"]).strip())
            assert "b'hello'" == asks(other)
        network.cut()
        assert asks(other).startswith(("OSError", "TimeoutError"))
        network.restore()
        with one.start([sys.executable, "-c", ANSWERS_ONCE]):
            assert "b'hello'" == asks(other)


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "left"])
def test_nothing_of_a_host_outlives_it(is_killed):
    with two_hosts() as network:
        one, other = network.hosts
        started = one.start(SLEEPS, env={"MARK": "7"}, stdout=subprocess.PIPE, text=True)
        started.stdout.readline()
        found = one.processes({"MARK": "7"})
        assert ([], 1) == (other.processes(), len(found))
        if is_killed:
            one.kill()
            assert [] == one.processes()
    assert -signal.SIGKILL == started.wait(timeout=30)
    started.stdout.close()
    assert [] == [each for each in found if psutil.pid_exists(each.pid)]


def test_a_program_ends_on_a_host_as_it_ends_elsewhere(tmp_path):
    with two_hosts() as network:
        program = network.hosts[0].start(
            ["sh", "-c", "pwd; exit 75"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )

        assert (f"{tmp_path}\n", 75) == (program.communicate(timeout=30)[0], program.returncode)


def test_a_link_can_be_slow():
    send = "import socket; s = socket.create_server(('0.0.0.0', 7000)); s.accept()[0].sendall(bytes(100_000))"
    receive = "import socket; s = socket.create_connection(('host-a', 7000))\nwhile s.recv(1 << 20): pass"
    with two_hosts() as network:
        one, other = network.hosts
        network.limit_rate(kilobits_per_second=800)
        with one.start([sys.executable, "-c", send]):
            time.sleep(1)
            begun_at = time.monotonic()
            other.run([sys.executable, "-c", receive])

    # 100 KB at 100 KB/s, less the burst that a link lets through at once.
    assert time.monotonic() - begun_at > 0.6
