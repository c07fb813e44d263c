"""How many steps to train between two checkpoints.

The time that checkpoints cost and the time that failures cost are in balance at about the square root of twice the
cost of a save times the mean time between failures: J. W. Young, "A first order approximation to the optimum
checkpoint interval" (1974); J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart
dumps" (2006), equation 37.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from crashproof.formatting import as_duration
from crashproof.records.session import AttemptRecord
from crashproof.records.states import AttemptState

__all__ = ["FIRST_INTERVAL", "ChosenInterval", "SaveSchedule", "choose_interval", "failures_among", "optimal_seconds"]

FIRST_INTERVAL = 50
"""Steps, until a save was measured."""
_LEAST_SECONDS, _MOST_SECONDS = 60.0, 3600.0
_PRIOR_SECONDS = 24 * 3600.0
"""Before there is any experience, one failure a day is expected."""
_FAILURES = frozenset({AttemptState.CRASHED, AttemptState.RAISED})
"""An attempt that was asked to stop has saved first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenInterval:
    """An interval, and why it is that one."""

    steps: int
    reason: str


@dataclass(slots=True, kw_only=True)
class SaveSchedule:
    """When a checkpoint is due: at multiples of a fixed interval, or some steps after the last one."""

    interval: int
    is_auto: bool
    saved_step: int
    """The step of the last save that was begun, or at which training began."""

    @classmethod
    def of(cls, interval: int | str, *, first_step: int) -> SaveSchedule:
        """The schedule that a config asks for by a number of steps, or by `auto`."""
        if isinstance(interval, int):
            return cls(interval=interval, is_auto=False, saved_step=first_step)
        return cls(interval=FIRST_INTERVAL, is_auto=True, saved_step=first_step)

    def is_due(self, step: int) -> bool:
        """Whether the state after a step is to be saved."""
        if self.is_auto:
            return step - self.saved_step >= self.interval
        return step % self.interval == 0


def choose_interval(
    *, save_seconds: float, step_seconds: float, num_failures: int, trained_seconds: float
) -> ChosenInterval:
    """The interval for a run, from what a save cost, what a step takes, and how often attempts failed."""
    between_failures = (trained_seconds + _PRIOR_SECONDS) / (num_failures + 1)
    best = optimal_seconds(save_seconds, between_failures)
    bounded = min(max(best, _LEAST_SECONDS), _MOST_SECONDS)
    steps = max(1, round(bounded / max(step_seconds, 1e-9)))
    bound = "" if bounded == best else f", bounded to {as_duration(bounded)}"
    return ChosenInterval(
        steps=steps,
        reason=f"a save stops training for {save_seconds:.2g} s, a step takes {step_seconds:.2g} s, {num_failures} "
        f"failures in {as_duration(trained_seconds)}: best after {as_duration(best)}{bound}",
    )


def optimal_seconds(save_seconds: float, between_failures: float) -> float:
    """The time between two saves at which least is lost, by Daly's estimate."""
    if save_seconds >= 2 * between_failures:
        return between_failures
    ratio = save_seconds / (2 * between_failures)
    return math.sqrt(2 * save_seconds * between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds


def failures_among(attempts: Iterable[AttemptRecord]) -> int:
    """Attempts that ended without saving first."""
    return sum(each.how in _FAILURES for each in attempts)
