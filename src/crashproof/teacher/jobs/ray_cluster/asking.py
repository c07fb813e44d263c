"""One pass over all questions of a job, by however many askers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from crashproof.clock import SYSTEM_CLOCK, Clock
from crashproof.teacher.jobs.outcomes import EndKind, Outcomes, Verdict
from crashproof.teacher.jobs.ray_cluster.asker import Ended, FailedAttempt, Row
from crashproof.teacher.jobs.ray_cluster.feed import Feed

__all__ = ["Asking"]

log = logging.getLogger("crashproof")


class Asking:
    """Hands out questions, and takes in how they ended."""

    def __init__(self, feed: Feed, outcomes: Outcomes, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Nothing is read before the first `take`."""
        self.outcomes = outcomes
        self.is_over = asyncio.Event()
        """Set once nothing more is to be asked."""
        self._feed = feed
        self._clock = clock
        self._num_out = 0
        """Questions that were handed out, and neither ended nor came back."""
        self._is_stopped = False
        self._failures: list[tuple[int, str]] = []

    @property
    def is_complete(self) -> bool:
        """Whether every question has ended."""
        return self._feed.is_empty and not self._num_out

    def take(self, most: int) -> list[Row]:
        """Hand out up to `most` questions; none once it is over."""
        if self._is_stopped or self.is_over.is_set():
            return []
        try:
            rows = self._feed.take(most, now=self._clock.steady())
        except Exception as error:  # The prompts have changed since they were checked: it ends the job.
            self.fail(error)
            return []
        self._num_out += len(rows)
        self._look_whether_over()
        return rows

    def stop(self) -> None:
        """Hand out no more questions."""
        self._is_stopped = True

    def fail(self, error: Exception) -> None:
        """End the job with an error that holds for every question."""
        self.outcomes.fail(error)
        self.is_over.set()

    def put_back(self, rows: Iterable[Row]) -> None:
        """Take back questions that were not asked, or whose asker is lost."""
        returned = list(rows)
        self._num_out -= len(returned)
        self._feed.put_back(returned)

    def note_end(self, row: Row, ended: Ended) -> None:
        """Take in how a question ended."""
        if ended.end.kind is EndKind.NOT_ASKED:
            self.put_back([row])
            return
        now = self._clock.steady()
        self._num_out -= 1
        verdict = self.outcomes.note(row.request.key, ended.end, now=now)
        if verdict is Verdict.ASK_AGAIN:
            self._feed.ask_later(row, at=now + self.outcomes.pause_seconds)
        self._look_whether_over()

    def note_failure(self, failed: FailedAttempt) -> None:
        """Take in a failed attempt."""
        self._failures.append((failed.retry_count, failed.reason))
        notice = self.outcomes.note_failure(failed.reason, now=self._clock.steady())
        if notice:
            log.warning("%s", notice)

    def take_failures(self) -> list[tuple[int, str]]:
        """The failed attempts since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def _look_whether_over(self) -> None:
        if self.outcomes.fatal is not None or self.is_complete:
            self.is_over.set()
