"""The stacks of a child that hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from crashproof.records.supervision import OpenedRun
from crashproof.supervisor.processes import catches, command_line

__all__ = ["NO_PY_SPY", "collect_stacks"]

NO_PY_SPY = (
    "py-spy is not installed: stacks come from the tracker's process and its forks alone (pip install py-spy for all "
    "Python processes below the command)."
)
_SIGNAL_SECONDS = 1.0
_POLL_SECONDS = 0.05
_SPY_SECONDS = 10.0
_MOST_PROCESSES = 32


def collect_stacks(family: Sequence[int], opened: OpenedRun | None) -> str:
    """The Python stacks of some processes, as text; says of each where they come from, or why there are none."""
    parts = [*_from_inside(family, opened), *_from_outside(family)]
    return "\n".join(parts) + "\n"


def _from_inside(family: Sequence[int], opened: OpenedRun | None) -> Iterator[str]:
    """Written by the tracker's process and its forks, in a signal handler in C."""
    if opened is None or opened.stacks_signal is None:
        return
    path = Path(opened.stacks_file)
    for pid in family:
        # Without a handler the signal would end it.
        if not _has_same_handler(pid, opened):
            continue
        before = _size_of(path)
        try:
            os.kill(pid, opened.stacks_signal)
        except (ProcessLookupError, PermissionError):
            continue
        _wait_for_growth(path, before)
        text = _text_from(path, before)
        yield f"== process {pid} ({command_line(pid)}), by faulthandler\n{text or 'It did not answer.'}"


def _has_same_handler(pid: int, opened: OpenedRun) -> bool:
    return opened.stacks_signal is not None and os.path.exists(f"/proc/{pid}") and catches(pid, opened.stacks_signal)


def _from_outside(family: Sequence[int]) -> Iterator[str]:
    """Read from outside by py-spy, where it is installed and may look."""
    program = shutil.which("py-spy")
    if program is None:
        yield f"== {NO_PY_SPY}"
        return
    for pid in [each for each in family if "python" in command_line(each)][:_MOST_PROCESSES]:
        try:
            dumped = subprocess.run(  # noqa: S603 - as found above
                [program, "dump", "--pid", str(pid)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SPY_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            yield f"== process {pid}, by py-spy\n{error}"
        else:
            yield f"== process {pid} ({command_line(pid)}), by py-spy\n{dumped.stdout or dumped.stderr}"


def _wait_for_growth(path: Path, before: int) -> None:
    """Wait until the handler has written, and has written nothing more for a moment."""
    deadline, size = time.monotonic() + _SIGNAL_SECONDS, before
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        now = _size_of(path)
        if now > before and now == size:
            return
        size = now


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _text_from(path: Path, offset: int) -> str:
    try:
        return path.read_bytes()[offset:].decode("utf-8", "replace")
    except OSError:
        return ""
