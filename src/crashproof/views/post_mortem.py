"""The post-mortem of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from crashproof.checkpoints.select import choose_for
from crashproof.checkpoints.verify import problem_with
from crashproof.errors import NoUsableCheckpoint
from crashproof.formatting import ago, as_bytes
from crashproof.reading.run_reader import RunReader
from crashproof.records.events import Event
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.progress import ProgressSummary
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import AttemptState, HealthState, LossVerdict, RunStatus
from crashproof.rules.bad_steps.finding import record_in_words
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.saves.failures import words_on_session
from crashproof.rules.supervision.words import supervision_in_words
from crashproof.views.notebook import marked_curve

__all__ = ["ExaminedCheckpoint", "PostMortem", "Surroundings", "examine"]

_LAST_UPDATES = 20
_LAST_EVENTS = 40
_LOW_DISK_BYTES = 1 << 30
_ROUTINE_EVENTS = frozenset(
    {"checkpoint_hashed", "checkpoint_recorded", "evaluation_recorded", "job_advanced", "rank_times"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Facts about the machine that the run does not record."""

    host: str
    free_bytes: int | None
    """On the disk that holds the run."""
    disk_bytes: int | None
    log_name: str | None
    """Name of the file that the tail was read from."""
    log_tail: Sequence[str] = ()
    """Without secrets."""
    kernel_lines: Sequence[str] | None = None
    """The kernel's messages about processes killed for lack of memory (OOM); None if it may not be read."""
    facts: Mapping[str, str] = field(default_factory=dict)


class ExaminedCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint whose bytes were verified."""

    step: int
    path: str
    num_bytes: int | None
    problem: str | None
    """None: intact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostMortem:
    """Everything known about how a run ended."""

    name: str
    examined_at: float
    """Seconds since 1970."""
    state: HealthState
    sentence: str
    """What ended the run, according to the records."""
    clues: Sequence[str]
    next_step: str
    summary: ProgressSummary
    last_updates: Sequence[MetricsSnapshot]
    attempts: Sequence[AttemptRecord]
    events: Sequence[Event]
    """The rare ones of the newest attempt, newest first."""
    checkpoints: Sequence[ExaminedCheckpoint]
    damage: Sequence[str]
    config: dict[str, Any]
    surroundings: Surroundings
    curve: str
    """SVG; empty if no loss was reported."""

    def as_object(self) -> dict[str, Any]:
        """Return the same as JSON values, without the curve."""
        fields: dict[str, Any] = msgspec.to_builtins(
            {
                "run": self.name,
                "examined_at": self.examined_at,
                "state": self.state,
                "sentence": self.sentence,
                "clues": self.clues,
                "next_step": self.next_step,
                "summary": self.summary,
                "last_updates": self.last_updates,
                "attempts": self.attempts,
                "events": self.events,
                "checkpoints": self.checkpoints,
                "damage": self.damage,
                "config": self.config,
                "host": self.surroundings.host,
                "free_bytes": self.surroundings.free_bytes,
                "log": self.surroundings.log_name,
                "log_tail": self.surroundings.log_tail,
                "kernel_lines": self.surroundings.kernel_lines,
            }
        )
        return fields


def examine(reader: RunReader, surroundings: Surroundings, *, name: str, now: float) -> PostMortem:
    """Examine a run's records, and verify every byte of its checkpoints.

    Raises:
        NotARun: no session has begun.
        NewerFormat: a newer version wrote the run.
    """
    session = reader.session()
    summary = reader.progress(now=now)
    damage = reader.problems()
    newest = session.attempts[-1] if session.attempts else None
    return PostMortem(
        name=name,
        examined_at=now,
        state=summary.health,
        sentence=_sentence(summary, newest, now),
        clues=_clues(summary, session, surroundings, damage),
        next_step=_next_step(summary, session, reader),
        summary=summary,
        last_updates=session.metrics_history[-_LAST_UPDATES:],
        attempts=session.attempts,
        events=_rare_events(reader, newest),
        checkpoints=_verify_checkpoints(session, reader),
        damage=damage,
        config=session.config,
        surroundings=surroundings,
        curve=marked_curve(reader),
    )


def _sentence(summary: ProgressSummary, attempt: AttemptRecord | None, now: float) -> str:
    if attempt is None:
        return "No process has started the run yet."
    who = f"Process {attempt.pid} on {attempt.host or 'an unknown host'} (attempt {attempt.attempt})"
    step = summary.place
    seen = ago(attempt.end or attempt.last_seen or None, now)
    match summary.health:
        case HealthState.CRASHED:
            return (
                f"{who} exited without recording a shutdown: it was killed, or its machine went down. It was last "
                f"seen {seen}, at {step}."
            )
        case HealthState.RAISED:
            return f"{who} ended with an exception at {step}, {seen}: {attempt.error or 'no message was recorded'}"
        case HealthState.PREEMPTED:
            return f"{who} was asked to stop, saved, and ended at {step}, {seen}."
        case HealthState.COMPLETE:
            return f"{who} completed all {'requests' if summary.is_job else 'steps'} {seen}."
        case HealthState.ENDED_EARLY:
            why = f": {attempt.error}" if attempt.error else "."
            return f"{who} closed the run before its end, at {step}, {seen}{why}"
        case HealthState.REPLACED:
            return f"{who} handed the run to another tracker of the same process at {step}, and that process is gone."
        case state:
            reason = f": {summary.health_reason}" if summary.health_reason else ""
            return f"The run is still active. {who} is at {step} ({state.replace('_', ' ')}{reason})."


def _clues(
    summary: ProgressSummary, session: TrainingSession, surroundings: Surroundings, damage: Sequence[str]
) -> list[str]:
    clues = []
    trend = summary.loss_trend
    if surroundings.kernel_lines:
        clues.append("The kernel has killed processes for lack of memory (OOM); its messages are below.")
    if surroundings.free_bytes is not None and surroundings.free_bytes < _LOW_DISK_BYTES:
        clues.append(f"The disk is nearly full: {as_bytes(surroundings.free_bytes)} free.")
    if trend.num_non_finite:
        clues.append(f"{trend.num_non_finite} of the last {trend.window_size} losses are non-finite.")
    if trend.verdict in (LossVerdict.DIVERGING, LossVerdict.UNSTABLE):
        clues.append(f"The loss was {trend.verdict} before the end: it {trend.evidence}.")
    if session.bad_steps:
        clues.append(f"Bad step: {record_in_words(session.bad_steps[-1])}.")
    if session.failed_saves.in_a_row:
        clues.append(f"{words_on_session(session)}.")
    if summary.replay_differed_at is not None:
        clues.append(f"Step {summary.replay_differed_at:,} had a different loss when it was recomputed.")
    if damage:
        clues.append(f"The journals have {len(damage)} damaged record(s); `crashproof repair` quarantines them.")
    if session.connection_failures:
        clues.append(f"{session.connection_failures:,} requests to a teacher failed.")
    clues += [f"Supervised: {line}." for line in supervision_in_words(session.supervision)]
    crashed = [each.attempt for each in session.attempts if each.how == AttemptState.CRASHED]
    if len(crashed) > 1:
        clues.append(f"{len(crashed)} attempts exited without recording a shutdown: {', '.join(map(str, crashed))}.")
    return clues


def _next_step(summary: ProgressSummary, session: TrainingSession, reader: RunReader) -> str:
    if summary.health == HealthState.COMPLETE:
        return "Nothing needs to be done."
    if summary.status == RunStatus.RUNNING:
        return "Let it run, or have it save and exit: crashproof stop DIR."
    if session.is_job:
        return "Start the same command again: it requests the answers that are missing."
    try:
        choice = choose_for(session, reader.folder, trusts_record=True)
    except NoUsableCheckpoint as error:
        return f"A restart would stop with an error. {error}"
    if choice is None:
        return "Start the same command again: it begins at step 0, as no checkpoint was recorded."
    step = choice.checkpoint.checkpoint_step
    has_trained = bool(session.metrics_history)
    num_recomputed = max(0, has_trained * (summary.steps_completed + 1 - choice.checkpoint.next_step))
    skipped = f" It skips {len(choice.refused)} newer checkpoint(s) that cannot be used." if choice.refused else ""
    return (
        f"Start the same command again: it resumes at step {step:,} from {choice.checkpoint.checkpoint_path}, and "
        f"recomputes {num_recomputed:,} steps.{skipped}"
    )


def _rare_events(reader: RunReader, newest: AttemptRecord | None) -> list[Event]:
    number = newest.attempt if newest else None
    rare = [
        each
        for each in reader.events()
        if each.attempt == number and str(each.__struct_config__.tag) not in _ROUTINE_EVENTS
    ]
    return rare[-_LAST_EVENTS:][::-1]


def _verify_checkpoints(session: TrainingSession, reader: RunReader) -> list[ExaminedCheckpoint]:
    return [
        ExaminedCheckpoint(
            step=each.checkpoint_step,
            path=each.checkpoint_path,
            num_bytes=each.num_bytes,
            problem=problem_with(each, reader.folder),
        )
        for each in CheckpointCatalog(session).all()
    ]
