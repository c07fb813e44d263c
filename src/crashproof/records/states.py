"""Enumerations of states and choices.

Their values are part of the file format and of `--json`: none may change its meaning.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "AlertKind",
    "AttemptState",
    "BadStepAction",
    "BadStepCause",
    "HealthState",
    "LossVerdict",
    "OnBadStep",
    "OnConfigChange",
    "RunStatus",
    "SessionKind",
]


class SessionKind(StrEnum):
    """What a session's steps are."""

    TRAINING = "training"
    """Optimizer steps."""
    GENERATION = "generation"
    """Requests of a generation job, which trains nothing."""


class AttemptState(StrEnum):
    """The state of one process life, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    PREEMPTED = "preempted"
    """It was asked to stop, and saved."""
    RAISED = "raised"
    """An exception ended it."""
    REPLACED = "replaced"
    """Another tracker of the same process took over the run."""
    ADOPTED = "adopted"
    """It adopted checkpoints of other code and trained nothing."""
    CRASHED = "crashed"
    """It exited without recording a shutdown."""


class RunStatus(StrEnum):
    """The status of a run, by its records and by whether a process writes it."""

    NOT_STARTED = "not_started"
    RUNNING = "running"
    COMPLETED = "completed"
    ENDED_EARLY = "ended_early"
    """Closed before its last step."""
    PREEMPTED = "preempted"
    RAISED = "raised"
    REPLACED = "replaced"
    ADOPTED = "adopted"
    CRASHED = "crashed"


class HealthState(StrEnum):
    """The status of a run; for a live one, its health."""

    STARTING = "starting"
    RUNNING = "running"
    STALLED = "stalled"
    DIVERGING = "diverging"
    NON_FINITE = "non_finite"
    SAVES_FAILING = "saves_failing"
    """The newest saves have failed: what was trained since the newest checkpoint would be lost."""
    COMPLETE = "complete"
    ENDED_EARLY = "ended_early"
    PREEMPTED = "preempted"
    RAISED = "raised"
    CRASHED = "crashed"
    REPLACED = "replaced"
    ADOPTED = "adopted"
    NOT_STARTED = "not_started"
    UNREADABLE = "unreadable"
    """Its files cannot be read; only used in lists of runs."""

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
        HealthState.SAVES_FAILING,
    }
)


class LossVerdict(StrEnum):
    """How the loss has developed lately."""

    IMPROVING = "improving"
    PLATEAU = "plateau"
    DIVERGING = "diverging"
    UNSTABLE = "unstable"
    NON_FINITE = "non_finite"
    UNKNOWN = "unknown"
    """Too few updates for a verdict."""


class AlertKind(StrEnum):
    """What an alert is about."""

    STALLED = "stalled"
    DIVERGING = "diverging"
    NON_FINITE = "non_finite"
    SAVES_FAILING = "saves_failing"
    """Two or more saves in a row have failed."""
    RECORDS_FAILING = "records_failing"
    """What the run records has not reached its disk for a while."""
    BAD_STEP = "bad_step"
    """The loss of a step was not finite, or a spike, where somebody judges steps."""
    DISK_LOW = "disk_low"
    BUDGET_80 = "budget_80"
    BUDGET_100 = "budget_100"
    JOURNAL_ALTERED = "journal_altered"
    """A journal was edited or removed while the run was live."""
    CRASHED = "crashed"
    RAISED = "raised"
    PREEMPTED = "preempted"
    RESTARTED = "restarted"
    """The supervisor restarts the run."""
    GAVE_UP = "gave_up"
    """The supervisor does not restart it any more."""
    COMPLETE = "complete"


class OnConfigChange(StrEnum):
    """What to do if the config differs from that of the session."""

    ARCHIVE = "archive"
    """Move the old session to the archive and begin a new one."""
    CONTINUE = "continue"
    """Continue the session with the new config."""
    ERROR = "error"
    """Raise `ConfigChanged`."""


class OnBadStep(StrEnum):
    """What a trainer does about a bad step."""

    STOP = "stop"
    """End with an error that names it."""
    SKIP = "skip"
    """Leave the weights as they were before it, and go on."""
    ROLLBACK = "rollback"
    """Go back to the newest healthy checkpoint; if the step is bad again, leave its samples out."""


class BadStepCause(StrEnum):
    """Why a step is bad."""

    NON_FINITE = "non_finite"
    SPIKE = "spike"


class BadStepAction(StrEnum):
    """What was done about a bad step."""

    REPORTED = "reported"
    """The training loop was told."""
    STOPPED = "stopped"
    """The run was stopped."""
    SKIPPED_UPDATE = "skipped_update"
    """The weights were left as they were."""
    ROLLED_BACK = "rolled_back"
    """Training went back to a checkpoint, to compute the step again."""
    SKIPPED_DATA = "skipped_data"
    """Training went back to a checkpoint, and leaves the step's samples out from then on."""
