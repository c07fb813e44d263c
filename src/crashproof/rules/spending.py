"""What a run has paid its teachers."""

from __future__ import annotations

from decimal import Decimal

from crashproof.records.requests import Spending
from crashproof.records.session import TrainingSession

__all__ = ["Spending", "spending_of"]


def spending_of(session: TrainingSession, *, is_alive: bool = True) -> Spending:
    """What a session's records say.

    A request without an end is under way in the newest attempt, as long as that is alive; otherwise it is in doubt.
    """
    newest = max(session.attempts, key=lambda each: each.attempt, default=None)
    attempt = newest.attempt if newest is not None else 1
    is_alive = is_alive and (newest is None or newest.end is None)
    under_way = Decimal(0)
    left_open = Decimal(0)
    num_left = 0
    for request in session.api_requests_open.values():
        if request.attempt < attempt or not is_alive:
            left_open += request.most
            num_left += 1
        else:
            under_way += request.most
    return Spending(
        answers=session.api_responses_saved,
        answers_served=session.api_responses_recovered,
        answers_bad=session.api_responses_bad,
        requests_in_doubt=session.api_requests_in_doubt + num_left,
        spent=session.api_cost,
        saved=session.api_cost_saved,
        in_doubt=session.api_cost_in_doubt + left_open,
        wasted=session.api_cost_wasted,
        reserved=under_way,
        spent_before=session.api_cost_before,
    )
