"""The remaining time of a run.

The steps to come are expected to take what the newest take: since the pace last changed, or, where it changes evenly,
along its trend. The last change is looked for by binary segmentation (A. J. Scott, M. Knott, "A cluster analysis
method for grouping means in the analysis of variance", Biometrics 30, 1974), each time by the Wilcoxon rank-sum test
(F. Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1, 1945). Stalls are counted apart,
over all of the run: an evaluation an epoch is rare, and yet certain to come. The start, as long as it is slower than
what follows, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from crashproof.medians import median
from crashproof.records.session import PacePoint
from crashproof.rules.time_left.segments import (
    Segment,
    Stall,
    are_regular,
    deviation_of,
    gaps_of,
    segments_of,
    without_stalls,
    without_start,
)

__all__ = ["Estimate", "estimate_remaining", "seconds_per_step"]

_DEVIATIONS = 2.0
_LEAST_CHANGE = 0.03
_LEAST_RANGE = 0.01
_ROUNDING = 1e-9
_Z_CHANGE = 4.2
_T_TREND = 6.0
_FEWEST_AFTER = 3
"""Segments on either side of a change."""
_FEWEST_FOR_TREND = 12
_MOST_CHANGE = 3.0
"""A trend is followed to at most three times, or a third of, the pace of now."""
_UNSURE_OF_TREND = 0.3
"""A trend may end, or grow: this share of what it adds is in doubt."""


class Estimate(Struct, frozen=True, kw_only=True):
    """The remaining training time."""

    seconds: float
    low_seconds: float
    """With `high_seconds`, the range in which the truth lies nine times in ten, if the pace does not change again."""
    high_seconds: float


class _Pace(NamedTuple):
    """Seconds for a number of steps to come, and the standard error of that."""

    seconds: float
    error: float


def estimate_remaining(points: Sequence[PacePoint], remaining_steps: int) -> Estimate | None:
    """Time for the remaining steps, including stalls; None as long as no step is measured."""
    if remaining_steps <= 0:
        return Estimate(seconds=0.0, low_seconds=0.0, high_seconds=0.0)
    segments = segments_of(points)
    if not segments:
        return None
    if len(segments) < 2:
        seconds = segments[0].pace * remaining_steps
        # One segment has no variation to measure: assume a range of ±50 %.
        return Estimate(seconds=seconds, low_seconds=seconds / 2, high_seconds=1.5 * seconds)
    regular, stalls = without_stalls(without_start(segments))
    steady = _steady_time(regular, remaining_steps)
    stalled = _stalled_time(regular, stalls, remaining_steps)
    seconds = steady.seconds + stalled.seconds
    error = math.hypot(steady.error, stalled.error)
    # However even the past was: what is to come is known to a hundredth at best.
    half_width = max(_DEVIATIONS * error, _LEAST_RANGE * seconds) if error > _ROUNDING * seconds else 0.0
    return Estimate(seconds=seconds, low_seconds=max(0.0, seconds - half_width), high_seconds=seconds + half_width)


def seconds_per_step(points: Sequence[PacePoint]) -> float | None:
    """The pace of now, with its share of the stalls; None as long as no step is measured."""
    segments = segments_of(points)
    if not segments:
        return None
    regular, stalls = without_stalls(without_start(segments))
    recent = _since_last_change(regular)
    steps = sum(each.steps for each in regular)
    return _mean_pace(recent) + sum(stall.seconds for stall in stalls) / steps


def _steady_time(segments: Sequence[Segment], remaining: int) -> _Pace:
    if _is_trend(segments):
        return _along_trend(segments, remaining)
    return _at_even_pace(_since_last_change(segments), remaining)


def _at_even_pace(segments: Sequence[Segment], remaining: int) -> _Pace:
    pace = _mean_pace(segments)
    num_steps = sum(each.steps for each in segments)
    if len(segments) < 2:
        return _Pace(pace * remaining, pace * remaining / (2 * _DEVIATIONS))
    # The variance of one step, from how much the segments differ: long segments differ less.
    variance = sum(each.steps * (each.pace - pace) ** 2 for each in segments) / (len(segments) - 1)
    # What is known of the pace, and what chance adds to the steps to come.
    return _Pace(pace * remaining, math.sqrt(variance * (remaining**2 / num_steps + remaining)))


def _along_trend(segments: Sequence[Segment], remaining: int) -> _Pace:
    line = _line_through(segments)
    now = line.at(segments[-1].end)
    then = min(max(line.at(segments[-1].end + remaining), now / _MOST_CHANGE), now * _MOST_CHANGE)
    middle = (now + then) / 2
    error = math.hypot(line.error * remaining, _UNSURE_OF_TREND * abs(middle - now))
    return _Pace(middle * remaining, error * remaining)


class _Line(NamedTuple):
    """Weighted least squares of the pace over the steps."""

    center: float
    mean: float
    slope: float
    error: float
    """The standard error of the slope."""
    left_over: float
    """The sum of the squares that it does not explain."""

    def at(self, step: float) -> float:
        return self.mean + self.slope * (step - self.center)


def _line_through(segments: Sequence[Segment]) -> _Line:
    places = [each.end - each.steps / 2 for each in segments]
    total = sum(each.steps for each in segments)
    center = sum(each.steps * place for each, place in zip(segments, places, strict=True)) / total
    mean = _mean_pace(segments)
    pairs = [(each.steps, place - center, each.pace - mean) for each, place in zip(segments, places, strict=True)]
    width = sum(weight * x * x for weight, x, _ in pairs)
    slope = sum(weight * x * y for weight, x, y in pairs) / width if width else 0.0
    left_over = sum(weight * (y - slope * x) ** 2 for weight, x, y in pairs)
    error = math.sqrt(left_over / (len(segments) - 2) / width) if width and len(segments) > 2 else math.inf
    return _Line(center, mean, slope, error, left_over)


def _is_trend(segments: Sequence[Segment]) -> bool:
    """Whether the pace changes evenly all the time, rather than once."""
    if len(segments) < _FEWEST_FOR_TREND:
        return False
    line = _line_through(segments)
    change = abs(line.slope) * (segments[-1].end - segments[0].end)
    if change <= _LEAST_CHANGE * line.mean or abs(line.slope) < _T_TREND * line.error:
        return False
    halves = (segments[: len(segments) // 2], segments[len(segments) // 2 :])
    first, second = (_line_through(half).slope / line.slope for half in halves)
    return min(first, second) > 0.2 and max(first, second) < 3.0


def _since_last_change(segments: Sequence[Segment]) -> list[Segment]:
    """The newest segments, since their pace last changed."""
    recent = list(segments)
    while (place := _place_of_change(recent)) is not None:
        # The change itself lies somewhere in the first segment after it.
        recent = recent[place + 1 :]
    return recent


def _place_of_change(segments: Sequence[Segment]) -> int | None:
    """Where the paces before and after differ most, if that is more than chance: by the Wilcoxon rank-sum test."""
    count = len(segments)
    order = sorted(range(count), key=lambda place: segments[place].pace)
    ranks = [0] * count
    for rank, place in enumerate(order, start=1):
        ranks[place] = rank
    best, place_of_best, sum_before = _Z_CHANGE, None, sum(ranks[: _FEWEST_AFTER - 1])
    for place in range(_FEWEST_AFTER, count - _FEWEST_AFTER + 1):
        sum_before += ranks[place - 1]
        deviation = math.sqrt(place * (count - place) * (count + 1) / 12)
        strength = abs(sum_before - place * (count + 1) / 2) / deviation
        if strength > best and _differ(segments[:place], segments[place:]):
            best, place_of_best = strength, place
    return place_of_best


def _differ(before: Sequence[Segment], after: Sequence[Segment]) -> bool:
    """Whether two paces differ by enough to matter, on average and as a rule."""
    mean = _mean_pace(after)
    usual = median(each.pace for each in after) - median(each.pace for each in before)
    return abs(mean - _mean_pace(before)) > _LEAST_CHANGE * mean and abs(usual) > _LEAST_CHANGE * mean


def _mean_pace(segments: Sequence[Segment]) -> float:
    return sum(each.seconds for each in segments) / sum(each.steps for each in segments)


def _stalled_time(segments: Sequence[Segment], stalls: Sequence[Stall], remaining: int) -> _Pace:
    """Stalls come as often as they came up to the last one: counted from there, the next is due by then."""
    if not stalls:
        return _Pace(0.0, 0.0)
    begin, now = segments[0].end - segments[0].steps, segments[-1].end
    mean = sum(stall.seconds for stall in stalls) / len(stalls)
    if len(stalls) == 1:
        share = mean * remaining / (now - begin)
        return _Pace(share, share)
    gaps = gaps_of(stalls)
    gap = (stalls[-1].end - begin) / len(stalls)
    expected = remaining / gap
    if are_regular(stalls):
        # What is overdue is due once: stalls may have stopped.
        expected += min(1.0, (now - stalls[-1].end) / gap)
    size_error = deviation_of([stall.seconds for stall in stalls]) * math.sqrt(expected + expected**2 / len(stalls))
    gap_error = (
        deviation_of(gaps) / gap * math.sqrt(expected + expected**2 / len(gaps)) if len(gaps) > 1 else expected / 2
    )
    return _Pace(expected * mean, math.hypot(size_error, mean * gap_error, mean / 4))
