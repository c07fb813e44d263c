from __future__ import annotations

import pytest

from crashproof.records.session import PacePoint
from crashproof.rules.time_left.estimate import estimate_remaining, seconds_per_step
from crashproof.rules.time_left.segments import Segment, are_regular, segments_of, without_stalls, without_start


def points_of(step_seconds: list[float]) -> list[PacePoint]:
    points, seconds = [PacePoint(0.0, 0)], 0.0
    for number, each in enumerate(step_seconds, start=1):
        seconds += each
        points.append(PacePoint(seconds, number))
    return points


def test_a_pace_is_unknown_until_a_step_is_measured():
    assert seconds_per_step([]) is None
    assert seconds_per_step([PacePoint(0.0, 0)]) is None


def test_the_pace_of_now_has_its_share_of_the_stalls():
    steps = [1.0 + (20.0 if number % 20 == 0 else 0.0) for number in range(1, 201)]

    assert 2.0 == pytest.approx(seconds_per_step(points_of(steps)))


def test_points_without_steps_between_them_belong_to_the_next_segment():
    assert [Segment(2, 2, 9.0)] == segments_of([PacePoint(0.0, 0), PacePoint(5.0, 0), PacePoint(9.0, 2)])


def test_a_slow_start_is_left_out():
    segments = [Segment(number, 1, 30.0 if number == 1 else 1.0) for number in range(1, 10)]

    assert segments[1:] == without_start(segments)


def test_one_stall_is_taken_out_and_expected_again_with_much_doubt():
    steps = [1.0] * 60 + [31.0] + [1.0] * 39
    estimate = estimate_remaining(points_of(steps), 100)

    assert 130.0 == pytest.approx(estimate.seconds)
    assert (100.0, 160.0) > (estimate.low_seconds, estimate.high_seconds - 60.0)


def test_two_stalls_are_expected_as_often_as_they_came():
    steps = [1.0] * 39 + [41.0] + [1.0] * 39 + [41.0] + [1.0] * 10
    estimate = estimate_remaining(points_of(steps), 40)

    assert 40.0 + 40.0 == pytest.approx(estimate.seconds, rel=0.05)


def test_many_irregular_stalls_are_part_of_the_pace():
    at = {5, 9, 30, 33, 60, 64, 90}
    segments = [Segment(number, 1, 9.0 if number in at else 1.0) for number in range(1, 101)]

    assert (segments, []) == without_stalls(segments)


def test_stalls_that_are_long_overdue_are_not_expected_any_more():
    segments = [Segment(number, 1, 9.0 if number in {5, 10, 15} else 1.0) for number in range(1, 101)]

    assert (segments, []) == without_stalls(segments)


def test_one_stall_is_not_regular():
    assert not are_regular([])


def test_a_change_of_pace_is_followed():
    estimate = estimate_remaining(points_of([1.0] * 60 + [2.0] * 60), 100)

    assert 200.0 == pytest.approx(estimate.seconds)


def test_a_trend_is_followed_to_three_times_the_pace_of_now_at_most():
    steps = [1.0 + 0.02 * number for number in range(100)]
    estimate = estimate_remaining(points_of(steps), 100_000)

    assert estimate.seconds == pytest.approx(100_000 * 2 * (1.0 + 0.02 * 99.5), rel=0.02)
    assert estimate.high_seconds > estimate.seconds


def test_one_step_after_a_slow_start_is_an_estimate_with_a_wide_range():
    estimate = estimate_remaining(points_of([30.0, 1.0]), 100)

    assert (100.0, 50.0, 150.0) == (estimate.seconds, estimate.low_seconds, estimate.high_seconds)
