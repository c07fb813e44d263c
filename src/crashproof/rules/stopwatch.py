"""Training time, without pauses and downtime."""

from __future__ import annotations

import math

from msgspec import Struct

__all__ = ["StandstillDetector", "Tick", "TrainingStopwatch"]

_SECONDS_AN_HOUR = 3600.0
_LEAST_SLACK_SECONDS = 2.0
_SLACK_INTERVALS = 5.0
_BUSY_SHARE = 0.5
"""Of the time that a thread woke up too late: who computes for longer was not standing still."""


class TrainingStopwatch:
    """Measures training time on top of that of earlier attempts; all moments are of the steady clock."""

    def __init__(self, *, hours_before: float, started_at: float) -> None:
        self._hours_before = hours_before
        self._started_at = started_at
        self._paused_seconds = 0.0
        self._last_lap_at = started_at

    def lap(self, moment: float) -> float:
        """Hours trained up to an update; later pauses begin after it."""
        self._last_lap_at = moment
        # As `hours`, without the call: this runs at every update.
        seconds = moment - self._started_at - self._paused_seconds
        hours = self._hours_before + seconds / _SECONDS_AN_HOUR if seconds > 0 else self._hours_before
        return hours * 1e7 // 1.0 / 1e7

    def hours(self, moment: float) -> float:
        """Hours trained up to a moment, precise to a third of a millisecond."""
        seconds = moment - self._started_at - self._paused_seconds
        hours = self._hours_before + seconds / _SECONDS_AN_HOUR if seconds > 0 else self._hours_before
        return hours * 1e7 // 1.0 / 1e7

    def leave_out(self, pause_seconds: float, moment: float) -> float:
        """Leave out a pause that ends at `moment`; return how many seconds of it were left out.

        At most the time since the last update is left out.
        """
        left_out = max(0.0, min(pause_seconds, moment - self._last_lap_at))
        self._paused_seconds += left_out
        self._last_lap_at += left_out
        return left_out


class Tick(Struct, frozen=True):
    """A moment by the clocks that tell whether a process ran."""

    steady: float
    """Seconds by the steady clock, which stands still while the machine is suspended."""
    since_boot: float
    """Seconds since the machine was booted, also while it was suspended."""
    cpu: float
    """Seconds of processor time that the process has used."""


class StandstillDetector:
    """Finds that the process stood still: it was stopped, frozen or suspended.

    A background thread waits for short intervals. Where it wakes up far too late, and the process has computed
    hardly anything meanwhile, the process stood still. (If it has computed, one of its threads kept the interpreter
    to itself.) A thread that reports an update may find it first: after a standstill all threads wake at once.
    """

    def __init__(self, *, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._slack_seconds = max(_LEAST_SLACK_SECONDS, _SLACK_INTERVALS * interval_seconds)
        self._began: Tick | None = None
        self._usual_cpu = 0.0
        self._found = (0.0, 0.0)
        self.late_at = math.inf
        """From this moment of the steady clock on, `take` has something to judge."""

    def begin_wait(self, tick: Tick) -> None:
        """The thread begins to wait for an interval."""
        self._began = tick
        self.late_at = tick.steady + self._interval_seconds + self._slack_seconds

    def end_wait(self, tick: Tick) -> bool:
        """The thread has woken up; return whether the process stood still."""
        if self._began is not None:
            self._judge(self._began, tick)
        # Whatever the thread does now may take long.
        self._began = None
        has_found = self._found != (0.0, 0.0)
        self.late_at = -math.inf if has_found else math.inf
        return has_found

    def take(self, tick: Tick) -> tuple[float, float]:
        """Seconds that the process stood still and nobody has taken yet: by the steady clock, and in truth."""
        if self._began is not None and self._judge(self._began, tick):
            self._began = tick
        self.late_at = math.inf
        found, self._found = self._found, (0.0, 0.0)
        return found

    def _judge(self, began: Tick, tick: Tick) -> bool:
        late = tick.since_boot - began.since_boot - self._interval_seconds
        cpu = tick.cpu - began.cpu
        if late <= self._slack_seconds:
            self._usual_cpu = cpu
            return False
        if cpu - self._usual_cpu > _BUSY_SHARE * late:
            return False
        late_by_steady = max(0.0, min(late, tick.steady - began.steady - self._interval_seconds))
        self._found = (self._found[0] + late_by_steady, self._found[1] + late)
        return True
