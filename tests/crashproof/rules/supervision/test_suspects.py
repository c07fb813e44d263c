from __future__ import annotations

from typing import Any

import pytest

from crashproof.records.supervision import EndCause
from crashproof.rules.supervision.restarts import Life
from crashproof.rules.supervision.suspects import is_suspect

NEWEST, OTHER = ("checkpoint_6.pt", 6.0), ("checkpoint_3.pt", 3.0)


def life(resumed_from: tuple[str, float] | None = NEWEST, **given: Any) -> Life:
    usual = {"cause": EndCause.EXCEPTION, "made_step": False}
    return Life(
        resumed_from=resumed_from,
        details="ValueError",
        exit_code=1,
        step=6,
        verified_before=6,
        verified_after=6,
        seconds=1.0,
        **(usual | given),
    )


@pytest.mark.parametrize(
    "lives, num_suspects, expected",
    [
        pytest.param([life()], 0, False, id="once"),
        pytest.param([life(), life()], 0, True, id="twice"),
        pytest.param([life(OTHER), life()], 0, False, id="from-different-ones"),
        pytest.param([life(), life(made_step=True)], 0, False, id="after-a-step"),
        pytest.param([life(), life(cause=EndCause.PREEMPTION)], 0, False, id="asked-to-stop"),
        pytest.param([life(), life(cause=EndCause.HANG)], 0, True, id="hung-as-well"),
        pytest.param([life(None), life(None)], 0, False, id="without-a-checkpoint"),
        pytest.param([life(), life()], 1, True, id="a-second-one"),
        pytest.param([life(), life()], 2, False, id="then-it-is-not-the-checkpoints"),
    ],
)
def test_a_checkpoint_is_suspect_after_two_resumes_that_died(lives, num_suspects, expected):
    assert expected is is_suspect(lives, num_suspects=num_suspects)
