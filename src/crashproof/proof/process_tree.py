"""Kill a process with all that it started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from crashproof.supervisor.processes import descendants

__all__ = ["kill_tree"]


def kill_tree(pid: int) -> None:
    """Kill a process that leads a group, its group, and its descendants in other groups, as those of torchrun are."""
    below = descendants(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for each in below:
        with suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)
