"""The trend of the loss.

The slope is the Theil-Sen estimator, the median of pairwise slopes, with Sen's confidence interval (P. K. Sen,
"Estimates of the regression coefficient based on Kendall's tau", J. Am. Stat. Assoc. 63, 1968): a single spike
changes neither. The moving average is exponential over finite losses only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from msgspec.structs import replace

from crashproof.records.progress import LossTrend
from crashproof.records.states import LossVerdict

__all__ = ["MOVING_AVERAGE_SPAN", "loss_trend", "moved_average", "slope_with_interval"]

MOVING_AVERAGE_SPAN = 100
_SMOOTHING = 2.0 / (MOVING_AVERAGE_SPAN + 1)

_Z_95 = 1.959964
_MOST_POINTS = 128
"""A longer window is thinned to this many block medians: pairs grow with the square."""
_FEWEST_POINTS = 8
"""With fewer, there is no verdict."""
_FEWEST_POINTS_FOR_NOISE = 30
"""With fewer, the noise of half a window cannot be estimated well enough."""
_MAD_TO_SIGMA = 1.4826
_SPIKE_SIGMAS = 8.0
_SPIKE_SHARE = 0.05
_NOISE_GROWTH = 4.0
_RISE_IN_NOISE = 2.0
"""The rise over the window must be this many times the noise: by the slope's 95 % interval alone, frequent checks
would raise too many false alarms."""
_NON_FINITE_SHARE = 0.1
_LEAST_CHANGE = 1e-9
"""Relative to the loss; a smaller change is a rounding error."""


def moved_average(average: float | None, loss: float) -> float | None:
    """The moving average after one more loss; a non-finite loss does not change it."""
    if not math.isfinite(loss):
        return average
    # Weighted apart: the difference of two finite losses may be infinite.
    return loss if average is None else (1.0 - _SMOOTHING) * average + _SMOOTHING * loss


def loss_trend(losses: Sequence[float], *, moving_avg_loss: float | None, window_size: int = 100) -> LossTrend:
    """The trend of the newest losses, of which at most `window_size` are used."""
    window = list(losses[-window_size:]) if window_size > 0 else []
    finite = [(float(place), loss) for place, loss in enumerate(window) if math.isfinite(loss)]
    trend = LossTrend(
        has_data=bool(window),
        current_loss=window[-1] if window else None,
        moving_avg_loss=moving_avg_loss,
        min_loss=min((loss for _, loss in finite), default=None),
        max_loss=max((loss for _, loss in finite), default=None),
        window_size=len(window),
        num_non_finite=len(window) - len(finite),
    )
    if len(finite) < 2:
        return replace(trend, verdict=_verdict_without_slope(window, trend))
    slope, low, high = slope_with_interval(_thinned(finite))
    trend = replace(
        trend, slope_per_update=slope, slope_low=low, slope_high=high, noise=_spread(_residuals(finite, slope))
    )
    verdict = _verdict(window, finite, trend)
    falls = verdict == LossVerdict.IMPROVING or (verdict == LossVerdict.UNKNOWN and slope < 0)
    return replace(trend, verdict=verdict, is_improving=falls)


def slope_with_interval(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Sen's slope of at least two points (x strictly increasing) with its 95 % interval: slope, low, high."""
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for place, earlier in enumerate(points)
        for later in points[place + 1 :]
    )
    count = len(points)
    half_width = _Z_95 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18.0)
    low = max(0, math.floor((len(slopes) - half_width) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + half_width) / 2))
    return median(slopes), slopes[low], slopes[high]


def _verdict_without_slope(window: list[float], trend: LossTrend) -> LossVerdict:
    if window and (not math.isfinite(window[-1]) or trend.num_non_finite > _NON_FINITE_SHARE * len(window)):
        return LossVerdict.NON_FINITE
    return LossVerdict.UNKNOWN


def _verdict(window: list[float], finite: list[tuple[float, float]], trend: LossTrend) -> LossVerdict:
    without_slope = _verdict_without_slope(window, trend)
    if without_slope == LossVerdict.NON_FINITE or len(finite) < _FEWEST_POINTS:
        return without_slope
    assert trend.min_loss is not None
    assert trend.max_loss is not None
    assert trend.slope_per_update is not None
    assert trend.slope_low is not None
    assert trend.slope_high is not None
    assert trend.noise is not None
    smallest = _LEAST_CHANGE * max(abs(trend.min_loss), abs(trend.max_loss))
    rise_over_window = trend.slope_per_update * len(window)
    # A falling loss may be noisy; a rise only counts if it exceeds the noise.
    if trend.slope_low > 0 and rise_over_window > max(_RISE_IN_NOISE * trend.noise, smallest):
        return LossVerdict.DIVERGING
    if _is_unstable(finite, trend.slope_per_update):
        return LossVerdict.UNSTABLE
    if trend.slope_high < 0 and -rise_over_window > smallest:
        return LossVerdict.IMPROVING
    return LossVerdict.PLATEAU


def _is_unstable(finite: list[tuple[float, float]], slope: float) -> bool:
    """Whether spikes are frequent, or the noise of the second half is far above that of the first.

    Noise is measured between neighbours, so that a curved loss is not mistaken for a noisy one.
    """
    if len(finite) < _FEWEST_POINTS_FOR_NOISE:
        return False
    steps = [later[1] - earlier[1] - slope * (later[0] - earlier[0]) for earlier, later in pairwise(finite)]
    noise = _spread(steps)
    if noise > 0 and sum(abs(step) > _SPIKE_SIGMAS * noise for step in steps) > _SPIKE_SHARE * len(steps):
        return True
    half = len(steps) // 2
    before, after = _spread(steps[:half]), _spread(steps[half:])
    return before > 0 and after > _NOISE_GROWTH * before


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(median(x for x, _ in block), median(y for _, y in block)) for block in blocks]


def _residuals(points: list[tuple[float, float]], slope: float) -> list[float]:
    level = median(y - slope * x for x, y in points)
    return [y - slope * x - level for x, y in points]


def _spread(values: Sequence[float]) -> float:
    """Median absolute deviation, scaled to a normal distribution's standard deviation."""
    middle = median(values)
    return _MAD_TO_SIGMA * median(abs(value - middle) for value in values)
