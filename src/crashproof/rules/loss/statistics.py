"""Robust statistics of a series.

The slope is the Theil-Sen estimator, the median of pairwise slopes, with Sen's confidence interval (P. K. Sen,
"Estimates of the regression coefficient based on Kendall's tau", J. Am. Stat. Assoc. 63, 1968); whether there is a
trend at all is the Mann-Kendall test (H. B. Mann, "Nonparametric tests against trend", Econometrica 13, 1945). Both
look at the order of the values, so a single spike changes neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from crashproof.medians import median

__all__ = ["Z_95", "Slope", "quantile", "slope_of", "spread"]

Z_95 = 1.959964
_MAD_TO_SIGMA = 1.4826


class Slope(NamedTuple):
    """The slope of a series, with an interval of its uncertainty."""

    estimate: float
    low: float
    high: float
    z: float
    """How surprising the order of the values is without a trend, in standard deviations; below 0 if they fall."""


def slope_of(points: Sequence[tuple[float, float]], *, z_interval: float = Z_95) -> Slope:
    """The slope of at least two points, x strictly increasing; its interval is `z_interval` standard errors wide."""
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for place, earlier in enumerate(points)
        for later in points[place + 1 :]
    )
    count = len(points)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18.0)
    half_width = z_interval * deviation
    low = max(0, math.floor((len(slopes) - half_width) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + half_width) / 2))
    score = sum((slope > 0) - (slope < 0) for slope in slopes)
    # Kendall's continuity correction: the score moves in steps of two.
    z = math.copysign(max(0, abs(score) - 1) / deviation, score)
    return Slope(median(slopes), slopes[low], slopes[high], z)


def spread(values: Sequence[float]) -> float:
    """Median absolute deviation, scaled to a normal distribution's standard deviation."""
    middle = median(values)
    return _MAD_TO_SIGMA * median(abs(value - middle) for value in values)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of at least one value lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
