"""Decide about the next attempt."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Container
from dataclasses import dataclass

from crashproof.errors import TeacherError, TeacherRefused, TeacherUnreachable
from crashproof.formatting import as_duration
from crashproof.records.requests import AnswerRecord
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.client.transport import Failed
from crashproof.teacher.client.wire.refusals import refusal_of

__all__ = ["Attempts", "Interrupted"]

log = logging.getLogger("crashproof")

_MOST_INTERRUPTED = 3
"""Attempts at one answer whose stream may break: each of them is paid for."""
_LONG_WAIT_SECONDS = 60.0
"""A wait that is worth a word, so that nobody takes the program for dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A stream broke off; what had arrived is kept."""

    failure: Failed
    record: AnswerRecord


class Attempts:
    """The attempts at one request."""

    def __init__(self, retry_policy: RetryPolicy, *, steady: Callable[[], float], chance: random.Random) -> None:
        self._retry_policy = retry_policy
        self._steady = steady
        self._chance = chance
        self._begun_at = steady()
        self._num_failed = 0
        self._num_interrupted = 0
        self._waited = 0.0

    def pause_after(self, failure: Failed) -> float | None:
        """Seconds until the next attempt; None if there is none."""
        self._num_failed += 1
        self._num_interrupted += failure.partial is not None
        self._waited = self._steady() - self._begun_at
        wait = failure.retry_after_seconds
        pause = self._retry_policy.wait_seconds(self._num_failed, retry_after=wait, chance=self._chance)
        is_last = self._num_failed >= self._retry_policy.attempts or self._num_interrupted >= _MOST_INTERRUPTED
        if not failure.is_retryable or is_last or self._waited + pause > self._retry_policy.deadline_seconds:
            return None
        if wait is not None and wait >= _LONG_WAIT_SECONDS:
            log.warning("%s. Waiting %s, as the server asks.", failure.reason.rstrip("."), as_duration(wait))
        return pause

    def error(self, failure: Failed, url: str, *, parameters: Container[str]) -> TeacherError:
        """What to raise after the last attempt; `parameters` are those that all requests have in common."""
        if failure.is_retryable:
            return self._unreachable(failure, url)
        # The words of a refusal may not have been at hand where it was found.
        usual = refusal_of(failure.status, failure.error)
        is_parameter_of_all = failure.parameter is not None and failure.parameter in parameters
        hint = failure.hint or usual.hint
        if failure.parameter is not None:
            hint = f"Leave out the parameter {failure.parameter}, or give it another value."
        return TeacherRefused(
            url,
            status=failure.status or 0,
            reason=failure.reason,
            hint=hint,
            hits_all=failure.hits_all or usual.hits_all or is_parameter_of_all,
        )

    def _unreachable(self, failure: Failed, url: str) -> TeacherUnreachable:
        wait = failure.retry_after_seconds or 0.0
        is_too_long = self._waited + wait > self._retry_policy.deadline_seconds
        return TeacherUnreachable(
            url,
            attempts=self._num_failed,
            seconds=self._waited,
            last=failure.reason,
            asked_to_wait=as_duration(wait) if is_too_long else "",
            hits_all=is_too_long and failure.is_overload,
            is_away=failure.is_without_connection,
        )
