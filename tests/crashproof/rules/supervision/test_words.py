from __future__ import annotations

from typing import Any

from crashproof.records.supervision import Action, EndCause, EndedProcess, Supervision
from crashproof.rules.supervision.words import supervision_in_words


def newest(**given: Any) -> EndedProcess:
    usual = {
        "timestamp": 100.0,
        "started_at": 1.0,
        "attempt": 2,
        "cause": EndCause.HANG,
        "details": "no progress for 15 min",
        "action": Action.RESTART,
        "reason": "restart 1 of 5 without progress",
        "stacks": "progress/stacks/attempt_2.txt",
    }
    return EndedProcess(**(usual | given))


def test_without_a_bad_end_there_is_nothing_to_say():
    assert [] == supervision_in_words(Supervision())
    assert [] == supervision_in_words(Supervision(ends={"completed": 1}, newest=newest(cause=EndCause.COMPLETED)))


def test_causes_costs_and_the_newest_end():
    found = supervision_in_words(
        Supervision(
            restarts=2,
            ends={"out_of_memory": 1, "hang": 1, "completed": 1},
            hung_seconds=900.0,
            lost_seconds=120.0,
            notices=2,
            notices_saved=1,
            newest=newest(),
        )
    )

    assert [
        "2 restarts: 1 hang, 1 out of memory; 2 min 0 s of training lost; 15 min 0 s hung; "
        "1 of 2 requests to stop led to a checkpoint",
        "newest: hang: no progress for 15 min; restarted: restart 1 of 5 without progress; "
        "stacks in progress/stacks/attempt_2.txt",
    ] == found


def test_a_run_that_ended_well_after_one_restart():
    found = supervision_in_words(
        Supervision(restarts=1, ends={"signal": 1, "completed": 1}, newest=newest(cause=EndCause.COMPLETED))
    )

    assert ["1 restart: 1 signal"] == found
    assert ["0 restarts: 1 signal"] == supervision_in_words(Supervision(ends={"signal": 1}))


def test_an_end_without_stacks():
    found = supervision_in_words(
        Supervision(ends={"error": 1}, newest=newest(cause=EndCause.ERROR, action=Action.STOP, stacks=None))
    )

    assert found[1].endswith("not restarted: restart 1 of 5 without progress")
