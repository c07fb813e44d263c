from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.rules.stopwatch import StandstillDetector, Tick, TrainingStopwatch


def test_it_continues_from_the_hours_of_earlier_attempts():
    stopwatch = TrainingStopwatch(hours_before=5.0, started_at=100.0)

    assert 5.5 == stopwatch.lap(100.0 + 1800)


def test_a_pause_since_the_last_update_is_left_out():
    stopwatch = TrainingStopwatch(hours_before=0.0, started_at=0.0)
    stopwatch.lap(3600.0)
    left_out = stopwatch.leave_out(7200.0, 3600.0 + 7200.0)

    assert 7200.0 == left_out
    assert 1.0 == stopwatch.hours(3600.0 + 7200.0)


@pytest.mark.parametrize(
    "reported, expected",
    [
        pytest.param(60.0, 60.0, id="a-part-of-the-time"),
        pytest.param(100.0, 100.0, id="all-of-the-time"),
        pytest.param(1e9, 100.0, id="more-than-the-time-there-was"),
        pytest.param(0.0, 0.0, id="nothing"),
        pytest.param(-5.0, 0.0, id="negative"),
    ],
)
def test_no_pause_is_longer_than_the_time_since_the_last_update(reported, expected):
    stopwatch = TrainingStopwatch(hours_before=0.0, started_at=0.0)
    stopwatch.lap(1000.0)

    assert expected == stopwatch.leave_out(reported, 1100.0)


def test_the_same_standstill_cannot_be_left_out_twice():
    stopwatch = TrainingStopwatch(hours_before=0.0, started_at=0.0)
    stopwatch.lap(10.0)
    stopwatch.leave_out(100.0, 110.0)

    assert 0.0 == stopwatch.leave_out(100.0, 110.0)


def test_a_pause_before_the_first_update_is_left_out_too():
    stopwatch = TrainingStopwatch(hours_before=0.0, started_at=50.0)
    stopwatch.leave_out(3600.0, 3650.0)

    assert 0.0 == stopwatch.lap(3650.0)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5)), max_size=30))
def test_training_time_never_goes_back_and_never_exceeds_the_time_that_passed(laps):
    stopwatch = TrainingStopwatch(hours_before=2.0, started_at=0.0)
    moment, hours = 0.0, [2.0]
    for seconds, pause in laps:
        moment += seconds
        stopwatch.leave_out(pause, moment)
        hours.append(stopwatch.lap(moment))

    assert sorted(hours) == hours
    assert hours[-1] <= 2.0 + moment / 3600 + 1e-6


# Standstills.


def tick(steady: float, *, asleep: float = 0.0, cpu: float = 0.0) -> Tick:
    return Tick(steady=steady, since_boot=steady + asleep, cpu=cpu)


@pytest.mark.parametrize(
    "woken_up, expected",
    [
        pytest.param(tick(101.0), (0.0, 0.0), id="in-time"),
        pytest.param(tick(105.0), (0.0, 0.0), id="a-busy-machine"),
        pytest.param(tick(176.0, cpu=0.5), (75.0, 75.0), id="stopped"),
        pytest.param(tick(101.0, asleep=28800.0), (0.0, 28800.0), id="suspended"),
        pytest.param(tick(111.0, asleep=100.0), (10.0, 110.0), id="stopped-and-suspended"),
        pytest.param(tick(121.0, cpu=20.0), (0.0, 0.0), id="a-thread-kept-the-interpreter"),
    ],
)
def test_a_wait_that_lasted_far_too_long_was_a_standstill(woken_up, expected):
    detector = StandstillDetector(interval_seconds=1.0)
    detector.begin_wait(tick(100.0))

    assert (expected != (0.0, 0.0)) is detector.end_wait(woken_up)
    assert expected == detector.take(woken_up)
    assert (0.0, 0.0) == detector.take(woken_up)


def test_a_process_of_many_busy_threads_stands_still_too():
    detector = StandstillDetector(interval_seconds=1.0)
    detector.begin_wait(tick(100.0))
    detector.end_wait(tick(101.0, cpu=16.0))
    detector.begin_wait(tick(101.0, cpu=16.0))
    detector.end_wait(tick(112.0, cpu=31.0))

    assert (10.0, 10.0) == detector.take(tick(112.0))


def test_an_update_right_after_a_standstill_may_find_it_first():
    detector = StandstillDetector(interval_seconds=1.0)
    detector.begin_wait(tick(100.0))
    is_due = [moment > detector.late_at for moment in (105.0, 175.5)]
    found = detector.take(tick(175.5))
    later = detector.end_wait(tick(176.0))

    assert ([False, True], (74.5, 74.5), False) == (is_due, found, later)


def test_an_update_waits_for_no_standstill_while_the_background_work_is_done():
    detector = StandstillDetector(interval_seconds=1.0)
    before = detector.late_at
    detector.begin_wait(tick(100.0))
    detector.end_wait(tick(101.0))

    # A sync that takes a minute is none.
    assert (math.inf, math.inf) == (before, detector.late_at)
    assert (0.0, 0.0) == detector.take(tick(161.0))
    assert not detector.end_wait(tick(161.0))


def test_a_standstill_that_the_background_found_is_due_for_the_next_update():
    detector = StandstillDetector(interval_seconds=1.0)
    detector.begin_wait(tick(100.0))
    detector.end_wait(tick(176.0))

    assert detector.late_at < 176.0
    assert (75.0, 75.0) == detector.take(tick(176.1))
    assert math.inf == detector.late_at


def test_a_late_wait_that_is_none_is_judged_once_more_when_it_ends():
    detector = StandstillDetector(interval_seconds=1.0)
    detector.begin_wait(tick(100.0))
    found = detector.take(tick(121.0, cpu=20.0))

    assert ((0.0, 0.0), math.inf) == (found, detector.late_at)
    assert not detector.end_wait(tick(121.1, cpu=20.0))
