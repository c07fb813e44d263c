"""When a rank has to end instead of waiting on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Activity", "overdue_activity"]

_LEAVE_SECONDS = 10.0
"""How long a thread has to learn of a loss by itself, call the roll, and let the others know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What a thread of this process is doing."""

    what: str
    """Completes "while …"."""
    since: float
    """Seconds by the steady clock."""
    is_wait: bool
    """Whether it does nothing but wait for other ranks."""


def overdue_activity(
    activities: Iterable[Activity], *, now: float, longest_seconds: float, lost_seconds: float
) -> Activity | None:
    """The activity that has lasted too long, if any; the run has been lost for `lost_seconds`, or not if 0.

    Work of a rank's own may take any time while the other ranks are there; they limit how long they wait for it.
    Once the run is lost, work that takes as long as a wait may is taken for a hang: nobody is left to notice it.
    """
    is_alone = lost_seconds > _LEAVE_SECONDS
    overdue = (each for each in activities if now - each.since > longest_seconds and (each.is_wait or is_alone))
    return min(overdue, key=lambda each: each.since, default=None)
