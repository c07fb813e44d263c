"""Events of a run: everything that happens rarely."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar, TypedDict

from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import force_setattr

from crashproof.records.bad_steps import DataWindow
from crashproof.records.checkpoints import CheckpointMetadata, FileDigest, FileStat, RemovedCheckpoint, take_in_sha256
from crashproof.records.rank_times import RankTimes
from crashproof.records.requests import Spending
from crashproof.records.states import AlertKind, AttemptState, BadStepAction, BadStepCause, SessionKind
from crashproof.records.supervision import Action, EndCause
from crashproof.records.version import FORMAT_VERSION, NAMED_DIGESTS

__all__ = [
    "AlertCleared",
    "AlertRaised",
    "AnswersRecovered",
    "AttemptEnded",
    "AttemptStarted",
    "BadStepFound",
    "BadStepPassed",
    "CheckpointFailed",
    "CheckpointHashed",
    "CheckpointRecorded",
    "CheckpointRemoved",
    "CheckpointSetAside",
    "CheckpointSuspected",
    "CheckpointsDeleted",
    "ConfigContinued",
    "ConnectionFailed",
    "DamageFound",
    "DataLeftOut",
    "EvaluationRecorded",
    "Event",
    "JobAdvanced",
    "Paused",
    "ProcessEnded",
    "RankTimesMeasured",
    "ReplayDiffered",
    "ResumeChosen",
    "SessionStarted",
    "SpendingReported",
    "Stamp",
    "TargetChanged",
]


class Stamp(TypedDict):
    """The fields that a writer gives to every event."""

    timestamp: float
    attempt: int


class EventRecord(Struct, frozen=True, tag_field="event"):
    """The fields of every line of `events.jsonl`."""

    timestamp: float
    """Seconds since 1970."""
    attempt: int
    v: int = FORMAT_VERSION
    newest_version: ClassVar[int] = FORMAT_VERSION
    """The highest `v` that lines of this kind have."""


class SessionStarted(EventRecord, frozen=True, kw_only=True, tag="session_started"):
    """A session began; the first line of a run's events."""

    session_id: str
    config: dict[str, Any]
    config_hash: str
    kind: SessionKind = SessionKind.TRAINING
    """What its steps are."""
    total_steps: int
    api_cost_before: Decimal = Decimal(0)
    """US dollars that earlier sessions in this folder paid to teachers; requests in doubt count at their maximum."""


class TargetChanged(EventRecord, frozen=True, kw_only=True, tag="target_changed"):
    """The number of steps to train was changed."""

    total_steps: int


class ConfigContinued(EventRecord, frozen=True, kw_only=True, tag="config_continued"):
    """The config changed, and the caller chose to continue the session."""

    config: dict[str, Any]
    config_hash: str
    changed: list[str]


class AttemptStarted(EventRecord, frozen=True, kw_only=True, tag="attempt_started"):
    """A process opened the run."""

    host: str
    pid: int
    git_commit: str | None
    wall_clock_hours: float
    """Hours trained by earlier attempts."""
    boot_id: str | UnsetType = UNSET
    """The boot of the machine; two attempts of one boot are compared by `since_boot`."""
    since_boot: float | UnsetType = UNSET
    """Seconds since that boot: a clock that nobody sets."""


class AttemptEnded(EventRecord, frozen=True, kw_only=True, tag="attempt_ended"):
    """A process closed the run in an orderly way."""

    how: AttemptState
    error: str | None
    wall_clock_hours: float
    since_boot: float | UnsetType = UNSET
    """As when it started."""


class CheckpointRecorded(EventRecord, frozen=True, kw_only=True, tag="checkpoint_recorded"):
    """A checkpoint was acknowledged."""

    checkpoint: CheckpointMetadata
    seconds: float
    """How long training stood still for it."""
    save_seconds: float | UnsetType = UNSET
    """How long the save took from its beginning on, in the background as well; absent where that is unknown."""
    newest_version: ClassVar[int] = NAMED_DIGESTS

    def __post_init__(self) -> None:
        if self.checkpoint.digest is not None:
            force_setattr(self, "v", max(self.v, NAMED_DIGESTS))


class CheckpointFailed(EventRecord, frozen=True, kw_only=True, tag="checkpoint_failed"):
    """A checkpoint could not be saved, and training went on without it; one event for each step."""

    step: int
    """Optimizer steps done."""
    error: str


class CheckpointHashed(EventRecord, frozen=True, kw_only=True, tag="checkpoint_hashed"):
    """The digest of a large checkpoint was computed in the background."""

    step: int
    checkpoint_path: str
    created_at: float | None = None
    """The moment of the record that it is about."""
    num_bytes: int
    digest: str = ""
    """Begins with the name of its algorithm."""
    files: dict[str, FileDigest] | None
    verified: dict[str, FileStat] | UnsetType = UNSET
    """As in a checkpoint's record."""
    unnamed_sha256: str | UnsetType = field(default=UNSET, name="sha256")
    """As in a line that was written before digests named their algorithm; never set once it is read."""
    newest_version: ClassVar[int] = NAMED_DIGESTS

    def __post_init__(self) -> None:
        take_in_sha256(self)
        if not self.digest:
            raise ValueError("it has no digest")
        force_setattr(self, "v", max(self.v, NAMED_DIGESTS))


class CheckpointRemoved(EventRecord, frozen=True, kw_only=True, tag="checkpoint_removed"):
    """Checkpoints are not kept any more; durable before the first of them is deleted."""

    checkpoints: list[RemovedCheckpoint]
    """All that are to be deleted, including those whose deletion was interrupted before."""
    verified: str
    """The path of the newer checkpoint that was read back and found intact."""


class CheckpointsDeleted(EventRecord, frozen=True, kw_only=True, tag="checkpoints_deleted"):
    """The checkpoints of the newest removal are deleted: a later file of the same name is a different one."""

    left: list[RemovedCheckpoint]
    """Those that could not be deleted; the next start tries again."""


class CheckpointSetAside(EventRecord, frozen=True, kw_only=True, tag="checkpoint_set_aside"):
    """A checkpoint was found damaged and quarantined; it is not offered any more."""

    step: int
    checkpoint_path: str
    created_at: float | None = None
    """The moment of the record that it is about."""
    reason: str
    moved_to: str | None


class CheckpointSuspected(EventRecord, frozen=True, kw_only=True, tag="checkpoint_suspected"):
    """A supervisor found that resumes from a checkpoint die without progress: it is passed over for any other one.

    Its bytes are what was recorded, and stay where they are.
    """

    step: int
    checkpoint_path: str
    created_at: float
    """The moment of the record that it is about."""
    reason: str
    is_suspect: bool
    """False withdraws it: resumes from older checkpoints died as well."""


class EvaluationRecorded(EventRecord, frozen=True, kw_only=True, tag="evaluation_recorded"):
    """Results were measured on held-out data."""

    step: int
    results: dict[str, float]
    """By name."""
    seconds: float
    """How long training stood still for it."""
    nonfinite: dict[str, str] | UnsetType = UNSET
    rewinds: int | UnsetType = UNSET
    """How often its attempt had gone back to an earlier step before; absent if never."""


class ResumeChosen(EventRecord, frozen=True, kw_only=True, tag="resume_chosen"):
    """A checkpoint was chosen for this attempt to resume from."""

    step: int
    checkpoint_path: str
    skipped: list[str]
    created_at: float | None = None
    """The moment of the record that it is about."""
    verified: dict[str, FileStat] | UnsetType = UNSET
    """As in a checkpoint's record; absent where the record says the same."""


class ConnectionFailed(EventRecord, frozen=True, kw_only=True, tag="connection_failed"):
    """A request to the teacher failed."""

    retry_count: int
    error: str


class Paused(EventRecord, frozen=True, kw_only=True, tag="paused"):
    """Training was paused on purpose, or its process stood still."""

    seconds: float
    cause: str | UnsetType = UNSET
    """`standstill` if the process was stopped, frozen or suspended; without it, on purpose."""


class AnswersRecovered(EventRecord, frozen=True, kw_only=True, tag="answers_recovered"):
    """Teacher answers were served from the store instead of being paid for again."""

    count: int
    cost: Decimal = Decimal(0)
    """US dollars that they cost originally, saved this time."""


class JobAdvanced(EventRecord, frozen=True, kw_only=True, tag="job_advanced"):
    """A generation job has completed more requests."""

    done: int
    """Requests completed, out of the session's total steps."""
    wall_clock_hours: float | UnsetType = UNSET
    """Hours worked so far, without pauses and downtime; without it, the timestamps are compared."""


class SpendingReported(EventRecord, frozen=True, kw_only=True, tag="spending_reported"):
    """A shared store reported the totals of this run, whose answers are kept there."""

    spending: Spending


class RankTimesMeasured(EventRecord, frozen=True, kw_only=True, tag="rank_times"):
    """The ranks compared how long each works on a step."""

    times: RankTimes


class ReplayDiffered(EventRecord, frozen=True, kw_only=True, tag="replay_differed"):
    """A recomputed step has a different loss from the journalled one."""

    step: int
    loss_before: float | None
    loss_now: float | None


class ProcessEnded(EventRecord, frozen=True, kw_only=True, tag="process_ended"):
    """A supervised process ended; recorded by its supervisor, between two attempts."""

    cause: EndCause
    details: str
    """What is known of the cause, in words."""
    started_at: float
    """When the process was started, in seconds since 1970; tells its end from that of another one."""
    exit_code: int | None
    """None if a signal ended it, or nobody saw it end."""
    signal: str | None
    step: int
    """Optimizer steps done."""
    opened_run: bool
    """Whether the process had opened the run; `attempt` is the newest one in any case."""
    action: Action
    reason: str
    """Why the supervisor did that."""
    hung_seconds: float = 0.0
    """From its last progress to its end, if it hung."""
    lost_seconds: float = 0.0
    """Training time behind the newest checkpoint."""
    notices: int = 0
    """Requests to stop and notices of preemption that it was given."""
    notices_saved: int = 0
    """Of these, how many led to a checkpoint."""
    stacks: str | None = None
    """Path of the stacks that were kept."""


class BadStepFound(EventRecord, frozen=True, kw_only=True, tag="bad_step_found"):
    """The loss of a step is not finite, or a spike."""

    step: int
    cause: BadStepCause
    loss: float | None
    """None if it is not finite."""
    usual: float | None
    """The level of the healthy losses before it; None if there were too few to tell."""
    limit: float | None
    """The highest loss that would have passed; likewise."""
    num_losses: int
    """The healthy losses that this rests on."""
    data: list[DataWindow]
    """The samples that the step was computed from."""
    action: BadStepAction


class BadStepPassed(EventRecord, frozen=True, kw_only=True, tag="bad_step_passed"):
    """A bad step was fine when it was computed again from the same samples: a passing fault, not the data."""

    step: int
    loss: float


class DataLeftOut(EventRecord, frozen=True, kw_only=True, tag="data_left_out"):
    """Samples are left out of the run from now on; durable before training goes on without them."""

    step: int
    """The step that was bad with them; 0 where nobody says."""
    data: list[DataWindow]


class DamageFound(EventRecord, frozen=True, kw_only=True, tag="damage_found"):
    """Damaged bytes were moved out of a journal into quarantine."""

    file: str
    offset: int
    num_bytes: int
    reason: str
    moved_to: str
    cost: Decimal | None = None
    """US dollars paid for a damaged answer, if its price can still be read."""


class AlertRaised(EventRecord, frozen=True, kw_only=True, tag="alert_raised"):
    """An alert was raised."""

    kind: AlertKind
    message: str
    about_attempt: int
    """The attempt that the alert is about; a crash is recorded by a later attempt or by another process."""
    step: int
    """Optimizer steps done at that moment."""


class AlertCleared(EventRecord, frozen=True, kw_only=True, tag="alert_cleared"):
    """The condition of an alert is over; the same kind may be raised again."""

    kind: AlertKind


Event = (
    SessionStarted
    | TargetChanged
    | ConfigContinued
    | AttemptStarted
    | AttemptEnded
    | CheckpointRecorded
    | CheckpointFailed
    | CheckpointHashed
    | CheckpointRemoved
    | CheckpointSetAside
    | CheckpointSuspected
    | CheckpointsDeleted
    | EvaluationRecorded
    | ResumeChosen
    | ConnectionFailed
    | Paused
    | AnswersRecovered
    | JobAdvanced
    | SpendingReported
    | RankTimesMeasured
    | ReplayDiffered
    | BadStepFound
    | BadStepPassed
    | DataLeftOut
    | ProcessEnded
    | DamageFound
    | AlertRaised
    | AlertCleared
)
