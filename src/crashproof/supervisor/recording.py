"""Record the end of a life in its run."""

from __future__ import annotations

from collections.abc import Sequence

from crashproof.clock import Clock
from crashproof.disk.lock import WriterLock
from crashproof.disk.run_folder import RunFolder
from crashproof.reading.between_attempts import append_between_attempts
from crashproof.records.events import AlertRaised, CheckpointSuspected, Event, ProcessEnded
from crashproof.records.session import AttemptRecord, TrainingSession
from crashproof.records.states import AlertKind
from crashproof.records.supervision import Action, EndCause
from crashproof.rules.checkpoint_catalog import CheckpointCatalog

__all__ = ["alert_about", "lost_seconds", "record_ends"]

_SECONDS_AN_HOUR = 3600.0


def record_ends(folder: RunFolder, events: Sequence[ProcessEnded | CheckpointSuspected], *, clock: Clock) -> None:
    """Append ends to the events of a run, with their alerts; one that is there already is left out.

    Raises:
        RunInUse: another process writes the run.
        CrashproofError, OSError: the run cannot be read or written.
    """
    lock = WriterLock(folder.lock, now=clock.now)
    try:
        now = clock.now()
        append_between_attempts(
            folder, lambda session: _new_events(session, events), attempt=events[-1].attempt, now=now
        )
    finally:
        lock.release()


def alert_about(end: ProcessEnded) -> tuple[AlertKind, str] | None:
    """The kind and the message of an end's alert; None if its tracker records one by itself."""
    if end.action == Action.FINISH or end.cause == EndCause.PREEMPTION:
        return None
    kind = AlertKind.RESTARTED if end.action == Action.RESTART else AlertKind.GAVE_UP
    return kind, f"{end.cause.replace('_', ' ')}: {end.details}; {end.reason}"


def lost_seconds(session: TrainingSession, attempt: AttemptRecord) -> float:
    """Training time of an attempt whose steps are in no checkpoint."""
    newest = CheckpointCatalog(session).newest()
    saved = attempt.hours_at_start or 0.0
    if newest is not None and newest.metrics is not None:
        saved = newest.metrics.wall_clock_hours
    return max(0.0, (attempt.wall_clock_hours or 0.0) - saved) * _SECONDS_AN_HOUR


def _new_events(session: TrainingSession, given: Sequence[ProcessEnded | CheckpointSuspected]) -> list[Event]:
    newest = session.supervision.newest
    known_until = -1.0 if newest is None else newest.started_at
    events: list[Event] = []
    for each in given:
        if isinstance(each, CheckpointSuspected):
            # Recorded twice, it says the same.
            events.append(each)
        elif each.started_at > known_until:
            events += [each, *_alert_events(each)]
    return events


def _alert_events(end: ProcessEnded) -> list[Event]:
    found = alert_about(end)
    if found is None:
        return []
    kind, message = found
    return [
        AlertRaised(
            timestamp=end.timestamp,
            attempt=end.attempt,
            kind=kind,
            message=message,
            about_attempt=end.attempt,
            step=end.step,
        )
    ]
