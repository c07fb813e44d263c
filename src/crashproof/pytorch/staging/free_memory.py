"""How much memory is left to this process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["free_memory_bytes"]

_ROOT = Path("/")


def free_memory_bytes(root: Path = _ROOT) -> int | None:
    """Bytes that could still be used without swapping, on this machine and in its container; None if unknown.

    Args:
        root: Where `proc` and `sys` lie.
    """
    known = [each for each in (_of_machine(root), *_of_control_groups(root)) if each is not None]
    return max(0, min(known)) if known else None


def _of_machine(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return None


def _of_control_groups(root: Path) -> list[int | None]:
    """What the limits (cgroup v2) of the process's groups leave; in a container, the top one is its own."""
    own = next((line[3:] for line in _text(root / "proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    group = Path(own.lstrip("/"))
    groups = [group, *group.parents] if group.parts else [group]
    return [_left_in(root / "sys/fs/cgroup" / each) for each in groups]


def _left_in(group: Path) -> int | None:
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    # Of what is counted as used, clean pages of files give way.
    lines = (line.partition(" ") for line in _text(group / "memory.stat").splitlines())
    files = next((int(value) for name, _, value in lines if name == "inactive_file"), 0)
    return int(limit) - int(used) + files


def _text(path: Path) -> str:
    """The content of a file of the kernel's; empty where there is none, as on other systems."""
    with suppress(OSError):
        return path.read_text()
    return ""
