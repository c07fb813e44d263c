from __future__ import annotations

import pytest

from crashproof.records.supervision import Phase
from crashproof.rules.supervision.backoff import Backoff
from crashproof.rules.supervision.notices import fits_a_save
from crashproof.rules.supervision.progress_limits import AUTO_SECONDS, ProgressLimits, Waiting


@pytest.mark.parametrize(
    "intervals, expected",
    [
        pytest.param([], 600.0, id="nothing-known"),
        pytest.param([1.0] * 50, 600.0, id="fast-steps"),
        pytest.param([100.0] * 50, 2000.0, id="slow-steps"),
        pytest.param([1.0] * 50 + [400.0], 1200.0, id="a-save-now-and-then"),
        pytest.param([1000.0] + [1.0] * 300, 600.0, id="long-ago"),
    ],
)
def test_the_limit_is_learned_from_the_pace(intervals, expected):
    assert expected == ProgressLimits().seconds(Phase.TRAINING, intervals)


def test_a_given_limit_counts_in_its_phase_alone():
    limits = ProgressLimits(given={Phase.TRAINING: 5.0})

    assert 5.0 == limits.seconds(Phase.TRAINING, [100.0])
    assert AUTO_SECONDS[Phase.SAVING] == limits.seconds(Phase.SAVING, [])


def test_every_phase_has_a_limit():
    assert set(Phase) == set(AUTO_SECONDS)


def test_progress_ends_a_wait_and_is_learned_from():
    waiting = Waiting()
    waiting.enter(Phase.TRAINING)
    waiting.pass_time(3.0)
    waiting.progress()
    waiting.pass_time(1.0)

    assert 1.0 == waiting.counted_seconds
    assert [3.0] == waiting.own_intervals


def test_another_phase_begins_its_own_wait():
    waiting = Waiting()
    waiting.pass_time(500.0)
    waiting.enter(Phase.STARTING)
    before = waiting.seconds
    waiting.enter(Phase.SAVING)

    assert (500.0, 0.0) == (before, waiting.seconds)
    assert () == waiting.own_intervals


def test_what_another_sign_of_life_excuses_does_not_count():
    waiting = Waiting()
    waiting.pass_time(100.0)
    waiting.excuse(40.0)

    assert 40.0 == waiting.counted_seconds


def test_the_wait_before_a_restart_doubles_up_to_a_limit_and_is_spread():
    backoff = Backoff(first_seconds=2.0, longest_seconds=60.0)

    assert [1.0, 1.0, 2.0, 4.0, 30.0] == [backoff.seconds(each, draw=0.0) for each in (0, 1, 2, 3, 1000)]
    assert 60.0 == backoff.seconds(1000, draw=1.0)


@pytest.mark.parametrize(
    "left, takes, expected",
    [
        pytest.param(None, 100.0, True, id="no-deadline"),
        pytest.param(5.0, None, True, id="no-save-was-measured"),
        pytest.param(30.0, 10.0, True, id="fits"),
        pytest.param(30.0, 25.0, False, id="does-not-fit"),
    ],
)
def test_a_save_is_begun_if_it_fits(left, takes, expected):
    assert expected is fits_a_save(left, takes)
