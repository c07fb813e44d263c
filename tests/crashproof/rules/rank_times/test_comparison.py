from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashproof.records.events import RankTimesMeasured
from crashproof.records.lines.codec import encode
from crashproof.records.rank_times import RankTime, RankTimes
from crashproof.rules.rank_times.comparison import compare_ranks, in_words, slow_in_words, slow_rank, times_the_median


def compared(*seconds: float, host: str = "b") -> RankTimes:
    ranks = [RankTime(rank=rank, host=host, seconds=each, most_seconds=2 * each) for rank, each in enumerate(seconds)]
    return compare_ranks(ranks, step=1200, num_steps=50, step_seconds=0.5)


def test_the_slowest_are_listed_first_with_what_the_others_take():
    times = compared(0.2, 0.1, 0.4, 0.2, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2)

    assert [(2, 0.4), (4, 0.3), (0, 0.2), (3, 0.2)] == [(each.rank, each.seconds) for each in times.slowest]
    assert (0.1, 0.2, 0.3) == (times.least_seconds, times.median_seconds, times.high_seconds)
    assert (10, 50, 1200) == (times.num_ranks, times.num_steps, times.step)


def test_of_two_ranks_the_faster_one_is_the_median():
    assert pytest.approx(3.0) == times_the_median(compared(0.1, 0.3))


@pytest.mark.parametrize(
    "seconds, expected",
    [
        pytest.param([0.1, 0.1, 0.1], None, id="alike"),
        pytest.param([0.1, 0.1, 0.119], None, id="nearly-alike"),
        pytest.param([0.1, 0.12, 0.1], 1, id="one-slow"),
        pytest.param([0.2, 0.1, 0.3], 2, id="the-slowest-of-several"),
        pytest.param([0.0, 0.0], None, id="too-short-to-be-measured"),
        pytest.param([0.1], None, id="alone"),
    ],
)
def test_a_rank_is_slow_from_a_fifth_above_the_median_on(seconds, expected):
    assert expected == slow_rank(compared(*seconds))


def test_the_comparison_in_words():
    assert [
        "2; the slowest is rank 1 on b: 1.4 times the median",
        "0.14 s of its own work in a step of 0.5 s (step 1,200)",
    ] == in_words(compared(0.1, 0.14))
    assert ["2; their work on a step is too short to be measured"] == in_words(compared(0.0, 0.0))


def test_a_slow_rank_in_words():
    assert "rank 1 on b is slow (1.4 times the median)" == slow_in_words(compared(0.1, 0.14))
    assert "rank 1 is slow (1.4 times the median)" == slow_in_words(compared(0.1, 0.14, host=""))
    assert None is slow_in_words(compared(0.1, 0.1))
    assert None is slow_in_words(None)


@given(st.lists(st.floats(min_value=0, max_value=1e4), min_size=1, max_size=2000))
def test_a_line_of_the_journal_stays_short_however_many_ranks_there_are(seconds):
    times = compared(*seconds, host="node-0123456789.example.org")

    assert times.least_seconds <= times.median_seconds <= times.high_seconds <= times.slowest[0].seconds
    assert len(encode(RankTimesMeasured(timestamp=1795483505.845123, attempt=12, times=times))) < 800
