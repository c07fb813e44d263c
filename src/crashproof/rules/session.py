"""A session, as its journals tell it.

Starting and recovering are the same: these functions take one record after the other into a session, whether it
was written this instant or read back after a crash. Records of different journals may arrive in any order among
each other, so that each journal can be read on its own; only an answer comes after the request that it settles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from crashproof.records.checkpoints import CheckpointMetadata, RefusedCheckpoint
from crashproof.records.codec import nonfinite_names
from crashproof.records.events import (
    AlertCleared,
    AlertRaised,
    AnswersRecovered,
    AttemptEnded,
    AttemptStarted,
    CheckpointHashed,
    CheckpointRecorded,
    CheckpointRemoved,
    CheckpointsDeleted,
    CheckpointSetAside,
    ConfigContinued,
    ConnectionFailed,
    DamageFound,
    EvaluationRecorded,
    Event,
    JobAdvanced,
    Paused,
    ReplayDiffered,
    SessionStarted,
    SpendingReported,
    TargetChanged,
)
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.requests import (
    AnswerRecord,
    OpenRequest,
    RequestLine,
    RequestLost,
    RequestRefused,
    RequestSent,
    Spending,
)
from crashproof.records.session import AttemptRecord, Evaluation, PacePoint, RaisedAlert, TrainingSession
from crashproof.records.states import AttemptState
from crashproof.rules.alerts import CONDITIONS
from crashproof.rules.history import superseded_from
from crashproof.rules.pace import add_pace_point, is_pace_point_due
from crashproof.rules.trends import moved_average

__all__ = [
    "HISTORY_LENGTH",
    "begin_session",
    "take_answer",
    "take_event",
    "take_metrics",
    "take_request",
    "update_at",
    "with_evaluation",
]

HISTORY_LENGTH = 1000
_NUM_EVALUATIONS = 8
_NUM_ALERTS = 100
_SECONDS_AN_HOUR = 3600.0


def begin_session(record: SessionStarted) -> TrainingSession:
    """A session of which nothing but its beginning is known."""
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


def take_metrics(session: TrainingSession, line: MetricsSnapshot) -> None:
    """Take in one update; a step already passed supersedes what is at or beyond it."""
    attempt = _attempt(session, line.attempt)
    seconds = _seconds_since_last_update(attempt, line)
    if line.step <= session.steps_completed:
        _go_back(session, line)
    steps = line.step - session.steps_completed
    _count_time(session, attempt, line, seconds, steps)
    session.steps_completed = line.step
    session.samples_processed = line.samples_processed
    session.tokens_processed = line.tokens_processed
    session.moving_avg_loss = moved_average(session.moving_avg_loss, line.loss)
    if line.wall_clock_hours > session.wall_clock_hours:
        session.wall_clock_hours = line.wall_clock_hours
    history = session.metrics_history
    history.append(line)
    if len(history) > HISTORY_LENGTH:
        del history[0]
    attempt.last_step = line.step
    if line.timestamp > attempt.last_seen:
        attempt.last_seen = line.timestamp
    attempt.wall_clock_hours = line.wall_clock_hours


def take_answer(session: TrainingSession, record: AnswerRecord) -> None:
    """Take in one paid answer of this session."""
    session.api_responses_saved += 1
    session.api_cost += record.cost
    if isinstance(record.problem, str):
        session.api_responses_bad += 1
        session.api_cost_wasted += record.cost
    if isinstance(record.request_id, str):
        session.api_requests_open.pop(record.request_id, None)
    attempt = _attempt(session, record.attempt)
    attempt.last_seen = max(attempt.last_seen, record.timestamp)


def take_request(session: TrainingSession, line: RequestLine) -> None:
    """Take in how a request to a teacher of this session began or ended without an answer."""
    match line:
        case RequestSent():
            session.api_requests_open[line.request_id] = OpenRequest(attempt=line.attempt, most=line.most)
        case RequestRefused():
            session.api_requests_open.pop(line.request_id, None)
        case RequestLost():
            lost = session.api_requests_open.pop(line.request_id, None)
            session.api_requests_in_doubt += 1
            session.api_cost_in_doubt += lost.most if lost is not None else 0
        case _:  # AnswerMarked
            session.api_responses_marked.append(line.request_id or line.prompt_hash)
            session.api_responses_bad += 1
            session.api_cost_wasted += line.cost
    attempt = _attempt(session, line.attempt)
    attempt.last_seen = max(attempt.last_seen, line.timestamp)


def take_event(session: TrainingSession, event: Event) -> None:
    """Take in one rare event."""
    if isinstance(event, SessionStarted):
        _take_beginning(session, event)
        return
    if isinstance(event, AlertRaised | AlertCleared):
        # No sign of life: a stall is raised while nothing moves, and a crash by somebody else.
        _take_alert(session, event)
        return
    attempt = _attempt(session, event.attempt)
    attempt.last_seen = max(attempt.last_seen, event.timestamp)
    match event:
        case AttemptStarted():
            _begin_attempt(session, attempt, event)
        case AttemptEnded():
            attempt.end, attempt.how, attempt.error = event.timestamp, event.how, event.error
            session.wall_clock_hours = max(session.wall_clock_hours, event.wall_clock_hours)
        case TargetChanged():
            session.total_steps_target = event.total_steps
        case ConfigContinued():
            session.config, session.config_hash = event.config, event.config_hash
        case CheckpointRecorded() | CheckpointHashed() | CheckpointSetAside():
            _take_checkpoint_event(session, event)
        case CheckpointRemoved():
            _take_removal(session, event)
        case CheckpointsDeleted():
            session.checkpoints_removing = event.left
        case EvaluationRecorded():
            _take_evaluation(session, event)
        case ConnectionFailed():
            session.connection_failures += 1
            session.connection_retries += event.retry_count
        case Paused():
            session.pause_times.append(event.timestamp)
            session.total_pause_duration += event.seconds
            session.goodput.paused += event.seconds
        case AnswersRecovered():
            session.api_responses_recovered += event.count
            session.api_cost_saved += event.cost
        case JobAdvanced():
            _take_job_progress(session, attempt, event)
        case SpendingReported():
            _take_spending(session, event.spending)
        case ReplayDiffered():
            if session.replay_differed_at is None:
                session.replay_differed_at = event.step
        case DamageFound():
            session.damage_found += 1
            session.api_cost_wasted += event.cost or 0
        # `ResumeChosen` is for the reader of the events; it counts nothing.


def update_at(session: TrainingSession, step: int) -> MetricsSnapshot | None:
    """The update of a step, or the newest one before it; None where the history does not reach back to it."""
    # From the end: a checkpoint is recorded at the newest step, or a few behind it.
    return next((line for line in reversed(session.metrics_history) if line.step <= step), None)


def with_evaluation(checkpoint: CheckpointMetadata, evaluations: Iterable[Evaluation]) -> CheckpointMetadata:
    """The checkpoint with what its own attempt has measured at its step, where it has."""
    for evaluation in evaluations:
        if (evaluation.step, evaluation.attempt) == (checkpoint.checkpoint_step, checkpoint.attempt):
            names = nonfinite_names({"evaluation": evaluation.results})
            checkpoint = msgspec.structs.replace(
                checkpoint, evaluation=evaluation.results, nonfinite=names or msgspec.UNSET
            )
    return checkpoint


def _attempt(session: TrainingSession, number: int) -> AttemptRecord:
    """The attempt's record; made here where its start was never journalled or is yet to be read."""
    attempts = session.attempts
    if attempts and attempts[-1].attempt == number:
        return attempts[-1]
    for attempt in reversed(attempts):
        if attempt.attempt == number:
            return attempt
    attempt = AttemptRecord(attempt=number)
    attempts.append(attempt)
    attempts.sort(key=lambda each: each.attempt)
    return attempt


def _begin_attempt(session: TrainingSession, attempt: AttemptRecord, event: AttemptStarted) -> None:
    attempt.host, attempt.pid, attempt.git_commit = event.host, event.pid, event.git_commit
    attempt.start = event.timestamp
    if attempt.wall_clock_hours is None:
        attempt.wall_clock_hours = event.wall_clock_hours
    for earlier in session.attempts:
        # Whoever ends in good order says so; a successor means that this one did not.
        if earlier.attempt < attempt.attempt and earlier.end is None:
            earlier.how = AttemptState.CRASHED


def _take_beginning(session: TrainingSession, event: SessionStarted) -> None:
    """How the session came to be is known already, save for the config of one that was adopted."""
    if session.config_hash or not event.config_hash:
        return
    session.session_id, session.start_time = event.session_id, event.timestamp
    session.config, session.config_hash, session.kind = event.config, event.config_hash, event.kind
    session.total_steps_target = session.total_steps_at_start = event.total_steps
    session.api_cost_before = event.api_cost_before


def _take_job_progress(session: TrainingSession, attempt: AttemptRecord, event: JobAdvanced) -> None:
    """Its pace is that of questions which had no end before: answers that are kept are passed in no time."""
    seconds = _SECONDS_AN_HOUR * (attempt.wall_clock_hours or 0.0)
    seconds += max(0.0, event.timestamp - (attempt.start or event.timestamp))
    session.steps_completed = event.done
    session.steps_computed += max(0, event.done - session.highest_step)
    session.highest_step = max(session.highest_step, event.done)
    session.busy_seconds = max(session.busy_seconds, seconds)
    session.wall_clock_hours = max(session.wall_clock_hours, session.busy_seconds / _SECONDS_AN_HOUR)
    if is_pace_point_due(session.pace, session.busy_seconds):
        add_pace_point(session.pace, PacePoint(session.busy_seconds, session.steps_computed))


def _take_spending(session: TrainingSession, told: Spending) -> None:
    """A shared store counts by itself; the newest report says it all."""
    session.api_responses_saved = told.answers
    session.api_responses_recovered = told.answers_served
    session.api_responses_bad = told.answers_bad
    session.api_requests_in_doubt = told.requests_in_doubt
    session.api_cost, session.api_cost_saved = told.spent, told.saved
    session.api_cost_in_doubt, session.api_cost_wasted = told.in_doubt, told.wasted


def _take_alert(session: TrainingSession, event: AlertRaised | AlertCleared) -> None:
    if isinstance(event, AlertCleared):
        session.alerts_active.pop(event.kind, None)
        return
    if event.kind in CONDITIONS:
        session.alerts_active[event.kind] = event.timestamp
    else:
        attempt = _attempt(session, event.about_attempt)
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


def _take_checkpoint_event(
    session: TrainingSession, event: CheckpointRecorded | CheckpointHashed | CheckpointSetAside
) -> None:
    if isinstance(event, CheckpointRecorded):
        step, path = event.checkpoint.checkpoint_step, event.checkpoint.checkpoint_path
        # A file that is written over every time holds the newest checkpoint only.
        for earlier in [key for key, known in session.checkpoints.items() if known.checkpoint_path == path]:
            _drop_checkpoint(session, earlier)
        session.checkpoints_beside = [each for each in session.checkpoints_beside if each.checkpoint_path != path]
        session.checkpoints_removing = [each for each in session.checkpoints_removing if each.checkpoint_path != path]
        if step in session.checkpoints:
            session.checkpoints_beside.append(session.checkpoints[step])
        if step in session.checkpoints_superseded:
            session.checkpoints_superseded.remove(step)
        session.checkpoints[step] = event.checkpoint
        session.last_checkpoint_step = step
        session.goodput.checkpointing += event.seconds
        return
    known = session.checkpoints.get(event.step)
    if known is None or known.checkpoint_path != event.checkpoint_path:
        return
    if isinstance(event, CheckpointHashed):
        session.checkpoints[event.step] = msgspec.structs.replace(
            known, num_bytes=event.num_bytes, sha256=event.sha256, files=event.files
        )
        return
    _drop_checkpoint(session, event.step)
    session.checkpoints_set_aside.append(
        RefusedCheckpoint(checkpoint_step=event.step, checkpoint_path=event.checkpoint_path, reason=event.reason)
    )
    session.last_checkpoint_step = max(session.checkpoints, default=None)


def _take_removal(session: TrainingSession, event: CheckpointRemoved) -> None:
    gone = {(each.step, each.checkpoint_path) for each in event.checkpoints}
    known = [*session.checkpoints.values(), *session.checkpoints_beside]
    removed = [each for each in known if (each.checkpoint_step, each.checkpoint_path) in gone]
    losses = [each.metrics.loss for each in removed if each.metrics and math.isfinite(each.metrics.loss)]
    if session.lowest_loss_removed is not None:
        losses.append(session.lowest_loss_removed)
    session.lowest_loss_removed = min(losses, default=None)
    for each in removed:
        if session.checkpoints.get(each.checkpoint_step) is each:
            _drop_checkpoint(session, each.checkpoint_step)
    session.checkpoints_beside = [each for each in session.checkpoints_beside if each not in removed]
    session.checkpoints_removing = event.checkpoints


def _take_evaluation(session: TrainingSession, event: EvaluationRecorded) -> None:
    session.goodput.evaluating += event.seconds
    evaluation = Evaluation(
        step=event.step,
        attempt=event.attempt,
        timestamp=event.timestamp,
        results=event.results,
        nonfinite=event.nonfinite,
    )
    session.evaluations.append(evaluation)
    del session.evaluations[:-_NUM_EVALUATIONS]
    known = session.checkpoints.get(event.step)
    # A step that was computed again is measured again: what an earlier attempt has measured is not of this one.
    if known is not None and known.attempt == event.attempt:
        session.checkpoints[event.step] = with_evaluation(known, [evaluation])


def _drop_checkpoint(session: TrainingSession, step: int) -> None:
    del session.checkpoints[step]
    # Read back from the journals, it would be gone before a later line could supersede it.
    if step in session.checkpoints_superseded:
        session.checkpoints_superseded.remove(step)


def _seconds_since_last_update(attempt: AttemptRecord, line: MetricsSnapshot) -> float:
    if attempt.wall_clock_hours is None:
        return 0.0
    return max(0.0, (line.wall_clock_hours - attempt.wall_clock_hours) * _SECONDS_AN_HOUR)


def _go_back(session: TrainingSession, newer: MetricsSnapshot) -> None:
    """Drop what a line supersedes, and compute anew what was derived from it."""
    step = newer.step
    for checkpoint in session.checkpoints.values():
        left = checkpoint.checkpoint_step >= step and checkpoint.attempt < newer.attempt
        if left and checkpoint.checkpoint_step not in session.checkpoints_superseded:
            session.checkpoints_superseded.append(checkpoint.checkpoint_step)
    history = session.metrics_history
    del history[superseded_from([line.step for line in history], step) :]
    session.moving_avg_loss = None
    for line in history:
        session.moving_avg_loss = moved_average(session.moving_avg_loss, line.loss)
    session.steps_completed = history[-1].step if history else max(0, step - 1)


def _count_time(
    session: TrainingSession, attempt: AttemptRecord, line: MetricsSnapshot, seconds: float, steps: int
) -> None:
    """Book the time since the last update: to starting, to work done again, or to new work."""
    is_new = line.step > session.highest_step
    if is_new:
        session.highest_step = line.step
    else:
        session.steps_recomputed += steps
    if attempt.first_step is None:
        attempt.first_step = line.step
        session.goodput.starting += seconds
        # The start-up is not pace: the line of points goes on with the second update of the attempt.
        if not session.pace:
            session.pace.append(PacePoint(0.0, 0))
        return
    if is_new:
        session.goodput.productive += seconds
    else:
        session.goodput.recomputed += seconds
    session.busy_seconds += seconds
    session.steps_computed += steps
    if is_pace_point_due(session.pace, session.busy_seconds):
        add_pace_point(session.pace, PacePoint(session.busy_seconds, session.steps_computed))
