"""The pace of a run, piece by piece.

A segment lies between two points of the pace. What it took beyond the pace of its neighbours, by far, is a stall: a
save, an evaluation, the end of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from crashproof.medians import median
from crashproof.records.session import PacePoint

__all__ = [
    "Segment",
    "Stall",
    "are_regular",
    "deviation_of",
    "gaps_of",
    "segments_of",
    "without_stalls",
    "without_start",
]

_NEIGHBOURS = 7
_STALL = 1.03
_STALL_DEVIATIONS = 7.0
_MOST_STALLED = 0.15
"""Of the segments: where more are stalled, their stalls belong to the pace."""
_FEW_STALLS = 5
_OVERDUE = 2.5
"""Gaps between stalls without one."""
_REGULAR = 0.3
"""Gaps that differ by less than this share of a gap are regular."""
_SLOW_START = 1.1
_LEAST_OF_USUAL = 0.75


class Segment(NamedTuple):
    """Consecutive steps."""

    end: int
    """Steps computed at its end."""
    steps: int
    seconds: float

    @property
    def pace(self) -> float:
        """Seconds per step."""
        return self.seconds / self.steps


class Stall(NamedTuple):
    """Time that a segment took beyond the pace around it."""

    end: int
    seconds: float


def segments_of(points: Sequence[PacePoint]) -> list[Segment]:
    """The segments between points, of about as many steps each as the newest: only like can be compared with like."""
    segments = _segments_between(points)
    newest = segments[-max(1, len(segments) // 3) :]
    target = _LEAST_OF_USUAL * median(each.steps for each in newest) if newest else 0.0
    merged: list[Segment] = []
    for each in segments:
        if merged and merged[-1].steps < target:
            before = merged.pop()
            each = Segment(each.end, before.steps + each.steps, before.seconds + each.seconds)
        merged.append(each)
    return merged


def _segments_between(points: Sequence[PacePoint]) -> list[Segment]:
    """One for every two points; one in which no step was done is part of the next."""
    segments: list[Segment] = []
    begun = points[0] if points else None
    for point in points[1:]:
        if begun is not None and point.steps > begun.steps:
            segments.append(Segment(point.steps, point.steps - begun.steps, point.seconds - begun.seconds))
            begun = point
    return segments


def without_start(segments: Sequence[Segment]) -> list[Segment]:
    """Without the first segments that are slower than half of all steps are: compilation, cold caches."""
    total = sum(each.steps for each in segments)
    usual = _SLOW_START * _pace_of_the_middle_step(segments, total)
    first = steps = 0
    while segments[first].pace > usual and steps + segments[first].steps <= total / 2:
        steps += segments[first].steps
        first += 1
    return list(segments[first:])


def _pace_of_the_middle_step(segments: Sequence[Segment], total: int) -> float:
    by_pace = sorted(segments, key=lambda segment: segment.pace)
    steps = accumulate(each.steps for each in by_pace)
    return next(each.pace for each, so_far in zip(by_pace, steps, strict=True) if so_far >= total / 2)


def without_stalls(segments: Sequence[Segment]) -> tuple[list[Segment], list[Stall]]:
    """The segments at the pace of their neighbours, and the stalls that are taken out of them."""
    usual = _usual_paces(segments)
    excess = [each.pace - pace for each, pace in zip(segments, usual, strict=True)]
    deviation = median(map(abs, excess))
    is_stalled = [
        beyond > (_STALL - 1.0) * pace and beyond > _STALL_DEVIATIONS * deviation
        for beyond, pace in zip(excess, usual, strict=True)
    ]
    if not 0 < sum(is_stalled) <= _MOST_STALLED * len(segments):
        return list(segments), []
    stalls = [
        Stall(each.end, beyond * each.steps)
        for each, beyond, stalled in zip(segments, excess, is_stalled, strict=True)
        if stalled
    ]
    if not _are_all_found(stalls, segments[-1].end):
        return list(segments), []
    regular = [
        Segment(each.end, each.steps, pace * each.steps) if stalled else each
        for each, pace, stalled in zip(segments, usual, is_stalled, strict=True)
    ]
    return regular, stalls


def _usual_paces(segments: Sequence[Segment]) -> list[float]:
    """The median pace around each segment; at both ends, of as many neighbours."""
    paces = [each.pace for each in segments]
    width = 2 * _NEIGHBOURS + 1
    starts = [max(0, min(place - _NEIGHBOURS, len(paces) - width)) for place in range(len(paces))]
    return [median(paces[start : start + width]) for start in starts]


def gaps_of(stalls: Sequence[Stall]) -> list[int]:
    """Steps between the ends of stalls."""
    return [later.end - earlier.end for earlier, later in pairwise(stalls)]


def _are_all_found(stalls: Sequence[Stall], now: int) -> bool:
    """Whether the stalls are regular, or few, and none is long overdue; otherwise some were not found."""
    if len(stalls) < 2:
        return True
    overdue = now - stalls[-1].end > _OVERDUE * (stalls[-1].end - stalls[0].end) / (len(stalls) - 1)
    return not overdue and (len(stalls) <= _FEW_STALLS or are_regular(stalls))


def are_regular(stalls: Sequence[Stall]) -> bool:
    """Whether at least three stalls come after about as many steps each time."""
    gaps = gaps_of(stalls)
    return len(gaps) > 1 and deviation_of(gaps) < _REGULAR * sum(gaps) / len(gaps)


def deviation_of(values: Sequence[float]) -> float:
    """The standard deviation of at least one value."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
