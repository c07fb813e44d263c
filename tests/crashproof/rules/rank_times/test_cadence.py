from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from crashproof.records.rank_times import RankTime, RankTimes
from crashproof.rules.rank_times.cadence import ReportCadence, steps_until_comparison
from crashproof.rules.rank_times.comparison import compare_ranks

HOUR = 3600.0
DAY = 24 * HOUR


def ranks_of_which_is_slow(slow: int | None) -> RankTimes:
    ranks = [
        RankTime(rank=rank, host="a", seconds=0.3 if rank == slow else 0.1, most_seconds=1.0) for rank in range(4)
    ]
    return compare_ranks(ranks, step=1, num_steps=1, step_seconds=0.3)


def reports(slow_at: Callable[[float], int | None], *, until: float, every: float = 30.0) -> Iterator[float]:
    """When a comparison is journalled."""
    cadence, now = ReportCadence(), 0.0
    while now < until:
        if cadence.is_due(ranks_of_which_is_slow(slow_at(now)), now=now):
            yield now
        now += every


@pytest.mark.parametrize(
    "step_seconds, expected",
    [(0.3, 100), (31.0, 1), (0.0, 10_000), (1e-9, 10_000), (7.0, 5)],
    ids=["usual", "slower-than-the-interval", "no-time", "hardly-any-time", "rounded-up"],
)
def test_ranks_compare_about_every_half_minute(step_seconds, expected):
    assert expected == steps_until_comparison(step_seconds)


def test_ranks_that_stay_as_they_are_are_reported_every_ten_minutes():
    assert [0.0, 600.0, 1200.0, 1800.0] == list(reports(lambda now: 3, until=2000.0))


def test_a_rank_that_becomes_slow_or_fast_again_is_reported_soon():
    found = list(reports(lambda now: 2 if 100 <= now < 300 else None, until=700.0))

    assert [0.0, 120.0, 300.0] == found


def test_another_slow_rank_is_news():
    assert [0.0, 120.0] == list(reports(lambda now: 1 if now < 100 else 2, until=500.0))


@pytest.mark.parametrize("every", [1.0, 30.0], ids=["each-second", "each-half-minute"])
def test_ranks_that_change_all_the_time_are_reported_at_most_twelve_times_an_hour(every):
    found = list(reports(lambda now: int(now) % 3, until=10 * HOUR, every=every))

    for hour in range(10):
        assert sum(hour * HOUR <= moment < (hour + 1) * HOUR for moment in found) <= 12


def test_a_run_of_a_year_is_reported_a_few_thousand_times():
    found = list(reports(lambda now: int(now) % 7, until=365 * DAY, every=290.0))

    assert 3000 < len(found) < 8000
