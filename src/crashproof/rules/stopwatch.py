"""Training time, without pauses and downtime."""

from __future__ import annotations

__all__ = ["TrainingStopwatch"]

_SECONDS_AN_HOUR = 3600.0


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
        return self.hours(moment)

    def hours(self, moment: float) -> float:
        """Hours trained up to a moment, precise to a third of a millisecond."""
        seconds = moment - self._started_at - self._paused_seconds
        hours = self._hours_before + seconds / _SECONDS_AN_HOUR if seconds > 0 else self._hours_before
        return int(hours * 1e7) / 1e7

    def leave_out(self, pause_seconds: float, moment: float) -> float:
        """Leave out a pause that ends at `moment`; return how many seconds of it were left out.

        At most the time since the last update is left out.
        """
        left_out = max(0.0, min(pause_seconds, moment - self._last_lap_at))
        self._paused_seconds += left_out
        self._last_lap_at += left_out
        return left_out
