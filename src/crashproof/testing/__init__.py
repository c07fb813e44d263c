"""Crash your own training loop, as crashproof's tests crash theirs.

`FakeClock` makes a week pass at once. `FaultyDisk` fails the n-th operation on the disk, or cuts the power at it.
`run_and_kill` ends a real process with SIGKILL at a moment of your choice. `TeacherServer` answers as a paid API
does, counts what it charges, and fails with one `Fault` after the other.
"""

from __future__ import annotations

from crashproof.testing.clock import FakeClock
from crashproof.testing.faulty_disk import FaultyDisk, PowerLost
from crashproof.testing.processes import KilledRun, forget_open_runs, run_and_kill
from crashproof.testing.teacher_server import Fault, Faults, TeacherServer

__all__ = [
    "FakeClock",
    "Fault",
    "Faults",
    "FaultyDisk",
    "KilledRun",
    "PowerLost",
    "TeacherServer",
    "forget_open_runs",
    "run_and_kill",
]
