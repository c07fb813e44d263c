"""Records of bad steps."""

from __future__ import annotations

from msgspec import Struct

from crashproof.records.states import BadStepAction, BadStepCause

__all__ = ["BadStepRecord", "DataWindow"]


class DataWindow(Struct, frozen=True, gc=False, array_like=True):
    """Consecutive samples, by their positions in the order of all epochs: `first` up to, not including, `end`."""

    first: int
    end: int


class BadStepRecord(Struct, frozen=True, kw_only=True):
    """A step whose loss was bad, what it was compared with, and what was done."""

    step: int
    cause: BadStepCause
    loss: float | None
    """None if it is not finite."""
    usual: float | None
    """The level of the healthy losses before it; None if there were too few to tell."""
    limit: float | None
    """The highest loss that would have passed; likewise."""
    num_losses: int
    """The healthy losses that this rests on."""
    data: list[DataWindow]
    """The samples that the step was computed from: where a loop does not say, those counted since the last step."""
    action: BadStepAction
    attempt: int
    timestamp: float
    """Seconds since 1970."""
    is_transient: bool = False
    """Whether the step was fine when it was computed again from the same data."""
