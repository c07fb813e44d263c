"""How long to wait for a teacher, and how often to ask again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

__all__ = ["Patience", "seconds_asked_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Limits of one request; connecting, the first byte and the whole answer are waited for apart.

    An answer that takes long is not cut off early and paid for again: the server works all the while.
    """

    attempts: int = 8
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 60.0
    connect_seconds: float = 10.0
    first_byte_seconds: float = 900.0
    """From the request sent to the first byte of the reply: without streaming, the time of the whole generation."""
    answer_seconds: float = 3600.0
    """From the request sent to the last byte of the reply."""
    deadline_seconds: float = 7200.0
    """Over all attempts and the waits between them; an attempt under way is cut off by `answer_seconds` alone."""
    full_disk_seconds: float = 120.0
    """How long an answer that is paid for waits in memory for space, or for the shared store to be back."""

    def wait_seconds(self, failures: int, *, asked_for: float | None, chance: random.Random) -> float:
        """How long to wait after so many failures.

        Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): uniform between 0 and a
        bound that doubles. What the server asks for is obeyed; jitter comes on top, so that not all return at once.
        """
        doubled = self.first_wait_seconds * 2.0 ** min(failures - 1, 60)
        if asked_for is not None:
            return asked_for + chance.uniform(0.0, min(self.first_wait_seconds, doubled))
        return chance.uniform(0.0, min(self.longest_wait_seconds, doubled))


def seconds_asked_for(retry_after: str | None, *, now: float) -> float | None:
    """What a `Retry-After` header says: seconds, or a date (RFC 9110, section 10.2.3); None where it says nothing.

    `now` is in seconds since 1970.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = moment.timestamp() - now
    return max(0.0, seconds) if seconds < float("inf") else None
