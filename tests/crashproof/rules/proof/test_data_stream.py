from __future__ import annotations

import pytest
from proof_runs import EPOCH, control_run, difference_between, life, samples_of, seen

from crashproof.rules.proof.data_stream import DataStream, Place

CONTROL = control_run()
DATA = DataStream.of(CONTROL.steps)


def place_of(step, *batches):
    resumed = life(2, *(seen(step + more, samples=batch) for more, batch in enumerate(batches)))
    return DATA.place_of(difference_between(CONTROL.steps[step - 1], resumed, "batch"))


def test_epochs_begin_where_a_sample_comes_again():
    assert (0, 2 * EPOCH) == DATA.epoch_starts
    assert [0, 0, 1] == [DATA.epoch_of(step) for step in (1, EPOCH, EPOCH + 1)]
    assert [True, False, True] == [DATA.begins_epoch(step) for step in (1, EPOCH, EPOCH + 1)]


def test_epochs_of_several_lengths_are_none():
    steps = [seen(step, samples=batch) for step, batch in enumerate(["ab", "ac", "da", "b"], 1)]

    assert (0,) == DataStream.of(steps).epoch_starts


def test_a_run_that_shows_some_batches_only_has_no_stream():
    data = DataStream.of([seen(1), seen(2, samples=None)])

    assert ((), {}) == (data.samples, data.starts)
    assert 0 == data.epoch_of(2)
    assert not data.begins_epoch(2)


@pytest.mark.parametrize(
    "step, batches, expected",
    [
        pytest.param(9, [samples_of(8), samples_of(9)], Place.A_STEP_BACK, id="step-back"),
        pytest.param(9, [samples_of(10)], Place.A_STEP_AHEAD, id="step-ahead"),
        pytest.param(9, [samples_of(9)[1:] + samples_of(10)[:1]], Place.WITHIN_THE_STEP, id="half-a-step-on"),
        pytest.param(9, [samples_of(9)[1:]], Place.WITHIN_THE_STEP, id="part-of-the-step"),
        pytest.param(10, [samples_of(7), samples_of(8)], Place.BEGINNING_OF_AN_EPOCH, id="beginning-of-the-epoch"),
        pytest.param(10, [samples_of(1), samples_of(2)], Place.BEGINNING_OF_AN_EPOCH, id="beginning-of-the-run"),
        pytest.param(9, [samples_of(3), samples_of(4)], Place.SAME_PLACE_OF_ANOTHER_EPOCH, id="another-epoch"),
        pytest.param(10, [samples_of(2)], Place.ELSEWHERE, id="elsewhere"),
        pytest.param(9, [("x", "y")], Place.NOWHERE, id="nowhere"),
        pytest.param(9, [samples_of(8), ("x", "y")], Place.A_STEP_BACK, id="known-and-unknown"),
        pytest.param(9, [samples_of(8), None], Place.A_STEP_BACK, id="known-and-not-shown"),
        pytest.param(9, [None], Place.NOWHERE, id="not-shown"),
    ],
)
def test_a_batch_is_found_in_the_data(step, batches, expected):
    assert expected is place_of(step, *batches)
