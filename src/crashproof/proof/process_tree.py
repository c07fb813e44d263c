"""Kill a process with all that it started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

__all__ = ["kill_tree"]


def kill_tree(pid: int) -> None:
    """Kill a process that leads a group, its group, and its descendants in other groups, as those of torchrun are."""
    descendants = _descendants_of(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for each in descendants:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def _descendants_of(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            # The name of the program, in parentheses, may itself hold any character.
            parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        of_one = children.get(waiting.pop(), [])
        found += of_one
        waiting += of_one
    return found
