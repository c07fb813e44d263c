"""The processes of a machine, as `/proc` shows them.

Where there is no `/proc` (macOS), nothing is known of a process but its id.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessStatus", "catches", "command_line", "descendants", "has_open", "is_stopped", "status_of"]

_PROC = Path("/proc")
_STOPPED = "Tt"
_ZOMBIE = "Z"
_STATE, _PARENT, _START = 0, 1, 19
"""Places in `stat`, counted behind the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """A process, and what tells it from a later one of the same id."""

    pid: int
    parent: int
    state: str
    start_ticks: int

    @property
    def is_zombie(self) -> bool:
        """Whether it has ended, and only its parent has not asked for it yet."""
        return self.state == _ZOMBIE


def status_of(pid: int) -> ProcessStatus | None:
    """A process; None if there is none, or nothing is known of it."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in parentheses, and may hold any character.
    fields = text[text.rfind(")") + 2 :].split()
    return ProcessStatus(pid=pid, parent=int(fields[_PARENT]), state=fields[_STATE], start_ticks=int(fields[_START]))


def descendants(pid: int) -> list[ProcessStatus]:
    """All processes below one, zombies left out; parents before children."""
    try:
        numbers = [int(name) for name in os.listdir(_PROC) if name.isdigit()]
    except OSError:
        return []
    children: dict[int, list[ProcessStatus]] = {}
    for number in numbers:
        found = status_of(number)
        if found is not None:
            children.setdefault(found.parent, []).append(found)
    result: list[ProcessStatus] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        result += below
        waiting += [each.pid for each in below]
    return [each for each in result if not each.is_zombie]


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped, by SIGSTOP or a debugger."""
    found = status_of(pid)
    return found is not None and found.state in _STOPPED


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; True where that is not known."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return not _PROC.exists()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
    return any(mask >> (number - 1) & 1 for mask in masks)


def command_line(pid: int) -> str:
    """The command line of a process; empty if it is not known."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def has_open(pid: int, lock: Path, *, processes: Path = _PROC) -> bool:
    """Whether a process has the lock file that names it open.

    Process ids are reused, and differ between containers. Where the system does not tell, the file is trusted.
    """
    if not (processes / "self").exists():
        return True
    try:
        wanted = lock.stat()
        for each in (processes / str(pid) / "fd").iterdir():
            try:
                found = each.stat()
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    except PermissionError:
        return True
    except OSError:
        return False
    return False
