"""Summarize a session for monitors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from crashproof.records.progress import GoodputShare, ProgressSummary
from crashproof.records.session import AttemptRecord, Evaluation, TrainingSession
from crashproof.records.states import AttemptState, RunStatus
from crashproof.rules.bad_steps.finding import record_in_words
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.health import health_of, last_update_time
from crashproof.rules.history import standing_evaluations
from crashproof.rules.pace import pace_of
from crashproof.rules.spending import spending_of
from crashproof.rules.time_left.estimate import estimate_remaining
from crashproof.rules.trends import trend_of_session

__all__ = ["goodput_seconds", "last_seen", "progress_summary"]

_SECONDS_AN_HOUR = 3600.0
_MOST_SECONDS_BESIDE = 3600.0
"""How long an attempt may have worked after its last update: on a save or an evaluation, as its events show."""
_ROUNDING_SECONDS = 1.0
"""Training time and timestamps are rounded."""


def progress_summary(
    session: TrainingSession, *, now: float, wall_clock_hours: float, is_alive: bool = True
) -> ProgressSummary:
    """The summary of a session, as in `progress.json`.

    `now` is in seconds since 1970; `wall_clock_hours` is the training time up to now; `is_alive` is whether a process
    still writes the run.
    """
    done, target = session.steps_done, session.total_steps_target
    remaining = estimate_remaining(pace_of(session), target - done)
    newest = session.metrics_history[-1] if session.metrics_history else None
    attempt = _newest(session.attempts)
    evaluation = _newest_evaluation(session)
    spending = spending_of(session, is_alive=is_alive)
    status = _status(session, attempt, is_alive=is_alive)
    trend = trend_of_session(session)
    health = health_of(session, attempt, status=status, verdict=trend.verdict, evidence=trend.evidence, now=now)
    return ProgressSummary(
        session_id=session.session_id,
        is_job=session.is_job,
        status=status,
        health=health.state,
        health_reason=health.reason,
        seconds_since_update=health.seconds_since_update,
        patience_seconds=health.patience_seconds,
        alerts_active=list(session.alerts_active),
        progress_pct=min(100.0, 100.0 * done / target),
        steps_completed=session.steps_completed,
        total_steps_target=target,
        samples_processed=session.samples_processed,
        tokens_processed=session.tokens_processed,
        elapsed_wall_clock_hours=wall_clock_hours,
        estimated_remaining_hours=_hours(remaining.seconds if remaining else None),
        estimated_remaining_hours_low=_hours(remaining.low_seconds if remaining else None),
        estimated_remaining_hours_high=_hours(remaining.high_seconds if remaining else None),
        estimated_finish_time=now + remaining.seconds if remaining else None,
        throughput_samples_per_sec=newest.throughput_samples_per_sec if newest else None,
        throughput_tokens_per_sec=newest.throughput_tokens_per_sec if newest else None,
        learning_rate=newest.learning_rate if newest else None,
        loss_components=newest.loss_components if newest else {},
        loss_trend=trend,
        last_update_time=last_update_time(session, attempt),
        last_checkpoint_step=session.last_checkpoint_step,
        checkpoints_count=len(CheckpointCatalog(session)),
        failed_saves=session.failed_saves,
        evaluation=evaluation.results if evaluation else {},
        evaluation_step=evaluation.step if evaluation else None,
        total_pause_duration_hours=session.total_pause_duration / _SECONDS_AN_HOUR,
        api_responses_saved=session.api_responses_saved,
        api_responses_recovered=session.api_responses_recovered,
        api_cost=float(spending.spent),
        api_cost_before=float(spending.spent_before),
        api_cost_saved=float(spending.saved),
        api_cost_in_doubt=float(spending.in_doubt),
        api_cost_reserved=float(spending.reserved),
        api_cost_wasted=float(spending.wasted),
        api_requests_in_doubt=spending.requests_in_doubt,
        api_responses_bad=spending.answers_bad,
        connection_failures=session.connection_failures,
        connection_retries=session.connection_retries,
        attempt=attempt.attempt if attempt else 0,
        attempt_host=attempt.host if attempt else None,
        attempt_pid=attempt.pid if attempt else None,
        rank_times=session.rank_times,
        steps_recomputed=session.steps_recomputed,
        replay_differed_at=session.replay_differed_at,
        bad_steps_found=session.bad_steps_found,
        rollbacks=session.rollbacks,
        samples_left_out=sum(each.end - each.first for each in session.data_left_out),
        newest_bad_step=record_in_words(session.bad_steps[-1]) if session.bad_steps else None,
        damage_found=session.damage_found,
        supervision=session.supervision,
        goodput_seconds=goodput_seconds(session),
    )


def last_seen(session: TrainingSession) -> float:
    """When the newest record of a session was written, in seconds since 1970."""
    return max((each.last_seen for each in session.attempts), default=session.start_time)


def goodput_seconds(session: TrainingSession) -> GoodputShare:
    """Where the wall time went; an attempt is down from the last record before it to its start."""
    raw = session.goodput
    trained = [each for each in session.attempts if each.how != AttemptState.ADOPTED]
    down = sum((_seconds_down(earlier, later) for earlier, later in pairwise(trained)), 0.0)
    # Subtracted here and not record by record: sums of floats depend on the order of their terms.
    productive = max(0.0, raw.productive - raw.checkpointing - raw.evaluating)
    hung = session.supervision.hung_seconds
    parts = (productive, raw.recomputed, raw.checkpointing, raw.evaluating, raw.paused, hung, down, raw.starting)
    total = sum(parts)
    return GoodputShare(
        productive=productive,
        recomputed=raw.recomputed,
        checkpointing=raw.checkpointing,
        evaluating=raw.evaluating,
        paused=raw.paused,
        hung=hung,
        down=down,
        starting=raw.starting,
        goodput_fraction=productive / total if total else 0.0,
    )


def _seconds_down(earlier: AttemptRecord, later: AttemptRecord) -> float:
    """Downtime between two attempts; a hang that ended without a record lies between them too, and is none."""
    hung = earlier.hung_seconds if earlier.end is None else 0.0
    return max(0.0, _seconds_between(earlier, later) - hung)


def _seconds_between(earlier: AttemptRecord, later: AttemptRecord) -> float:
    """Downtime between two attempts, never negative.

    Within one boot of a machine it is exact, whatever is done to the wall clock. Otherwise the earlier attempt ended
    at the later of two moments: by its newest record, and by how long it had run, in case its clock was set back.
    """
    if later.start is None:
        return 0.0
    lived = _seconds_lived(earlier)
    if (
        earlier.boot_id
        and earlier.boot_id == later.boot_id
        and earlier.boot_seconds_at_start is not None
        and later.boot_seconds_at_start is not None
        and later.boot_seconds_at_start >= earlier.boot_seconds_at_start
    ):
        ended = earlier.boot_seconds_at_end
        if ended is None:
            ended = earlier.boot_seconds_at_start + lived
        return max(0.0, later.boot_seconds_at_start - ended)
    seen = earlier.last_seen if earlier.end is None else earlier.end
    return max(0.0, later.start - max(seen, seen if earlier.start is None else earlier.start + lived))


def _seconds_lived(attempt: AttemptRecord) -> float:
    """How long an attempt ran: by its timestamps, unless its training time shows that its clock was set."""
    by_wall_clock = attempt.last_seen - (attempt.last_seen if attempt.start is None else attempt.start)
    if attempt.hours_at_start is None or attempt.wall_clock_hours is None:
        return max(0.0, by_wall_clock)
    trained = (attempt.wall_clock_hours - attempt.hours_at_start) * _SECONDS_AN_HOUR + attempt.paused_seconds
    if -_ROUNDING_SECONDS <= by_wall_clock - trained <= _MOST_SECONDS_BESIDE:
        return max(0.0, by_wall_clock)
    return trained


def _newest(attempts: Sequence[AttemptRecord]) -> AttemptRecord | None:
    """The newest attempt that was for training; one that adopted checkpoints only if there is no other."""
    trained = [each for each in attempts if each.how != AttemptState.ADOPTED]
    return trained[-1] if trained else attempts[-1] if attempts else None


def _newest_evaluation(session: TrainingSession) -> Evaluation | None:
    standing = standing_evaluations(session.evaluations, session.timelines)
    return standing[-1] if standing else None


def _status(session: TrainingSession, attempt: AttemptRecord | None, *, is_alive: bool) -> RunStatus:
    if attempt is None:
        return RunStatus.NOT_STARTED
    if attempt.how == AttemptState.RUNNING and not is_alive:
        return RunStatus.CRASHED
    if attempt.how == AttemptState.COMPLETED and not session.is_finished:
        return RunStatus.ENDED_EARLY
    return RunStatus(attempt.how)


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / _SECONDS_AN_HOUR
