"""Which process a rank is, and in which state the kernel sees it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from crashproof.clock import SYSTEM_CLOCK
from crashproof.rules.ranks.absence import ProcessState, RankIdentity

__all__ = ["own_identity", "state_of"]

_STATES = {
    "T": ProcessState.STOPPED,
    "t": ProcessState.TRACED,
    "Z": ProcessState.ENDED,
    "X": ProcessState.ENDED,
}
_STATE, _START_TICKS = 0, 19
"""Places among the fields behind the name in `/proc/<pid>/stat`, see proc(5)."""


def own_identity() -> RankIdentity:
    """The identity of this process."""
    fields = _stat_fields(os.getpid())
    return RankIdentity(
        host=socket.gethostname(),
        boot_id=SYSTEM_CLOCK.boot_id(),
        pid_namespace=_pid_namespace(),
        pid=os.getpid(),
        start_ticks=int(fields[_START_TICKS]) if fields else 0,
    )


def state_of(identity: RankIdentity) -> ProcessState:
    """What the kernel says of a process; unknown where it runs on another host or in another container."""
    is_here = identity.boot_id == SYSTEM_CLOCK.boot_id() and identity.pid_namespace == _pid_namespace()
    if not is_here or not identity.boot_id or not identity.pid_namespace:
        return ProcessState.UNKNOWN
    fields = _stat_fields(identity.pid)
    # Its number may belong to a later process.
    if fields is None or int(fields[_START_TICKS]) != identity.start_ticks:
        return ProcessState.ENDED
    return _STATES.get(fields[_STATE], ProcessState.RUNNING)


def _stat_fields(pid: int) -> list[str] | None:
    """The fields behind the name, which may hold blanks and brackets; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
