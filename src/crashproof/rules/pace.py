"""Throughput, and the points of the pace."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from crashproof.records.session import PacePoint, TrainingSession

__all__ = [
    "MAX_PACE_POINTS",
    "ThroughputWindow",
    "add_pace_point",
    "is_pace_point_due",
    "pace_of",
]

MAX_PACE_POINTS = 240
"""They cover all of the run, the newest part most finely."""


class ThroughputWindow:
    """Samples and tokens per second over a sliding window of wall time.

    Each attempt begins a new one: the time between two attempts is in no window. Until it has two updates of its own,
    it returns what the attempt before it measured; in the first attempt, the pace from `started_at` to the first
    update.
    """

    def __init__(
        self,
        *,
        started_at: float,
        before: tuple[float | None, float | None] = (None, None),
        window_seconds: float = 60.0,
        most_points: int = 240,
    ) -> None:
        self._started_at = started_at
        self._before = before
        self._window_seconds = window_seconds
        self._spacing = window_seconds / most_points
        self._points: deque[tuple[float, int, int]] = deque()
        self._first = self._last = (0.0, 0, 0)
        self._unchanged_until = -math.inf
        """Up to this moment, the points stay as they are."""

    def add(self, seconds: float, samples: int, tokens: int) -> tuple[float | None, float | None]:
        """Add the counts at a moment of the steady clock; return samples and tokens per second, if known."""
        if seconds < self._unchanged_until:
            then, samples_then, tokens_then = self._first
            _, least_samples, least_tokens = self._last
            if samples >= least_samples and tokens >= least_tokens and seconds > then:
                return (samples - samples_then) / (seconds - then), (tokens - tokens_then) / (seconds - then)
        rates = self._add(seconds, samples, tokens)
        points = self._points
        self._first, self._last = points[0], points[-1]
        self._unchanged_until = self._last[0] + self._spacing
        if len(points) > 1:
            self._unchanged_until = min(self._unchanged_until, points[1][0] + self._window_seconds)
        return rates

    def _add(self, seconds: float, samples: int, tokens: int) -> tuple[float | None, float | None]:
        points = self._points
        if points and (samples < points[-1][1] or tokens < points[-1][2]):
            # The loop went back to an earlier step.
            points.clear()
        if not points:
            points.append((seconds, samples, tokens))
            return self._first_pace(seconds, samples, tokens)
        # Two updates are kept however slow the steps are; frequent ones are thinned.
        while len(points) > 1 and points[1][0] <= seconds - self._window_seconds:
            points.popleft()
        then, samples_then, tokens_then = points[0]
        elapsed = seconds - then
        if seconds - points[-1][0] >= self._spacing:
            points.append((seconds, samples, tokens))
        if elapsed <= 0:
            return self._before
        return (samples - samples_then) / elapsed, (tokens - tokens_then) / elapsed

    def shift(self, seconds: float) -> None:
        """Leave out a pause, by moving the points before it up to its end."""
        self._started_at += seconds
        self._unchanged_until = -math.inf
        self._points = deque((then + seconds, samples, tokens) for then, samples, tokens in self._points)

    def _first_pace(self, seconds: float, samples: int, tokens: int) -> tuple[float | None, float | None]:
        elapsed = seconds - self._started_at
        if self._before == (None, None) and elapsed > 0:
            self._before = (samples / elapsed, tokens / elapsed)
        return self._before


def is_pace_point_due(points: Sequence[PacePoint], seconds: float) -> bool:
    """Whether enough time has passed since the last point, for the length of the run; most updates need none."""
    return not points or seconds - points[-1].seconds >= seconds / (MAX_PACE_POINTS / 2)


def add_pace_point(points: list[PacePoint], point: PacePoint) -> None:
    """Add a point; when the list is full, drop some of the older ones."""
    points.append(point)
    if len(points) > MAX_PACE_POINTS:
        _thin(points)


def pace_of(session: TrainingSession) -> list[PacePoint]:
    """The points of a session's pace up to now."""
    now = PacePoint(session.busy_seconds, session.steps_computed)
    return [*session.pace, now] if session.pace and now.seconds > session.pace[-1].seconds else list(session.pace)


def _thin(points: list[PacePoint]) -> None:
    """Drop every second point of the older half."""
    half = len(points) // 2
    del points[1:half:2]
