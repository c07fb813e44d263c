from __future__ import annotations

import math
import random

import pytest

from crashproof.records.session import AttemptRecord
from crashproof.records.states import AttemptState
from crashproof.rules.saves.interval import SaveSchedule, choose_interval, failures_among, optimal_seconds

HOUR, DAY = 3600.0, 24 * 3600.0


@pytest.mark.parametrize(
    "save_seconds, between_failures, expected",
    [
        pytest.param(0.0, DAY, 0.0, id="free"),
        pytest.param(10.0, DAY, math.sqrt(2 * 10 * DAY), id="as-Young-where-a-save-is-cheap"),
        pytest.param(300.0, HOUR, 1282.0, id="less-where-it-is-dear"),
        pytest.param(2 * HOUR, HOUR, HOUR, id="a-save-takes-longer-than-a-life"),
    ],
)
def test_the_best_time_between_two_saves(save_seconds, between_failures, expected):
    assert expected == pytest.approx(optimal_seconds(save_seconds, between_failures), rel=0.01)


def lost_share(interval: float, save_seconds: float, between_failures: float) -> float:
    """The share of the time that saves and failures cost, by simulation of 2,000 failures."""
    draw = random.Random(7)
    useful = total = 0.0
    for _ in range(2000):
        life = draw.expovariate(1 / between_failures)
        useful += math.floor(life / (interval + save_seconds)) * interval
        total += life
    return 1 - useful / total


def test_no_other_interval_loses_less_in_a_simulation():
    best = optimal_seconds(60.0, HOUR)
    lost = lost_share(best, 60.0, HOUR)

    assert lost < lost_share(best / 2, 60.0, HOUR)
    assert lost < lost_share(best * 2, 60.0, HOUR)


@pytest.mark.parametrize(
    "save_seconds, step_seconds, failures, hours, steps",
    [
        pytest.param(1.0, 0.5, 0, 0, 832, id="a-new-run"),
        pytest.param(1.0, 0.5, 9, 0, 263, id="after-many-failures"),
        pytest.param(1.0, 0.5, 9, 1000, 1716, id="which-were-long-ago"),
        pytest.param(0.001, 0.5, 0, 0, 120, id="at-least-a-minute"),
        pytest.param(500.0, 0.5, 0, 0, 7200, id="at-most-an-hour"),
        pytest.param(1.0, 7200.0, 0, 0, 1, id="one-step-is-longer"),
        pytest.param(0.001, 0.0, 0, 0, 60_000_000_000, id="steps-that-take-no-time"),
    ],
)
def test_the_interval_in_steps(save_seconds, step_seconds, failures, hours, steps):
    chosen = choose_interval(
        save_seconds=save_seconds, step_seconds=step_seconds, num_failures=failures, trained_seconds=hours * HOUR
    )

    assert steps == pytest.approx(chosen.steps, rel=0.01)


def test_it_says_why():
    chosen = choose_interval(save_seconds=0.001, step_seconds=0.5, num_failures=2, trained_seconds=HOUR)

    assert (
        "a save stops training for 0.001 s, a step takes 0.5 s, 2 failures in 1 h 0 min: best after 8 s, bounded to "
        "1 min 0 s"
    ) == chosen.reason


def test_a_fixed_interval_saves_at_its_multiples():
    schedule = SaveSchedule.of(5, first_step=3)

    assert [5, 10] == [step for step in range(4, 13) if schedule.is_due(step)]


def test_auto_saves_some_steps_after_the_last_one():
    schedule = SaveSchedule.of("auto", first_step=3)
    schedule.interval = 4
    found = []
    for step in range(4, 13):
        if schedule.is_due(step):
            found.append(step)
            schedule.saved_step = step

    assert [7, 11] == found


def test_only_attempts_that_lost_something_are_failures():
    states = (AttemptState.CRASHED, AttemptState.RAISED, AttemptState.PREEMPTED, AttemptState.COMPLETED)

    assert 2 == failures_among(AttemptRecord(attempt=1, how=each) for each in states)
