from __future__ import annotations

import pytest
from proof_runs import control_run, seen

from crashproof.records.proof.assignment import Moment
from crashproof.rules.proof.data_stream import DataStream
from crashproof.rules.proof.kill_plan import plan_kills, steps_to_digest

NO_DATA = DataStream.of([seen(1, samples=None)])


def planned(num_steps, saves, num_kills=3, data=NO_DATA, first=1):
    kills = plan_kills(range(first, first + num_steps), saves, data, num_kills)
    return [(each.moment, each.step or each.num_updates) for each in kills]


@pytest.mark.parametrize(
    "num_steps, saves, expected",
    [
        pytest.param(100, [10, 20, 30, 40, 50, 60, 70], [42, 60, 2], id="many-saves"),
        pytest.param(100, [50], [52, 2, 2], id="one-save"),
        pytest.param(100, [50, 100], [52, 100, 2], id="a-save-at-the-end"),
        pytest.param(5, [1, 2, 3, 4, 5], [2, 4, 1], id="a-save-at-every-step"),
        pytest.param(3, [2], [2, 1, 1], id="hardly-any-steps"),
        pytest.param(100, [1, 2, 3], [1, 3, 2], id="saves-at-the-beginning"),
    ],
)
def test_kills_come_behind_saves(num_steps, saves, expected):
    found = planned(num_steps, saves)

    assert expected == [step for _, step in found]
    assert Moment.MID_EPOCH is found[0][0]


def test_without_a_save_to_resume_from_there_are_no_kills():
    assert [] == planned(100, [])
    assert [] == planned(100, [100])


def test_the_first_kill_is_in_the_middle_of_a_later_epoch():
    # Steps 7 to 12 are the second epoch.
    data = DataStream.of(control_run().steps)

    assert (Moment.MID_EPOCH, 9) == planned(12, [2, 4, 6, 8, 10, 12], data=data)[0]


def test_more_kills_go_on_behind_later_saves():
    moments = [moment for moment, _ in planned(100, range(10, 100, 10), 7)]

    assert [*Moment, *Moment, Moment.MID_EPOCH] == moments


def test_a_run_that_counts_from_zero_has_kills_too():
    assert [(Moment.MID_EPOCH, 4), (Moment.IN_A_SAVE, 7), (Moment.AFTER_A_RESUME, 2)] == planned(
        12, [1, 3, 5, 7], first=0
    )


def test_the_steps_behind_each_save_are_digested():
    steps = steps_to_digest(range(1, 101), [50, 100], most=4)

    assert [1, 2, 26, 51, 52, 76, 100] == steps
    assert 1 in steps_to_digest(range(1, 11), [], most=0)
