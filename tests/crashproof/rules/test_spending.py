from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from crashproof.records.events import (
    AnswersRecovered,
    AttemptEnded,
    AttemptStarted,
    DamageFound,
    JobAdvanced,
    SessionStarted,
    SpendingReported,
)
from crashproof.records.requests import (
    AnswerMarked,
    AnswerRecord,
    OpenRequest,
    RequestLine,
    RequestLost,
    RequestRefused,
    RequestSent,
    Spending,
)
from crashproof.records.session import TrainingSession
from crashproof.rules.session import apply_answer, apply_event, apply_request, begin_session
from crashproof.rules.spending import spending_of

BEGINNING = SessionStarted(
    timestamp=1.0,
    attempt=1,
    session_id="training_1",
    config={},
    config_hash="abc",
    total_steps=10,
    api_cost_before=Decimal("0.25"),
)


def started(attempt: int) -> AttemptStarted:
    return AttemptStarted(timestamp=1.0, attempt=attempt, host="box", pid=7, git_commit=None, wall_clock_hours=0.0)


def whose(attempt: int = 1, key: str = "k") -> dict[str, Any]:
    return {"timestamp": 1.0, "session_id": "training_1", "attempt": attempt, "prompt_hash": key}


def sent(request_id: str, most: str, *, attempt: int = 1) -> RequestSent:
    return RequestSent(**whose(attempt), request_id=request_id, model="m", most=Decimal(most))


def refused(request_id: str) -> RequestRefused:
    return RequestRefused(**whose(), request_id=request_id, reason="HTTP 400")


def lost(request_id: str) -> RequestLost:
    return RequestLost(**whose(), request_id=request_id, reason="the connection was lost")


def answer(request_id: str, cost: str, **more: Any) -> AnswerRecord:
    return AnswerRecord(**whose(), cost=Decimal(cost), response={}, request_id=request_id, **more)


def spent(*records: Any) -> Spending:
    session = begin_session(BEGINNING)
    for record in records:
        take(session, record)
    return spending_of(session)


def take(session: TrainingSession, record: Any) -> None:
    if isinstance(record, RequestLine):
        apply_request(session, record)
    elif isinstance(record, AnswerRecord):
        apply_answer(session, record)
    else:
        apply_event(session, record)


def test_a_session_begins_with_what_those_before_it_have_spent():
    assert Spending(spent_before=Decimal("0.25")) == spent()
    assert Decimal("0.25") == spent().committed


def test_a_request_that_is_sent_is_reserved_at_its_most():
    spending = spent(started(1), sent("r1", "0.10"), sent("r2", "0.02"))

    assert (Decimal("0.12"), 0, 0) == (spending.reserved, spending.requests_in_doubt, spending.in_doubt)
    assert Decimal("0.37") == spending.committed


def test_an_answer_costs_what_it_cost_and_frees_what_was_reserved():
    spending = spent(started(1), sent("r1", "0.10"), answer("r1", "0.03"))

    assert (1, Decimal("0.03"), 0) == (spending.answers, spending.spent, spending.reserved)
    assert Decimal("0.28") == spending.committed


def test_a_request_that_was_refused_costs_nothing():
    spending = spent(started(1), sent("r1", "0.10"), refused("r1"))

    assert Spending(spent_before=Decimal("0.25")) == spending


def test_a_request_that_was_lost_is_in_doubt_at_its_most():
    spending = spent(started(1), sent("r1", "0.10"), lost("r1"))

    assert (1, Decimal("0.10"), 0) == (spending.requests_in_doubt, spending.in_doubt, spending.reserved)
    assert Decimal("0.35") == spending.committed


def test_a_lost_request_whose_beginning_is_lost_too_is_counted_without_a_price():
    spending = spent(started(1), lost("r1"))

    assert (1, 0) == (spending.requests_in_doubt, spending.in_doubt)


def test_what_an_earlier_attempt_left_open_is_in_doubt():
    records = [started(1), sent("r1", "0.10"), started(2), sent("r2", "0.02", attempt=2)]

    assert (1, Decimal("0.10"), Decimal("0.02")) == (
        spent(*records).requests_in_doubt,
        spent(*records).in_doubt,
        spent(*records).reserved,
    )


def test_what_is_committed_does_not_change_when_an_attempt_dies():
    records = [started(1), sent("r1", "0.10")]

    assert spent(*records).committed == spent(*records, started(2)).committed


def test_what_a_run_that_nobody_writes_left_open_is_in_doubt():
    session = begin_session(BEGINNING)
    for record in (started(1), sent("r1", "0.10")):
        take(session, record)

    assert (Decimal("0.10"), 0) == (spending_of(session).reserved, spending_of(session).in_doubt)
    dead = spending_of(session, is_alive=False)
    assert (0, Decimal("0.10"), 1) == (dead.reserved, dead.in_doubt, dead.requests_in_doubt)
    assert spending_of(session).committed == dead.committed


def test_what_an_attempt_left_open_that_ended_in_good_order_is_in_doubt():
    ended = AttemptEnded(timestamp=2.0, attempt=1, how="completed", error=None, wall_clock_hours=0.0)
    spending = spent(started(1), sent("r1", "0.10"), ended)

    assert (0, Decimal("0.10")) == (spending.reserved, spending.in_doubt)


def test_a_request_before_any_attempt_is_known_is_under_way():
    session = begin_session(BEGINNING)
    session.api_requests_open["r1"] = OpenRequest(attempt=1, most=Decimal("0.10"))

    assert (Decimal("0.10"), 0) == (spending_of(session).reserved, spending_of(session).in_doubt)


def test_a_late_answer_settles_a_request_of_an_earlier_attempt():
    spending = spent(started(1), sent("r1", "0.10"), started(2), answer("r1", "0.03"))

    assert (0, 0, Decimal("0.03")) == (spending.requests_in_doubt, spending.in_doubt, spending.spent)


def test_an_answer_of_no_use_is_spent_and_wasted():
    spending = spent(started(1), sent("r1", "0.10"), answer("r1", "0.03", problem="no JSON", raw="x"))

    assert (1, 1, Decimal("0.03"), Decimal("0.03")) == (
        spending.answers,
        spending.answers_bad,
        spending.spent,
        spending.wasted,
    )


def test_an_answer_that_turned_out_to_be_of_no_use_is_wasted():
    marked = AnswerMarked(**whose(), problem="too short", cost=Decimal("0.03"))
    spending = spent(started(1), answer("r1", "0.03"), marked)

    assert (1, Decimal("0.03"), Decimal("0.03")) == (spending.answers_bad, spending.spent, spending.wasted)


def test_a_damaged_answer_is_wasted_at_the_price_that_can_still_be_read():
    def damage(cost: Decimal | None) -> DamageFound:
        return DamageFound(
            timestamp=1.0,
            attempt=1,
            file="api_recovery.jsonl",
            offset=0,
            num_bytes=10,
            reason="its checksum does not match",
            moved_to="progress/set_aside/api_recovery.jsonl",
            cost=cost,
        )

    assert Decimal("0.03") == spent(damage(Decimal("0.03")), damage(None)).wasted


def test_answers_that_were_served_have_saved_their_price():
    served = AnswersRecovered(timestamp=1.0, attempt=1, count=3, cost=Decimal("0.09"))
    spending = spent(served)

    assert (3, Decimal("0.09"), 0) == (spending.answers_served, spending.saved, spending.spent)


def test_what_a_shared_store_says_takes_the_place_of_what_was_counted_before():
    told = Spending(
        answers=5,
        answers_served=2,
        answers_bad=1,
        requests_in_doubt=1,
        spent=Decimal("0.5"),
        saved=Decimal("0.2"),
        in_doubt=Decimal("0.1"),
        wasted=Decimal("0.05"),
    )
    reports = [SpendingReported(timestamp=1.0, attempt=1, spending=each) for each in (Spending(answers=1), told)]

    assert msgspec.structs.replace(told, spent_before=Decimal("0.25")) == spent(*reports)


def test_how_far_a_job_has_come_costs_nothing():
    advanced = JobAdvanced(timestamp=1.0, attempt=1, done=3)

    assert spent(answer("r1", "0.03")) == spent(answer("r1", "0.03"), advanced)


def test_sums_of_money_are_exact():
    records = [answer(f"r{number}", "0.000000000001") for number in range(10)]

    assert "0.100000000010" == str(spent(answer("r", "0.1"), *records).spent)
