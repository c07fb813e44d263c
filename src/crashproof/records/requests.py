"""Requests to a teacher, and their answers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from crashproof.patterns import LazyPattern
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

_COST = LazyPattern(rb'"cost":(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)[,}]')


def price_left_in(damaged: bytes) -> Decimal | None:
    """The price that can still be read in the line of a damaged answer, or None."""
    found = _COST.search(damaged)
    return None if found is None else Decimal(found.group(1).decode())


class AnswerRecord(Struct, frozen=True, kw_only=True, tag_field="v", tag=FORMAT_VERSION):
    """One paid teacher answer: one line of `api_recovery.jsonl`."""

    timestamp: float
    session_id: str
    attempt: int
    prompt_hash: str
    """The key to look it up by; for a teacher's answer, the SHA-256 of the request."""
    cost: Decimal
    """US dollars, exact."""
    response: dict[str, Any]
    """As received; empty if the body was not a JSON object."""
    nonfinite: dict[str, str] | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    """The request in `api_requests.jsonl` that it answers; absent if the caller sent the request by itself."""
    request: dict[str, Any] | UnsetType = UNSET
    """What was requested: `base_url`, `body`, `sample`."""
    raw: str | UnsetType = UNSET
    """The body verbatim, if it was not a JSON object."""
    problem: str | UnsetType = UNSET
    """Why the answer is unusable; it is kept all the same, and not paid for again."""


class RequestEvent(Struct, frozen=True, kw_only=True, tag_field="event"):
    """The fields of every line of `api_requests.jsonl`."""

    timestamp: float
    """Seconds since 1970."""
    session_id: str
    attempt: int
    prompt_hash: str
    v: int = FORMAT_VERSION


class RequestSent(RequestEvent, frozen=True, kw_only=True, tag="request_sent"):
    """A request is about to be sent; durable before its first byte leaves.

    Until an answer, a refusal or a loss is recorded, the request is in doubt: it may have been paid for.
    """

    request_id: str
    model: str
    most: Decimal
    """The most that it can cost, in US dollars; 0 if no price is known."""


class RequestRefused(RequestEvent, frozen=True, kw_only=True, tag="request_refused"):
    """The teacher refused the request or could not be reached: nothing was paid."""

    request_id: str
    reason: str


class RequestLost(RequestEvent, frozen=True, kw_only=True, tag="request_lost"):
    """No answer arrived, although one may have been computed: the request is in doubt."""

    request_id: str
    reason: str


class AnswerMarked(RequestEvent, frozen=True, kw_only=True, tag="answer_marked"):
    """A kept answer turned out to be unusable."""

    request_id: str = ""
    """The request that it answered; empty if the caller sent the request by itself."""
    problem: str
    cost: Decimal
    """What was paid for it, in US dollars."""


RequestLine = RequestSent | RequestRefused | RequestLost | AnswerMarked


class Spending(Struct, frozen=True, kw_only=True):
    """What was paid to teachers; amounts are exact, in US dollars."""

    answers: int = 0
    """Paid for and kept."""
    answers_served: int = 0
    """Served from the store instead of being paid for again."""
    answers_bad: int = 0
    """Kept, but unusable."""
    requests_in_doubt: int = 0
    """Possibly paid for, and never received."""
    spent: Decimal = Decimal(0)
    saved: Decimal = Decimal(0)
    in_doubt: Decimal = Decimal(0)
    """The most that the requests in doubt can have cost."""
    wasted: Decimal = Decimal(0)
    """The part of `spent` that went into unusable answers."""
    reserved: Decimal = Decimal(0)
    """The most that the requests in flight can cost."""
    spent_before: Decimal = Decimal(0)
    """By earlier sessions in the same folder, including their requests in doubt."""

    @property
    def committed(self) -> Decimal:
        """The most that is spent once all requests in flight are paid for; a budget limits this."""
        return self.spent_before + self.spent + self.in_doubt + self.reserved


class OpenRequest(Struct, frozen=True, kw_only=True):
    """A request that was about to be sent, with no outcome yet."""

    attempt: int
    most: Decimal
    """The most that it can cost, in US dollars."""
