"""What is done about a bad step."""

from __future__ import annotations

from typing import Any

import pytest

from crashproof.records.bad_steps import BadStepRecord, DataWindow
from crashproof.records.states import BadStepAction, OnBadStep
from crashproof.rules.bad_steps.finding import data_in_words, record_in_words
from crashproof.rules.bad_steps.reaction import choose_action

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
