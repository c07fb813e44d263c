"""A long history in few numbers, no spike lost.

Every bucket keeps the lowest, the highest, the mean and the last of its values and how many were not finite, so
that a picture drawn from buckets shows each one-step spike and each NaN, however many steps a bucket spans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crashproof.records.curves import Bucket, CurvePoint
from crashproof.records.metrics import COMPONENT, SERIES, MetricsSnapshot

__all__ = ["folded", "joined", "merged", "point_of"]


def folded(updates: Sequence[MetricsSnapshot]) -> dict[str, Bucket]:
    """The buckets of at least one update, by series; a series that none of them has is left out."""
    components = [update.loss_components for update in updates]
    # As a rule all updates have the same ones, in the same order.
    names = dict.fromkeys(name for each in components for name in each) if len(updates) > 1 else components[0]
    columns: dict[str, list[float | None]] = {name: [getattr(update, name) for update in updates] for name in SERIES}
    columns |= {COMPONENT + name: [each.get(name) for each in components] for name in names}
    return {name: bucket for name, values in columns.items() if (bucket := _bucket(values)) is not None}


def point_of(updates: Sequence[MetricsSnapshot]) -> CurvePoint:
    """At least one update, in the order of their steps, as one point."""
    last = updates[-1]
    return CurvePoint(
        first_step=updates[0].step,
        last_step=last.step,
        num_updates=len(updates),
        attempt=last.attempt,
        timestamp=last.timestamp,
        wall_clock_hours=last.wall_clock_hours,
        series=folded(updates),
    )


def joined(points: Sequence[CurvePoint]) -> CurvePoint:
    """At least one point, in the order of their steps, as one."""
    if len(points) == 1:
        return points[0]
    last = points[-1]
    parts: dict[str, list[Bucket]] = {}
    for point in points:
        for name, bucket in point.series.items():
            parts.setdefault(name, []).append(bucket)
    return CurvePoint(
        first_step=points[0].first_step,
        last_step=last.last_step,
        num_updates=sum(point.num_updates for point in points),
        attempt=last.attempt,
        timestamp=last.timestamp,
        wall_clock_hours=last.wall_clock_hours,
        series={name: merged(buckets) for name, buckets in parts.items()},
    )


def merged(buckets: Sequence[Bucket]) -> Bucket:
    """Several buckets of one series, in order, as one."""
    lows = [bucket.low for bucket in buckets if bucket.low is not None]
    highs = [bucket.high for bucket in buckets if bucket.high is not None]
    means = [(bucket.mean, bucket.num_finite) for bucket in buckets if bucket.mean is not None]
    return Bucket(
        min(lows, default=None),
        max(highs, default=None),
        _mean([mean for mean, _ in means], [count for _, count in means]) if means else None,
        buckets[-1].last,
        sum(bucket.num_finite for bucket in buckets),
        sum(bucket.num_non_finite for bucket in buckets),
    )


def _bucket(values: list[float | None]) -> Bucket | None:
    try:
        total = math.fsum(values)  # type: ignore[arg-type]  # a None among them is the TypeError.
    except (TypeError, OverflowError, ValueError):
        return _careful_bucket(values)
    if not math.isfinite(total):
        return _careful_bucket(values)
    count = len(values)
    return Bucket(min(values), max(values), total / count, values[-1], count, 0)  # type: ignore[type-var]


def _careful_bucket(values: list[float | None]) -> Bucket | None:
    """The same where some are missing, not finite, or too large to be added."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    finite = [value for value in known if math.isfinite(value)]
    last = known[-1] if math.isfinite(known[-1]) else None
    if not finite:
        return Bucket(None, None, None, None, 0, len(known))
    return Bucket(
        min(finite), max(finite), _mean(finite, [1] * len(finite)), last, len(finite), len(known) - len(finite)
    )


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    total = sum(counts)
    # Each part is divided first: the sum of two large losses may be infinite.
    return math.fsum(value * (count / total) for value, count in zip(values, counts, strict=True))
