"""What was seen of a run, process life by process life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Difference", "Life", "StepSeen", "difference_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeen:
    """What one process saw of one step."""

    step: int
    values: Mapping[str, str]
    """Numbers and digests by dotted name."""
    samples: tuple[str, ...] | None = None
    """Of its batch, in order; None if no batch was shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What one process life saw, in the order of its steps."""

    number: int
    """1 for the first; 2 is the first that resumes."""
    steps: Sequence[StepSeen]

    @property
    def first_step(self) -> int:
        """The first step that it computed."""
        return self.steps[0].step


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first step of a life that differs from the uninterrupted run."""

    life: Life
    step: int
    names: tuple[str, ...]
    """Of the values that differ, sorted; `batch` stands for the samples."""
    expected: StepSeen
    found: StepSeen

    @property
    def offset(self) -> int:
        """How many steps of that life were exact before it."""
        return self.step - self.life.first_step


BATCH = "batch"


def difference_of(expected: StepSeen, found: StepSeen, passed_over: frozenset[str]) -> tuple[str, ...]:
    """The names of what differs; what only one side has shown is compared by nobody."""
    names = {
        name
        for name in expected.values.keys() & found.values.keys() - passed_over
        if expected.values[name] != found.values[name]
    }
    has_batches = expected.samples is not None and found.samples is not None and BATCH not in passed_over
    if has_batches and expected.samples != found.samples:
        names.add(BATCH)
    return tuple(sorted(names))
