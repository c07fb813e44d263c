"""A run's losses in few numbers.

Every 64 updates become a bucket; of each size there are at most 32, and the two oldest of one size are merged into
one of the next. So ten million updates are some 400 buckets, the newest of them fine, and each window that ends now
and is a share of the run has about as many buckets as any other (an exponential histogram: M. Datar, A. Gionis,
P. Indyk, R. Motwani, "Maintaining stream statistics over sliding windows", SIAM J. Comput. 31, 2002).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import sub

from crashproof.records.session import LossBucket

__all__ = ["BUCKET_UPDATES", "add_bucket", "drop_buckets", "noise_and_tail"]

BUCKET_UPDATES = 64
_MAX_OF_ONE_SIZE = 32
_MEDIAN_TO_SIGMA = 0.605
_DECILE_TO_SIGMA = 0.248
"""Of the second differences of normal noise."""


def add_bucket(buckets: list[LossBucket], losses: Sequence[float], last_step: int) -> None:
    """Add the losses of the newest updates, and merge older buckets where there are too many of one size."""
    buckets.append(_bucket_of(losses, last_step))
    size, end = buckets[-1].num_updates, len(buckets)
    # Those of one size lie side by side, the largest first.
    while end > _MAX_OF_ONE_SIZE and buckets[(oldest := end - _MAX_OF_ONE_SIZE - 1)].num_updates == size:
        buckets[oldest : oldest + 2] = [_merged(buckets[oldest], buckets[oldest + 1])]
        size, end = 2 * size, oldest + 1


def drop_buckets(buckets: list[LossBucket], step: int) -> None:
    """Drop the buckets that reach to a step or beyond."""
    while buckets and buckets[-1].last_step >= step:
        buckets.pop()


def _bucket_of(losses: Sequence[float], last_step: int) -> LossBucket:
    finite = losses if math.isfinite(sum(losses)) else [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return LossBucket(last_step, len(losses), 0, None, 0.0, 0.0, 0.0, 0.0)
    noise, tail = noise_and_tail(finite)
    middle = sorted(finite)[len(finite) // 2]
    return LossBucket(last_step, len(losses), len(finite), middle, middle, middle, noise, tail)


def noise_and_tail(losses: Sequence[float]) -> tuple[float, float]:
    """The standard deviation of the noise, by the median and by the ninth decile of second differences.

    A smooth curve, however steep, hardly changes either; a few spikes do not change the first.
    """
    differences = list(map(sub, losses[1:], losses))
    sizes = sorted(map(abs, map(sub, differences[1:], differences)))
    if not sizes:
        return 0.0, 0.0
    return _MEDIAN_TO_SIGMA * sizes[len(sizes) // 2], _DECILE_TO_SIGMA * sizes[len(sizes) * 9 // 10]


def _merged(older: LossBucket, newer: LossBucket) -> LossBucket:
    parts = [each for each in (older, newer) if each.level is not None]
    if not parts:
        return LossBucket(newer.last_step, older.num_updates + newer.num_updates, 0, None, 0.0, 0.0, 0.0, 0.0)
    num_finite = sum(each.num_finite for each in parts)
    levels = [(each.level, each.num_finite / num_finite) for each in parts if each.level is not None]
    return LossBucket(
        newer.last_step,
        older.num_updates + newer.num_updates,
        num_finite,
        # Each part is divided first: the sum of two large losses may be infinite.
        sum(level * share for level, share in levels),
        min(each.low for each in parts),
        max(each.high for each in parts),
        sum(each.noise / len(parts) for each in parts),
        sum(each.tail / len(parts) for each in parts),
    )
