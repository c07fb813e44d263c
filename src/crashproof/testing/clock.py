"""A fake clock."""

from __future__ import annotations

import secrets

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that advances only on request."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._steady = 0.0
        self._suspended = 0.0
        self._boot_id = secrets.token_hex(8)

    def now(self) -> float:
        """Seconds since 1970."""
        return self._now

    def steady(self) -> float:
        """Seconds since this clock was made."""
        return self._steady

    def since_boot(self) -> float:
        """Seconds since this clock was made, also while the machine was suspended."""
        return self._steady + self._suspended

    def boot_id(self) -> str:
        """The name of this clock's only boot."""
        return self._boot_id

    def advance(self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0) -> None:
        """Let time pass."""
        passed = seconds + 60 * minutes + 3600 * hours + 86400 * days
        self._now += passed
        self._steady += passed

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as time synchronisation does; the steady clock is unaffected."""
        self._now += seconds

    def suspend(self, seconds: float) -> None:
        """Suspend the machine: the wall clock goes on, the steady clock stands still."""
        self._now += seconds
        self._suspended += seconds
