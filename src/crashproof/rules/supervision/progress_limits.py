"""How long a run may make no progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crashproof.medians import median
from crashproof.records.supervision import Phase

__all__ = ["AUTO_SECONDS", "ProgressLimits", "Waiting"]

AUTO_SECONDS: Mapping[Phase, float] = {
    Phase.STARTING: 1800.0,
    Phase.COMPILING: 3600.0,
    Phase.TRAINING: 600.0,
    Phase.SAVING: 3600.0,
    Phase.EVALUATING: 3600.0,
    Phase.WAITING: 4 * 3600.0,
    Phase.FINISHING: 3600.0,
}
"""The least limit of each phase; the pace of the run can only lengthen it."""
_MEDIANS = 20.0
_LONGEST = 3.0
_INTERVALS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLimits:
    """The limit of each phase: a number, or learned from the pace of the life at hand."""

    given: Mapping[Phase, float] = field(default_factory=dict)
    """In seconds; the others are learned."""

    def seconds(self, phase: Phase, intervals: Sequence[float]) -> float:
        """The limit of a phase; `intervals` are those between two signs of progress in it, in this life."""
        if phase in self.given:
            return self.given[phase]
        recent = intervals[-_INTERVALS:]
        if not recent:
            return AUTO_SECONDS[phase]
        return max(AUTO_SECONDS[phase], _MEDIANS * median(recent), _LONGEST * max(recent))


@dataclass(slots=True)
class Waiting:
    """Counts how long a life has waited for progress in one phase; a new one begins with each life."""

    phase: Phase = Phase.STARTING
    seconds: float = 0.0
    """Since the last sign of progress, or since the phase began."""
    excused_seconds: float = 0.0
    """Of it, those for which there was another sign of life."""
    _intervals: dict[Phase, list[float]] = field(default_factory=dict)

    @property
    def own_intervals(self) -> Sequence[float]:
        """How long it waited for each of the newest signs of progress in this phase."""
        return self._intervals.get(self.phase, ())

    def pass_time(self, seconds: float) -> None:
        """Time has passed in which the process could have made progress."""
        self.seconds += seconds

    def progress(self) -> None:
        """The run has made progress."""
        known = self._intervals.setdefault(self.phase, [])
        known.append(self.seconds)
        del known[:-_INTERVALS]
        self.seconds = self.excused_seconds = 0.0

    def excuse(self, seconds: float) -> None:
        """There was another sign of life, so that this much of the wait does not count."""
        self.excused_seconds = max(self.excused_seconds, self.seconds - seconds)

    @property
    def counted_seconds(self) -> float:
        """The part of the wait that counts towards a hang."""
        return self.seconds - self.excused_seconds

    def enter(self, phase: Phase) -> None:
        """The run is in a phase; one that it was not in before begins its own wait."""
        if phase != self.phase:
            self.phase = phase
            self.seconds = self.excused_seconds = 0.0
