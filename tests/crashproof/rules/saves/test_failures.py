from __future__ import annotations

import pytest

from crashproof.records.session import FailedSaves
from crashproof.rules.saves.failures import are_failing, failed_in_words, is_last_chance, retry_pause_seconds

FULL = "The disk is full: a.pt could not be written."


def failed(in_a_row: int) -> FailedSaves:
    return FailedSaves(in_a_row=in_a_row, total=in_a_row, step=4200, timestamp=1.0, error=FULL)


@pytest.mark.parametrize("in_a_row, expected", [(0, False), (1, False), (2, True), (90, True)])
def test_one_failed_save_may_pass_and_two_are_an_alarm(in_a_row: int, expected: bool) -> None:
    assert expected is are_failing(failed(in_a_row))


@pytest.mark.parametrize(
    "in_a_row, done, saved, expected",
    [
        pytest.param(0, 4200, 200, "", id="none"),
        pytest.param(
            1,
            4200,
            200,
            "The newest save has failed, at step 4,200: The disk is full: a.pt could not be written; the "
            "newest checkpoint is 4,000 steps old",
            id="one",
        ),
        pytest.param(
            3,
            4210,
            200,
            "3 saves in a row have failed, the newest at step 4,200: The disk is full: a.pt could not be "
            "written; the newest checkpoint is 4,010 steps old",
            id="three",
        ),
        pytest.param(
            2,
            4200,
            None,
            "2 saves in a row have failed, the newest at step 4,200: The disk is full: a.pt could not be "
            "written; there is no checkpoint yet, and 4,200 steps would be lost",
            id="no-checkpoint-yet",
        ),
        pytest.param(
            2,
            50,
            60,
            "2 saves in a row have failed, the newest at step 4,200: The disk is full: a.pt could not be "
            "written; the newest checkpoint is 0 steps old",
            id="training-has-gone-back",
        ),
    ],
)
def test_it_says_how_many_why_and_what_is_at_stake(
    in_a_row: int, done: int, saved: int | None, expected: str
) -> None:
    assert expected == failed_in_words(failed(in_a_row), done=done, saved=saved)


@pytest.mark.parametrize(
    "num_failed, most, expected",
    [(0, None, False), (1000, None, False), (0, 0, True), (0, 1, False), (1, 1, True), (4, 5, False), (5, 5, True)],
)
def test_the_next_save_has_to_succeed_once_as_many_have_failed_as_may(
    num_failed: int, most: int | None, expected: bool
) -> None:
    assert expected is is_last_chance(num_failed, most)


def test_pauses_between_tries_grow_up_to_half_a_minute() -> None:
    assert [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] == [retry_pause_seconds(tries) for tries in range(1, 8)]
    assert 30.0 == retry_pause_seconds(10_000)
