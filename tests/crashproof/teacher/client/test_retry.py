from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.client.wire.waits import parse_retry_after

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


class Most(random.Random):
    """Always draws the largest number."""

    def uniform(self, low: float, high: float) -> float:
        return high


class Least(random.Random):
    """Always draws the smallest number."""

    def uniform(self, low: float, high: float) -> float:
        return low


def test_the_bound_doubles_with_each_failure_up_to_the_longest_wait():
    retry_policy = RetryPolicy(first_wait_seconds=0.5, longest_wait_seconds=60.0)

    assert [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] == [
        retry_policy.wait_seconds(failures, retry_after=None, chance=Most()) for failures in range(1, 10)
    ]


def test_the_jitter_is_full():
    assert 0.0 == RetryPolicy().wait_seconds(9, retry_after=None, chance=Least())


def test_so_many_failures_that_a_float_would_overflow_wait_the_longest():
    assert 60.0 == RetryPolicy().wait_seconds(10_000, retry_after=None, chance=Most())


@pytest.mark.parametrize("chance, expected", [(Least(), 30.0), (Most(), 30.5)], ids=["least", "most"])
def test_what_the_server_asks_for_is_obeyed_and_jitter_comes_on_top(chance, expected):
    assert expected == RetryPolicy(first_wait_seconds=0.5).wait_seconds(1, retry_after=30.0, chance=chance)


def test_a_server_may_ask_for_more_than_the_longest_wait():
    retry_policy = RetryPolicy(longest_wait_seconds=1.0)

    assert 300.0 == retry_policy.wait_seconds(1, retry_after=300.0, chance=Least())


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e6), st.randoms(use_true_random=False))
def test_no_wait_is_negative_nor_shorter_than_asked_nor_endless(failures, asked, chance):
    seconds = RetryPolicy().wait_seconds(failures, retry_after=asked, chance=chance)

    assert (asked or 0.0) <= seconds <= (asked or 0.0) + 60.0


@pytest.mark.parametrize(
    "header, expected",
    [
        pytest.param(None, None, id="absent"),
        pytest.param("0", 0.0, id="zero"),
        pytest.param("120", 120.0, id="seconds"),
        pytest.param(" 7 ", 7.0, id="spaces"),
        pytest.param("0.5", 0.5, id="a part of a second"),
        pytest.param("-3", 0.0, id="negative"),
        pytest.param("Tue, 14 Nov 2023 22:15:20 GMT", 120.0, id="date"),
        pytest.param("Tuesday, 14-Nov-23 22:15:20 GMT", 120.0, id="date of RFC 850"),
        pytest.param("Tue Nov 14 22:15:20 2023", 120.0, id="date of asctime"),
        pytest.param("Tue, 14 Nov 2023 23:15:20 +0100", 120.0, id="date in another zone"),
        pytest.param("Tue, 14 Nov 2023 22:13:19 GMT", 0.0, id="date that is over"),
        pytest.param("", None, id="empty"),
        pytest.param("soon", None, id="a word"),
        pytest.param("nan", None, id="nan"),
        pytest.param("inf", None, id="infinity"),
        pytest.param("1e999", None, id="infinity in digits"),
        pytest.param("Tue, 99 Nov 2023 22:15:20 GMT", None, id="no date"),
        pytest.param("Tue, 14 Nov 99999 22:15:20 GMT", None, id="a year that nobody sees"),
        pytest.param("Tue, 14 Nov 2023 22:15:20 +9999", None, id="no zone"),
        pytest.param("\x00", None, id="rubbish"),
    ],
)
def test_a_retry_after_header_means_seconds_from_now_or_nothing(header, expected):
    assert expected == parse_retry_after(header, now=NOW)


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_no_header_whatever_raises_or_means_less_than_nothing(header):
    seconds = parse_retry_after(header, now=NOW)

    assert seconds is None or 0.0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("attempts", "seconds"),
    [(1, 0.0), (2, 0.5), (8, 63.5), (10, 183.5), (10**9, 7200.0)],
    ids=["one attempt", "two", "the usual eight", "ten", "as many as the deadline allows"],
)
def test_the_longest_pauses_between_all_attempts(attempts: int, seconds: float) -> None:
    assert seconds == RetryPolicy(attempts=attempts).longest_pauses_seconds
