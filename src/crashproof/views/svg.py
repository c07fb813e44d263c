"""Draw a curve as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from crashproof.records.curves import CurvePoint

__all__ = ["CurveMarks", "curve_svg"]

_WIDTH, _HEIGHT = 760, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 14, 28
_TICKS = 5

# Readable on white and on black, distinguishable by people with a colour vision deficiency.
_LINE, _ALARM, _SOFT = "#2b83ba", "#d55e00", "#808890"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveMarks:
    """What is marked along a curve, by step."""

    attempts: Sequence[tuple[int, int]] = ()
    """The number and first step of each attempt."""
    checkpoints: Sequence[int] = ()
    recomputed: Sequence[tuple[int, int]] = ()
    """The first and last step of each recomputed range."""


def curve_svg(points: Sequence[CurvePoint], *, series: str = "loss", marks: CurveMarks | None = None) -> str:
    """Draw one series: a band from lowest to highest, the mean in it, non-finite values marked.

    Returns an empty string if no value is finite.
    """
    shown = [(point, bucket) for point in points if (bucket := point.series.get(series)) is not None]
    lows = [bucket.low for _, bucket in shown if bucket.low is not None]
    highs = [bucket.high for _, bucket in shown if bucket.high is not None]
    if not lows or not highs:
        return ""
    marks = marks or CurveMarks()
    plane = _Plane(first=shown[0][0].first_step, last=shown[-1][0].last_step, low=min(lows), high=max(highs))
    parts = [
        _grid(plane),
        *(_shade(plane, first, last) for first, last in marks.recomputed),
        *_bands(plane, [(point.last_step, bucket.low, bucket.high) for point, bucket in shown]),
        *_lines(plane, [(point.last_step, bucket.mean) for point, bucket in shown]),
        *(_checkpoint(plane, step) for step in marks.checkpoints),
        *(_border(plane, number, step) for number, step in marks.attempts),
        *(_not_finite(plane, point.last_step) for point, bucket in shown if bucket.num_non_finite),
    ]
    text = f"{series} from step {plane.first:,} to {plane.last:,}, between {plane.low:.6g} and {plane.high:.6g}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(text)}" font-family="system-ui, sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    first: int
    last: int
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (step - self.first) / max(1, self.last - self.first)
        return _LEFT + min(1.0, max(0.0, share)) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        # Each is divided first: the difference of two losses may be infinite.
        height = self.high / 2 - self.low / 2
        share = (value / 2 - self.low / 2) / height if height > 0 else 0.5
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid(plane: _Plane) -> str:
    parts = []
    for number in range(_TICKS):
        share = number / (_TICKS - 1)
        value = plane.low * (1 - share) + plane.high * share
        y = plane.y(value)
        step = round(plane.first + share * (plane.last - plane.first))
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_SOFT}" stroke-opacity=".3"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{_SOFT}">{value:.4g}</text>'
            f'<text x="{plane.x(step):.1f}" y="{_HEIGHT - 8}" text-anchor="middle" fill="{_SOFT}">{step:,}</text>'
        )
    return "".join(parts)


def _bands(plane: _Plane, values: Sequence[tuple[int, float | None, float | None]]) -> Iterable[str]:
    """Draw each point's range, a hair wider than the line: a spike of one step is a visible stroke."""
    for step, low, high in values:
        if low is not None and high is not None and high > low:
            yield (
                f'<path d="M{plane.x(step):.1f} {plane.y(low):.1f}V{plane.y(high):.1f}" stroke="{_LINE}" '
                'stroke-opacity=".5"/>'
            )


def _lines(plane: _Plane, values: Sequence[tuple[int, float | None]]) -> Iterable[str]:
    """Draw the mean, interrupted where nothing is finite."""
    pieces: list[list[str]] = [[]]
    for step, value in values:
        if value is None or not math.isfinite(value):
            pieces.append([])
        else:
            pieces[-1].append(f"{plane.x(step):.1f} {plane.y(value):.1f}")
    for piece in pieces:
        if len(piece) == 1:
            x, y = piece[0].split(" ")
            yield f'<circle cx="{x}" cy="{y}" r="1.6" fill="{_LINE}"/>'
        elif piece:
            yield f'<path d="M{"L".join(piece)}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>'


def _checkpoint(plane: _Plane, step: int) -> str:
    return f'<path d="M{plane.x(step):.1f} {_HEIGHT - _BOTTOM - 8}l4 4-4 4-4-4z" fill="{_SOFT}"/>'


def _border(plane: _Plane, number: int, step: int) -> str:
    x = plane.x(step)
    return (
        f'<path d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="{_SOFT}" stroke-dasharray="3 3"/>'
        f'<text x="{x + 3:.1f}" y="{_TOP + 9}" fill="{_SOFT}">attempt {number}</text>'
    )


def _shade(plane: _Plane, first: int, last: int) -> str:
    x = plane.x(first)
    width = max(1.0, plane.x(last) - x)
    height = _HEIGHT - _TOP - _BOTTOM
    return f'<rect x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{height}" fill="{_SOFT}" fill-opacity=".2"/>'


def _not_finite(plane: _Plane, step: int) -> str:
    x = plane.x(step)
    return (
        f'<path d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="{_ALARM}" stroke-opacity=".6"/>'
        f'<path d="M{x - 5:.1f} {_TOP}h10l-5 8z" fill="{_ALARM}"><title>not finite at step {step:,}</title></path>'
    )
