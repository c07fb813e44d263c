"""What is done about a bad step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from crashproof.records.bad_steps import BadStepRecord, DataWindow
from crashproof.records.metrics import MetricsSnapshot
from crashproof.records.session import TrainingSession
from crashproof.records.states import BadStepAction, OnBadStep
from crashproof.rules.bad_steps.finding import counts_in_words, data_in_words, record_in_words
from crashproof.rules.bad_steps.reaction import choose_action, first_step_without_data, healthy_losses, is_bad_at

HERE, THERE = [DataWindow(80, 88)], [DataWindow(88, 96)]


def bad(step: int = 10, data: list[DataWindow] = HERE, **more: Any) -> BadStepRecord:
    fields: dict[str, Any] = {
        "cause": "spike",
        "loss": 9.0,
        "usual": 2.0,
        "limit": 3.0,
        "num_losses": 40,
        "action": BadStepAction.ROLLED_BACK,
        "attempt": 1,
        "timestamp": 1000.0,
    }
    return BadStepRecord(step=step, data=data, **(fields | more))


@pytest.mark.parametrize(
    "policy, earlier, expected",
    [
        ("stop", [], "stopped"),
        ("skip", [], "skipped_update"),
        ("skip", [bad(5), bad(6)], "skipped_update"),
        ("skip", [bad(5), bad(6), bad(7)], "stopped"),
        ("rollback", [], "rolled_back"),
        ("rollback", [bad(9)], "rolled_back"),
        ("rollback", [bad(10)], "skipped_data"),
        ("rollback", [bad(10, action=BadStepAction.STOPPED)], "skipped_data"),
        # The samples behind those that are left out may be bad as well.
        ("rollback", [bad(10, THERE)], "rolled_back"),
        ("rollback", [bad(10, is_transient=True)], "rolled_back"),
        # What is bad again counts once.
        ("rollback", [bad(8), bad(8), bad(9), bad(9), bad(10)], "skipped_data"),
        ("rollback", [bad(7), bad(8), bad(9)], "stopped"),
    ],
)
def test_what_is_done_next(policy: str, earlier: list[BadStepRecord], expected: str) -> None:
    assert expected == choose_action(10, HERE, earlier, policy=OnBadStep(policy), most=3)


@pytest.mark.parametrize(
    "record, expected",
    [
        (
            bad(1040),
            "step 1,040 has a loss of 9; the 40 healthy losses before it are about 2, and up to 3 would have passed "
            "(samples 80 to 87 of the order); training went back to a checkpoint, to compute it again",
        ),
        (
            bad(loss=None, limit=None, usual=None, is_transient=True, data=[]),
            "step 10 has a non-finite loss (unknown samples); fine when it was computed again: a passing fault",
        ),
    ],
    ids=["spike", "passing fault"],
)
def test_a_record_in_words(record: BadStepRecord, expected: str) -> None:
    assert expected == record_in_words(record)


def test_every_action_has_words() -> None:
    assert len(BadStepAction) == len({record_in_words(bad(action=each)) for each in BadStepAction})
    assert "samples 0 to 3, 8 to 8 of the order" == data_in_words([DataWindow(0, 4), DataWindow(8, 9)])


def session(losses: dict[int, float], *records: BadStepRecord) -> TrainingSession:
    lines = [
        MetricsSnapshot(
            step=step,
            timestamp=1000.0,
            wall_clock_hours=0.0,
            loss=loss,
            loss_components={},
            learning_rate=0.1,
            samples_processed=8 * step,
            tokens_processed=step,
        )
        for step, loss in losses.items()
    ]
    return TrainingSession(
        session_id="training_1",
        start_time=0.0,
        config={},
        config_hash="a",
        total_steps_target=100,
        metrics_history=lines,
        bad_steps=list(records),
    )


def test_a_bad_step_that_was_computed_again_with_another_loss_is_healthy() -> None:
    again = session({8: 2.0, 9: math.nan, 10: 9.0, 11: 2.5}, bad(9, loss=None), bad(10, loss=9.0), bad(11, loss=70.0))

    assert [(8, 2.0), (11, 2.5)] == healthy_losses(again, up_to_step=20)
    assert [(8, 2.0)] == healthy_losses(again, up_to_step=10)
    assert [False, True, True, False] == [is_bad_at(again, line) for line in again.metrics_history]
    assert not is_bad_at(again, None)


def test_a_step_whose_update_was_skipped_has_left_no_mark_on_the_weights() -> None:
    skipped = session({10: 9.0}, bad(10, action=BadStepAction.SKIPPED_UPDATE))

    assert not is_bad_at(skipped, skipped.metrics_history[0])


def test_the_first_step_with_other_samples_is_the_one_whose_samples_are_left_out() -> None:
    losses = {9: 2.0, 10: 9.0, 11: 2.0}

    assert 10 == first_step_without_data(session(losses, bad(10, action=BadStepAction.SKIPPED_DATA)))
    assert None is first_step_without_data(session(losses, bad(10)))
    assert None is first_step_without_data(session(losses | {10: 2.1}, bad(10, action=BadStepAction.SKIPPED_DATA)))


@pytest.mark.parametrize(
    "counts, expected",
    [
        ((1, 0, 0), "1 found"),
        ((2, 1, 1), "2 found, 1 rollback, 1 sample left out"),
        ((2000, 4, 1200), "2,000 found, 4 rollbacks, 1,200 samples left out"),
    ],
)
def test_counts_in_words(counts: tuple[int, int, int], expected: str) -> None:
    found, rollbacks, left_out = counts

    assert expected == counts_in_words(found=found, rollbacks=rollbacks, left_out=left_out)
