"""Throughput, pace and remaining time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from crashproof.records.session import PacePoint

__all__ = [
    "MAX_PACE_POINTS",
    "Estimate",
    "ThroughputWindow",
    "add_pace_point",
    "estimate_remaining",
    "is_pace_point_due",
]

MAX_PACE_POINTS = 240
_RECENT_SECONDS = 2 * 3600.0
"""The pace is that of this period, long enough to average over several checkpoints and evaluations."""
_BLOCKS = 12
_STANDARD_ERRORS = 2.0


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

    def add(self, seconds: float, samples: int, tokens: int) -> tuple[float | None, float | None]:
        """Add the counts at a moment of the steady clock; return samples and tokens per second, if known."""
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
        self._points = deque((then + seconds, samples, tokens) for then, samples, tokens in self._points)

    def _first_pace(self, seconds: float, samples: int, tokens: int) -> tuple[float | None, float | None]:
        elapsed = seconds - self._started_at
        if self._before == (None, None) and elapsed > 0:
            self._before = (samples / elapsed, tokens / elapsed)
        return self._before


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The remaining training time."""

    seconds: float
    low_seconds: float
    high_seconds: float


def is_pace_point_due(points: Sequence[PacePoint], seconds: float) -> bool:
    """Whether enough time has passed since the last point; most updates need none."""
    return not points or seconds - points[-1].seconds >= min(seconds, _RECENT_SECONDS) / (MAX_PACE_POINTS / 2)


def add_pace_point(points: list[PacePoint], point: PacePoint) -> None:
    """Add a point; when the list is full, drop points that are old or close together."""
    points.append(point)
    if len(points) > MAX_PACE_POINTS:
        _thin(points)


def estimate_remaining(points: Sequence[PacePoint], remaining_steps: int) -> Estimate | None:
    """Time for the remaining steps at the recent pace, including stalls; None with fewer than two points.

    The range is two standard errors of the pace, estimated from the variation between blocks of the recent past.
    """
    if remaining_steps <= 0:
        return Estimate(seconds=0.0, low_seconds=0.0, high_seconds=0.0)
    recent = [point for point in points if point.seconds >= points[-1].seconds - _RECENT_SECONDS]
    if len(recent) < 2 or recent[-1].steps <= recent[0].steps:
        return None
    pace = (recent[-1].seconds - recent[0].seconds) / (recent[-1].steps - recent[0].steps)
    error = _standard_error(recent, pace)
    return Estimate(
        seconds=pace * remaining_steps,
        low_seconds=max(0.0, pace - _STANDARD_ERRORS * error) * remaining_steps,
        high_seconds=(pace + _STANDARD_ERRORS * error) * remaining_steps,
    )


def _standard_error(points: Sequence[PacePoint], pace: float) -> float:
    """The standard error of the mean seconds per step, from block means weighted by their steps."""
    size = max(1, (len(points) - 1) // _BLOCKS)
    ends = [*points[:-1:size], points[-1]]
    blocks = [
        (later.seconds - earlier.seconds, later.steps - earlier.steps)
        for earlier, later in pairwise(ends)
        if later.steps > earlier.steps
    ]
    if len(blocks) < 2:
        # One block has no variation to measure: assume a range of ±50 %.
        return pace / (2 * _STANDARD_ERRORS)
    total = sum(steps for _, steps in blocks)
    variance = sum(steps * (seconds / steps - pace) ** 2 for seconds, steps in blocks) / total
    return math.sqrt(variance / (len(blocks) - 1))


def _thin(points: list[PacePoint]) -> None:
    """Drop the points that are too old; if there are none, every second point of the older half."""
    oldest = points[-1].seconds - _RECENT_SECONDS
    too_old = sum(point.seconds < oldest for point in points)
    if too_old:
        del points[:too_old]
        return
    half = len(points) // 2
    del points[1:half:2]
