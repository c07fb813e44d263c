"""Time as an argument."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

__all__ = ["SYSTEM_CLOCK", "BootClock", "Clock", "SystemClock"]


class Clock(Protocol):
    """A source of time."""

    def now(self) -> float:
        """Seconds since 1970 by the wall clock; may jump."""
        ...

    def steady(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...


@runtime_checkable
class BootClock(Clock, Protocol):
    """A clock that also measures the time between two processes of one boot of the machine."""

    def since_boot(self) -> float:
        """Seconds since the machine was booted, also while it was suspended; nobody sets it."""
        ...

    def boot_id(self) -> str:
        """A name of this boot of this machine; empty if there is none."""
        ...


class SystemClock:
    """The machine's own clocks."""

    now = staticmethod(time.time)
    steady = staticmethod(time.monotonic)

    @staticmethod
    def since_boot() -> float:
        """See `BootClock`."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    @staticmethod
    @cache
    def boot_id() -> str:
        """See `BootClock`."""
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""


SYSTEM_CLOCK = SystemClock()
