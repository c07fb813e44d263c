from __future__ import annotations

from typing import Any

import pytest

from crashproof.records.supervision import Action, EndCause
from crashproof.rules.supervision.restarts import Life, RestartRules, decide, lives_in_vain

RULES = RestartRules(max_restarts=3, same_failures=3)


def life(step: int | None = 5, *, verified: tuple[int | None, int | None] = (0, 0), **given: Any) -> Life:
    usual = {"cause": EndCause.EXCEPTION, "details": "ValueError", "exit_code": 1, "seconds": 10.0}
    return Life(step=step, verified_before=verified[0], verified_after=verified[1], **(usual | given))


@pytest.mark.parametrize(
    "newest, action",
    [
        pytest.param(life(cause=EndCause.COMPLETED, exit_code=0), Action.FINISH, id="complete"),
        pytest.param(life(cause=EndCause.PREEMPTION, exit_code=75), Action.STOP, id="asked-to-stop"),
        pytest.param(life(cause=EndCause.ENDED_EARLY, exit_code=0), Action.STOP, id="early"),
        pytest.param(life(cause=EndCause.ERROR, exit_code=2), Action.STOP, id="2"),
        pytest.param(life(cause=EndCause.ERROR, exit_code=127), Action.STOP, id="not-found"),
        pytest.param(life(exit_code=1), Action.RESTART, id="1"),
        pytest.param(life(cause=EndCause.START_AGAIN, exit_code=75), Action.RESTART, id="75"),
        pytest.param(life(cause=EndCause.SIGNAL, exit_code=None), Action.RESTART, id="a-signal"),
        pytest.param(life(cause=EndCause.HANG, exit_code=None), Action.RESTART, id="a-hang"),
    ],
)
def test_what_follows_the_first_end(newest, action):
    decision = decide([newest], RULES)

    assert action == decision.action
    assert not decision.has_given_up


def test_only_the_codes_that_were_asked_for_restart():
    rules = RestartRules(codes=frozenset({75}))

    assert Action.STOP == decide([life(exit_code=1)], rules).action
    assert Action.RESTART == decide([life(exit_code=75)], rules).action
    assert Action.RESTART == decide([life(exit_code=None, cause=EndCause.SIGNAL)], rules).action


def test_equal_failures_at_one_step_stop_with_what_they_have_in_common():
    lives = [life(details="bad address 0x7f12"), life(details="bad address 0xbeef"), life(details="bad address 0x1")]
    decision = decide(lives, RULES)

    assert (Action.STOP, True) == (decision.action, decision.has_given_up)
    assert "3 lives in a row ended in the same way at step 5: bad address 0x1" == decision.reason


def test_equal_failures_at_other_steps_go_on_until_the_limit():
    lives = [life(step) for step in (1, 2, 3)]

    assert Action.RESTART == decide(lives, RULES).action
    assert decide([*lives, life(4)], RULES).has_given_up


def test_equal_failures_before_a_run_is_open_name_no_step():
    assert "in the same way: ValueError" in decide([life(None, verified=(None, None))] * 3, RULES).reason


def test_progress_is_what_the_limit_counts_from():
    lives = [life(step, verified=(step, step + 10)) for step in range(0, 1000, 10)]

    assert Action.RESTART == decide(lives, RULES).action
    assert [] == lives_in_vain(lives)


def test_the_first_life_of_equal_failures_may_have_made_progress():
    lives = [life(verified=(0, 3)), life(verified=(3, 3)), life(verified=(3, 3))]

    assert decide(lives, RULES).has_given_up


def test_something_new_is_tried_as_often_as_the_first():
    lives = [life(), life(is_new_trial=True), life()]

    assert Action.RESTART == decide(lives, RULES).action
    assert 1 == len(lives_in_vain(lives))


@pytest.mark.parametrize("seconds, expected", [(3599.0, False), (3600.0, True)])
def test_a_command_without_a_run_makes_progress_by_living_long(seconds, expected):
    assert expected is life(None, verified=(None, None), seconds=seconds).made_progress


def test_a_life_that_opened_the_first_run_may_make_progress():
    assert life(verified=(None, 3)).made_progress
