"""The interface of an exporter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from crashproof.records.metrics import MEASURED, MetricsSnapshot
from crashproof.records.snapshots import JournalMark

__all__ = ["Exporter", "RunFacts", "Sent", "named_values"]


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a run."""

    name: str
    """The name of its folder."""
    session_id: str
    start_time: float
    """Seconds since 1970."""
    config: dict[str, Any]


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the run's journal a tracker has received."""

    mark: JournalMark = JournalMark()
    last_step: int = 0
    """The highest step that it has; 0 if none."""
    reached: int = 0
    """The highest step that an interrupted replay, which it continues, may have sent beyond that."""


class Exporter(Protocol):
    """Exports one run to one tracker: opened, perhaps told to forget, given updates, closed."""

    def open(self, run: RunFacts) -> Sent:
        """Connect to the tracker; returns what it already has of this run.

        Raises:
            MissingExtra: the tracker is not installed.
            OtherRun: the destination holds another run.
        """
        ...

    def forget(self) -> None:
        """Remove the run from the tracker: some of the steps it has were superseded."""
        ...

    def add(self, updates: Sequence[MetricsSnapshot], mark: JournalMark) -> None:
        """Send updates, in the order of their steps, and store `mark` with them: both or neither."""
        ...

    def close(self) -> None:
        """Disconnect; what was added stays."""
        ...


def named_values(update: MetricsSnapshot) -> Iterator[tuple[str, float]]:
    """Yield every value of an update under its name in a tracker, such as `loss` or `loss_components/kd`."""
    for name in MEASURED:
        value = getattr(update, name)
        if value is not None:
            yield name, float(value)
    for name, value in update.loss_components.items():
        yield f"loss_components/{name}", value
