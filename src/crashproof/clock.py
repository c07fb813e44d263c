"""Time as an argument."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Seconds since 1970 by the wall clock; may jump."""
        ...

    def steady(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...


class SystemClock:
    """The machine's own clocks."""

    now = staticmethod(time.time)
    steady = staticmethod(time.monotonic)


SYSTEM_CLOCK = SystemClock()
