"""The words for how things stand.

Their values reach the disk, `--json` and other programs: none changes its meaning.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["AlertKind", "AttemptState", "HealthState", "LossVerdict", "OnConfigChange", "RunStatus", "SessionKind"]


class SessionKind(StrEnum):
    """What a session's steps are."""

    TRAINING = "training"
    """Optimizer steps."""
    GENERATION = "generation"
    """Requests of a job that asks a teacher and trains nothing."""


class AttemptState(StrEnum):
    """How one process life stands, or ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    PREEMPTED = "preempted"
    """It was asked to stop, and saved."""
    RAISED = "raised"
    """An exception ended it."""
    REPLACED = "replaced"
    """Another tracker of the same process took the run over."""
    ADOPTED = "adopted"
    """It took up checkpoints of other code and trained nothing."""
    CRASHED = "crashed"
    """It exited without recording a shutdown."""


class RunStatus(StrEnum):
    """How a run stands by its records and by whether a process writes it."""

    NOT_STARTED = "not_started"
    RUNNING = "running"
    COMPLETED = "completed"
    ENDED_EARLY = "ended_early"
    """Closed in good order before its last step."""
    PREEMPTED = "preempted"
    RAISED = "raised"
    REPLACED = "replaced"
    ADOPTED = "adopted"
    CRASHED = "crashed"


class HealthState(StrEnum):
    """The status of a run, and of a live one how it fares."""

    STARTING = "starting"
    RUNNING = "running"
    STALLED = "stalled"
    DIVERGING = "diverging"
    NON_FINITE = "non_finite"
    COMPLETE = "complete"
    ENDED_EARLY = "ended_early"
    PREEMPTED = "preempted"
    RAISED = "raised"
    CRASHED = "crashed"
    REPLACED = "replaced"
    ADOPTED = "adopted"
    NOT_STARTED = "not_started"
    UNREADABLE = "unreadable"
    """Its files cannot be read; only a list of runs says so."""

    @property
    def is_live(self) -> bool:
        """Whether a process writes the run."""
        return self in _LIVE


_LIVE = frozenset(
    {
        HealthState.STARTING,
        HealthState.RUNNING,
        HealthState.STALLED,
        HealthState.DIVERGING,
        HealthState.NON_FINITE,
    }
)


class LossVerdict(StrEnum):
    """What the newest losses say."""

    IMPROVING = "improving"
    PLATEAU = "plateau"
    DIVERGING = "diverging"
    UNSTABLE = "unstable"
    NON_FINITE = "non_finite"
    UNKNOWN = "unknown"
    """Too few updates to tell."""


class AlertKind(StrEnum):
    """What somebody may be alerted of."""

    STALLED = "stalled"
    DIVERGING = "diverging"
    NON_FINITE = "non_finite"
    DISK_LOW = "disk_low"
    BUDGET_80 = "budget_80"
    BUDGET_100 = "budget_100"
    CRASHED = "crashed"
    RAISED = "raised"
    PREEMPTED = "preempted"
    COMPLETE = "complete"


class OnConfigChange(StrEnum):
    """What to do where the config differs from the one that the session began with."""

    ARCHIVE = "archive"
    """Move the old session to the archive and begin a new one."""
    CONTINUE = "continue"
    ERROR = "error"
