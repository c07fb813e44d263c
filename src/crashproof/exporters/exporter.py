"""What a tracker must be able to do to be filled from a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from crashproof.records.metrics import MEASURED, MetricsSnapshot
from crashproof.records.snapshots import JournalMark

__all__ = ["RunFacts", "Sent", "Sink", "named_values"]


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Which run it is."""

    name: str
    """Of its folder."""
    session_id: str
    start_time: float
    """Seconds since 1970."""
    config: dict[str, Any]


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """How far into the run's journal a tracker has been filled."""

    mark: JournalMark = JournalMark()
    last_step: int = 0
    """The highest step that it has; 0 where it has none."""
    reached: int = 0
    """The highest step that it may have beyond that, of a replay that was cut off and that it goes on with."""


class Sink(Protocol):
    """One tracker, filled with one run. Whoever replays into it opens, asks, forgets or adds, and closes."""

    def open(self, run: RunFacts) -> Sent:
        """Get ready; returns what is there already of this run.

        Raises:
            MissingExtra: the tracker is not installed.
            OtherRun: what lies there belongs to another run.
        """
        ...

    def forget(self) -> None:
        """Have nothing of the run any more: steps that it has were superseded."""
        ...

    def add(self, updates: Sequence[MetricsSnapshot], mark: JournalMark) -> None:
        """Take updates in the order of their steps, and remember `mark` with them: both or neither."""
        ...

    def close(self) -> None:
        """Let go of the tracker; what was added stays."""
        ...


def named_values(update: MetricsSnapshot) -> Iterator[tuple[str, float]]:
    """Every number of an update by the name it has in a tracker, such as `loss` or `loss_components/kd`."""
    for name in MEASURED:
        value = getattr(update, name)
        if value is not None:
            yield name, float(value)
    for name, value in update.loss_components.items():
        yield f"loss_components/{name}", value
