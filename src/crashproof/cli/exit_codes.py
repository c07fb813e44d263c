"""Exit codes for the states of a run."""

from __future__ import annotations

from crashproof.records.states import HealthState

__all__ = ["EXIT_CODES", "exit_code_for"]

NOT_STARTED = 7
_SAVES_FAILING = 8

EXIT_CODES = {
    HealthState.STARTING: 0,
    HealthState.RUNNING: 0,
    HealthState.COMPLETE: 0,
    HealthState.STALLED: 3,
    HealthState.DIVERGING: 4,
    HealthState.NON_FINITE: 4,
    HealthState.SAVES_FAILING: _SAVES_FAILING,
    HealthState.CRASHED: 5,
    HealthState.RAISED: 5,
    HealthState.PREEMPTED: 6,
    HealthState.ENDED_EARLY: 6,
    HealthState.REPLACED: 6,
}
"""By the `health` of a summary; any other one is `NOT_STARTED`, and 2 is an error."""


def exit_code_for(health: HealthState) -> int:
    """The exit code of `crashproof status` and `crashproof watch`."""
    return EXIT_CODES.get(health, NOT_STARTED)
