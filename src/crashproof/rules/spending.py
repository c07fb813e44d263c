"""What a run has spent on teachers."""

from __future__ import annotations

from decimal import Decimal

from crashproof.records.requests import Spending
from crashproof.records.session import TrainingSession

__all__ = ["PICO_DIGITS", "Spending", "as_dollars", "spending_of"]

PICO_DIGITS = 12
"""Decimals of a US dollar that sums are kept with."""


def as_dollars(pico: int) -> Decimal:
    """Convert whole pico-dollars to US dollars, exactly."""
    # Built from text: arithmetic would round to the precision of the caller's context.
    whole, rest = divmod(pico, 10**PICO_DIGITS)
    return Decimal(f"{whole}.{rest:0{PICO_DIGITS}}".rstrip("0").rstrip("."))


def spending_of(session: TrainingSession, *, is_alive: bool = True) -> Spending:
    """The spending in a session's records.

    A request without an outcome is in flight if the newest attempt sent it and is still alive; otherwise in doubt.
    """
    newest = max(session.attempts, key=lambda each: each.attempt, default=None)
    attempt = newest.attempt if newest is not None else 1
    is_alive = is_alive and (newest is None or newest.end is None)
    in_flight = Decimal(0)
    unresolved = Decimal(0)
    num_unresolved = 0
    for request in session.api_requests_open.values():
        if request.attempt < attempt or not is_alive:
            unresolved += request.most
            num_unresolved += 1
        else:
            in_flight += request.most
    return Spending(
        answers=session.api_responses_saved,
        answers_served=session.api_responses_recovered,
        answers_bad=session.api_responses_bad,
        requests_in_doubt=session.api_requests_in_doubt + num_unresolved,
        spent=session.api_cost,
        saved=session.api_cost_saved,
        in_doubt=session.api_cost_in_doubt + unresolved,
        wasted=session.api_cost_wasted,
        reserved=in_flight,
        spent_before=session.api_cost_before,
    )
