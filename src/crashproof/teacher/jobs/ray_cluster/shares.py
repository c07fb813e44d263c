"""Divide the limits of a job among its machines."""

from __future__ import annotations

from crashproof.teacher.client.limits import Limits

__all__ = ["most_shares", "shares_of"]


def most_shares(limits: Limits) -> int:
    """The number of machines that can have a part of each limit."""
    numbers = (limits.concurrency, limits.requests_per_minute, limits.tokens_per_minute)
    return min(number for number in numbers if number is not None)


def shares_of(limits: Limits, count: int) -> list[Limits]:
    """The limits of each of `count` machines, which add up to those of the job; there are at most `most_shares`."""
    return [
        Limits(
            concurrency=limits.concurrency // count + (place < limits.concurrency % count),
            requests_per_minute=_share(limits.requests_per_minute, place, count),
            tokens_per_minute=_share(limits.tokens_per_minute, place, count),
        )
        for place in range(count)
    ]


def _share(most: int | None, place: int, count: int) -> int | None:
    return None if most is None else most // count + (place < most % count)
