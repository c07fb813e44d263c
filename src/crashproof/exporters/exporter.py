"""The interface of an exporter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from crashproof.exporters.names import TrackerNames
from crashproof.records.metrics import MEASURED, MetricsSnapshot
from crashproof.records.snapshots import JournalMark

__all__ = ["COMPONENTS", "Exporter", "Point", "RunFacts", "Sent", "named_values", "spelled"]

COMPONENTS = "loss_components/"
"""Begins the name of a component of the loss in a tracker, such as `loss_components/kd`."""


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a run."""

    name: str
    """The name of its folder."""
    session_id: str
    start_time: float
    """Seconds since 1970."""
    config: dict[str, Any]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What a tracker is given for one step."""

    step: int
    timestamp: float
    """Seconds since 1970."""
    values: dict[str, float]
    """Those of the update, by the tracker's names; empty if there is none at this step."""
    evaluation: dict[str, float]
    """Results on held-out data, likewise."""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a run a tracker has received."""

    mark: JournalMark = JournalMark()
    """Up to where in the journal of updates."""
    last_step: int | None = None
    """The highest step of an update that it has; None if it has none."""
    reached: int | None = None
    """The highest step that an interrupted replay, which it continues, may have sent beyond that."""
    evaluations: dict[int, dict[str, str]] = {}
    """The results that it has, as `spelled`, by step and by the tracker's names."""

    @property
    def highest_step(self) -> int:
        """The highest step that it may have; -1 if it has nothing."""
        return max(-1 if self.last_step is None else self.last_step, -1 if self.reached is None else self.reached)

    def with_evaluation(self, point: Point) -> dict[int, dict[str, str]]:
        """The results with those of one more point."""
        if not point.evaluation:
            return self.evaluations
        own = {name: spelled(value) for name, value in point.evaluation.items()}
        return self.evaluations | {point.step: self.evaluations.get(point.step, {}) | own}


class Exporter(Protocol):
    """Exports one run to one tracker: opened, perhaps told to forget, given points, closed."""

    @property
    def names(self) -> TrackerNames:
        """The names of the run's values in the tracker."""
        ...

    @property
    def takes_late_points(self) -> bool:
        """Whether it takes a point at or below the highest step that it has, as of an evaluation that came late."""
        ...

    def open(self, run: RunFacts) -> Sent:
        """Connect to the tracker; returns what it already has of this run.

        Raises:
            MissingExtra: the tracker is not installed.
            OtherRun: the destination holds another run.
        """
        ...

    def forget(self) -> None:
        """Remove the run from the tracker: something that it has was superseded."""
        ...

    def add(self, points: Sequence[Point], sent: Sent) -> None:
        """Send points, in the order of their steps, and store `sent`, which counts them in: both or neither."""
        ...

    def close(self) -> None:
        """Disconnect; what was added stays."""
        ...


def named_values(update: MetricsSnapshot) -> Iterator[tuple[str, float]]:
    """Yield every value of an update under its name in a tracker, such as `loss` or `loss_components/kd`."""
    for name in MEASURED:
        value = getattr(update, name)
        if value is not None and not (name == "loss" and update.without_loss):
            yield name, float(value)
    for name, value in update.loss_components.items():
        yield f"{COMPONENTS}{name}", value


def spelled(value: float) -> str:
    """A result as it is compared with what a tracker has: some round it, and some have no infinity."""
    return {"inf": "1.79769313e+308", "-inf": "-1.79769313e+308"}.get(f"{value:.9g}", f"{value:.9g}")
