"""What to do with the time that is left before a preemption."""

from __future__ import annotations

__all__ = ["fits_a_save"]

_MARGIN_SECONDS = 2.0
"""For the step that is being made, and to end."""
_SLOWER = 1.25
"""A save may take this many times as long as the slowest one so far."""


def fits_a_save(seconds_left: float | None, save_seconds: float | None) -> bool:
    """Whether a save can be finished in the time that is left; if either is unknown, it is tried."""
    if seconds_left is None or save_seconds is None:
        return True
    return _SLOWER * save_seconds + _MARGIN_SECONDS <= seconds_left
