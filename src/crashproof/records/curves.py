"""Many updates in a few numbers."""

from __future__ import annotations

from msgspec import Struct

from crashproof.records.version import FORMAT_VERSION

__all__ = [
    "Bucket",
    "CurveBlock",
    "CurvePoint",
]


class Bucket(Struct, frozen=True, array_like=True, gc=False):
    """Several values of one series that follow each other; an array of these fields in this order."""

    low: float | None
    """The lowest finite one; None where none is finite."""
    high: float | None
    mean: float | None
    """Of the finite ones."""
    last: float | None
    """The newest; None where that is not finite."""
    num_finite: int
    num_non_finite: int


class CurvePoint(Struct, frozen=True, kw_only=True, gc=False):
    """What some updates that follow each other, step by step, have in common."""

    first_step: int
    last_step: int
    num_updates: int
    attempt: int
    """Of the last of them."""
    timestamp: float
    """The same, in seconds since 1970."""
    wall_clock_hours: float
    """The same: hours trained."""
    series: dict[str, Bucket]
    """By a field's name; a component of the loss as `loss_components.kd`."""


class CurveBlock(CurvePoint, frozen=True, kw_only=True, gc=False, tag_field="v", tag=FORMAT_VERSION):
    """Some lines of `metrics.jsonl`: one line of `curves.jsonl`."""

    offset: int
    """Where the first of them begins, in bytes."""
    end: int
    """Where the last of them ends."""
    last_line_crc: str
    """Of that one; tells whether the journal is still the same file."""
