"""How long the ranks of a run work on a step."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["RankTime", "RankTimes"]


class RankTime(Struct, frozen=True, kw_only=True):
    """One rank's own work on the steps of a while: without its waits for other ranks."""

    rank: int
    host: str
    seconds: float
    """The median over these steps."""
    most_seconds: float
    """The longest of them."""


class RankTimes(Struct, frozen=True, kw_only=True):
    """The own work of all ranks on the steps of a while."""

    step: int
    """The newest of these steps."""
    num_steps: int
    num_ranks: int
    step_seconds: float
    """A whole step with all waits: the median on the main rank."""
    least_seconds: float
    """Of the fastest rank. Likewise of the ranks, not of the steps:"""
    median_seconds: float
    """that of the rank in the middle, the lower one of two,"""
    high_seconds: float
    """and that of the rank which is slower than nine in ten."""
    slowest: list[RankTime]
    """At most four, the slowest first."""
