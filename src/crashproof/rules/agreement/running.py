"""Whether processes that train together still do the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RunningReport", "ranks_apart", "ranks_off_the_order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningReport:
    """What one process says of the steps since the last check, as digests."""

    of_all: str
    """The samples of all processes, in their order, as this process computes it; its settings and counters."""
    own: str
    """The samples that this process has learned from."""
    of_next: str
    """Those that the next rank should have learned from; the next of the last one is rank 0."""
    weights: str
    """The weights; empty where each process has only a part of them."""


def ranks_off_the_order(reports: Sequence[RunningReport]) -> list[int]:
    """The ranks that compute another order than most others, or have learned from other samples than their part."""
    off = _unusual([report.of_all for report in reports])
    return off or [rank for rank, report in enumerate(reports) if report.own != reports[rank - 1].of_next]


def ranks_apart(reports: Sequence[RunningReport]) -> list[int]:
    """The ranks whose weights are not those of most others."""
    return _unusual([report.weights for report in reports])


def _unusual(values: Sequence[str]) -> list[int]:
    """The places of the values that are not the most frequent one; of equally frequent ones the first is taken."""
    frequency = Counter(values)
    usual = max(values, key=lambda each: frequency[each])
    return [place for place, value in enumerate(values) if value != usual]
