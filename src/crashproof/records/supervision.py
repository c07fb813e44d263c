"""What a supervisor records, and what it and its child tell each other."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct, field

__all__ = ["Action", "EndCause", "EndedProcess", "OpenedRun", "Phase", "Supervision"]


class EndCause(StrEnum):
    """Why a supervised process ended."""

    COMPLETED = "completed"
    ENDED_EARLY = "ended_early"
    """Exit code 0 before the run's last step."""
    START_AGAIN = "start_again"
    """Exit code 75: it asked to be started again."""
    PREEMPTION = "preemption"
    """The supervisor was asked to stop, or was given notice."""
    EXCEPTION = "exception"
    ERROR = "error"
    """Exit code 2, or the command cannot be run: another start does not help."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed it for lack of memory."""
    SIGNAL = "signal"
    DISK = "disk"
    HANG = "hang"
    """It made no progress for too long, and its supervisor ended it."""
    UNKNOWN = "unknown"
    """Nobody saw how it ended: its supervisor had been killed."""


class Action(StrEnum):
    """What a supervisor does after an end."""

    RESTART = "restart"
    FINISH = "finish"
    """The command ended well."""
    STOP = "stop"


class Phase(StrEnum):
    """What a run is doing; each has its own limit for how long it may take without progress."""

    STARTING = "starting"
    COMPILING = "compiling"
    TRAINING = "training"
    SAVING = "saving"
    EVALUATING = "evaluating"
    WAITING = "waiting"
    """For a teacher."""
    FINISHING = "finishing"
    """After the run was closed."""


class OpenedRun(Struct, frozen=True, kw_only=True):
    """What a process tells its supervisor about the run that it has opened."""

    pid: int
    progress: str
    """The absolute path of the progress folder."""
    attempt: int
    stacks_signal: int | None = None
    """This signal makes it write its stacks to `stacks_file`; None where it cannot."""
    stacks_file: str = ""


class EndedProcess(Struct, frozen=True, kw_only=True):
    """The newest end of a supervised process."""

    timestamp: float
    """Seconds since 1970."""
    started_at: float
    """When it was started; likewise."""
    attempt: int
    cause: EndCause
    details: str
    action: Action
    reason: str
    """Why the supervisor did that."""
    stacks: str | None = None
    """Path of the stacks that were kept, as records spell it."""


class Supervision(Struct, frozen=True, kw_only=True):
    """What the run's supervisors have recorded."""

    restarts: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    """How often a process ended, by cause."""
    hung_seconds: float = 0.0
    lost_seconds: float = 0.0
    """Training time whose steps were in no checkpoint at an end that was followed by a restart."""
    notices: int = 0
    """Requests to stop and notices of preemption."""
    notices_saved: int = 0
    """Of these, how many led to a checkpoint."""
    newest: EndedProcess | None = None
