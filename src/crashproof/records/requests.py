"""Requests to a teacher, and their answers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from crashproof.records.version import FORMAT_VERSION

__all__ = [
    "AnswerMarked",
    "AnswerRecord",
    "OpenRequest",
    "RequestEvent",
    "RequestLine",
    "RequestLost",
    "RequestRefused",
    "RequestSent",
    "Spending",
    "price_left_in",
]

_COST = re.compile(rb'"cost":(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)[,}]')


def price_left_in(damaged: bytes) -> Decimal | None:
    """The price that a broken answer's line still names, or None."""
    found = _COST.search(damaged)
    return None if found is None else Decimal(found.group(1).decode())


class AnswerRecord(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """One paid teacher answer: one line of `api_recovery.jsonl`."""

    timestamp: float
    session_id: str
    attempt: int
    prompt_hash: str
    """The key that it is asked for by: of a teacher's answer, the SHA-256 of the request."""
    cost: Decimal
    """US dollars, exact."""
    response: dict[str, Any]
    """As it came; empty where the body was no JSON object."""
    nonfinite: dict[str, str] | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    """The request in `api_requests.jsonl` that it settles; absent where the caller asked the teacher by itself."""
    request: dict[str, Any] | UnsetType = UNSET
    """What was asked: `base_url`, `body`, `sample`."""
    raw: str | UnsetType = UNSET
    """The body to the letter, where it was no JSON object."""
    problem: str | UnsetType = UNSET
    """Why it cannot be used; it is kept all the same, and not paid for again."""


class RequestEvent(Struct, frozen=True, kw_only=True, tag_field="event"):
    """What every line of `api_requests.jsonl` has."""

    timestamp: float
    """Seconds since 1970."""
    session_id: str
    attempt: int
    prompt_hash: str
    v: int = FORMAT_VERSION


class RequestSent(RequestEvent, frozen=True, kw_only=True, tag="request_sent"):
    """A request is about to be sent; on disk before its first byte leaves.

    Without an answer or one of the two lines below it is in doubt: perhaps it was paid for.
    """

    request_id: str
    model: str
    most: Decimal
    """The most that it can cost, in US dollars; 0 where no price is known."""


class RequestRefused(RequestEvent, frozen=True, kw_only=True, tag="request_refused"):
    """The teacher said no, or was never reached: nothing was paid."""

    request_id: str
    reason: str


class RequestLost(RequestEvent, frozen=True, kw_only=True, tag="request_lost"):
    """No answer came, and one may have been computed: in doubt."""

    request_id: str
    reason: str


class AnswerMarked(RequestEvent, frozen=True, kw_only=True, tag="answer_marked"):
    """A kept answer turned out to be of no use."""

    request_id: str = ""
    """The request that brought it; empty where the caller asked the teacher by itself."""
    problem: str
    cost: Decimal
    """What was paid for it, in US dollars."""


RequestLine = RequestSent | RequestRefused | RequestLost | AnswerMarked


class Spending(Struct, frozen=True, kw_only=True):
    """What was paid to teachers; sums are exact, in US dollars."""

    answers: int = 0
    """Paid for and kept."""
    answers_served: int = 0
    """Given from the store instead of being paid for again."""
    answers_bad: int = 0
    """Of those kept, the ones that cannot be used."""
    requests_in_doubt: int = 0
    """Perhaps paid for, and never received."""
    spent: Decimal = Decimal(0)
    saved: Decimal = Decimal(0)
    in_doubt: Decimal = Decimal(0)
    """The most that the requests in doubt can have cost."""
    wasted: Decimal = Decimal(0)
    """The part of `spent` that went into answers of no use."""
    reserved: Decimal = Decimal(0)
    """The most that the requests under way can cost."""
    spent_before: Decimal = Decimal(0)
    """By earlier sessions in the same folder, what they left in doubt included."""

    @property
    def committed(self) -> Decimal:
        """The most that has been spent once all that is under way is paid: what a budget is held against."""
        return self.spent_before + self.spent + self.in_doubt + self.reserved


class OpenRequest(Struct, frozen=True, kw_only=True):
    """A request that was about to be sent and has no end yet."""

    attempt: int
    most: Decimal
    """US dollars."""
