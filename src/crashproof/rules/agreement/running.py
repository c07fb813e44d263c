"""Whether processes that train together still do the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RunningReport", "ranks_astray"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningReport:
    """What one process says of the steps since the last check; samples and weights as digests."""

    state: str
    """Its settings and counters."""
    of_all: str
    """The samples of all processes, in their order, as this process computes it."""
    own: str
    """The samples that this process has learned from."""
    of_next: str
    """Those that the next rank should have learned from; the next of the last one is rank 0."""
    weights: str
    """The weights; empty where each process has only a part of them."""


def ranks_astray(reports: Sequence[RunningReport]) -> tuple[list[int], str]:
    """The ranks that do not do what most others do, and in which words; the first kind that is found."""
    state, orders = [each.state for each in reports], [each.of_all for each in reports]
    parts = [rank for rank, each in enumerate(reports) if each.own != reports[rank - 1].of_next]
    kinds = (
        (_unusual(state), "had other settings or counters than the others"),
        (_unusual(orders) or parts, "took samples that are not in the order of the run"),
        (_unusual([each.weights for each in reports]), "came to other weights than the others"),
    )
    return next((kind for kind in kinds if kind[0]), ([], ""))


def _unusual(values: Sequence[str]) -> list[int]:
    """The places of the values that are not the most frequent one; of equally frequent ones the first is taken."""
    frequency = Counter(values)
    usual = max(values, key=lambda each: frequency[each])
    return [place for place, value in enumerate(values) if value != usual]
