"""Kill processes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from crashproof.disk.lock import abandon_all

__all__ = ["KilledRun", "forget_open_runs", "run_and_kill"]


def forget_open_runs() -> None:
    """Abandon every run that this process writes, as if it were killed: nothing more is written or synced."""
    abandon_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class KilledRun:
    """The result of `run_and_kill`."""

    return_code: int
    """Negative if a signal ended it."""
    output: str
    was_killed: bool
    """False if it ended by itself first."""


def run_and_kill(
    command: Sequence[str],
    *,
    when: Callable[[], bool],
    signal_number: int = signal.SIGKILL,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 120.0,
    poll_seconds: float = 0.002,
) -> KilledRun:
    """Start a process, send it a signal as soon as `when()` is true, and wait until it ends.

    Raises:
        TimeoutError: neither happened in time; the process was killed.
    """
    process = subprocess.Popen(  # noqa: S603 - the caller's own command
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    deadline = time.monotonic() + timeout_seconds
    was_killed = False
    try:
        while process.poll() is None and not was_killed:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{command[0]} neither ended nor reached the kill condition within {timeout_seconds} s."
                )
            if when():
                process.send_signal(signal_number)
                was_killed = True
            else:
                time.sleep(poll_seconds)
        output, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return KilledRun(return_code=process.returncode, output=output, was_killed=was_killed)
