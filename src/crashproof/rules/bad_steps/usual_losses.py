"""What is usual for a loss.

A step is bad if its loss is not finite, or a spike: above the level of the newest healthy losses by all of ten times
their noise (the median absolute deviation, scaled to a standard deviation), half of the level, and twice what the
highest of them is above it. So neither noise, nor a warm-up, nor a step of the learning rate is bad, and neither is a
loss that drifts away slowly: that is for the verdict on the loss (`rules/loss/`). Bad losses are not learned from.

The limit of a step is a function of the healthy losses up to two steps before it, also where newer ones are known: so
it can be known before the step is computed, and a resumed run has the same limits as the uninterrupted one.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from crashproof.medians import median
from crashproof.records.states import BadStepCause
from crashproof.rules.loss.statistics import spread

__all__ = ["FEWEST_LOSSES", "LAG_STEPS", "Limit", "UsualLosses", "cause_of"]

LAG_STEPS = 2
"""A step's limit is known once the loss of the step that many before it is."""
FEWEST_LOSSES = 16
"""With fewer healthy losses, only a non-finite one is bad."""
_MOST_LOSSES = 128
_NEWEST = 16
"""Their median is the level where it is above that of all: the loss rises."""
_NOISE = 10.0
_SHARE_OF_LEVEL = 0.5
_EXCURSIONS = 2.0
_LARGEST = 3.0e38
"""About the largest float32."""


class Limit(NamedTuple):
    """The highest loss that is no spike, and what it rests on."""

    loss: float
    """A number that a float32 holds: so a comparison on a device, and one on the host, find the same."""
    usual: float
    num_losses: int


class UsualLosses:
    """The newest healthy losses of a run."""

    def __init__(self, losses: Iterable[tuple[int, float]] = ()) -> None:
        """`losses` are steps and healthy losses, the oldest first."""
        self._losses = deque(losses, maxlen=_MOST_LOSSES + LAG_STEPS)

    def add(self, step: int, loss: float) -> None:
        """Learn from a step whose loss is healthy."""
        self._losses.append((step, loss))

    def known(self) -> list[tuple[int, float]]:
        """What was learned from, as the constructor takes it."""
        return list(self._losses)

    def limit_at(self, step: int) -> Limit | None:
        """The limit of a step; None while too few healthy losses are known."""
        losses = [loss for number, loss in self._losses if number <= step - LAG_STEPS][-_MOST_LOSSES:]
        if len(losses) < FEWEST_LOSSES:
            return None
        usual = max(median(losses), median(losses[-_NEWEST:]))
        above = max(_NOISE * spread(losses), _SHARE_OF_LEVEL * abs(usual), _EXCURSIONS * (max(losses) - usual))
        return Limit(loss=_as_float32(usual + above), usual=usual, num_losses=len(losses))


def cause_of(loss: float, limit: Limit | None) -> BadStepCause | None:
    """Why a loss is bad; None if it is healthy."""
    if not math.isfinite(loss):
        return BadStepCause.NON_FINITE
    return BadStepCause.SPIKE if limit is not None and loss > limit.loss else None


def _as_float32(number: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", max(-_LARGEST, min(number, _LARGEST))))[0]
    return rounded
