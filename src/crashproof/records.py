"""Everything that reaches the disk.

Each record is typed data with a format version. The names of fields are promised: other programs read them.
`docs/FORMAT.md` describes the files byte for byte.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

__all__ = [
    "FORMAT_VERSION",
    "AlertCleared",
    "AlertRaised",
    "AnswerMarked",
    "AnswerRecord",
    "AnswersRecovered",
    "AttemptEnded",
    "AttemptRecord",
    "AttemptStarted",
    "Bucket",
    "CheckpointHashed",
    "CheckpointMetadata",
    "CheckpointRecorded",
    "CheckpointRemoved",
    "CheckpointSetAside",
    "CheckpointsDeleted",
    "ConfigContinued",
    "ConnectionFailed",
    "CurveBlock",
    "CurvePoint",
    "DamageFound",
    "Evaluation",
    "EvaluationRecorded",
    "Event",
    "FileDigest",
    "Goodput",
    "JobAdvanced",
    "JournalMark",
    "Manifest",
    "MetricsSnapshot",
    "OpenRequest",
    "PacePoint",
    "Paused",
    "ProgressFile",
    "RaisedAlert",
    "RefusedCheckpoint",
    "RemovedCheckpoint",
    "ReplayDiffered",
    "RequestEvent",
    "RequestLine",
    "RequestLost",
    "RequestRefused",
    "RequestSent",
    "ResumeChosen",
    "SessionFile",
    "SessionStarted",
    "Spending",
    "SpendingReported",
    "TargetChanged",
    "TrainingSession",
]

FORMAT_VERSION = 1


class MetricsSnapshot(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION, gc=False):
    """One update of the training loop: one line of `metrics.jsonl`."""

    attempt: int = 1
    """The process life that computed it."""
    step: int
    """Optimizer steps done so far."""
    timestamp: float
    """Seconds since 1970."""
    wall_clock_hours: float
    """Hours trained over all attempts, without pauses and downtime."""
    loss: float
    loss_components: dict[str, float]
    learning_rate: float
    samples_processed: int
    tokens_processed: int
    throughput_samples_per_sec: float | None = None
    throughput_tokens_per_sec: float | None = None
    nonfinite: dict[str, str] | UnsetType = UNSET
    """Names of values that JSON cannot hold: `loss` with `NaN`, for one; absent where there are none."""


class Bucket(Struct, frozen=True, array_like=True, gc=False):
    """Several values of one series that follow each other; an array of these fields in this order."""

    low: float | None
    """The lowest finite one; None where none is finite."""
    high: float | None
    mean: float | None
    """Of the finite ones."""
    last: float | None
    """The newest; None where that is not finite."""
    num_finite: int
    num_non_finite: int


class CurvePoint(Struct, frozen=True, kw_only=True, gc=False):
    """What some updates that follow each other, step by step, have in common."""

    first_step: int
    last_step: int
    num_updates: int
    attempt: int
    """Of the last of them."""
    timestamp: float
    """The same, in seconds since 1970."""
    wall_clock_hours: float
    """The same: hours trained."""
    series: dict[str, Bucket]
    """By a field's name; a component of the loss as `loss_components.kd`."""


class CurveBlock(CurvePoint, frozen=True, kw_only=True, gc=False, tag_field="v", tag=FORMAT_VERSION):
    """Some lines of `metrics.jsonl`: one line of `curves.jsonl`."""

    offset: int
    """Where the first of them begins, in bytes."""
    end: int
    """Where the last of them ends."""
    last_line_crc: str
    """Of that one; tells whether the journal is still the same file."""


class FileDigest(Struct, frozen=True, kw_only=True):
    """One file of a checkpoint folder."""

    num_bytes: int
    sha256: str


class CheckpointMetadata(Struct, frozen=True, kw_only=True):
    """A checkpoint as the manifest knows it."""

    checkpoint_step: int
    checkpoint_path: str
    """Relative to the run folder where it lies inside it, absolute otherwise and where it is offered."""
    created_at: float
    """Seconds since 1970."""
    metrics: MetricsSnapshot | None
    """The update of its step; where there was none, the newest one before it."""
    dataset_position: int
    """Samples of the training data consumed so far."""
    recovery_tags: list[str]
    """Why it is kept: `periodic`, `best_loss`, …"""
    attempt: int
    num_bytes: int | None = None
    """Size of the file, or of all files of the folder; None where it could not be seen when recorded."""
    sha256: str | None = None
    """SHA-256 of the file, or of the folder's sorted listing of digests; None until computed."""
    files: dict[str, FileDigest] | None = None
    """Each file of a folder by its relative name; None for a single file."""
    evaluation: dict[str, float] | None = None
    """What its own attempt has measured at its step on held-out data; None where nothing was."""
    nonfinite: dict[str, str] | UnsetType = UNSET
    """As in a line of metrics, of `evaluation`."""

    @property
    def is_verifiable(self) -> bool:
        """Whether damage to it can be told."""
        return self.sha256 is not None


class RefusedCheckpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint that cannot be used, and why."""

    checkpoint_step: int
    checkpoint_path: str
    reason: str


class RemovedCheckpoint(Struct, frozen=True, kw_only=True):
    """A checkpoint that was not to be kept."""

    step: int
    checkpoint_path: str


class AnswerRecord(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """One paid teacher answer: one line of `api_recovery.jsonl`."""

    timestamp: float
    session_id: str
    attempt: int
    prompt_hash: str
    """The key that it is asked for by: of a teacher's answer, the SHA-256 of the request."""
    cost: Decimal
    """US dollars, exact."""
    response: dict[str, Any]
    """As it came; empty where the body was no JSON object."""
    nonfinite: dict[str, str] | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    """The request in `api_requests.jsonl` that it settles; absent where the caller asked the teacher by itself."""
    request: dict[str, Any] | UnsetType = UNSET
    """What was asked: `base_url`, `body`, `sample`."""
    raw: str | UnsetType = UNSET
    """The body to the letter, where it was no JSON object."""
    problem: str | UnsetType = UNSET
    """Why it cannot be used; it is kept all the same, and not paid for again."""


class RequestEvent(Struct, frozen=True, kw_only=True, tag_field="event"):
    """What every line of `api_requests.jsonl` has."""

    timestamp: float
    """Seconds since 1970."""
    session_id: str
    attempt: int
    prompt_hash: str
    v: int = FORMAT_VERSION


class RequestSent(RequestEvent, frozen=True, kw_only=True, tag="request_sent"):
    """A request is about to be sent; on disk before its first byte leaves.

    Without an answer or one of the two lines below it is in doubt: perhaps it was paid for.
    """

    request_id: str
    model: str
    most: Decimal
    """The most that it can cost, in US dollars; 0 where no price is known."""


class RequestRefused(RequestEvent, frozen=True, kw_only=True, tag="request_refused"):
    """The teacher said no, or was never reached: nothing was paid."""

    request_id: str
    reason: str


class RequestLost(RequestEvent, frozen=True, kw_only=True, tag="request_lost"):
    """No answer came, and one may have been computed: in doubt."""

    request_id: str
    reason: str


class AnswerMarked(RequestEvent, frozen=True, kw_only=True, tag="answer_marked"):
    """A kept answer turned out to be of no use."""

    request_id: str = ""
    """The request that brought it; empty where the caller asked the teacher by itself."""
    problem: str
    cost: Decimal
    """What was paid for it, in US dollars."""


RequestLine = RequestSent | RequestRefused | RequestLost | AnswerMarked


class Spending(Struct, frozen=True, kw_only=True):
    """What was paid to teachers; sums are exact, in US dollars."""

    answers: int = 0
    """Paid for and kept."""
    answers_served: int = 0
    """Given from the store instead of being paid for again."""
    answers_bad: int = 0
    """Of those kept, the ones that cannot be used."""
    requests_in_doubt: int = 0
    """Perhaps paid for, and never received."""
    spent: Decimal = Decimal(0)
    saved: Decimal = Decimal(0)
    in_doubt: Decimal = Decimal(0)
    """The most that the requests in doubt can have cost."""
    wasted: Decimal = Decimal(0)
    """The part of `spent` that went into answers of no use."""
    reserved: Decimal = Decimal(0)
    """The most that the requests under way can cost."""
    spent_before: Decimal = Decimal(0)
    """By earlier sessions in the same folder, what they left in doubt included."""

    @property
    def committed(self) -> Decimal:
        """The most that has been spent once all that is under way is paid: what a budget is held against."""
        return self.spent_before + self.spent + self.in_doubt + self.reserved


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

    how: str
    """`completed`, `preempted`, `raised`, `replaced` (by a tracker of the same process) or `adopted` (untrained)."""
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
    """Questions that have an end, of the session's total steps."""


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

    kind: str
    """See `rules/alerts.py`."""
    message: str
    about_attempt: int
    """Of a crash, the attempt that is gone; the one that says so is another."""
    step: int
    """Optimizer steps done at that moment."""


class AlertCleared(EventRecord, frozen=True, kw_only=True, tag="alert_cleared"):
    """What an alert told of is over; the same kind may be raised again."""

    kind: str


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


class AttemptRecord(Struct, kw_only=True):
    """One process life, as far as the journals tell it."""

    attempt: int
    host: str = ""
    pid: int = 0
    git_commit: str | None = None
    start: float | None = None
    """Seconds since 1970; None where the journal does not tell."""
    last_seen: float = 0.0
    """When its newest line was written."""
    end: float | None = None
    how: str = "running"
    error: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    wall_clock_hours: float | None = None
    """The training hours at its newest update; before its first, those at its start."""
    alerted: tuple[str, ...] = ()
    """What of its end was told of in an alert: `crashed`, `raised`, `preempted` or `complete`."""


class PacePoint(Struct, frozen=True, gc=False, array_like=True):
    """How far the training had come at one moment of training time."""

    seconds: float
    """Spent between updates, over all attempts; no pause, no downtime, no start-up."""
    steps: int
    """Optimizer steps computed, those computed twice counted twice."""


class Goodput(Struct, kw_only=True):
    """Where the wall time went, in seconds."""

    productive: float = 0.0
    """In `session.json` with what stood between the steps, which the summary takes out."""
    recomputed: float = 0.0
    checkpointing: float = 0.0
    evaluating: float = 0.0
    paused: float = 0.0
    down: float = 0.0
    starting: float = 0.0
    """From the start of an attempt to its first step done."""


class Evaluation(Struct, frozen=True, kw_only=True):
    """What was measured on held-out data at one step."""

    step: int
    attempt: int
    timestamp: float
    """Seconds since 1970."""
    results: dict[str, float]
    """By name."""
    nonfinite: dict[str, str] | UnsetType = UNSET


class RaisedAlert(Struct, frozen=True, kw_only=True):
    """An alert of the past."""

    kind: str
    message: str
    timestamp: float
    """Seconds since 1970."""
    attempt: int
    """That it is about."""
    step: int


class OpenRequest(Struct, frozen=True, kw_only=True):
    """A request that was about to be sent and has no end yet."""

    attempt: int
    most: Decimal
    """US dollars."""


class TrainingSession(Struct, kw_only=True):
    """All that is known of a session; its fields are those of `session.json`."""

    session_id: str
    start_time: float
    """Seconds since 1970."""
    config: dict[str, Any]
    """Whole, without secrets."""
    config_hash: str
    """SHA-256 over canonical JSON."""
    total_steps_target: int
    total_steps_at_start: int = 0
    """What the target was when the session began."""
    steps_completed: int = 0
    samples_processed: int = 0
    tokens_processed: int = 0
    checkpoints: dict[int, CheckpointMetadata] = msgspec.field(default_factory=dict)
    """By step."""
    checkpoints_beside: list[CheckpointMetadata] = msgspec.field(default_factory=list)
    """Others recorded at a step that has a newer one, such as a periodic one beside the best."""
    checkpoints_superseded: list[int] = msgspec.field(default_factory=list)
    """Steps whose checkpoint belongs to a timeline that a later attempt left; offered only after all others."""
    checkpoints_set_aside: list[RefusedCheckpoint] = msgspec.field(default_factory=list)
    """Damaged ones that were moved out of the way."""
    checkpoints_removing: list[RemovedCheckpoint] = msgspec.field(default_factory=list)
    """Named by a removal and not deleted yet: where a kill cut that off, the next start finishes it."""
    lowest_loss_removed: float | None = None
    """Of the checkpoints that were removed: a later one is not the best for their absence."""
    last_checkpoint_step: int | None = None
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
    """The newest few: a checkpoint that is written behind the training may be recorded after a later one."""
    metrics_history: list[MetricsSnapshot] = msgspec.field(default_factory=list)
    """The last 1,000 of the canonical history."""
    moving_avg_loss: float | None = None
    """Exponential moving average over 100 finite losses."""
    api_responses_saved: int = 0
    api_responses_recovered: int = 0
    api_cost: Decimal = Decimal(0)
    """US dollars paid for the answers saved, those of no use included."""
    api_cost_before: Decimal = Decimal(0)
    """The same of earlier sessions in this folder, and what they left in doubt; a budget counts it."""
    api_cost_saved: Decimal = Decimal(0)
    """US dollars that answers served from the disk did not cost again."""
    api_cost_wasted: Decimal = Decimal(0)
    """US dollars paid for answers that cannot be used, or were damaged since."""
    api_responses_bad: int = 0
    """Answers that cannot be used."""
    api_responses_marked: list[str] = msgspec.field(default_factory=list)
    """Those that turned out so only when they were read: by the request that brought each, else by its key."""
    api_requests_in_doubt: int = 0
    """Requests that may have been paid for and brought no answer; `rules/spending.py` adds those still open."""
    api_cost_in_doubt: Decimal = Decimal(0)
    """The most that they can have cost, in US dollars."""
    api_requests_open: dict[str, OpenRequest] = msgspec.field(default_factory=dict)
    """Requests without an end, by their id; those of earlier attempts are in doubt."""
    pause_times: list[float] = msgspec.field(default_factory=list)
    """When each pause was recorded, in seconds since 1970."""
    total_pause_duration: float = 0.0
    """Seconds."""
    connection_retries: int = 0
    connection_failures: int = 0
    attempts: list[AttemptRecord] = msgspec.field(default_factory=list)
    highest_step: int = 0
    """The highest step ever computed, also by an attempt that was superseded."""
    steps_recomputed: int = 0
    wall_clock_hours: float = 0.0
    """Trained so far, without pauses and downtime."""
    goodput: Goodput = msgspec.field(default_factory=Goodput)
    busy_seconds: float = 0.0
    """Spent between updates: what pace is measured in."""
    steps_computed: int = 0
    """Optimizer steps in that time; those computed twice count twice."""
    pace: list[PacePoint] = msgspec.field(default_factory=list)
    replay_differed_at: int | None = None
    """The first recomputed step whose loss came out different, or None."""
    damage_found: int = 0
    """Broken pieces of journals set aside so far."""
    alerts_active: dict[str, float] = msgspec.field(default_factory=dict)
    """What was raised and is not over: since when, by kind."""
    alerts: list[RaisedAlert] = msgspec.field(default_factory=list)
    """The newest 100."""

    @property
    def is_job(self) -> bool:
        """Whether it asks a teacher and trains nothing: its steps are questions that have an end."""
        return self.config.get("job") == "generate"


class JournalMark(Struct, frozen=True, kw_only=True):
    """How much of a journal a snapshot has taken in."""

    num_bytes: int = 0
    num_lines: int = 0
    last_line_crc: str = ""
    """Of the line that ends there; tells whether the journal is still the same file."""


class SessionFile(TrainingSession, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`session.json`: the session and how much of the journals it has taken in."""

    saved_at: float
    journals: dict[str, JournalMark]


class Manifest(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`checkpoints.json`."""

    session_id: str
    checkpoints: dict[int, CheckpointMetadata]
    last_checkpoint_step: int | None
    saved_at: float


class ProgressFile(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """`progress.json` is this beside the fields of the summary."""

    saved_at: float
