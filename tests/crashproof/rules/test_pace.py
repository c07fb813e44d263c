from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.records.session import PacePoint
from crashproof.rules.pace import MAX_PACE_POINTS, ThroughputWindow, add_pace_point, is_pace_point_due
from crashproof.rules.time_left.estimate import Estimate, estimate_remaining


def paced(step_seconds: list[float]) -> list[PacePoint]:
    """The points of a run whose steps took so long, one after the other."""
    points = [PacePoint(0.0, 0)]
    seconds = 0.0
    for number, each in enumerate(step_seconds, start=1):
        seconds += each
        if is_pace_point_due(points, seconds):
            add_pace_point(points, PacePoint(seconds, number))
    return points


def test_the_first_update_of_a_run_is_measured_from_its_start():
    window = ThroughputWindow(started_at=100.0)

    assert (4.0, 400.0) == window.add(102.0, 8, 800)


def test_a_first_update_at_the_very_start_has_no_throughput():
    window = ThroughputWindow(started_at=100.0)

    assert (None, None) == window.add(100.0, 8, 800)
    assert (None, None) == window.add(100.0, 16, 1600)


def test_throughput_is_the_pace_over_the_window():
    window = ThroughputWindow(started_at=0.0, window_seconds=60.0)
    answers = [window.add(float(second), 10 * second, 100 * second) for second in range(1, 200)]

    assert {(10.0, 100.0)} == set(answers)


def test_a_change_of_pace_is_fully_seen_once_the_window_has_passed():
    window = ThroughputWindow(started_at=0.0, window_seconds=60.0)
    samples, answers = 0, []
    for second in range(1, 201):
        samples += 10 if second <= 100 else 20
        answers.append(window.add(float(second), samples, samples))

    assert (10.0, 10.0) == answers[99]
    assert 10.0 < answers[129][0] < 20.0
    assert (20.0, 20.0) == answers[199]


def test_steps_slower_than_the_window_are_still_measured():
    window = ThroughputWindow(started_at=0.0, window_seconds=60.0)
    answers = [window.add(600.0 * number, 6 * number, 60 * number) for number in range(1, 5)]

    assert [(0.01, 0.1)] * 4 == answers


def test_fast_steps_are_thinned_and_the_answer_stays_right():
    window = ThroughputWindow(started_at=0.0, window_seconds=60.0, most_points=10)
    for number in range(1, 100_000):
        answer = window.add(number / 1000, number, number)

    assert (pytest.approx(1000.0), pytest.approx(1000.0)) == answer


def test_a_resumed_attempt_shows_no_spike_from_the_samples_before_it():
    window = ThroughputWindow(started_at=0.0, before=(10.0, 100.0))
    answers = [window.add(30.0 + second, 1_000_000 + 10 * second, 10_000_000 + 100 * second) for second in range(3)]

    assert [(10.0, 100.0)] * 3 == answers


def test_a_loop_that_goes_back_begins_a_new_window():
    window = ThroughputWindow(started_at=0.0)
    for second in range(1, 11):
        window.add(float(second), 10 * second, 10 * second)
    gone_back = window.add(11.0, 50, 50)
    after = window.add(12.0, 60, 60)

    assert [(10.0, 10.0)] * 2 == [gone_back, after]


def test_a_pause_is_in_no_window():
    window = ThroughputWindow(started_at=0.0)
    window.add(1.0, 10, 10)
    window.add(2.0, 20, 20)
    window.shift(1000.0)

    assert (10.0, 10.0) == window.add(1003.0, 30, 30)


def test_a_pause_before_the_first_update_is_in_no_window():
    window = ThroughputWindow(started_at=0.0)
    window.shift(1000.0)

    assert (10.0, 10.0) == window.add(1001.0, 10, 10)


def test_nothing_is_estimated_before_two_points():
    assert estimate_remaining([], 10) is None
    assert estimate_remaining([PacePoint(0.0, 0)], 10) is None


def test_nothing_is_estimated_while_no_step_was_done():
    assert estimate_remaining([PacePoint(0.0, 0), PacePoint(5.0, 0)], 10) is None


@pytest.mark.parametrize("remaining", [0, -5])
def test_a_run_at_its_end_has_no_time_left(remaining):
    assert Estimate(seconds=0.0, low_seconds=0.0, high_seconds=0.0) == estimate_remaining([], remaining)


def test_one_measured_block_is_an_estimate_with_a_wide_range():
    estimate = estimate_remaining([PacePoint(0.0, 0), PacePoint(10.0, 10)], 100)

    assert Estimate(seconds=100.0, low_seconds=50.0, high_seconds=150.0) == estimate


def test_an_even_pace_is_known_exactly():
    estimate = estimate_remaining(paced([0.5] * 2000), 1000)

    assert (
        Estimate(seconds=pytest.approx(500.0), low_seconds=pytest.approx(500.0), high_seconds=pytest.approx(500.0))
        == estimate
    )


@pytest.mark.parametrize("seed", range(5))
def test_regular_stalls_are_in_the_estimate(seed):
    # Every 50th step also saves a checkpoint for 30 s, every 200th evaluates for 120 s.
    chance = random.Random(seed)
    steps = [
        chance.uniform(0.9, 1.1) + 30.0 * (number % 50 == 0) + 120.0 * (number % 200 == 0)
        for number in range(1, 6001)
    ]
    estimate = estimate_remaining(paced(steps), 2000)
    truth = 2000 * (1.0 + 30.0 / 50 + 120.0 / 200)

    assert truth == pytest.approx(estimate.seconds, rel=0.05)
    assert estimate.low_seconds <= truth <= estimate.high_seconds


def test_the_range_covers_an_uneven_pace_nine_times_in_ten():
    estimates = []
    for seed in range(50):
        chance = random.Random(seed)
        estimates.append(estimate_remaining(paced([chance.expovariate(1.0) for _ in range(500)]), 1000))

    assert sum(each.low_seconds < 1000.0 < each.high_seconds for each in estimates) >= 45
    assert max(each.high_seconds - each.low_seconds for each in estimates) < 400.0


def test_the_recent_pace_counts_not_that_of_days_ago():
    estimate = estimate_remaining(paced([1.0] * 20_000 + [2.0] * 5000), 100)

    assert 200.0 == pytest.approx(estimate.seconds, rel=0.01)


def test_the_lower_end_is_never_negative():
    points = [PacePoint(0.0, 0), PacePoint(0.1, 10), PacePoint(1000.0, 11), PacePoint(1000.1, 21)]

    assert 0.0 == estimate_remaining(points, 10).low_seconds


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 10_000.0), max_size=1500))
def test_points_stay_few_and_in_order(step_seconds):
    points = paced(step_seconds)

    assert len(points) <= MAX_PACE_POINTS
    assert sorted(points, key=lambda each: (each.seconds, each.steps)) == points
    assert points[-1].steps <= len(step_seconds)


@settings(max_examples=30)
@given(st.lists(st.floats(0.0, 10_000.0), max_size=1500))
def test_the_newest_point_is_never_far_behind(step_seconds):
    points = paced(step_seconds)
    seconds = sum(step_seconds)

    assert seconds - points[-1].seconds <= seconds / 100 + 1e-6


@settings(max_examples=30)
@given(st.integers(1, 5000), st.floats(0.001, 300.0))
def test_thinning_does_not_change_an_even_pace(num_steps, step_seconds):
    estimate = estimate_remaining(paced([step_seconds] * num_steps), 10)

    assert estimate is None or 10 * step_seconds == pytest.approx(estimate.seconds)
