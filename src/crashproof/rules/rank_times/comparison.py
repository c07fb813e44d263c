"""Compare the own work of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import structs

from crashproof.records.rank_times import RankTime, RankTimes

__all__ = ["compare_ranks", "in_words", "slow_in_words", "slow_rank", "times_the_median"]

_NUM_NAMED = 4
_HIGH = 0.9
_DIGITS = 6
_SLOW = 1.2
"""From this many times the median on, a rank is called slow."""


def compare_ranks(ranks: Sequence[RankTime], *, step: int, num_steps: int, step_seconds: float) -> RankTimes:
    """What is kept of the times of all ranks, however many there are; to the microsecond."""
    slowest_first = sorted((_rounded(each) for each in ranks), key=lambda each: (-each.seconds, each.rank))
    seconds = [each.seconds for each in reversed(slowest_first)]
    return RankTimes(
        step=step,
        num_steps=num_steps,
        num_ranks=len(ranks),
        step_seconds=round(step_seconds, _DIGITS),
        least_seconds=seconds[0],
        median_seconds=seconds[(len(seconds) - 1) // 2],
        high_seconds=seconds[math.ceil(_HIGH * len(seconds)) - 1],
        slowest=slowest_first[:_NUM_NAMED],
    )


def times_the_median(times: RankTimes) -> float | None:
    """The slowest rank's own work in medians; None where nothing was measured."""
    return times.slowest[0].seconds / times.median_seconds if times.slowest and times.median_seconds > 0 else None


def slow_rank(times: RankTimes) -> int | None:
    """The slowest rank, if it is slow; None if the ranks are about as fast as each other."""
    factor = times_the_median(times)
    return times.slowest[0].rank if factor is not None and factor >= _SLOW else None


def in_words(times: RankTimes) -> list[str]:
    """Lines for a person: how many ranks, which is the slowest, and by how much."""
    factor = times_the_median(times)
    if factor is None:
        return [f"{times.num_ranks:,}; their work on a step is too short to be measured"]
    slowest = times.slowest[0]
    return [
        f"{times.num_ranks:,}; the slowest is rank {_place(slowest)}: {factor:.1f} times the median",
        f"{slowest.seconds:.3g} s of its own work in a step of {times.step_seconds:.3g} s (step {times.step:,})",
    ]


def slow_in_words(times: RankTimes | None) -> str | None:
    """The slow rank, such as `rank 3 on host b is slow (1.4 times the median)`; None if none is."""
    factor = None if times is None or slow_rank(times) is None else times_the_median(times)
    if times is None or factor is None:
        return None
    return f"rank {_place(times.slowest[0])} is slow ({factor:.1f} times the median)"


def _rounded(rank: RankTime) -> RankTime:
    return structs.replace(rank, seconds=round(rank.seconds, _DIGITS), most_seconds=round(rank.most_seconds, _DIGITS))


def _place(rank: RankTime) -> str:
    return f"{rank.rank} on {rank.host}" if rank.host else f"{rank.rank}"
