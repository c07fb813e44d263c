"""Apply rare events to a session."""

from __future__ import annotations

import msgspec

from crashproof.records.bad_steps import BadStepRecord
from crashproof.records.events import (
    AlertCleared,
    AlertRaised,
    AnswersRecovered,
    AttemptEnded,
    AttemptStarted,
    BadStepFound,
    BadStepPassed,
    CheckpointFailed,
    CheckpointRecorded,
    CheckpointSuspected,
    ConfigContinued,
    ConnectionFailed,
    DamageFound,
    DataLeftOut,
    EvaluationRecorded,
    Event,
    JobAdvanced,
    Paused,
    ProcessEnded,
    RankTimesMeasured,
    ReplayDiffered,
    SessionStarted,
    SpendingReported,
    TargetChanged,
)
from crashproof.records.requests import Spending
from crashproof.records.session import AttemptRecord, FailedSaves, PacePoint, RaisedAlert, TrainingSession
from crashproof.records.states import AttemptState, BadStepAction
from crashproof.rules.alerts import CONDITIONS
from crashproof.rules.bad_steps.left_out import joined
from crashproof.rules.checkpoint_catalog import CheckpointCatalog, CheckpointEvent
from crashproof.rules.history import evaluation_of
from crashproof.rules.pace import add_pace_point, is_pace_point_due
from crashproof.rules.session.attempts import attempt_of
from crashproof.rules.session.supervision import apply_end

__all__ = ["apply_event", "begin_session"]

_NUM_EVALUATIONS = 8
_NUM_ALERTS = 100
_NUM_BAD_STEPS = 100
_SECONDS_AN_HOUR = 3600.0


def begin_session(record: SessionStarted) -> TrainingSession:
    """A session that has just begun."""
    return TrainingSession(
        session_id=record.session_id,
        start_time=record.timestamp,
        config=record.config,
        config_hash=record.config_hash,
        kind=record.kind,
        total_steps_target=record.total_steps,
        total_steps_at_start=record.total_steps,
        api_cost_before=record.api_cost_before,
    )


def apply_event(session: TrainingSession, event: Event) -> None:
    """Apply one event."""
    if isinstance(event, SessionStarted):
        _apply_beginning(session, event)
        return
    if isinstance(event, AlertRaised | AlertCleared):
        # No sign of life: a stall is raised while nothing moves, and a crash by another process.
        _apply_alert(session, event)
        return
    if isinstance(event, ProcessEnded):
        # No sign of life either: another process records it.
        apply_end(session, event)
        return
    if isinstance(event, CheckpointSuspected):
        CheckpointCatalog(session).apply(event)
        return
    attempt = attempt_of(session, event.attempt)
    attempt.last_seen = max(attempt.last_seen, event.timestamp)
    match event:
        case AttemptStarted():
            _begin_attempt(session, attempt, event)
            # Another attempt may have other ranks.
            session.rank_times = None
        case AttemptEnded():
            attempt.end, attempt.how, attempt.error = event.timestamp, event.how, event.error
            attempt.boot_seconds_at_end = event.since_boot if isinstance(event.since_boot, float) else None
            session.wall_clock_hours = max(session.wall_clock_hours, event.wall_clock_hours)
        case TargetChanged():
            session.total_steps_target = event.total_steps
        case ConfigContinued():
            session.config, session.config_hash = event.config, event.config_hash
        case CheckpointFailed():
            _apply_failed_save(session, event)
        case EvaluationRecorded():
            _apply_evaluation(session, event)
        case ConnectionFailed():
            session.connection_failures += 1
            session.connection_retries += event.retry_count
        case Paused():
            session.pause_times.append(event.timestamp)
            session.total_pause_duration += event.seconds
            session.goodput.paused += event.seconds
            attempt.paused_seconds += event.seconds
        case AnswersRecovered():
            session.api_responses_recovered += event.count
            session.api_cost_saved += event.cost
        case JobAdvanced():
            _apply_job_progress(session, attempt, event)
        case SpendingReported():
            _apply_spending(session, event.spending)
        case RankTimesMeasured():
            session.rank_times = event.times
        case ReplayDiffered():
            if session.replay_differed_at is None:
                session.replay_differed_at = event.step
        case BadStepFound():
            _apply_bad_step(session, event)
        case BadStepPassed():
            _apply_passed_step(session, event)
        case DataLeftOut():
            session.data_left_out = joined([*session.data_left_out, *event.data])
        case DamageFound():
            session.damage_found += 1
            session.api_cost_wasted += event.cost or 0
        case _ if isinstance(event, CheckpointEvent):  # pragma: no branch - there is no other.
            CheckpointCatalog(session).apply(event)
            if isinstance(event, CheckpointRecorded):
                session.goodput.checkpointing += event.seconds
                session.failed_saves = FailedSaves(total=session.failed_saves.total)


def _begin_attempt(session: TrainingSession, attempt: AttemptRecord, event: AttemptStarted) -> None:
    attempt.host, attempt.pid, attempt.git_commit = event.host, event.pid, event.git_commit
    attempt.start, attempt.hours_at_start = event.timestamp, event.wall_clock_hours
    if isinstance(event.boot_id, str) and isinstance(event.since_boot, float):
        attempt.boot_id, attempt.boot_seconds_at_start = event.boot_id, event.since_boot
    if attempt.wall_clock_hours is None:
        attempt.wall_clock_hours = event.wall_clock_hours
    for earlier in session.attempts:
        # An orderly end is journalled before the next attempt can begin.
        if earlier.attempt < attempt.attempt and earlier.end is None:
            earlier.how = AttemptState.CRASHED


def _apply_beginning(session: TrainingSession, event: SessionStarted) -> None:
    """Complete a session that was adopted and had no config; of any other, the beginning is known already."""
    if session.config_hash or not event.config_hash:
        return
    session.session_id, session.start_time = event.session_id, event.timestamp
    session.config, session.config_hash, session.kind = event.config, event.config_hash, event.kind
    session.total_steps_target = session.total_steps_at_start = event.total_steps
    session.api_cost_before = event.api_cost_before


def _apply_evaluation(session: TrainingSession, event: EvaluationRecorded) -> None:
    session.goodput.evaluating += event.seconds
    evaluation = evaluation_of(event)
    session.evaluations.append(evaluation)
    del session.evaluations[:-_NUM_EVALUATIONS]
    CheckpointCatalog(session).apply_evaluation(evaluation)


def _apply_failed_save(session: TrainingSession, event: CheckpointFailed) -> None:
    known = session.failed_saves
    session.failed_saves = FailedSaves(
        in_a_row=known.in_a_row + 1,
        total=known.total + 1,
        step=event.step,
        timestamp=event.timestamp,
        error=event.error,
    )


def _apply_bad_step(session: TrainingSession, event: BadStepFound) -> None:
    session.bad_steps.append(
        BadStepRecord(
            step=event.step,
            cause=event.cause,
            loss=event.loss,
            usual=event.usual,
            limit=event.limit,
            num_losses=event.num_losses,
            data=event.data,
            action=event.action,
            attempt=event.attempt,
            timestamp=event.timestamp,
        )
    )
    del session.bad_steps[:-_NUM_BAD_STEPS]
    session.bad_steps_found += 1
    session.rollbacks += event.action in (BadStepAction.ROLLED_BACK, BadStepAction.SKIPPED_DATA)


def _apply_passed_step(session: TrainingSession, event: BadStepPassed) -> None:
    """Mark the newest record of the step as a passing fault."""
    places = [place for place, each in enumerate(session.bad_steps) if each.step == event.step]
    if places:
        session.bad_steps[places[-1]] = msgspec.structs.replace(session.bad_steps[places[-1]], is_transient=True)


def _apply_job_progress(session: TrainingSession, attempt: AttemptRecord, event: JobAdvanced) -> None:
    """Count the requests completed; only new ones count towards the pace, as stored answers take no time."""
    if isinstance(event.wall_clock_hours, float):
        seconds = _SECONDS_AN_HOUR * event.wall_clock_hours
        attempt.wall_clock_hours = event.wall_clock_hours
    else:
        seconds = _SECONDS_AN_HOUR * (attempt.wall_clock_hours or 0.0)
        seconds += max(0.0, event.timestamp - (attempt.start or event.timestamp))
    session.steps_completed = event.done
    session.steps_computed += max(0, event.done - session.highest_step)
    session.highest_step = max(session.highest_step, event.done)
    session.busy_seconds = max(session.busy_seconds, seconds)
    session.wall_clock_hours = max(session.wall_clock_hours, session.busy_seconds / _SECONDS_AN_HOUR)
    if is_pace_point_due(session.pace, session.busy_seconds):
        add_pace_point(session.pace, PacePoint(session.busy_seconds, session.steps_computed))


def _apply_spending(session: TrainingSession, reported: Spending) -> None:
    """Replace the totals: a shared store counts by itself, and its newest report is complete."""
    session.api_responses_saved = reported.answers
    session.api_responses_recovered = reported.answers_served
    session.api_responses_bad = reported.answers_bad
    session.api_requests_in_doubt = reported.requests_in_doubt
    session.api_cost, session.api_cost_saved = reported.spent, reported.saved
    session.api_cost_in_doubt, session.api_cost_wasted = reported.in_doubt, reported.wasted


def _apply_alert(session: TrainingSession, event: AlertRaised | AlertCleared) -> None:
    if isinstance(event, AlertCleared):
        session.alerts_active.pop(event.kind, None)
        return
    if event.kind in CONDITIONS:
        session.alerts_active[event.kind] = event.timestamp
    else:
        attempt = attempt_of(session, event.about_attempt)
        attempt.alerted = (*attempt.alerted, event.kind)
    session.alerts.append(
        RaisedAlert(
            kind=event.kind,
            message=event.message,
            timestamp=event.timestamp,
            attempt=event.about_attempt,
            step=event.step,
        )
    )
    del session.alerts[:-_NUM_ALERTS]
