"""When a rank has to end instead of waiting on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Activity", "overdue_activity"]


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
    activities: Iterable[Activity], *, now: float, longest_seconds: float, is_run_lost: bool
) -> Activity | None:
    """The activity that has lasted too long, if any.

    Work of a rank's own may take any time while the other ranks are there; they limit how long they wait for it.
    Once the run is lost, work that takes as long as a wait may is taken for a hang: nobody is left to notice it.
    """
    overdue = (each for each in activities if now - each.since > longest_seconds and (each.is_wait or is_run_lost))
    return min(overdue, key=lambda each: each.since, default=None)
