"""How many checkpoints the disk has to hold."""

from __future__ import annotations

__all__ = ["checkpoints_to_come"]


def checkpoints_to_come(*, num_saves: int | None, most_kept: int | None, num_present: int) -> int | None:
    """How many more checkpoints lie on the disk at the same time, at most; None if that is not bounded.

    A rule that keeps k checkpoints needs room for k + 1: an old one is removed once the new one is verified.

    Args:
        num_saves: Those until the end of the run; None if unknown.
        most_kept: Those that the rule keeps; None if it keeps any number.
        num_present: Those that are there already.
    """
    by_rule = None if most_kept is None else max(1, most_kept + 1 - num_present)
    bounds = [each for each in (num_saves, by_rule) if each is not None]
    return min(bounds, default=None)
