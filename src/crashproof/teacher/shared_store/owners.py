"""Which process holds a lease, and whether it has ended.

A process is known to have ended only where this one can tell for certain: both see the same processes (one host, one
boot, one PID namespace), and there is no such process any more; or both run on one kernel, and this one holds the
very lock of a run that the other held. Anything else may be alive, and its lease has to run out.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from crashproof.clock import SYSTEM_CLOCK

__all__ = ["LINUX_PROCESSES", "UNKNOWN_OWNER", "LinuxProcesses", "Owner", "Ownership", "ProcessTable"]

_MOST_PID = 1 << 31
_ENDED_STATES = (b"Z", b"X", b"x")
_NAMESPACES = ("pid", "time")
"""The second one shifts the times at which processes have started."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """One process, told from every other one on any host at any time."""

    host: str
    boot_id: str
    """The boot of the kernel that it runs on."""
    namespaces: str
    """The namespaces that decide what its process id and its start mean."""
    pid: int
    started: int
    """When it started, in clock ticks since the boot: a process id is used again."""
    run_lock: str = ""
    """Device and inode of the writer's lock that it holds; empty if it holds none."""


class ProcessTable(Protocol):
    """The processes that this one can see."""

    def own(self) -> Owner | None:
        """This process; None where the system does not tell enough."""
        ...

    def has_ended(self, pid: int, started: int) -> bool:
        """Whether the process with this id that started then has certainly ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """This process as the owner of its leases, and its judgement of other owners."""

    owner: Owner | None
    """None where nothing can be told, or recorded."""
    processes: ProcessTable | None = None

    @classmethod
    def of_this_process(cls, processes: ProcessTable, *, run_lock: Path | None = None) -> Ownership:
        """Take this process for the owner; `run_lock` is the lock file of a run that it has locked as the writer."""
        owner = processes.own()
        if owner is not None and run_lock is not None:
            owner = msgspec.structs.replace(owner, run_lock=_inode_of(run_lock))
        return cls(owner=owner, processes=processes)

    @property
    def text(self) -> str | None:
        """The owner as it is recorded; None if it is unknown."""
        return None if self.owner is None else msgspec.json.encode(self.owner).decode()

    def has_ended(self, recorded: str | None) -> bool:
        """Whether the owner in a record is known to have ended; False for one that is unknown."""
        other = _parse(recorded)
        if other is None or self.owner is None or self.processes is None:
            return False
        if other.boot_id != self.owner.boot_id:
            return False
        if other.namespaces == self.owner.namespaces:
            return other.host == self.owner.host and self.processes.has_ended(other.pid, other.started)
        # One kernel: whoever held that lock would hold it still, whatever container it ran in.
        return bool(other.run_lock) and other.run_lock == self.owner.run_lock


class LinuxProcesses:
    """The processes in `/proc`."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def own(self) -> Owner | None:
        """See `ProcessTable`; None without `/proc`, or with that of another PID namespace."""
        pid = os.getpid()
        boot_id = SYSTEM_CLOCK.boot_id()
        try:
            is_of_this_namespace = os.readlink(self._proc / "self") == str(pid)
            namespaces = " ".join(_namespace(self._proc / "self" / "ns" / each) for each in _NAMESPACES)
        except OSError:
            return None
        seen = self._status(pid)
        if not boot_id or seen is None or not is_of_this_namespace:
            return None
        # The encoding of a database may be ASCII.
        host = socket.gethostname().encode("ascii", "backslashreplace").decode()
        return Owner(host=host, boot_id=boot_id, namespaces=namespaces, pid=pid, started=seen.started)

    def has_ended(self, pid: int, started: int) -> bool:
        """See `ProcessTable`."""
        if not 0 < pid < _MOST_PID:
            return False
        try:
            # `/proc` may hide the processes of other users; a signal of 0 finds them all the same.
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        seen = self._status(pid)
        return seen is not None and (seen.started != started or seen.has_ended)

    def _status(self, pid: int) -> _Status | None:
        try:
            content = (self._proc / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        return _Status.parse(content)


LINUX_PROCESSES = LinuxProcesses()
UNKNOWN_OWNER = Ownership(owner=None)
"""Where no owner is recorded: every lease has to run out."""


@dataclass(frozen=True, slots=True)
class _Status:
    started: int
    has_ended: bool

    @classmethod
    def parse(cls, content: bytes) -> _Status | None:
        """Read `/proc/PID/stat`; the name of the program, in parentheses, may hold anything."""
        fields = content[content.rfind(b")") + 1 :].split()
        try:
            state, num_threads, started = fields[0], int(fields[17]), int(fields[19])
        except (IndexError, ValueError):
            return None
        # Of a process whose first thread has ended, others may still run.
        return cls(started, has_ended=state in _ENDED_STATES and num_threads <= 1)


def _namespace(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        # An older kernel has fewer kinds.
        return ""


def _inode_of(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def _parse(recorded: str | None) -> Owner | None:
    try:
        return msgspec.json.decode(recorded, type=Owner) if recorded else None
    except (msgspec.MsgspecError, RecursionError):
        return None
