"""Test tools for crash safety.

`FakeClock` makes a week pass at once. `FaultyDisk` fails the n-th disk operation, or cuts the power there.
`run_and_kill` kills a real process at a chosen moment. `TeacherServer` answers like a paid API, counts its charges,
and injects any `Fault`.
"""

from __future__ import annotations

from crashproof.testing.clock import FakeClock
from crashproof.testing.faulty_disk import FaultyDisk, PowerLost
from crashproof.testing.processes import KilledRun, forget_open_runs, run_and_kill
from crashproof.testing.teacher_server import Fault, Faults, KeyEcho, Provider, TeacherServer

__all__ = [
    "FakeClock",
    "Fault",
    "Faults",
    "FaultyDisk",
    "KeyEcho",
    "KilledRun",
    "PowerLost",
    "Provider",
    "TeacherServer",
    "forget_open_runs",
    "run_and_kill",
]
