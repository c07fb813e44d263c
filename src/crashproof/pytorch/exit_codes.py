"""The exit code that an error stands for."""

from __future__ import annotations

from crashproof.errors import CrashproofError, RankFailed
from crashproof.pytorch.interrupts import EXIT_PREEMPTED, StopRequested

__all__ = ["EXIT_ERROR", "exit_code_of"]

EXIT_ERROR = 2
_EXIT_UNEXPECTED = 1
"""Python's own, after a traceback."""


def exit_code_of(error: BaseException) -> int:
    """2 for a reported error, 75 if the same command may succeed at the next start, 1 for an unexpected one."""
    if isinstance(error, RankFailed):
        return error.exit_code
    if isinstance(error, StopRequested):
        return EXIT_PREEMPTED
    if isinstance(error, CrashproofError):
        return EXIT_PREEMPTED if error.may_pass else EXIT_ERROR
    return _EXIT_UNEXPECTED
