"""Two hosts on one machine, with a link that can be cut.

Each host is a set of Linux namespaces: a network of its own, a name, processes that see only each other, and an
`/etc/hosts` that knows both names. Files are shared, as by a network file system. A host lives as long as its first
process, which ends with the tests however they end; the kernel then kills all others of the host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "mount": "mount"}
"""What is needed, and Debian's package of each."""

UNSHARE = ("unshare", "--net", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child")

# Orphans of a host are reaped by its first process, which ignores them.
FIRST_PROCESS = """
hostname "$1" && mount --bind "$2" /etc/hosts && ip link set lo up || exit 1
trap '' CHLD
echo ready
exec cat
"""


@cache
def missing_for_namespaces() -> str:
    """What is missing on this machine, in words, or nothing."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"the program {program} is missing (package {package})"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces may be made here: {tried.stderr.strip()}" if tried.returncode else ""


def require_namespaces() -> None:
    """Skip the test where no namespaces can be made."""
    if missing := missing_for_namespaces():
        pytest.skip(missing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host: `name` and `address` are known to both."""

    name: str
    address: str
    first_pid: int
    """The host's first process, as it is numbered outside."""
    holder: subprocess.Popen[str]

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on the host; options are those of `Popen`.

        The process that is returned only waits for the program: signals go to `processes()`.
        """
        folder = os.fspath(options.pop("cwd", Path.cwd()))
        enter = ["nsenter", f"--target={self.first_pid}", "--net", "--uts", "--pid", "--mount"]
        there = ["sh", "-c", 'cd "$0" && exec "$@"', folder]
        return subprocess.Popen([*enter, *there, *map(os.fspath, command)], **options)

    def run(self, command: Sequence[str | Path], *, timeout: float = 60, **options: Any) -> str:
        """Run a program on the host to its end, and return what it has printed."""
        process = self.start(command, stdout=subprocess.PIPE, text=True, **options)
        printed = str(process.communicate(timeout=timeout)[0])
        assert 0 == process.returncode, f"{command} on {self.name} ended with {process.returncode}: {printed}"
        return printed

    def processes(self, environment: Mapping[str, str] | None = None) -> list[psutil.Process]:
        """The host's live processes, except the first; of those, the ones started with these variables."""
        wanted = (environment or {}).items()
        return [each for each in self._all() if wanted <= _environment_of(each).items()]

    def kill(self) -> None:
        """End all processes of the host at once, as a power loss does."""
        self.holder.kill()
        self.holder.wait()
        for process in psutil.process_iter():
            if process.pid == self.first_pid:
                process.wait(timeout=10)

    def set_link(self, *words: str) -> None:
        """Change this host's end of the link: `down`, `up`."""
        self.run(["ip", "link", "set", "eth0", *words])

    def _all(self) -> Iterator[psutil.Process]:
        own = _pid_namespace(self.first_pid)
        for process in psutil.process_iter():
            is_own = process.pid != self.first_pid and _pid_namespace(process.pid) == own
            if own and is_own and _is_alive(process):
                yield process


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Two hosts and the link between them."""

    hosts: tuple[Host, Host]

    def cut(self, end: int = 1) -> None:
        """Cut the link at one host's end: it has no route any more, and the other hears nothing."""
        self.hosts[end].set_link("down")

    def restore(self, end: int = 1) -> None:
        """Undo a cut."""
        self.hosts[end].set_link("up")

    def limit_rate(self, kilobits_per_second: int) -> None:
        """Make the link slow in both directions; skips the test where the kernel cannot."""
        words = ["tbf", "rate", f"{kilobits_per_second}kbit", "burst", "16kb", "latency", "400ms"]
        for host in self.hosts:
            process = host.start(["tc", "qdisc", "replace", "dev", "eth0", "root", *words])
            if process.wait(timeout=60):
                pytest.skip("this kernel, or iproute2, cannot limit the rate of a link (tc qdisc tbf)")


@contextmanager
def two_hosts() -> Iterator[Network]:
    """Two hosts, `host-a` and `host-b`, joined by a link; all their processes end with the context.

    Skips the test where no namespaces can be made.
    """
    require_namespaces()
    addresses = {"host-a": "10.77.0.1", "host-b": "10.77.0.2"}
    with ExitStack() as stack:
        names = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "hosts"
        known = {"localhost": "127.0.0.1", **addresses}
        names.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        one, other = (stack.enter_context(_host(name, addresses[name], names)) for name in addresses)
        ends = ["ip", "link", "add", "eth0", "netns", str(one.first_pid), "type", "veth"]
        subprocess.run([*ends, "peer", "name", "eth0", "netns", str(other.first_pid)], check=True)
        for host in (one, other):
            host.run(["ip", "address", "add", f"{host.address}/24", "dev", "eth0"])
            host.set_link("up")
        yield Network(hosts=(one, other))


@contextmanager
def _host(name: str, address: str, names: Path) -> Iterator[Host]:
    # Closed with the tests, also by their death: the host's first process reads from it.
    holder = subprocess.Popen(
        [*UNSHARE, "sh", "-c", FIRST_PROCESS, "host", name, names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert "ready\n" == holder.stdout.readline(), f"{name} did not start"
        first = psutil.Process(holder.pid).children()[0].pid
        yield Host(name=name, address=address, first_pid=first, holder=holder)
    finally:
        holder.stdin.close()
        holder.kill()
        holder.wait()
        holder.stdout.close()


def _pid_namespace(pid: int) -> str:
    """The set of processes that a process lives in; nothing once it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return {}
