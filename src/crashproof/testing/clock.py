"""A fake clock."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that advances only on request."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._steady = 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        return self._now

    def steady(self) -> float:
        """Seconds since this clock was made."""
        return self._steady

    def advance(self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0) -> None:
        """Let time pass."""
        passed = seconds + 60 * minutes + 3600 * hours + 86400 * days
        self._now += passed
        self._steady += passed

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as time synchronisation does; the steady clock is unaffected."""
        self._now += seconds
