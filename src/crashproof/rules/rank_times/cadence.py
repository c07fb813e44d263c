"""How often ranks compare their times, and how often that is journalled."""

from __future__ import annotations

import math
from collections import deque

from crashproof.records.rank_times import RankTimes
from crashproof.rules.rank_times.comparison import slow_rank

__all__ = ["FIRST_COMPARISON", "ReportCadence", "steps_until_comparison"]

FIRST_COMPARISON = 5
"""Steps before the first one."""
_SECONDS_BETWEEN_COMPARISONS = 30.0
_MOST_STEPS = 10_000
_SECONDS_BETWEEN_REPORTS = 600.0
_SECONDS_BEFORE_NEWS = 60.0
_NEWS_AN_HOUR = 6
_SECONDS_AN_HOUR = 3600.0
_NUM_BEFORE_THINNING = 1000


def steps_until_comparison(step_seconds: float) -> int:
    """Steps to about half a minute later; all ranks decide it from the same number, so they need not agree."""
    if step_seconds <= 0:
        return _MOST_STEPS
    return min(_MOST_STEPS, max(1, math.ceil(_SECONDS_BETWEEN_COMPARISONS / step_seconds)))


class ReportCadence:
    """Which comparisons are journalled.

    One in ten minutes, and sooner where another rank is slow now or none is any more: at most 12 an hour. After each
    1,000 of them the intervals double, so that a run of a year has a few thousand.
    """

    def __init__(self) -> None:
        self._num_reports = 0
        self._reported_at = -math.inf
        self._slow: int | None = None
        self._news: deque[float] = deque(maxlen=_NEWS_AN_HOUR)
        """When the newest reports of a change were due."""

    def is_due(self, times: RankTimes, *, now: float) -> bool:
        """Whether to journal a comparison; if so, it counts as journalled. `now` is of a steady clock, in seconds."""
        thinning = 2.0 ** (self._num_reports // _NUM_BEFORE_THINNING)
        waited = (now - self._reported_at) / thinning
        is_news = slow_rank(times) != self._slow and waited >= _SECONDS_BEFORE_NEWS and self._may_tell(now, thinning)
        if not is_news and waited < _SECONDS_BETWEEN_REPORTS:
            return False
        if is_news:
            self._news.append(now)
        self._num_reports += 1
        self._reported_at, self._slow = now, slow_rank(times)
        return True

    def _may_tell(self, now: float, thinning: float) -> bool:
        is_full = len(self._news) == _NEWS_AN_HOUR
        return not is_full or now - self._news[0] >= _SECONDS_AN_HOUR * thinning
