"""Retries, backoff and timeouts."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The retry policy of one request: attempts, backoff and timeouts.

    The default timeouts are long: an answer that is cut off early is still computed, and would be paid for twice.
    """

    attempts: int = 8
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 60.0
    connect_seconds: float = 10.0
    first_byte_seconds: float = 900.0
    """From sending the request to the first byte of the body, which comes after the whole generation unless the
    answer is streamed."""
    between_chunks_seconds: float = 600.0
    """From one piece of a body to the next; a model that thinks may send none for minutes."""
    answer_seconds: float = 3600.0
    """From sending the request to the last byte of the reply."""
    deadline_seconds: float = 7200.0
    """For all attempts and the waits between them; a running attempt is limited by `answer_seconds` only."""
    full_disk_seconds: float = 120.0
    """How long a paid answer waits in memory while the disk is full or the shared store is unavailable."""

    @property
    def longest_pauses_seconds(self) -> float:
        """The most that the waits between all attempts at one question can take, if the server asks for none."""
        seconds = 0.0
        for failures in range(1, self.attempts):
            seconds += self._bound_seconds(failures)
            if seconds >= self.deadline_seconds:
                return self.deadline_seconds
        return seconds

    def wait_seconds(self, failures: int, *, retry_after: float | None, chance: random.Random) -> float:
        """Seconds to wait after a number of failures.

        Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): uniform between 0 and a
        bound that doubles. A `Retry-After` is obeyed; jitter is added, so that clients do not all return at once.
        """
        if retry_after is not None:
            return retry_after + chance.uniform(0.0, self.first_wait_seconds)
        return chance.uniform(0.0, self._bound_seconds(failures))

    def _bound_seconds(self, failures: int) -> float:
        return min(self.longest_wait_seconds, self.first_wait_seconds * 2.0 ** min(failures - 1, 60))
