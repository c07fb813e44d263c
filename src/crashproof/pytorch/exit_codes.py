"""The exit code that an error stands for."""

from __future__ import annotations

from crashproof.errors import CrashproofError, MainProcessFailed, RankLost, TeacherUnreachable
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, StopRequested

__all__ = ["exit_code_of"]

_EXIT_ERROR = 2
_EXIT_UNEXPECTED = 1
"""Python's own, after a traceback."""


def exit_code_of(error: BaseException) -> int:
    """2 for a reported error, 75 if the same command may succeed at the next start, 1 for an unexpected one."""
    if isinstance(error, MainProcessFailed):
        return error.exit_code
    # A lost rank or teacher may be back at the next start; any other error needs a change first.
    if isinstance(error, (RankLost, TeacherUnreachable, StopRequested)):
        return EXIT_PREEMPTED
    return _EXIT_ERROR if isinstance(error, CrashproofError) else _EXIT_UNEXPECTED
