"""The trend of the loss.

The moving average is exponential, over finite losses only. The slope is that of the newest losses, as many as are
asked for; the verdict is on all losses of the run (`rules/loss/verdict.py`), and the same whatever is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

from msgspec.structs import replace

from crashproof.medians import median
from crashproof.records.metrics import MetricsSnapshot, reported_losses
from crashproof.records.progress import LossTrend
from crashproof.records.session import TrainingSession
from crashproof.records.states import LossVerdict
from crashproof.rules.loss.buckets import BUCKET_UPDATES, add_bucket, drop_buckets
from crashproof.rules.loss.statistics import slope_of, spread
from crashproof.rules.loss.verdict import FEWEST_UPDATES, Judgement, judge
from crashproof.rules.loss.windows import LossHistory

__all__ = [
    "MOVING_AVERAGE_SPAN",
    "add_loss_to_buckets",
    "drop_superseded_losses",
    "fill_loss_buckets",
    "loss_trend",
    "moved_average",
    "take_back_newest_loss",
    "trend_of_session",
]

MOVING_AVERAGE_SPAN = 100
_SMOOTHING = 2.0 / (MOVING_AVERAGE_SPAN + 1)

_MOST_POINTS = 128
"""A longer window is thinned to this many block medians: pairs grow with the square."""
_NEWEST = 100
_NON_FINITE_SHARE = 0.1
"""Of the newest 100 losses: where more are not finite, that is the verdict."""


def moved_average(average: float | None, loss: float) -> float | None:
    """The moving average after one more loss; a non-finite loss does not change it."""
    if not math.isfinite(loss):
        return average
    # Weighted apart: the difference of two finite losses may be infinite.
    return loss if average is None else (1.0 - _SMOOTHING) * average + _SMOOTHING * loss


def add_loss_to_buckets(session: TrainingSession) -> None:
    """Count the newest update of the history if it has a loss; put such ones in a bucket once they are enough."""
    if session.metrics_history[-1].without_loss:
        return
    session.loss_updates_open += 1
    if session.loss_updates_open >= BUCKET_UPDATES:
        fill_loss_buckets(session)


def fill_loss_buckets(session: TrainingSession) -> None:
    """Put the oldest updates that are in no bucket yet in buckets, as long as they fill one."""
    while session.loss_updates_open >= BUCKET_UPDATES:
        # Of the history's 1,000 updates nearly all may have no loss.
        newest_first = (line for line in reversed(session.metrics_history) if not line.without_loss)
        reported = list(islice(newest_first, session.loss_updates_open))[::-1]
        end = len(reported) - session.loss_updates_open + BUCKET_UPDATES
        lines = reported[max(0, end - BUCKET_UPDATES) : end]
        add_bucket(session.loss_buckets, [line.loss for line in lines], lines[-1].step)
        session.loss_updates_open -= BUCKET_UPDATES


def drop_superseded_losses(session: TrainingSession, step: int) -> None:
    """Drop the buckets that a line for this step supersedes; the history has been cut already."""
    drop_buckets(session.loss_buckets, step)
    end = session.loss_buckets[-1].last_step if session.loss_buckets else -math.inf
    session.loss_updates_open = sum(line.step > end and not line.without_loss for line in session.metrics_history)


def take_back_newest_loss(session: TrainingSession, line: MetricsSnapshot) -> None:
    """Count an update no longer that was the newest and has been taken out of the history."""
    if line.without_loss:
        return
    if session.loss_updates_open:
        session.loss_updates_open -= 1
    else:
        drop_superseded_losses(session, line.step)


def trend_of_session(session: TrainingSession, *, window_size: int = 100) -> LossTrend:
    """The trend of a session's losses, of which at most the newest 1,000 are in the window."""
    losses = reported_losses(session.metrics_history)
    history = LossHistory(losses, session.loss_buckets, num_open=session.loss_updates_open)
    return loss_trend(
        losses,
        moving_avg_loss=session.moving_avg_loss,
        window_size=window_size,
        history=history,
        progress=session.steps_done / session.total_steps_target,
    )


def loss_trend(
    losses: Sequence[float],
    *,
    moving_avg_loss: float | None,
    window_size: int = 100,
    history: LossHistory | None = None,
    progress: float | None = None,
) -> LossTrend:
    """The trend of the newest losses, of which at most `window_size` are in the window.

    Args:
        losses: The newest ones.
        moving_avg_loss: Their moving average.
        window_size: How many the numbers are about; the verdict is about all.
        history: All losses of the run; by default, those in `losses` are all.
        progress: The share of the run's steps that is done; None if unknown.
    """
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
    if len(finite) > 1:
        slope = slope_of(_thinned(finite))
        trend = replace(
            trend,
            slope_per_update=slope.estimate,
            slope_low=slope.low,
            slope_high=slope.high,
            noise=spread(_residuals(finite, slope.estimate)),
        )
    return _with_verdict(trend, losses, history or LossHistory(losses), progress)


def _with_verdict(
    trend: LossTrend, losses: Sequence[float], history: LossHistory, progress: float | None
) -> LossTrend:
    newest = losses[-_NEWEST:]
    num_non_finite = sum(not math.isfinite(loss) for loss in newest)
    if newest and (not math.isfinite(newest[-1]) or num_non_finite > _NON_FINITE_SHARE * len(newest)):
        evidence = f"was not finite in {num_non_finite} of the newest {len(newest)} updates"
        return replace(trend, verdict=LossVerdict.NON_FINITE, confidence=1.0, evidence=evidence)
    judgement = judge(history, progress=progress)
    if judgement.window is None:
        falls = trend.slope_per_update is not None and trend.slope_per_update < 0
        evidence = f"is known too few times: a verdict needs {FEWEST_UPDATES} finite losses"
        return replace(trend, is_improving=falls, evidence=evidence)
    window = judgement.window
    return replace(
        trend,
        verdict=judgement.verdict,
        is_improving=judgement.verdict == LossVerdict.IMPROVING,
        confidence=judgement.confidence,
        evidence=_evidence(judgement),
        verdict_window=window.num_updates,
        change=window.change,
        change_low=window.slope.low * window.num_updates,
        change_high=window.slope.high * window.num_updates,
    )


def _evidence(judgement: Judgement) -> str:
    window = judgement.window
    assert window is not None
    ends = sorted((window.slope.low * window.num_updates, window.slope.high * window.num_updates), key=abs)
    over = f"over the last {window.num_updates:,} updates"
    match judgement.verdict:
        case LossVerdict.IMPROVING | LossVerdict.DIVERGING:
            verb = "fell" if window.change < 0 else "rose"
            low, high = (f"{abs(end):.3g}" for end in ends)
            return f"{verb} by {abs(window.change):.3g} ({low} to {high}) {over}"
        case LossVerdict.UNSTABLE:
            return "has frequent spikes, or noise several times what it was"
        case _:
            low, high = (f"{end:+.3g}" for end in sorted(ends))
            return f"changed by {window.change:+.3g} ({low} to {high}) {over}"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / _MOST_POINTS)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(median(x for x, _ in block), median(y for _, y in block)) for block in blocks]


def _residuals(points: list[tuple[float, float]], slope: float) -> list[float]:
    level = median(y - slope * x for x, y in points)
    return [y - slope * x - level for x, y in points]
