"""The state of a session."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from crashproof.records.bad_steps import BadStepRecord, DataWindow
from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint, RemovedCheckpoint, SuspectCheckpoint
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.rank_times import RankTimes
from crashproof.records.requests import OpenRequest
from crashproof.records.states import AlertKind, AttemptState, SessionKind
from crashproof.records.supervision import Supervision

__all__ = [
    "UNKNOWN_SESSION",
    "AttemptRecord",
    "Evaluation",
    "FailedSaves",
    "Goodput",
    "LossBucket",
    "PacePoint",
    "RaisedAlert",
    "Timeline",
    "TrainingSession",
]

UNKNOWN_SESSION = "training_unknown"
"""The name of a session whose beginning can no longer be read."""


class AttemptRecord(Struct, kw_only=True):
    """One process life, as far as the journals record it."""

    attempt: int
    host: str = ""
    pid: int = 0
    git_commit: str | None = None
    start: float | None = None
    """Seconds since 1970; None if the journal does not have it."""
    last_seen: float = 0.0
    """When its newest line was written."""
    end: float | None = None
    how: AttemptState = AttemptState.RUNNING
    error: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    rewinds: int = 0
    """How often it has gone back to an earlier step."""
    wall_clock_hours: float | None = None
    """The training hours at its newest update; before its first, those at its start."""
    hours_at_start: float | None = None
    """The training hours of the attempts before it."""
    paused_seconds: float = 0.0
    """How long it was paused or stood still."""
    hung_seconds: float = 0.0
    """From its last progress to its end, if its supervisor ended it because it hung."""
    boot_id: str = ""
    """The boot of the machine that it ran on; empty if unknown."""
    boot_seconds_at_start: float | None = None
    """Seconds since that boot at its start, by a clock that nobody sets."""
    boot_seconds_at_end: float | None = None
    """Likewise at its orderly end."""
    alerted: tuple[AlertKind, ...] = ()
    """Alerts already raised about its end: `crashed`, `raised`, `preempted` or `complete`."""


class PacePoint(Struct, frozen=True, gc=False, array_like=True):
    """The number of steps computed at one moment of training time."""

    seconds: float
    """Time between updates, over all attempts; without pauses, downtime and startup."""
    steps: int
    """Optimizer steps computed; a recomputed step counts again."""


class LossBucket(Struct, frozen=True, gc=False, array_like=True):
    """The losses of consecutive updates, by numbers that one spike does not change."""

    last_step: int
    num_updates: int
    """64 times a power of two."""
    num_finite: int
    level: float | None
    """The mean of the medians of each 64 losses; None if none is finite."""
    low: float
    """The lowest of these medians."""
    high: float
    noise: float
    """The standard deviation of the noise, by the median second difference."""
    tail: float
    """Likewise by the ninth decile, which frequent spikes change."""


class Timeline(Struct, frozen=True, gc=False, array_like=True):
    """A stretch of training that only goes forward; going back begins another one."""

    attempt: int
    rewinds: int
    """How often the attempt had gone back before it."""
    first_step: int
    """The step of its first update."""


class Goodput(Struct, kw_only=True):
    """Where the wall time went, in seconds."""

    productive: float = 0.0
    """In `session.json`, checkpoints and evaluations between the steps are included; the summary subtracts them."""
    recomputed: float = 0.0
    checkpointing: float = 0.0
    evaluating: float = 0.0
    paused: float = 0.0
    hung: float = 0.0
    down: float = 0.0
    starting: float = 0.0
    """From the start of an attempt to its first completed step."""


class Evaluation(Struct, frozen=True, kw_only=True):
    """Results on held-out data at one step."""

    step: int
    attempt: int
    timestamp: float
    """Seconds since 1970."""
    results: dict[str, float]
    """By name."""
    nonfinite: dict[str, str] | UnsetType = UNSET
    rewinds: int = 0
    """How often its attempt had gone back to an earlier step before."""


class FailedSaves(Struct, frozen=True, kw_only=True):
    """The saves that have failed since the newest checkpoint was acknowledged."""

    in_a_row: int = 0
    """At different steps, over all attempts."""
    total: int = 0
    """Since the session began, those before the newest checkpoint included."""
    step: int | None = None
    """Of the newest one; None, like the two others, if none has failed since that checkpoint."""
    timestamp: float | None = None
    """Seconds since 1970."""
    error: str | None = None


class RaisedAlert(Struct, frozen=True, kw_only=True):
    """An alert that was raised."""

    kind: AlertKind
    message: str
    timestamp: float
    """Seconds since 1970."""
    attempt: int
    """The attempt that it is about."""
    step: int


class TrainingSession(Struct, kw_only=True):
    """The state of a session; its fields are those of `session.json`."""

    session_id: str
    start_time: float
    """Seconds since 1970."""
    config: dict[str, Any]
    """The full config, without secrets."""
    config_hash: str
    """SHA-256 over canonical JSON."""
    kind: SessionKind = SessionKind.TRAINING
    """What its steps are."""
    total_steps_target: int
    total_steps_at_start: int = 0
    """The target when the session began."""
    steps_completed: int = 0
    samples_processed: int = 0
    tokens_processed: int = 0
    checkpoints: dict[int, CheckpointMetadata] = msgspec.field(default_factory=dict)
    """By step."""
    checkpoints_beside: list[CheckpointMetadata] = msgspec.field(default_factory=list)
    """Older ones at a step that has a newer one, such as a periodic one beside the best."""
    checkpoints_overwritten: list[CheckpointMetadata] = msgspec.field(default_factory=list)
    """Records whose file a newer record has taken, the newest two of each path; their bytes may be kept."""
    timelines: list[Timeline] = msgspec.field(default_factory=list)
    """Those that abandon checkpoints of older ones, each beginning at a later step than the one before it."""
    checkpoints_superseded: list[int] = msgspec.field(default_factory=list)
    """Steps whose checkpoint a later attempt has superseded; offered only after all others."""
    checkpoints_set_aside: list[RefusedCheckpoint] = msgspec.field(default_factory=list)
    """Damaged ones, quarantined."""
    checkpoints_suspect: list[SuspectCheckpoint] = msgspec.field(default_factory=list)
    """Those from which resumes died without progress; offered only after all others."""
    checkpoints_removing: list[RemovedCheckpoint] = msgspec.field(default_factory=list)
    """Removed but not deleted yet; if a kill interrupted the deletion, the next start finishes it."""
    lowest_loss_removed: float | None = None
    """The lowest loss of the removed checkpoints: a later one is only the best if it is below that as well."""
    last_checkpoint_step: int | None = None
    failed_saves: FailedSaves = msgspec.field(default_factory=FailedSaves)
    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
    """The newest few: an asynchronous save may be recorded after the evaluation of a later step."""
    metrics_history: list[MetricsSnapshot] = msgspec.field(default_factory=list)
    """The last 1,000 updates of the canonical history."""
    moving_avg_loss: float | None = None
    """Exponential moving average over 100 finite losses."""
    moving_avg_loss_before: float | None = None
    """The same without the newest update, to which another part may come."""
    parts_merged: int = 0
    """Reports of a step that the same attempt had just reported: each is a part of that step's update."""
    loss_buckets: list[LossBucket] = msgspec.field(default_factory=list)
    """The losses of the canonical history, the older the coarser: at most 32 buckets of each size."""
    loss_updates_open: int = 0
    """The newest updates, which are in no bucket yet."""
    api_responses_saved: int = 0
    api_responses_recovered: int = 0
    api_cost: Decimal = Decimal(0)
    """US dollars paid for the answers saved, including unusable ones."""
    api_cost_before: Decimal = Decimal(0)
    """US dollars that earlier sessions in this folder paid or left in doubt; a budget counts them."""
    api_cost_saved: Decimal = Decimal(0)
    """US dollars that answers served from the store did not cost again."""
    api_cost_wasted: Decimal = Decimal(0)
    """US dollars paid for answers that are unusable or have been damaged since."""
    api_responses_bad: int = 0
    """Unusable answers."""
    api_responses_marked: list[str] = msgspec.field(default_factory=list)
    """Answers found unusable only when they were read: by the id of the request, else by the key."""
    api_requests_in_doubt: int = 0
    """Requests that may have been paid for but got no answer; `rules/spending.py` adds those still open."""
    api_cost_in_doubt: Decimal = Decimal(0)
    """The most that they can have cost, in US dollars."""
    api_requests_open: dict[str, OpenRequest] = msgspec.field(default_factory=dict)
    """Requests without an outcome, by their id; those of earlier attempts are in doubt."""
    pause_times: list[float] = msgspec.field(default_factory=list)
    """When each pause was recorded, in seconds since 1970."""
    total_pause_duration: float = 0.0
    """Seconds."""
    connection_retries: int = 0
    connection_failures: int = 0
    attempts: list[AttemptRecord] = msgspec.field(default_factory=list)
    highest_step: int = 0
    """The highest step ever computed, including superseded ones."""
    steps_recomputed: int = 0
    wall_clock_hours: float = 0.0
    """Training time so far, without pauses and downtime."""
    goodput: Goodput = msgspec.field(default_factory=Goodput)
    busy_seconds: float = 0.0
    """Time between updates; the pace is measured in it."""
    steps_computed: int = 0
    """Optimizer steps in that time; a recomputed step counts again."""
    pace: list[PacePoint] = msgspec.field(default_factory=list)
    rank_times: RankTimes | None = None
    """The newest comparison of the newest attempt; None where there is none, or one rank alone."""
    replay_differed_at: int | None = None
    """The first recomputed step whose loss differs, or None."""
    bad_steps: list[BadStepRecord] = msgspec.field(default_factory=list)
    """The newest 100."""
    bad_steps_found: int = 0
    """All of them; one that is bad again when it is computed again counts again."""
    rollbacks: int = 0
    """How often training went back to a checkpoint for a bad step."""
    data_left_out: list[DataWindow] = msgspec.field(default_factory=list)
    """The samples that the run leaves out, in order."""
    damage_found: int = 0
    """Damaged parts of journals quarantined so far."""
    supervision: Supervision = msgspec.field(default_factory=Supervision)
    """What its supervisors have recorded."""
    alerts_active: dict[AlertKind, float] = msgspec.field(default_factory=dict)
    """When each condition that is not over yet was raised, by kind."""
    alerts: list[RaisedAlert] = msgspec.field(default_factory=list)
    """The newest 100."""

    @property
    def steps_done(self) -> int:
        """Optimizer steps done: in a loop that counts from 0, one more than the number of its newest step."""
        return self.steps_completed + any(each.first_step == 0 for each in self.attempts)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.steps_done >= self.total_steps_target

    @property
    def is_job(self) -> bool:
        """Whether it is a generation job, whose steps are completed requests."""
        return self.kind == SessionKind.GENERATION
