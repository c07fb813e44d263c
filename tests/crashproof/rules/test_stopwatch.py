from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.rules.stopwatch import TrainingStopwatch


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
