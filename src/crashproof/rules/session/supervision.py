"""Apply what supervisors record to a session."""

from __future__ import annotations

from crashproof.records.events import ProcessEnded
from crashproof.records.session import TrainingSession
from crashproof.records.supervision import Action, EndedProcess, Supervision
from crashproof.rules.session.attempts import attempt_of

__all__ = ["apply_end"]


def apply_end(session: TrainingSession, event: ProcessEnded) -> None:
    """Count the end of a supervised process."""
    known, restarts = session.supervision, event.action == Action.RESTART
    if event.opened_run:
        attempt_of(session, event.attempt).hung_seconds += event.hung_seconds
    session.supervision = Supervision(
        restarts=known.restarts + restarts,
        ends=known.ends | {event.cause: known.ends.get(event.cause, 0) + 1},
        hung_seconds=known.hung_seconds + event.hung_seconds,
        lost_seconds=known.lost_seconds + (event.lost_seconds if restarts else 0.0),
        notices=known.notices + event.notices,
        notices_saved=known.notices_saved + event.notices_saved,
        newest=EndedProcess(
            timestamp=event.timestamp,
            started_at=event.started_at,
            attempt=event.attempt,
            cause=event.cause,
            details=event.details,
            action=event.action,
            reason=event.reason,
            stacks=event.stacks,
        ),
    )
