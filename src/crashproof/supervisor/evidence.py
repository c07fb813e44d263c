"""What the kernel tells of processes that it killed for lack of memory."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

__all__ = ["OomWatch", "line_about"]

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")
_KERNEL_SECONDS = 5.0
_KILLED = re.compile(r"^\[\s*(?P<seconds>[\d.]+)\]\s*(?P<message>.*Killed process (?P<pid>\d+).*)$")


class OomWatch:
    """Counts the kills of the control groups that some processes are in, from when each group was first seen."""

    def __init__(self, *, proc: Path = _PROC, groups: Path = _GROUPS) -> None:
        self._proc, self._groups = proc, groups
        self._before: dict[Path, int] = {}

    def note(self, pids: Iterable[int]) -> None:
        """Remember the control groups of processes."""
        for counter in {each for pid in pids for each in self._counters_of(pid)}:
            if counter not in self._before:
                self._before[counter] = _count_in(counter)

    def kills(self) -> int:
        """Processes that were killed since."""
        return sum(max(0, _count_in(counter) - before) for counter, before in self._before.items())

    def _counters_of(self, pid: int) -> Iterator[Path]:
        try:
            lines = (self._proc / str(pid) / "cgroup").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")
            if not controllers:
                yield from _existing(self._groups / inside / "memory.events")
            elif "memory" in controllers.split(","):
                yield from _existing(self._groups / "memory" / inside / "memory.oom_control")


def line_about(pids: Collection[int], *, since_boot: float) -> str:
    """The kernel's message that it killed one of some processes after a moment; empty where it may not be read."""
    try:
        messages = subprocess.run(
            ["dmesg"],  # noqa: S607 - whichever the system has
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_KERNEL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    for line in reversed(messages.stdout.splitlines()):
        found = _KILLED.match(line)
        if found and int(found["pid"]) in pids and float(found["seconds"]) >= since_boot:
            return found["message"]
    return ""


def _existing(counter: Path) -> Iterator[Path]:
    if counter.exists():
        yield counter


def _count_in(counter: Path) -> int:
    try:
        lines = counter.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
