"""Aggregates of many updates, for plots."""

from __future__ import annotations

from msgspec import Struct

from crashproof.records.version import FORMAT_VERSION

__all__ = ["Bucket", "CoarseBlock", "CurveBlock", "CurvePoint"]


class Bucket(Struct, frozen=True, array_like=True, gc=False):
    """Consecutive values of one series; in JSON an array of these fields in this order."""

    low: float | None
    """The lowest finite value; None if none is finite."""
    high: float | None
    mean: float | None
    """Of the finite values."""
    last: float | None
    """The newest value; None if it is not finite."""
    num_finite: int
    num_non_finite: int


class CurvePoint(Struct, frozen=True, kw_only=True, gc=False):
    """Consecutive updates, aggregated."""

    first_step: int
    last_step: int
    num_updates: int
    attempt: int
    """Of the last update."""
    timestamp: float
    """Of the last update, in seconds since 1970."""
    wall_clock_hours: float
    """Hours trained up to the last update."""
    series: dict[str, Bucket]
    """By field name; a component of the loss as `loss_components.kd`."""


class CurveBlock(CurvePoint, frozen=True, kw_only=True, gc=False, tag_field="v", tag=FORMAT_VERSION):
    """Consecutive lines of `metrics.jsonl`, aggregated: one line of `curves.jsonl`."""

    offset: int
    """Where the first line begins, in bytes."""
    end: int
    """Where the last line ends, in bytes."""
    last_line_crc: str
    """Checksum of the last line; it shows whether the journal is still the same file."""


class CoarseBlock(CurveBlock, frozen=True, kw_only=True, gc=False, tag_field="v", tag=FORMAT_VERSION):
    """Consecutive blocks, joined: one line of `curves_coarse.jsonl`."""

    blocks_offset: int
    """Where the first of them begins in `curves.jsonl`, in bytes."""
    blocks_end: int
    """Where the last of them ends there, in bytes."""
