"""What a run's state is to a script."""

from __future__ import annotations

__all__ = ["EXIT_CODES", "IN_WORDS", "exit_code_for"]

EXIT_ERROR = 2
NOT_STARTED = 7

EXIT_CODES = {
    "starting": 0,
    "running": 0,
    "complete": 0,
    "stalled": 3,
    "diverging": 4,
    "non_finite": 4,
    "crashed": 5,
    "raised": 5,
    "preempted": 6,
    "ended_early": 6,
    "replaced": 6,
    "not_started": NOT_STARTED,
    "adopted": NOT_STARTED,
}
"""By the `health` of a summary; 2 is an error."""

IN_WORDS = """Exit codes: 0 it runs, starts or is complete; 2 an error; 3 stalled;
4 diverging, or its loss is not finite; 5 crashed, or an exception ended it;
6 it ended before its last step and can be started again; 7 not started."""


def exit_code_for(health: str) -> int:
    """The exit code of `crashproof status` and `crashproof watch`."""
    return EXIT_CODES.get(health, NOT_STARTED)
