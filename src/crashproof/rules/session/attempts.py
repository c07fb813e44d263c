"""The attempts that a session knows."""

from __future__ import annotations

from crashproof.records.session import AttemptRecord, TrainingSession

__all__ = ["attempt_of"]


def attempt_of(session: TrainingSession, number: int) -> AttemptRecord:
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
