"""Apply records to a session.

Starting and recovering are the same: these functions apply one record after the other, whether it was just written or
is read back after a crash. Records of different journals may be applied in any order relative to each other, so that
each journal can be read on its own; only an answer must come after the request that it settles.
"""

from __future__ import annotations

from crashproof.records.events import (
    AlertCleared,
    AlertRaised,
    AnswersRecovered,
    AttemptEnded,
    AttemptStarted,
    CheckpointFailed,
    CheckpointRecorded,
    ConfigContinued,
    ConnectionFailed,
    DamageFound,
    EvaluationRecorded,
    Event,
    JobAdvanced,
    Paused,
    RankTimesMeasured,
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
from crashproof.records.session import AttemptRecord, FailedSaves, PacePoint, RaisedAlert, Timeline, TrainingSession
from crashproof.records.states import AttemptState
from crashproof.rules.alerts import CONDITIONS
from crashproof.rules.checkpoint_catalog import CheckpointCatalog, CheckpointEvent
from crashproof.rules.history import are_parts, evaluation_of, superseded_from, with_part
from crashproof.rules.pace import add_pace_point, is_pace_point_due
from crashproof.rules.trends import add_loss_to_buckets, drop_superseded_losses, moved_average, take_back_newest_loss

__all__ = [
    "HISTORY_LENGTH",
    "apply_answer",
    "apply_event",
    "apply_metrics",
    "apply_request",
    "begin_session",
    "update_at",
]

HISTORY_LENGTH = 1000
_NUM_EVALUATIONS = 8
_NUM_ALERTS = 100
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


def apply_metrics(session: TrainingSession, line: MetricsSnapshot) -> None:
    """Apply one update; a step already passed supersedes everything at or beyond it.

    A further part of the newest update is merged into it.
    """
    attempt = _attempt(session, line.attempt)
    seconds = _seconds_since_last_update(attempt, line)
    if attempt.last_step is None or line.step < attempt.last_step:
        _begin_timeline(session, attempt, line)
    history = session.metrics_history
    steps: int | None = None
    if history and line.step <= history[-1].step:
        if are_parts(history[-1], line):
            line, steps = _merged_with_newest(session, line), 0
        else:
            _go_back(session, line)
    if steps is None:
        # Without a history it is the first update, or has superseded all others.
        steps = line.step - history[-1].step if history else 1
    _count_time(session, attempt, line, seconds, steps)
    session.steps_completed = line.step
    session.samples_processed = line.samples_processed
    session.tokens_processed = line.tokens_processed
    session.moving_avg_loss_before = session.moving_avg_loss
    session.moving_avg_loss = moved_average(session.moving_avg_loss, line.loss)
    if line.wall_clock_hours > session.wall_clock_hours:
        session.wall_clock_hours = line.wall_clock_hours
    history.append(line)
    add_loss_to_buckets(session)
    if len(history) > HISTORY_LENGTH:
        del history[0]
    attempt.last_step = line.step
    if line.timestamp > attempt.last_seen:
        attempt.last_seen = line.timestamp
    attempt.wall_clock_hours = line.wall_clock_hours


def apply_answer(session: TrainingSession, record: AnswerRecord) -> None:
    """Apply one paid answer of this session."""
    session.api_responses_saved += 1
    session.api_cost += record.cost
    if isinstance(record.problem, str):
        session.api_responses_bad += 1
        session.api_cost_wasted += record.cost
    if isinstance(record.request_id, str):
        session.api_requests_open.pop(record.request_id, None)
    attempt = _attempt(session, record.attempt)
    attempt.last_seen = max(attempt.last_seen, record.timestamp)


def apply_request(session: TrainingSession, line: RequestLine) -> None:
    """Apply the beginning of a request of this session, or its end without an answer."""
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


def apply_event(session: TrainingSession, event: Event) -> None:
    """Apply one event."""
    if isinstance(event, SessionStarted):
        _apply_beginning(session, event)
        return
    if isinstance(event, AlertRaised | AlertCleared):
        # No sign of life: a stall is raised while nothing moves, and a crash by another process.
        _apply_alert(session, event)
        return
    attempt = _attempt(session, event.attempt)
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
        case DamageFound():
            session.damage_found += 1
            session.api_cost_wasted += event.cost or 0
        case _ if isinstance(event, CheckpointEvent):  # pragma: no branch - there is no other.
            CheckpointCatalog(session).apply(event)
            if isinstance(event, CheckpointRecorded):
                session.goodput.checkpointing += event.seconds
                session.failed_saves = FailedSaves(total=session.failed_saves.total)


def _attempt(session: TrainingSession, number: int) -> AttemptRecord:
    """The record of an attempt; a new one if its start was never journalled or has not been read yet."""
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


def _seconds_since_last_update(attempt: AttemptRecord, line: MetricsSnapshot) -> float:
    if attempt.wall_clock_hours is None:
        return 0.0
    return max(0.0, (line.wall_clock_hours - attempt.wall_clock_hours) * _SECONDS_AN_HOUR)


def update_at(session: TrainingSession, step: int) -> MetricsSnapshot | None:
    """The update of a step, or the newest one before it; None if the history does not reach back that far."""
    # From the end: a checkpoint is recorded at the newest step, or a few behind it.
    return next((line for line in reversed(session.metrics_history) if line.step <= step), None)


def _is_first_time(session: TrainingSession, line: MetricsSnapshot, steps: int) -> bool:
    """Of a step that is not above the highest one: whether it is a part of that one, or step 0 of a new run."""
    if line.step < session.highest_step:
        return False
    return steps == 0 or all(each.first_step is None for each in session.attempts)


def _begin_timeline(session: TrainingSession, attempt: AttemptRecord, line: MetricsSnapshot) -> None:
    """Note where an attempt takes training up, or goes back to: the checkpoints beyond are abandoned."""
    if attempt.last_step is not None:
        attempt.rewinds += 1
    CheckpointCatalog(session).begin_timeline(Timeline(attempt.attempt, attempt.rewinds, line.step))


def _go_back(session: TrainingSession, newer: MetricsSnapshot) -> None:
    """Drop what a line supersedes, and recompute what was derived from it."""
    step, history = newer.step, session.metrics_history
    del history[superseded_from([line.step for line in history], step) :]
    drop_superseded_losses(session, step)
    session.moving_avg_loss = None
    for line in history:
        session.moving_avg_loss = moved_average(session.moving_avg_loss, line.loss)


def _merged_with_newest(session: TrainingSession, part: MetricsSnapshot) -> MetricsSnapshot:
    """Take the newest update back, and return it with one more part."""
    history = session.metrics_history
    newest = history.pop()
    take_back_newest_loss(session, newest)
    session.parts_merged += 1
    session.moving_avg_loss = session.moving_avg_loss_before
    if session.moving_avg_loss is None:
        # An earlier version did not keep it.
        for each in history:
            session.moving_avg_loss = moved_average(session.moving_avg_loss, each.loss)
    return with_part(newest, part)


def _count_time(
    session: TrainingSession, attempt: AttemptRecord, line: MetricsSnapshot, seconds: float, steps: int
) -> None:
    """Book the time since the last update as starting, recomputed or productive."""
    is_new = line.step > session.highest_step or _is_first_time(session, line, steps)
    if is_new:
        session.highest_step = line.step
    else:
        session.steps_recomputed += steps
    if attempt.first_step is None:
        attempt.first_step = line.step
        session.goodput.starting += seconds
        # Startup is not part of the pace: the next point comes with the second update of the attempt.
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
