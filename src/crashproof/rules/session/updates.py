"""Apply updates of the training loop to a session."""

from __future__ import annotations

from collections.abc import Sequence

from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import AttemptRecord, PacePoint, Timeline, TrainingSession
from crashproof.rules.checkpoint_catalog import CheckpointCatalog
from crashproof.rules.history import are_parts, superseded_from, with_part
from crashproof.rules.loss.buckets import BUCKET_UPDATES
from crashproof.rules.pace import add_pace_point, is_pace_point_due
from crashproof.rules.session.attempts import attempt_of
from crashproof.rules.trends import (
    add_loss_to_buckets,
    drop_superseded_losses,
    fill_loss_buckets,
    moved_average,
    take_back_newest_loss,
)

__all__ = ["HISTORY_LENGTH", "apply_metrics", "apply_updates", "update_at"]

HISTORY_LENGTH = 1000
_SECONDS_AN_HOUR = 3600.0


def apply_updates(session: TrainingSession, lines: Sequence[MetricsSnapshot]) -> list[int]:
    """Apply updates one after the other; return the places of those that were further parts of the one before.

    The same as `apply_metrics` of each. As a rule each is the next step, which takes half of the time here.
    """
    parts: list[int] = []
    place = 0
    while place < len(lines):
        place += _apply_next_steps(session, lines[place:] if place else lines)
        if place < len(lines):
            if apply_metrics(session, lines[place]):
                parts.append(place)
            place += 1
    return parts


def apply_metrics(session: TrainingSession, line: MetricsSnapshot) -> bool:
    """Apply one update; a step already passed supersedes everything at or beyond it.

    A further part of the newest update is merged into it; return whether it was one.
    """
    attempt = attempt_of(session, line.attempt)
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
    return steps == 0


def update_at(session: TrainingSession, step: int) -> MetricsSnapshot | None:
    """The update of a step, or the newest one before it; None if the history does not reach back that far."""
    # From the end: a checkpoint is recorded at the newest step, or a few behind it.
    return next((line for line in reversed(session.metrics_history) if line.step <= step), None)


def _apply_next_steps(session: TrainingSession, lines: Sequence[MetricsSnapshot]) -> int:
    """Apply the first updates as long as each is a new step of the newest attempt; return how many these are.

    What `apply_metrics` does with such an update, digit for digit, but the fields are in local variables meanwhile.
    """
    attempt, history = session.attempts[-1] if session.attempts else None, session.metrics_history
    is_under_way = bool(history and session.pace)
    if not is_under_way or attempt is None or attempt.first_step is None or attempt.wall_clock_hours is None:
        return 0
    number, hours, last_seen = attempt.attempt, attempt.wall_clock_hours, attempt.last_seen
    step, highest_step, most_hours = history[-1].step, session.highest_step, session.wall_clock_hours
    productive, busy, num_computed = session.goodput.productive, session.busy_seconds, session.steps_computed
    average, average_before = session.moving_avg_loss, session.moving_avg_loss_before
    num_applied = 0
    for line in lines:
        if line.step <= highest_step or line.attempt != number:
            break
        num_applied += 1
        seconds = (line.wall_clock_hours - hours) * _SECONDS_AN_HOUR
        hours = line.wall_clock_hours
        if seconds > 0:
            productive += seconds
            busy += seconds
        num_computed += line.step - step
        step = highest_step = line.step
        if is_pace_point_due(session.pace, busy):
            add_pace_point(session.pace, PacePoint(busy, num_computed))
        average_before = average
        average = moved_average(average, line.loss)
        # `max` costs three times as much.
        if hours > most_hours:
            most_hours = hours
        if line.timestamp > last_seen:
            last_seen = line.timestamp
        history.append(line)
        if not line.without_loss:
            session.loss_updates_open += 1
            if session.loss_updates_open >= BUCKET_UPDATES:
                del history[: -HISTORY_LENGTH - 1]
                fill_loss_buckets(session)
    if num_applied:
        del history[:-HISTORY_LENGTH]
        newest = history[-1]
        session.steps_completed = session.highest_step = attempt.last_step = newest.step
        session.samples_processed, session.tokens_processed = newest.samples_processed, newest.tokens_processed
        session.goodput.productive, session.busy_seconds, session.steps_computed = productive, busy, num_computed
        session.moving_avg_loss, session.moving_avg_loss_before = average, average_before
        session.wall_clock_hours, attempt.wall_clock_hours, attempt.last_seen = most_hours, hours, last_seen
    return num_applied


def _seconds_since_last_update(attempt: AttemptRecord, line: MetricsSnapshot) -> float:
    if attempt.wall_clock_hours is None:
        return 0.0
    return max(0.0, (line.wall_clock_hours - attempt.wall_clock_hours) * _SECONDS_AN_HOUR)


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
