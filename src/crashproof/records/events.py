"""Everything rare that happens to a run."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypedDict

from msgspec import UNSET, Struct, UnsetType

from crashproof.records.checkpoints import CheckpointMetadata, FileDigest, RemovedCheckpoint
from crashproof.records.requests import Spending
from crashproof.records.states import AlertKind, AttemptState, SessionKind
from crashproof.records.version import FORMAT_VERSION

__all__ = [
    "AlertCleared",
    "AlertRaised",
    "AnswersRecovered",
    "AttemptEnded",
    "AttemptStarted",
    "CheckpointHashed",
    "CheckpointRecorded",
    "CheckpointRemoved",
    "CheckpointSetAside",
    "CheckpointsDeleted",
    "ConfigContinued",
    "ConnectionFailed",
    "DamageFound",
    "EvaluationRecorded",
    "Event",
    "JobAdvanced",
    "Paused",
    "ReplayDiffered",
    "ResumeChosen",
    "SessionStarted",
    "SpendingReported",
    "Stamp",
    "TargetChanged",
]


class Stamp(TypedDict):
    """What every event has."""

    timestamp: float
    attempt: int


class EventRecord(Struct, frozen=True, tag_field="event"):
    """What every line of `events.jsonl` has."""

    timestamp: float
    """Seconds since 1970."""
    attempt: int
    v: int = FORMAT_VERSION


class SessionStarted(EventRecord, frozen=True, kw_only=True, tag="session_started"):
    """A session begins; the first line of a run's events."""

    session_id: str
    config: dict[str, Any]
    config_hash: str
    kind: SessionKind = SessionKind.TRAINING
    """What its steps are."""
    total_steps: int
    api_cost_before: Decimal = Decimal(0)
    """What earlier sessions in this folder have paid teachers, in US dollars, those in doubt at their most."""


class TargetChanged(EventRecord, frozen=True, kw_only=True, tag="target_changed"):
    """The same run is to train for another number of steps."""

    total_steps: int


class ConfigContinued(EventRecord, frozen=True, kw_only=True, tag="config_continued"):
    """The config changed and the caller asked to go on with the session."""

    config: dict[str, Any]
    config_hash: str
    changed: list[str]


class AttemptStarted(EventRecord, frozen=True, kw_only=True, tag="attempt_started"):
    """A process takes the run up."""

    host: str
    pid: int
    git_commit: str | None
    wall_clock_hours: float
    """Trained by the attempts before it."""


class AttemptEnded(EventRecord, frozen=True, kw_only=True, tag="attempt_ended"):
    """A process lets go of the run in good order."""

    how: AttemptState
    error: str | None
    wall_clock_hours: float


class CheckpointRecorded(EventRecord, frozen=True, kw_only=True, tag="checkpoint_recorded"):
    """A checkpoint was acknowledged."""

    checkpoint: CheckpointMetadata
    seconds: float
    """How long training stood still for it."""


class CheckpointHashed(EventRecord, frozen=True, kw_only=True, tag="checkpoint_hashed"):
    """A large checkpoint's digest, computed behind the step."""

    step: int
    checkpoint_path: str
    num_bytes: int
    sha256: str
    files: dict[str, FileDigest] | None


class CheckpointRemoved(EventRecord, frozen=True, kw_only=True, tag="checkpoint_removed"):
    """Checkpoints are not kept any more; on disk before the first of them is deleted."""

    checkpoints: list[RemovedCheckpoint]
    """All that is to be gone, those included whose deletion was cut off before."""
    verified: str
    """The path of the newer one that had been read back whole."""


class CheckpointsDeleted(EventRecord, frozen=True, kw_only=True, tag="checkpoints_deleted"):
    """What the newest removal named is deleted: a file that has one of these names later is another one."""

    left: list[RemovedCheckpoint]
    """Those whose deletion failed; it is tried again."""


class CheckpointSetAside(EventRecord, frozen=True, kw_only=True, tag="checkpoint_set_aside"):
    """A checkpoint was found damaged and is not offered any more."""

    step: int
    checkpoint_path: str
    reason: str
    moved_to: str | None


class EvaluationRecorded(EventRecord, frozen=True, kw_only=True, tag="evaluation_recorded"):
    """What was measured on held-out data."""

    step: int
    results: dict[str, float]
    """By name."""
    seconds: float
    """How long training stood still for it."""
    nonfinite: dict[str, str] | UnsetType = UNSET


class ResumeChosen(EventRecord, frozen=True, kw_only=True, tag="resume_chosen"):
    """The checkpoint that this attempt was told to start from."""

    step: int
    checkpoint_path: str
    skipped: list[str]


class ConnectionFailed(EventRecord, frozen=True, kw_only=True, tag="connection_failed"):
    """A request to the teacher failed."""

    retry_count: int
    error: str


class Paused(EventRecord, frozen=True, kw_only=True, tag="paused"):
    """Training stood still on purpose."""

    seconds: float


class AnswersRecovered(EventRecord, frozen=True, kw_only=True, tag="answers_recovered"):
    """Teacher answers were given from the disk instead of being paid for again."""

    count: int
    cost: Decimal = Decimal(0)
    """What they had cost, in US dollars: saved this time."""


class JobAdvanced(EventRecord, frozen=True, kw_only=True, tag="job_advanced"):
    """How far a generation job has come."""

    done: int
    """Requests completed, of the session's total steps."""


class SpendingReported(EventRecord, frozen=True, kw_only=True, tag="spending_reported"):
    """What a shared store says of this run, all told: the answers are kept there."""

    spending: Spending


class ReplayDiffered(EventRecord, frozen=True, kw_only=True, tag="replay_differed"):
    """A recomputed step has another loss than the journalled one."""

    step: int
    loss_before: float | None
    loss_now: float | None


class DamageFound(EventRecord, frozen=True, kw_only=True, tag="damage_found"):
    """Broken bytes were moved out of a journal."""

    file: str
    offset: int
    num_bytes: int
    reason: str
    moved_to: str
    cost: Decimal | None = None
    """What had been paid for a broken answer, in US dollars, where that can still be read."""


class AlertRaised(EventRecord, frozen=True, kw_only=True, tag="alert_raised"):
    """Something that a person may want to know of at once."""

    kind: AlertKind
    message: str
    about_attempt: int
    """Of a crash, the attempt that is gone; the one that says so is another."""
    step: int
    """Optimizer steps done at that moment."""


class AlertCleared(EventRecord, frozen=True, kw_only=True, tag="alert_cleared"):
    """What an alert told of is over; the same kind may be raised again."""

    kind: AlertKind


Event = (
    SessionStarted
    | TargetChanged
    | ConfigContinued
    | AttemptStarted
    | AttemptEnded
    | CheckpointRecorded
    | CheckpointHashed
    | CheckpointRemoved
    | CheckpointSetAside
    | CheckpointsDeleted
    | EvaluationRecorded
    | ResumeChosen
    | ConnectionFailed
    | Paused
    | AnswersRecovered
    | JobAdvanced
    | SpendingReported
    | ReplayDiffered
    | DamageFound
    | AlertRaised
    | AlertCleared
)
