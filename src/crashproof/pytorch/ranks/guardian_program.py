"""End a process that is stopped for too long.

A stopped process (SIGSTOP, state T) can do nothing, not even end: a SIGTERM that it handles waits until it goes on.
Its parent is the one process that this program can be sure of: the kernel names it, and no other can have its number.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

_POLL_SECONDS = 0.5
_TERMINATE_BIT = 1 << (signal.SIGTERM - 1)


def main(name: str, longest_seconds: float, longest_asked_seconds: float) -> None:
    """Look after the process that started this one until it has ended, or closes standard input.

    It may be stopped for `longest_seconds`, and, once it was asked to end, for `longest_asked_seconds` more.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        # Sent to all processes of a job, they are for the rank; this process ends with it.
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    stopped_seconds = asked_seconds = 0.0
    woke_at = time.monotonic()
    while not select.select([sys.stdin], [], [], _POLL_SECONDS)[0] and os.getppid() == parent:
        # Where all processes of a job are stopped, this one is too, and that time does not count.
        seconds = min(time.monotonic() - woke_at, 2 * _POLL_SECONDS)
        woke_at = time.monotonic()
        is_stopped, is_asked = look_at(parent)
        stopped_seconds = stopped_seconds + seconds if is_stopped else 0.0
        asked_seconds = asked_seconds + seconds if is_stopped and is_asked else 0.0
        if stopped_seconds > longest_seconds or asked_seconds > longest_asked_seconds:
            why = "was asked to end" if asked_seconds else "the other ranks wait no longer"
            sys.stderr.write(
                f"{name} is stopped (state T) for {stopped_seconds:.0f} s, and {why}: it is ended with SIGKILL. "
                "Start the same command again; acknowledged data is kept.\n"
            )
            sys.stderr.flush()
            os.kill(parent, signal.SIGKILL)
            return


def look_at(pid: int) -> tuple[bool, bool]:
    """Whether a process is stopped, and whether a SIGTERM waits for it."""
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return False, False
    # A process that a debugger holds has the state `t`.
    is_asked = any(int(fields.get(name, "0"), 16) & _TERMINATE_BIT for name in ("SigPnd", "ShdPnd"))
    return fields.get("State", "").startswith("T"), is_asked


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
