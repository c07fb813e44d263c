"""What a run has paid its teachers."""

from __future__ import annotations

from decimal import Decimal

from holdfast.records import Spending, TrainingSession

__all__ = ["Spending", "spending_of"]


def spending_of(session: TrainingSession) -> Spending:
    """What a session's records say; a request of an earlier attempt without an end is in doubt."""
    attempt = max((each.attempt for each in session.attempts), default=1)
    under_way = Decimal(0)
    left_open = Decimal(0)
    num_left = 0
    for request in session.api_requests_open.values():
        if request.attempt < attempt:
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
